"""Tables of columns, read from CSV, Parquet and NPZ files by pandas."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.config.schema import Name
from nas.errors import UserError, needed

Array = NDArray[Any]
Columns = Name | Sequence[Name] | None
ENDINGS = (".csv", ".parquet", ".npz")
COLUMNS = f"of {', '.join(ENDINGS)}"


def read_table(path: Path, key: str = "path") -> Any:
    """A `pandas.DataFrame`, its columns named by texts.

    Args:
        path: a file whose name ends in one of `ENDINGS`; an NPZ file has an array a column.
        key: of the option that names it, for messages.

    Raises:
        UserError: pandas is missing, or the file cannot be read or is empty.
    """
    pandas = needed("pandas", "tables", "a table")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise wrong(path, f"is no table: its name must end in {', '.join(ENDINGS)}", key)
    try:
        if ending == ".npz":
            with np.load(path, allow_pickle=False) as file:
                table = pandas.DataFrame({name: file[name] for name in file.files})
        elif ending == ".parquet":
            needed("pyarrow", "tables", "a Parquet file")
            table = pandas.read_parquet(path, engine="pyarrow")
        else:
            table = pandas.read_csv(path)
    except UserError:
        raise
    except FileNotFoundError:
        raise wrong(path, "is no file", key) from None
    except Exception as error:  # of many libraries, each with kinds of its own
        raise wrong(path, f"cannot be read ({' '.join(str(error).split())[:200]})", key) from None
    if not len(table):
        raise wrong(path, "has no rows", key)
    return table.rename(columns=str)


def column(table: Any, name: str, path: Path, key: str = "path") -> Any:
    """A column of that name.

    Raises:
        UserError: there is none.
    """
    if name not in table.columns:
        there = ", ".join(map(str, table.columns[:12])) + (
            ", ..." if len(table.columns) > 12 else ""
        )
        raise wrong(path, f"has no column {name!r}, it has {there}", key)
    return table[name]


def complete(table: Any, name: str, path: Path, key: str = "path") -> Any:
    """A column that lacks no value.

    Raises:
        UserError: it lacks one, or there is no such column.
    """
    values = column(table, name, path, key)
    if values.isna().any():
        row = int(values.isna().to_numpy().argmax())
        raise wrong(path, f"column {name!r} has no value in row {row}: leave such rows out", key)
    return values


def targets_of(
    tables: Sequence[tuple[Path, Any]], names: Sequence[str], option: str, key: str = "path"
) -> tuple[list[Array], tuple[str, ...]]:
    """Targets ``(rows, K)`` of each table, int64 or float64; names of classes, if they are texts.

    Args:
        tables: each with the file that it is from.
        names: of K columns: one of texts or numbers, or several of numbers.
        option: that names the columns, and `key`: that names the file, for messages.
    """
    columns = [[complete(table, name, path, key) for name in names] for path, table in tables]
    kinds = {values.dtype.kind for own in columns for values in own}
    if kinds <= set("biuf"):
        kind = np.float64 if "f" in kinds else np.int64
        rows = [np.zeros((0, len(table))) for _, table in tables]
        made = [np.stack(own) if own else none for own, none in zip(columns, rows, strict=True)]
        return [own.T.astype(kind) for own in made], ()
    if len(names) > 1:
        text = next(
            n
            for own in columns
            for n, v in zip(names, own, strict=True)
            if v.dtype.kind not in "biuf"
        )
        raise UserError(
            f"data.{option}: several targets must be numbers, and column {text!r} has texts."
        )
    texts = [own[0].astype(str).to_numpy(dtype=str) for own in columns]
    classes, codes = np.unique(np.concatenate(texts), return_inverse=True)
    ends = np.cumsum([len(own) for own in texts])[:-1]
    return [own[:, None] for own in np.split(codes.reshape(-1), ends)], tuple(map(str, classes))


def wrong(path: Path, why: str, key: str = "path") -> UserError:
    """What is wrong with a file."""
    return UserError(f"data.{key}={path}: {why}.")

"""Tables of columns, read from CSV, Parquet and NPZ files by pandas."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.config.schema import Name
from nas.errors import UserError, needed

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


def wrong(path: Path, why: str, key: str = "path") -> UserError:
    """What is wrong with a file."""
    return UserError(f"data.{key}={path}: {why}.")

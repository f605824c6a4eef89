"""The profile of whole networks from a table of (architecture, latency) rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import UserError
from nas.latency.network import NetworkModel, network_model_from_json
from nas.latency.rows import read_rows
from nas.latency.rows_fit import KINDS, fit_rows
from nas.latency.stored import Stored
from nas.run import write_json

SCHEMA = 1
KIND = "rows"  # in the file, where a profile of units has no such field


@dataclass(frozen=True)
class TableProfile:
    """A model of whole networks, fitted to a table.

    Attributes:
        errors: kind of model -> mean relative error on rows left out, by cross-validation.
        rows: how many of the table were used; `dropped` were implausible.
    """

    space: str
    device: str
    model: NetworkModel
    errors: Mapping[str, float]
    chosen: str
    rows: int
    dropped: int

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "unit": "s",
            "space": self.space,
            "device": self.device,
            "model": self.model.to_json(),
            "validation": {"chosen": self.chosen, "errors": dict(self.errors)},
            "rows": self.rows,
            "dropped": self.dropped,
        }

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "TableProfile":
        """Read what `to_json` wrote.

        Raises:
            UserError: another schema, or a field that is missing or of the wrong type.
        """
        stored = Stored(raw, where)
        if raw.get("schema") != SCHEMA:
            raise UserError(
                f"{where} has schema {raw.get('schema')!r}, this version of nas reads {SCHEMA}"
            )
        validation = stored.child("validation")
        return cls(
            stored.text("space"),
            stored.text("device"),
            network_model_from_json(raw.get("model")),
            validation.table("errors"),
            validation.text("chosen"),
            int(stored.number("rows")),
            int(stored.number("dropped")),
        )

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.to_json())


def fit_table(
    path: Path,
    column: str,
    unit: str,
    space: str,
    device: str,
    options: Mapping[str, Sequence[object]],
    additive: bool,
) -> TableProfile:
    """Fit the rows of a CSV file; see `nas.latency.rows.read_rows` and `rows_fit.fit_rows`.

    Args:
        options: the decisions of the space and their options.
        additive: only models that add up over decisions: the space is too large to write out.

    Raises:
        UserError: faulty lines, by number; or too few of them.
    """
    table = read_rows(path, column, unit, options)
    if additive:
        report = fit_rows(table, ("counts", "onehot"), ("nothing",))
    else:
        report = fit_rows(table, tuple(KINDS))
    dropped = len(report.dropped)
    chosen = f"{report.kind}, without {report.left_out}"
    used = len(table.seconds) - dropped
    return TableProfile(space, device, report.model, report.errors, chosen, used, dropped)

"""Measuring on a device without our code on it: files out, a table of seconds back."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas import reading
from nas.arch import Arch
from nas.cost.trace import Example
from nas.decision import decisions
from nas.errors import UserError
from nas.latency.executorch import pte_bytes
from nas.latency.features import features
from nas.latency.fit import Whole, fit_profile
from nas.latency.job import Measuring, Work, inputs_like, name_of, plain
from nas.latency.key import Conditions
from nas.latency.networks import indices
from nas.latency.onnx_runtime import check_installed, onnx_bytes
from nas.latency.profile import ROLES, About, Profile, UnitTime, read_json
from nas.latency.runtime import runtime
from nas.latency.stored import Stored
from nas.latency.unit import Unit
from nas.run import write_atomic, write_json

SCHEMA = 1
# Column of a CSV -> seconds of one of it.
COLUMNS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}
_SHOWN = 5  # faults of a CSV that a message lists

README = """\
# Measure these files

Each `.onnx`{pte} file is one unit of space {space!r}, or a whole network of it. Run each on the
device with its runtime at batch {batch}, {threads} thread(s), {dtype}: some 20 calls to warm up,
then 200 timed one by one, and take the 20th percentile. Inputs are random normal values; their
shapes are in `manifest.json`. Write one line for each file into a CSV,

    name,milliseconds
    {first},0.812

or `seconds` or `microseconds` in place of `milliseconds`. `names.csv` has every name. Then

    nas profile import_csv=times.csv device='NAME OF THE DEVICE' out=profile.json

with the CSV in this folder, beside `manifest.json`.
"""


def export(plan: Measuring, model: nn.Module, example: Example, folder: Path, pte: bool) -> int:
    """Write one file for each unit and each network, and what they are; the number of files.

    Raises:
        UserError: an exporter that is not installed, or a unit that it cannot write.
    """
    check_installed()
    ready = runtime("torch", "cpu", plan.conditions)
    work = Work(plan, model.eval(), example, ready)
    entries = dict(_entries(work))
    units = {name: entry.about for name, entry in entries.items() if "key" in entry.about}
    networks = {name: entry.about for name, entry in entries.items() if name not in units}
    for name, entry in entries.items():
        module, inputs = entry.make()
        write_atomic(folder / f"{name}.onnx", onnx_bytes(module, inputs))
        if pte:
            write_atomic(folder / f"{name}.pte", pte_bytes(module, inputs))
    about = {**work.about.to_json(), "device": plan.device or "", "machine": "", "versions": {}}
    about["runtime"] = "external"
    # Last: a folder with a manifest is a complete one.
    write_atomic(folder / "README.md", _readme(work, next(iter(entries)), pte))
    write_atomic(folder / "names.csv", "".join(f"{name}\n" for name in ("name", *entries)))
    content = {"schema": SCHEMA, "about": about, "units": units, "networks": networks}
    write_json(folder / "manifest.json", content)
    return len(entries) * (2 if pte else 1)


@dataclass(frozen=True)
class _Entry:
    about: Mapping[str, Any]
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def _entries(work: Work) -> Iterator[tuple[str, _Entry]]:
    conditions = work.plan.conditions
    for key, unit in work.units.to_measure.items():
        inputs = inputs_like(unit.inputs, unit.dtypes, conditions)
        described = {name: float(value) for name, value in features(unit.layers).items()}
        shapes = [list(x.shape) for x in inputs]
        about = {"key": key, "inputs": shapes, "features": described}
        yield (
            f"unit_{key.rpartition(' ')[2]}",
            _Entry(about, partial(_unit, unit, inputs, conditions)),
        )
    own, inputs = dict(decisions(work.model)), work.network_inputs()
    for role, archs in zip(ROLES, (work.calibration, work.validation), strict=True):
        for arch in archs:
            keys = list(work.units.of(indices(own, arch.choices)))
            about = {"choices": dict(arch.choices), "role": role, "keys": keys}
            about["inputs"] = [list(x.shape) for x in inputs]
            yield name_of(arch).replace(" ", "_"), _Entry(about, partial(_network, work, arch))


def _unit(
    unit: Unit, inputs: tuple[Tensor, ...], conditions: Conditions
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return plain(unit.module, conditions), inputs


def _network(work: Work, arch: Arch) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return work.network(arch), work.network_inputs()


def _readme(work: Work, first: str, pte: bool) -> str:
    conditions = work.plan.conditions
    return README.format(
        pte=" and `.pte`" if pte else "",
        space=work.space,
        batch=conditions.batch,
        threads=conditions.threads,
        dtype=conditions.dtype,
        first=first,
    )


def is_times(path: Path) -> bool:
    """Whether a CSV file is of an export's files; else it is a table of networks.

    Raises:
        UserError: it cannot be read.
    """
    rows = _rows(path)
    return (path.parent / "manifest.json").is_file() or bool(rows and "name" in rows[0][1])


def read_csv(path: Path, device: str | None) -> Profile:
    """The profile of times that were measured elsewhere.

    Args:
        path: the CSV; the manifest of the export lies beside it.
        device: its name; by default the one given at the export.

    Raises:
        UserError: no manifest, or lines that are missing, double, unknown or no times, by number.
    """
    manifest_path = path.parent / "manifest.json"
    if not manifest_path.is_file():
        raise UserError(
            f"there is no {manifest_path}: put the CSV into the folder that "
            "`nas profile export_to=FOLDER` wrote"
        )
    manifest = Stored(raw := read_json(manifest_path), str(manifest_path))
    if raw.get("schema") != SCHEMA:
        raise UserError(f"{manifest_path} has schema {raw.get('schema')!r}, not {SCHEMA}")
    manifest.child("units"), manifest.child("networks")
    about = About.from_json(raw.get("about"), str(manifest_path))
    name = device or about.device
    if not name:
        raise UserError("import_csv= needs the name of the device that was measured: device=NAME")
    times = _times(path, [*raw["units"], *raw["networks"]])
    try:
        units = {
            row["key"]: UnitTime(times[name], row["features"]) for name, row in raw["units"].items()
        }
        wholes = [
            Whole(row["choices"], row["keys"], times[name], row["role"], {})
            for name, row in raw["networks"].items()
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{manifest_path} is damaged: {error!r}; export again") from None
    return fit_profile(replace(about, device=name), units, wholes, {})


def _times(path: Path, names: list[str]) -> dict[str, float]:
    """Name -> seconds."""
    rows = _rows(path)
    head = rows[0][1] if rows else []
    unit = next((cell for cell in head if cell in COLUMNS), None)
    if "name" not in head or unit is None:
        raise UserError(
            f"{path}, line 1: the columns must be name and one of {', '.join(COLUMNS)}, "
            f"got {', '.join(head) or 'nothing'}"
        )
    times: dict[str, float] = {}
    faults = []
    for number, row in rows[1:]:
        if not any(row):
            continue
        cells = dict(zip(head, row, strict=False))
        name = cells.get("name", "")
        fault, seconds = _read(name, cells.get(unit, ""), names, times)
        if fault:
            faults.append(f"line {number}: {fault}")
        else:
            times[name] = seconds * COLUMNS[unit]
    absent = [name for name in names if name not in times]
    if absent and not faults:
        faults = [f"no line for {name}" for name in absent]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(f"{path}: {'; '.join(faults[:_SHOWN])}{more}")
    return times


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        return [(n, [cell.strip() for cell in row]) for n, row in reading.read_csv(path)]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _read(name: str, text: str, names: list[str], times: Mapping[str, float]) -> tuple[str, float]:
    """What is wrong with a line, or ""; and its figure."""
    if name not in names:
        return f"{name!r} is not in the manifest", 0.0
    if name in times:
        return f"{name!r} stands there twice", 0.0
    if not text:
        return f"{name!r} has no figure", 0.0
    try:
        value = float(text)
    except ValueError:
        return f"{text!r} is not a number", 0.0
    if not (isfinite(value) and value > 0):
        return f"{text} must be above 0", 0.0
    return "", value

"""Measuring on a device without our code on it: files out, a table of seconds back."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from nas.arch import Arch
from nas.artifacts.files import write_atomic, write_json
from nas.artifacts.reading import read_csv
from nas.cost.dry_run import Example
from nas.decision import decisions
from nas.errors import UserError
from nas.latency.calibrate import MeasuredNetwork, Role
from nas.latency.job import Measuring, Work, name_of
from nas.latency.profile import About, Profile, decode, fit_profile, read_json, uses_of
from nas.latency.runtimes import (
    Inputs,
    check_onnx,
    copy_to_measure,
    inputs_like,
    onnx_file,
    pte_file,
    runtime,
)
from nas.latency.unit_model import Count, UnitTime
from nas.latency.units import Conditions, Unit, features, indices
from nas.lowering import required

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
    check_onnx()
    if pte:
        required("executorch", "executorch")
    ready = runtime("torch", "cpu", plan.conditions)
    work = Work(plan, model.eval(), example, ready)
    units, networks, made = _entries(work)
    for name, make in made.items():
        module, inputs = make()
        write_atomic(folder / f"{name}.onnx", onnx_file(module, inputs))
        if pte:
            write_atomic(folder / f"{name}.pte", pte_file(module, inputs))
    about = replace(
        work.about, device=plan.device or "", machine="", versions={}, runtime="external"
    )
    # Last: a folder with a manifest is a complete one.
    write_atomic(folder / "README.md", _readme(work, next(iter(made)), pte))
    write_atomic(folder / "names.csv", "".join(f"{name}\n" for name in ("name", *made)))
    content = asdict(Manifest(about, units, networks))
    write_json(folder / "manifest.json", {"schema": SCHEMA, **content})
    return len(made) * (2 if pte else 1)


@dataclass(frozen=True)
class _UnitEntry:
    """A file that is a unit."""

    key: str
    inputs: tuple[tuple[int, ...], ...]
    features: Mapping[str, Count]


@dataclass(frozen=True)
class _NetworkEntry:
    """A file that is a whole network; `keys` are the units it executes, repetitions included."""

    choices: Mapping[str, Any]
    role: Role
    keys: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Manifest:
    """What the files of an export are: name -> unit or network."""

    about: About
    units: Mapping[str, _UnitEntry]
    networks: Mapping[str, _NetworkEntry]


Make = Callable[[], tuple[nn.Module, Inputs]]


def _entries(work: Work) -> tuple[dict[str, _UnitEntry], dict[str, _NetworkEntry], dict[str, Make]]:
    conditions = work.plan.conditions
    units: dict[str, _UnitEntry] = {}
    networks: dict[str, _NetworkEntry] = {}
    made: dict[str, Make] = {}
    for key, unit in work.units.to_measure.items():
        inputs = inputs_like(unit.inputs, unit.dtypes, conditions)
        described = {name: float(value) for name, value in features(unit.layers).items()}
        name = f"unit_{key.rpartition(' ')[2]}"
        units[name] = _UnitEntry(key, _shapes(inputs), described)
        made[name] = partial(_unit, unit, inputs, conditions)
    own, inputs = dict(decisions(work.model)), work.network_inputs()
    for role, archs in work.archs_of_role.items():
        for arch in archs:
            keys = work.units.of(indices(own, arch.choices))
            name = name_of(arch).replace(" ", "_")
            networks[name] = _NetworkEntry(dict(arch.choices), role, keys, _shapes(inputs))
            made[name] = partial(_network, work, arch)
    return units, networks, made


def _shapes(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) for x in inputs)


def _unit(unit: Unit, inputs: Inputs, conditions: Conditions) -> tuple[nn.Module, Inputs]:
    return copy_to_measure(unit.module, conditions), inputs


def _network(work: Work, arch: Arch) -> tuple[nn.Module, Inputs]:
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


def read_times(path: Path, device: str | None) -> Profile:
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
    raw = read_json(manifest_path)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise UserError(f"{manifest_path} is no manifest of schema {SCHEMA}; export again")
    manifest = decode(Manifest, raw, str(manifest_path))
    about = replace(manifest.about, device=device or manifest.about.device)
    if not about.device:
        raise UserError("import_csv= needs the name of the device that was measured: device=NAME")
    times = _times(path, [*manifest.units, *manifest.networks])
    units = {e.key: UnitTime(times[name], e.features) for name, e in manifest.units.items()}
    networks = []
    for name, entry in manifest.networks.items():
        if strange := [key for key in entry.keys if key not in units]:
            raise UserError(f"{manifest_path} lacks the units {strange} of {name}; export again")
        uses = uses_of(entry.keys)
        networks.append(MeasuredNetwork(entry.choices, times[name], uses, entry.role))
    return fit_profile(about, units, networks, {})


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
        return [(n, [cell.strip() for cell in row]) for n, row in read_csv(path)]
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

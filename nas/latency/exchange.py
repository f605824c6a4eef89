"""Measuring on a device without our code on it: files out, a table of seconds back.

`export` writes files, `read_times` reads the times that a device took for each of them, and
`fit_table` a table of whole networks that was measured by other means.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from nas.artifacts.files import write_atomic, write_json
from nas.artifacts.reading import decode, read_csv
from nas.cost.dry_run import Example
from nas.errors import UserError
from nas.latency.calibrate import MeasuredNetwork, Role
from nas.latency.job import Measuring, Work, name_of
from nas.latency.models import (
    Amount,
    Choices,
    MeasuredNetworks,
    UnitTime,
    edge_names,
    fit_networks,
)
from nas.latency.profile import About, NetworksProfile, Profile, fit_profile, read_json
from nas.latency.runtimes import check_onnx, onnx_file, pte_file, runtime
from nas.latency.units import features
from nas.lowering import Tensors, required
from nas.spaces import nas_bench_201 as cell

SCHEMA = 1
# Column of times -> seconds of one of it; and the units of a table of networks.
COLUMNS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
CELL = "arch_str"  # a column that holds a cell of NAS-Bench-201
_SHOWN = 10  # faults of a CSV that a message lists

K = TypeVar("K")

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
    """Write one file for each unit and each network, and a manifest of them.

    Returns:
        The number of files.

    Raises:
        UserError: an exporter that is not installed, or a unit that it cannot write.
    """
    check_onnx()
    if pte:
        required("executorch", "executorch")
    work = Work(plan, model.eval(), example, runtime("torch", "cpu", plan.conditions))
    units: dict[str, _UnitEntry] = {}
    networks: dict[str, _NetworkEntry] = {}

    def write(name: str, module: nn.Module, inputs: Tensors) -> tuple[tuple[int, ...], ...]:
        write_atomic(folder / f"{name}.onnx", onnx_file(module, inputs))
        if pte:
            write_atomic(folder / f"{name}.pte", pte_file(module, inputs))
        return tuple(tuple(x.shape) for x in inputs)

    for key, unit in work.units.to_measure.items():
        name = f"unit_{key.rpartition(' ')[2]}"
        described = {name: float(value) for name, value in features(unit.layers).items()}
        units[name] = _UnitEntry(key, write(name, *work.unit(unit)), described)
    for role, archs in work.archs.items():
        for arch in archs:
            name = name_of(arch).replace(" ", "_")
            shapes = write(name, *work.network(arch))
            networks[name] = _NetworkEntry(dict(arch.choices), role, work.keys(arch), shapes)
    names = [*units, *networks]
    about = replace(
        work.about, device=plan.device or "", machine="", versions={}, runtime="external"
    )
    # Last: a folder with a manifest is a complete one.
    write_atomic(folder / "README.md", _readme(about, names[0], pte))
    write_atomic(folder / "names.csv", "".join(f"{name}\n" for name in ("name", *names)))
    content = asdict(Manifest(about, units, networks))
    write_json(folder / "manifest.json", {"schema": SCHEMA, **content})
    return len(names) * (2 if pte else 1)


@dataclass(frozen=True)
class _UnitEntry:
    """A file that is a unit."""

    key: str
    inputs: tuple[tuple[int, ...], ...]
    features: Mapping[str, Amount]


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


def _readme(about: About, first: str, pte: bool) -> str:
    return README.format(
        pte=" and `.pte`" if pte else "",
        space=about.space,
        batch=about.batch,
        threads=about.threads,
        dtype=about.dtype,
        first=first,
    )


def is_times(path: Path) -> bool:
    """Whether a CSV file holds times of exported files; if not, it is a table of networks.

    Raises:
        UserError: it cannot be read.
    """
    return (path.parent / "manifest.json").is_file() or "name" in _lines(path)[0]


def read_times(path: Path, device: str | None) -> Profile:
    """Make the profile from times that were measured on another device.

    Args:
        path: the CSV; the manifest of the export lies beside it.
        device: its name; by default the one given at the export.

    Raises:
        UserError: no manifest, or lines that are missing, double, unknown or no times.
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
        uses = dict(Counter(entry.keys))
        networks.append(MeasuredNetwork(entry.choices, times[name], uses, entry.role))
    return fit_profile(about, units, networks, {})


def _times(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Name -> seconds."""
    header, lines = _lines(path)
    unit = next((column for column in header if column in COLUMNS), None)
    if "name" not in header or unit is None:
        raise UserError(
            f"{path}, line 1: the columns must be name and one of {', '.join(COLUMNS)}, "
            f"got {', '.join(header) or 'nothing'}"
        )

    def line(cells: Sequence[str]) -> tuple[str, float]:
        row = dict(zip(header, cells, strict=False))
        if (name := row.get("name", "")) not in names:
            raise UserError(f"{name!r} is not in the manifest")
        return name, _latency(row.get(unit, "")) * COLUMNS[unit]

    times = _read_lines(path, [found for found in lines if any(found[1])], line)
    if absent := [f"no line for {name}" for name in names if name not in times]:
        _refuse(path, absent)
    return times


def fit_table(
    path: Path,
    column: str,
    unit: str,
    space: str,
    device: str,
    options: Mapping[str, Sequence[object]],
    additive: bool,
) -> NetworksProfile:
    """Fit a model to the networks of a CSV file; see `read_networks` and `fit_networks`.

    Args:
        options: the decisions of the space and their options.
        additive: only models that add up over decisions: the space is too large to write out.

    Raises:
        UserError: faulty lines, by number; or too few of them.
    """
    table = read_networks(path, column, unit, options)
    if additive:
        found = fit_networks(table, ("counts", "onehot"), ("nothing",))
    else:
        found = fit_networks(table)
    used = len(table.seconds) - len(found.dropped)
    return NetworksProfile(
        space, device, found.model, found.chosen, found.errors, used, len(found.dropped)
    )


def read_networks(
    path: Path,
    column: str,
    unit: str = "ms",
    options: Mapping[str, Sequence[object]] | None = None,
) -> MeasuredNetworks:
    """Read networks and their latencies from a CSV file, one network a line.

    Columns named after decisions hold the option taken; a column `arch_str` holds a cell of
    NAS-Bench-201 instead.

    Args:
        column: the one with the latencies.
        unit: of that column: s, ms or us.
        options: the decisions of the space and their options. Without them every column but
            `column` is a decision, and its options are those that occur.

    Raises:
        UserError: the file cannot be read or lacks a column; or lines with a fault, each named:
            no number, not above 0, an option missing or unknown, an architecture seen before.
    """
    if unit not in SECONDS:
        raise UserError(f"unit={unit!r} must be one of {list(SECONDS)}")
    header, lines = _lines(path)
    names = _decisions(path, header, column, options)

    def line(cells: Sequence[str]) -> tuple[Choices, float]:
        if len(cells) != len(header):
            raise UserError(f"{len(cells)} fields, the header has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        return _choices(row, names), _latency(row[column]) * SECONDS[unit]

    seconds = _read_lines(path, lines, line)
    if not seconds:
        raise UserError(f"{path} has no line below its header")
    found = {
        name: known or tuple(sorted({taken[i] for taken in seconds}))
        for i, (name, known) in enumerate(names.items())
    }
    return MeasuredNetworks(found, tuple(seconds), tuple(seconds.values()))


def _decisions(
    path: Path,
    header: Sequence[str],
    column: str,
    options: Mapping[str, Sequence[object]] | None,
) -> dict[str, tuple[str, ...]]:
    """Decision name -> its options; none where they are to be taken from the table."""
    if options is not None:
        names = {name: tuple(map(str, known)) for name, known in options.items()}
    elif CELL in header:
        names = dict.fromkeys(edge_names(), cell.OPS)
    else:
        names = {name: () for name in header if name != column}
    needed = [] if CELL in header and list(names) == edge_names() else list(names)
    missing = [name for name in (column, *needed) if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    if missing or twice or not names:
        raise UserError(
            f"{path}: its header lacks {missing} and has {twice} twice; it must name the column "
            f"{column!r} and each decision once, or {CELL!r} for a NAS-Bench-201 cell. "
            f"It has {list(header)}"
        )
    return names


def _choices(row: Mapping[str, str], names: Mapping[str, tuple[str, ...]]) -> Choices:
    if CELL in row and list(names) == edge_names():
        return cell.parse(row[CELL])
    for name, known in names.items():
        if not row[name] or (known and row[name] not in known):
            wanted = f"must be one of {list(known)}" if known else "is missing"
            raise UserError(f"option {row[name]!r} of {name!r} {wanted}")
    return tuple(row[name] for name in names)


def _latency(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"latency {text!r} is {'no number' if text else 'missing'}") from None
    if not (isfinite(value) and value > 0):
        raise UserError(f"latency {text} must be above 0 and finite")
    return value


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the other lines, each with its number."""
    try:
        lines = [(n, [text.strip() for text in row]) for n, row in read_csv(Path(path))]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the table {path}: {error}") from None
    return (lines[0][1] if lines else []), lines[1:]


def _read_lines(
    path: Path,
    lines: Sequence[tuple[int, list[str]]],
    read: Callable[[Sequence[str]], tuple[K, float]],
) -> dict[K, float]:
    """What is measured -> its seconds, of each line; UserError that names each faulty line."""
    seconds: dict[K, float] = {}
    seen: dict[K, int] = {}
    faults = []
    for number, cells in lines:
        try:
            key, value = read(cells)
            if key in seen:
                raise UserError(f"the same as line {seen[key]}")
        except UserError as error:
            faults.append(f"line {number}: {error}")
        else:
            seen[key], seconds[key] = number, value
    _refuse(path, faults)
    return seconds


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(f"{path} has faults to mend: {'; '.join(faults[:_SHOWN])}{more}")

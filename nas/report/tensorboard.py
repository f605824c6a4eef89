"""TensorBoard: the fronts as images and tables, the curves that searches write, and its server."""

import io
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas.artifacts import RunDir
from nas.errors import UserError
from nas.report.collect import RunRecord, Sweep, by_search, collect, primary_of
from nas.report.figure import Chart, Line, RowIds, load_optional, pictures
from nas.report.fronts import Series, costs_of, fronts
from nas.report.terminal import markdown

OFTEN = 100  # drawings while the runs of a sweep double in number
FOLDER = "tensorboard_report"
MOST_CURVES = 8  # searches whose curves are shown
CURVES = {
    "accuracy/supernet_val": "supernet, validation accuracy (%)",
    "search/entropy": "entropy of choices",
}


def write_entry(folder: Path, sweeps: Sequence[Sweep], metric: str) -> None:
    """Replace the entry in `folder`; each run writes its own curves and hyperparameters.

    Raises:
        UserError: the folder is a link: files of somebody else would be removed behind it.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and what lies in it is replaced: remove the link")
    before = list(folder.glob("events.out.tfevents.*"))
    _write(folder, sweeps, metric)
    for old in before:  # else TensorBoard goes on showing them
        old.unlink()


def follow(sweep: Path) -> None:
    """Draw the fronts of a sweep that still runs: an image per cost, a step per finished run.

    Of a large sweep only now and then, because a drawing reads all its runs. Does nothing if the
    `report` extra is not installed: a search does not need it.
    """
    count = sum(1 for _ in sweep.glob("*/result.json"))
    if count > OFTEN and count % (count // OFTEN):
        return
    with suppress(UserError):
        whole = Sweep(sweep.name, sweep, collect(sweep))
        metric = primary_of([whole])
        _write(sweep / FOLDER, by_search(whole, "params", metric), metric)


def scalars(run: Path, tags: Container[str]) -> dict[str, list[tuple[int, float]]]:
    """Tag -> [(epoch, value), ...] for those of `tags` that a run's search has written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunDir(run).tensorboard
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    known = [tag for tag in events.Tags()["scalars"] if tag in tags]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in known}


def curves(
    runs: Sequence[RunRecord], cost: str, series: Sequence[Series], row_ids: RowIds
) -> list[Chart]:
    """Accuracy, cost and entropy of the searches by epoch, as far as runs have recorded them.

    Args:
        series: of the scatter; a run's curves have its points' colour.
        row_ids: see `nas.report.figure.chart`.
    """
    tags = {**CURVES, f"cost/{cost}_relative": f"expected {cost} (start = 1)"}
    own = {run: one for one in series for run in one.runs}
    found = {run: scalars(run.path, tags) for run in runs[:MOST_CURVES] if run in own}
    drawn: Mapping[str, list[Line]] = {
        tag: [
            _curve(run, table[tag], tag, own[run], row_ids.get(run, ""))
            for run, table in found.items()
            if tag in table
        ]
        for tag in tags
    }
    return [Chart("epoch", tags[tag], lines) for tag, lines in drawn.items() if lines]


def _curve(
    run: RunRecord, points: Sequence[tuple[int, float]], tag: str, series: Series, row: str
) -> Line:
    scale = 100 if tag.startswith("accuracy") else 1
    return Line(
        [step + 1 for step, _ in points],
        [scale * value for _, value in points],
        series.colour,
        1.8,
        name=run.name,
        run=row,
        series=series.key,
    )


def serve(folders: Sequence[Path], page: Path, wait: bool = True) -> str:
    """Start TensorBoard on `folders`, print its address, and stay until Ctrl-C.

    Args:
        page: the HTML report, printed beside the address.
        wait: False returns the address at once; the server ends with the process.

    Raises:
        UserError: TensorBoard cannot start, e.g. because no port is free.
    """
    from tensorboard import program

    board = program.TensorBoard()
    shown = _outermost(folders)
    for folder in shown:
        if "," in str(folder) or ":" in folder.name:  # they divide the folders, and their names
            raise UserError(f"TensorBoard takes no folder with a comma or a colon: rename {folder}")
    named = ",".join(f"{folder.name}:{folder}" for folder in shown)
    board.configure(argv=["tensorboard", "--logdir_spec", named, "--reload_interval", "5"])
    try:
        address = board.launch()
    except Exception as error:
        raise UserError(f"TensorBoard does not start: {error}") from None
    print(f"TensorBoard: {address} (Ctrl-C ends it)\nreport:      {page.resolve().as_uri()}")
    while wait:
        time.sleep(1)
    return str(address)


def _outermost(folders: Sequence[Path]) -> list[Path]:
    """Without folders that lie in others, which would be shown twice."""
    resolved = dict.fromkeys(folder.resolve() for folder in folders)
    return [f for f in resolved if not any(f != o and f.is_relative_to(o) for o in resolved)]


def _write(folder: Path, sweeps: Sequence[Sweep], metric: str) -> None:
    from torch.utils.tensorboard import SummaryWriter

    drawn = {cost: fronts(sweeps, cost, metric) for cost in costs_of(sweeps, metric)}
    if not drawn:
        return
    images = {
        f"front/{cost}": pictures(found, ("png",), small=True)[0] for cost, found in drawn.items()
    }
    step = sum(run.status == "finished" for sweep in sweeps for run in sweep.runs)
    with SummaryWriter(str(folder)) as writer:
        for name, png in images.items():
            writer.add_image(name, _pixels(png), step, dataformats="HWC")
        for cost, found in drawn.items():
            writer.add_text(f"front/{cost}", markdown(found), step)


def _pixels(png: bytes) -> Any:
    """``(H, W, 3)`` in 0..1."""
    return load_optional("matplotlib.image").imread(io.BytesIO(png))[..., :3]

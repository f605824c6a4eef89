"""The front as images and a table in TensorBoard, beside the curves of the runs."""

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas.errors import UserError
from nas.report.figure import pictures
from nas.report.front import Sweep, costs_of, fronts
from nas.report.optional import load_optional
from nas.report.runs import gather
from nas.report.table import markdown

OFTEN = 100  # drawings while the runs of a sweep double in number
FOLDER = "tensorboard_report"


def write_entry(folder: Path, sweeps: Sequence[Sweep], metric: str) -> None:
    """Replace the entry in `folder`; each run writes its own curves and hyperparameters.

    Raises:
        UserError: the folder is a link, behind which files of somebody else would be removed.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and what lies in it is replaced: remove the link")
    before = list(folder.glob("events.out.tfevents.*"))
    _write(folder, sweeps, metric)
    for old in before:  # else TensorBoard goes on showing them
        old.unlink()


def follow(sweep: Path, metric: str = "test_acc") -> None:
    """Draw the fronts of a sweep that still runs: an image per cost, a step per finished run.

    Of a large sweep now and then: a drawing looks at all its runs.
    Nothing where the `report` extra is not installed: a search does not need it.
    """
    count = sum(1 for _ in sweep.glob("*/result.json"))
    if count > OFTEN and count % (count // OFTEN):
        return
    with suppress(UserError):
        _write(sweep / FOLDER, [Sweep(sweep.name, sweep, gather(sweep))], metric)


def _write(folder: Path, sweeps: Sequence[Sweep], metric: str) -> None:
    from torch.utils.tensorboard import SummaryWriter

    drawn = {cost: fronts(sweeps, cost, metric) for cost in costs_of(sweeps, metric)}
    if not drawn:
        return
    images = {f"front/{cost}": pictures(found, small=True)[0] for cost, found in drawn.items()}
    step = sum(run.status == "finished" for sweep in sweeps for run in sweep.runs)
    with SummaryWriter(str(folder)) as writer:
        for name, png in images.items():
            writer.add_image(name, _pixels(png), step, dataformats="HWC")
        for cost, found in drawn.items():
            writer.add_text(f"front/{cost}", markdown(found), step)


def _pixels(png: bytes) -> Any:
    """``(H, W, 3)`` in 0..1."""
    return load_optional("matplotlib.image").imread(io.BytesIO(png))[..., :3]

"""The front as an image and a table in TensorBoard, beside the curves of the runs."""

import io
from collections.abc import Sequence
from pathlib import Path

from nas.report.front import Front
from nas.report.optional import load_optional
from nas.report.table import markdown


def write_entry(folder: Path, png: bytes, fronts: Sequence[Front]) -> None:
    """Replace the entry in `folder`; each run writes its own curves and hyperparameters."""
    from torch.utils.tensorboard import SummaryWriter

    image = load_optional("matplotlib.image").imread(io.BytesIO(png))[..., :3]  # H W RGB, 0..1
    before = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        writer.add_image("front", image, dataformats="HWC")
        writer.add_text("front", markdown(fronts))
    for old in before:  # else TensorBoard goes on showing them
        old.unlink()

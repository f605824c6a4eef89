"""Predicted beside measured latencies, as a picture in the run's folder and in TensorBoard."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.artifacts.files import write_atomic
from nas.cost.expected import Expected
from nas.errors import UserError
from nas.latency.calibrate import MeasuredNetwork, Role
from nas.latency.cost import ExpectedLatency
from nas.latency.profile import Profile
from nas.report.figure import load_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "latency.png"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
BLUE, GREY, RED = "#2f6db5", "#9a9a9a", "#c0392b"
_MARKS: dict[Role, str] = {
    "calibration": "corrected, calibrated on",
    "validation": "corrected, unseen",
}


def write_picture(
    folder: Path, writer: Any, costs: Mapping[str, Expected], fields: Mapping[str, Any]
) -> None:
    """Write the profile's picture, with the network found in it, as a file and for TensorBoard."""
    cost = costs.get("latency")
    if not isinstance(cost, ExpectedLatency) or not cost.profile.networks:
        return
    found = None
    if fields["measured"] is not None:
        found = (fields["measured"], fields["predicted"])
    try:
        png = picture(cost.profile, found)
        write_atomic(folder / PICTURE, png)
        add_picture(writer, png)
    except UserError as error:  # no matplotlib
        logging.getLogger("nas").info("no picture of the latencies: %s", error)


def picture(profile: Profile, found: tuple[float, float] | None = None) -> bytes:
    """A PNG of predicted against measured seconds: each network, and the plain sum of its units.

    Args:
        found: measured and predicted seconds of one more network, marked.

    Raises:
        UserError: matplotlib is not installed.
    """
    with load_optional("matplotlib").rc_context(STYLE):
        figure = load_optional("matplotlib.figure").Figure(figsize=(5.4, 4.6), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, profile)
        if found is not None:
            x, y = 1e3 * found[0], 1e3 * found[1]
            axes.scatter([x], [y], s=110, marker="*", color=RED, label="network found", zorder=4)
        axes.legend(frameon=False, fontsize=9)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


def _draw(axes: "Axes", profile: Profile) -> None:
    roles = {role: profile.of_role(role) for role in _MARKS}
    shown = profile.networks
    edge = [n.seconds for n in shown] + [n.predicted for n in shown] + [n.total for n in shown]
    low, high = 950 * min(edge), 1050 * max(edge)
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=1)
    axes.scatter(*_points(shown, "total"), s=14, color=GREY, label="plain sum of units")
    for role, networks in roles.items():
        filled = BLUE if role == "validation" else "none"
        axes.scatter(
            *_points(networks, "predicted"),
            s=26,
            facecolor=filled,
            edgecolor=BLUE,
            label=_MARKS[role],
            zorder=3,
        )
    about, accuracy = profile.about, profile.validation.networks
    axes.set_xlabel("measured (ms)")
    axes.set_ylabel("predicted (ms)")
    title = f"{about.space}, {about.runtime}, {about.conditions}"
    if accuracy is not None:
        title += f"\nMAPE {accuracy.mape:.1%}, Kendall tau {accuracy.kendall:.3f}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)


def _points(networks: Sequence[MeasuredNetwork], what: str) -> tuple[list[float], list[float]]:
    return [1e3 * n.seconds for n in networks], [1e3 * getattr(n, what) for n in networks]


def add_picture(writer: Any, png: bytes) -> None:
    """Show the picture in TensorBoard, through a writer of event files."""
    image = load_optional("matplotlib.image").imread(io.BytesIO(png))[..., :3]  # H W RGB
    writer.add_image("latency/predicted_and_measured", image, dataformats="HWC")


def write_tensorboard(folder: Path, png: bytes, profile: Profile) -> None:
    """Write the picture and the accuracy on unseen networks; replaces what is in `folder`."""
    from torch.utils.tensorboard import SummaryWriter

    before = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        add_picture(writer, png)
        if profile.validation.networks is not None:
            for name, value in asdict(profile.validation.networks).items():
                writer.add_scalar(f"latency/{name}", value, 0)
    for old in before:
        old.unlink()

"""Predicted against measured latencies of whole networks, as a picture."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.latency.profile import NetworkTime, Profile
from nas.report.figure import load_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
BLUE, GREY, RED = "#2f6db5", "#9a9a9a", "#c0392b"


def picture(profile: Profile, found: tuple[float, float] | None = None) -> bytes:
    """A PNG: every network measured as a whole, beside the plain sum of its units.

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
    roles = {role: [n for n in profile.networks if n.role == role] for role in _MARKS}
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
    about, accuracy = profile.about, profile.networks_accuracy
    axes.set_xlabel("measured (ms)")
    axes.set_ylabel("predicted (ms)")
    title = f"{about.space}, {about.runtime}, {about.conditions}"
    if accuracy is not None:
        title += f"\nMAPE {accuracy.mape:.1%}, Kendall tau {accuracy.kendall:.3f}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)


_MARKS = {"calibration": "corrected, calibrated on", "validation": "corrected, unseen"}


def _points(
    networks: tuple[NetworkTime, ...] | list[NetworkTime], what: str
) -> tuple[list[float], list[float]]:
    return [1e3 * n.seconds for n in networks], [1e3 * getattr(n, what) for n in networks]


def add_picture(writer: Any, png: bytes) -> None:
    """Show the picture in TensorBoard, through a writer of event files."""
    image = load_optional("matplotlib.image").imread(io.BytesIO(png))[..., :3]  # H W RGB
    writer.add_image("latency/predicted_and_measured", image, dataformats="HWC")


def write_tensorboard(folder: Path, png: bytes, profile: Profile) -> None:
    """Replace the entry in `folder`: the picture, and the figures of the validation."""
    from torch.utils.tensorboard import SummaryWriter

    before = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        add_picture(writer, png)
        if profile.networks_accuracy is not None:
            for name, value in profile.networks_accuracy.to_json().items():
                writer.add_scalar(f"latency/{name}", value, 0)
    for old in before:
        old.unlink()

"""TensorBoard curves and pictures of a search, and of the training of one network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, log
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from nas.decision import decisions

PICTURES = 8  # times in a search that heat maps are drawn

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Values = NDArray[np.float64]

WIDTH = 350  # of a card in TensorBoard, which scales other widths without smoothing
MARGIN = 6
LINE = 20  # height of a line of text, and of a row of a block's map
GAP = 3  # between the decisions of the overview
COLUMN = 120  # most that the text left, or right, of the map may take
SCALE = (60, 12)  # size of the colour bar
INK, FAINT, PAPER = "#1f1f1f", "#767676", "#ffffff"
# viridis, which has equal steps of brightness, at 0, 1/8 ... 1
COLOURS = "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725"


@dataclass(frozen=True)
class Block:
    """The course of one decision: `probabilities` is ``(epochs, K)``, one column per option."""

    name: str
    options: Sequence[str]
    probabilities: Values

    @property
    def best(self) -> int:
        """The option that is most probable at the end."""
        return int(self.probabilities[-1].argmax())


class SearchTelemetry(Checkpoint):
    """Writes a differentiable search to the trainer's loggers, by epochs.

    Scalars ``loss/*``, ``accuracy/*``, ``cost/*`` (also relative to the untrained supernet),
    ``budget/*`` (expected cost over budget), ``lr/weights``, ``lr/alphas``, ``search/tau``,
    ``search/entropy`` (0 decided, 1 uniform), ``search/max_probability``, ``search/gap`` (supernet
    minus its best network), ``objective/*`` (multipliers, strengths); images ``theta/<decision>``
    and ``theta/overview``. Pictures go to TensorBoard alone.

    A `Checkpoint` by type, because only those run after the module's own `on_train_epoch_end`,
    where costs are logged. It must precede `LastCheckpoint` in the trainer's list.
    """

    def __init__(self) -> None:
        self.history: list[Tensor] = []  # per epoch softmax(alpha) of all decisions, (sum of K,)
        self.start: dict[str, float] = {}  # costs of the untrained supernet
        self._rates: list[float] = []
        self._drawn = 0  # epochs in the last heat maps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A resumed run has its state, and trained alphas, by now.
        self.start = self.start or {
            name: float(cost.mean()) for name, cost in pl_module.costs.items()
        }

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Schedules have stepped on by the end of the epoch.
        self._rates = learning_rates(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        found = [decision for _, decision in decisions(pl_module.supernet)]
        theta = [decision.alpha.detach().float().softmax(-1).cpu() for decision in found]
        self.history.append(torch.cat(theta))
        weights, alphas = self._rates
        scalars = {
            **grouped(trainer.callback_metrics),
            **self._relative(trainer.callback_metrics),
            **_used(trainer.callback_metrics, pl_module.targets),
            "lr/weights": weights,
            "lr/alphas": alphas,
            "search/tau": float(found[0].tau),
            "search/entropy": mean_entropy(theta),
            "search/max_probability": mean_confidence(pl_module.supernet),
            **_gap(trainer.callback_metrics, pl_module.task.primary),
            **{f"objective/{name}": v for name, v in pl_module.objective.state().items()},
        }
        write(trainer, scalars)
        if len(self.history) - self._drawn >= ceil((trainer.max_epochs or 1) / PICTURES):
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._drawn < len(self.history):
            self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        history = torch.stack(self.history) if self.history else torch.empty(0)
        return {"history": history, "start": self.start, "drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.start = list(state_dict["history"].cpu()), state_dict["start"]
        self._drawn = state_dict["drawn"]

    def blocks(self, supernet: nn.Module) -> list[Block]:
        """The course of every decision of `supernet`, as far as the search has come."""
        found = list(decisions(supernet))
        sizes = [len(d.options) for _, d in found]
        courses = torch.split_with_sizes(torch.stack(self.history), sizes, dim=1)
        return [
            Block(name or "model", [str(o) for o in d.options], course.numpy().astype(np.float64))
            for (name, d), course in zip(found, courses, strict=True)
        ]

    def _relative(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            f"cost/{name}_relative": float(metrics[f"cost_{name}"]) / start
            for name, start in self.start.items()
            if start and f"cost_{name}" in metrics
        }

    def _draw(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._drawn = len(self.history)
        if (writer := tensorboard(trainer)) is None:
            return
        blocks = self.blocks(pl_module.supernet)
        pictures = {block.name: draw_block(block) for block in blocks}
        for name, picture in {"overview": draw_overview(blocks), **pictures}.items():
            step = self._drawn - 1
            writer.add_image(f"theta/{name}", np.asarray(picture), step, dataformats="HWC")
        writer.flush()


def _used(metrics: Mapping[str, Tensor], budgets: Mapping[str, float]) -> dict[str, float]:
    """Expected costs beside their budgets: above 1 is too much."""
    return {
        f"budget/{name}": float(metrics[f"cost_{name}"]) / bound
        for name, bound in budgets.items()
        if f"cost_{name}" in metrics
    }


class TrainingTelemetry(pl.Callback):
    """Writes a training of weights alone: ``finetune/loss_train``, ..., ``finetune/lr``.

    Args:
        stage: instead of "finetune".
    """

    def __init__(self, stage: str = "finetune") -> None:
        self.stage = stage
        self._rate = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rate = learning_rates(trainer)[0]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = grouped(trainer.callback_metrics)
        scalars = {f"{self.stage}/{tag.replace('/', '_')}": value for tag, value in metrics.items()}
        write(trainer, {**scalars, f"{self.stage}/lr": self._rate})


def tensorboard(trainer: pl.Trainer) -> Any:
    """The writer of the trainer's TensorBoard logger; None without one and on ranks above 0."""
    if not trainer.is_global_zero:
        return None
    loggers = (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))
    return next((logger.experiment for logger in loggers), None)


def write(trainer: pl.Trainer, scalars: Mapping[str, float]) -> None:
    """Write scalars at the present epoch to the trainer's loggers."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        logger.log_metrics(dict(scalars), trainer.current_epoch)
        # Before the checkpoint: the curves of a killed and resumed run have no gaps.
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        else:
            logger.save()


def grouped(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Logged name -> TensorBoard tag: ``alpha_loss`` -> ``loss/alpha``, and so on."""
    return {_tag(name): float(value) for name, value in metrics.items()}


def _gap(metrics: Mapping[str, Tensor], primary: str) -> dict[str, float]:
    """What the supernet has more of the metric than its best network, see `DiscretizationGap`."""
    names = (f"supernet_val_{primary}", f"argmax_val_{primary}")
    if not all(name in metrics for name in names):
        return {}
    soft, best = (float(metrics[name]) for name in names)
    return {"search/gap": soft - best}


def _tag(name: str) -> str:
    head, _, tail = name.rpartition("_")
    if head and tail in ("loss", "acc"):
        return f"{'accuracy' if tail == 'acc' else tail}/{head}"
    return name.replace("cost_", "cost/", 1) if name.startswith("cost_") else name


def learning_rates(trainer: pl.Trainer) -> list[float]:
    """The present rate of each optimizer (of its first group)."""
    return [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]


def mean_confidence(supernet: nn.Module) -> float:
    """The largest probability of a decision, ``max_k softmax(alpha)``, in the mean over all."""
    largest = [d.alpha.detach().float().softmax(-1).max() for _, d in decisions(supernet)]
    return float(torch.stack(largest).mean())


def mean_entropy(thetas: list[Tensor]) -> float:
    """``-sum_k p_k log p_k / log K`` in the mean over decisions: 1 is uniform, 0 is decided."""
    shares = [float(torch.special.entr(p).sum()) / log(len(p)) for p in thetas if len(p) > 1]
    return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True)
class _Strip:
    """One labelled strip of a map: `values` is ``(rows, epochs)``."""

    label: str
    values: Values
    result: str
    strong: bool = True


def draw_block(block: Block) -> Image.Image:
    """One row per option, one column per epoch; on the right the last epoch's probabilities."""
    strips = [
        _Strip(_fit(option), values[None], f"{values[-1]:.2f}", strong=k == block.best)
        for k, (option, values) in enumerate(zip(block.options, block.probabilities.T, strict=True))
    ]
    return _draw(block.name, strips, height=LINE, gap=1)


def draw_overview(blocks: Sequence[Block]) -> Image.Image:
    """One strip per decision, options from top to bottom in it; on the right the best one."""
    strips = [
        _Strip(
            _fit(block.name, tail=True),
            block.probabilities.T,
            _fit(f"{block.probabilities[-1, block.best]:.2f} {block.options[block.best]}"),
        )
        for block in blocks
    ]
    most = max(len(block.options) for block in blocks)
    return _draw("all decisions", strips, height=max(LINE, 4 * most), gap=GAP)


def colour(values: Values) -> NDArray[np.uint8]:
    """Probabilities of any shape -> RGB, with one more dimension."""
    anchors = np.array([list(bytes.fromhex(code)) for code in COLOURS.split()])
    at = np.linspace(0, 1, len(anchors))
    channels = [np.interp(values, at, anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _draw(title: str, strips: Sequence[_Strip], height: int, gap: int) -> Image.Image:
    font = _font()
    left = 2 * MARGIN + _widest([strip.label for strip in strips])
    right = WIDTH - 2 * MARGIN - _widest([strip.result for strip in strips])
    top = MARGIN + LINE + 4
    bottom = top + len(strips) * (height + gap)
    image = Image.new("RGB", (WIDTH, bottom + LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN), _fit(title, WIDTH - 120, tail=True), INK, font)
    _scale(image, pen)
    for index, strip in enumerate(strips):
        y = top + index * (height + gap)
        image.paste(_map(strip.values, right - left, height), (left, y))
        middle, ink = y + height // 2, INK if strip.strong else FAINT
        pen.text((left - MARGIN, middle), strip.label, ink, font, anchor="rm")
        pen.text((right + MARGIN, middle), strip.result, ink, font, anchor="lm")
    _axis(pen, left, right, bottom + 3, epochs=strips[0].values.shape[1])
    return image


def _map(values: Values, width: int, height: int) -> Image.Image:
    return Image.fromarray(colour(values)).resize((width, height), Image.Resampling.NEAREST)


def _axis(pen: ImageDraw.ImageDraw, left: int, right: int, y: int, epochs: int) -> None:
    pen.text((left, y), "0", FAINT, _font())
    pen.text(((left + right) // 2, y), "epoch", FAINT, _font(), anchor="ma")
    if epochs > 1:
        pen.text((right, y), str(epochs - 1), FAINT, _font(), anchor="ra")


def _scale(image: Image.Image, pen: ImageDraw.ImageDraw) -> None:
    """The colour bar, in the upper right corner."""
    width, height = SCALE
    right, middle = WIDTH - MARGIN - 12, MARGIN + LINE // 2 - 2
    image.paste(
        _map(np.linspace(0, 1, width)[None], width, height), (right - width, middle - height // 2)
    )
    pen.text((right - width - 5, middle), "0", FAINT, _font(), anchor="rm")
    pen.text((right + 5, middle), "1", FAINT, _font(), anchor="lm")


@cache
def _font() -> Font:
    return ImageFont.load_default(size=13)


def _widest(texts: Sequence[str]) -> int:
    return int(max(_font().getlength(text) for text in texts)) + 1


def _fit(text: str, width: int = COLUMN, tail: bool = False) -> str:
    """`text`, cut to `width` pixels; `tail` keeps its end, which tells module paths apart."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "...") > width:
        text = text[1:] if tail else text[:-1]
    return f"...{text}" if tail else f"{text}..."

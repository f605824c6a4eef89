"""How far a run is: one bar for it on a terminal or in a notebook, else a line for each epoch.

A run shows itself with `shown`; whatever works inside it tells `current()` how far it is.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.artifacts.files import is_main
from nas.quantities import duration

OFTEN = 0.25  # seconds between two drawings in a notebook
BAR = 10  # columns of the bar itself
SURE = 3.0  # seconds of a part before its rate is believed
PREFIX = "NAS_RUN"  # environment variable: before each line, where several processes write


@dataclass
class Part:
    """A part of a run: so many units of equal work, such as the networks that are trained.

    Args:
        count: of units.
        work: of one, in images that pass a network; training on an image counts three times. Until
            a part is measured, its time is that of the others for as much work.

    Attributes:
        done: units, the last one in part.
        base: those that an earlier session had done.
        seconds: spent on the others.
    """

    count: float = 1
    work: float = 0.0
    done: float = 0.0
    base: float = 0.0
    seconds: float = 0.0

    @property
    def measured(self) -> float:
        """Units that `seconds` were spent on."""
        return max(0.0, self.done - self.base)

    def skip(self, done: float) -> None:
        """So many are done, those that were not told of without a measured time."""
        self.base += max(0.0, done - self.done)
        self.done = max(done, self.done)


@dataclass
class Progress:
    """How far a run is, and what is left.

    Args:
        parts: of the run, in their order, by name: "supernet", "ranking", "network".
        quiet: show nothing.

    Attributes:
        place: number of the network that is trained next, and of how many.
        sizes: the work of each network, in units of part "network".
        step: of what is being done, "epoch 3 of 12".
    """

    parts: dict[str, Part] = field(default_factory=dict)
    quiet: bool = True
    place: tuple[int, int] = (1, 1)
    sizes: Sequence[float] = ()

    def __post_init__(self) -> None:
        self.doing, self.step, self.metrics = "", "", dict[str, float]()
        self.live: Live | None = None
        self.cell: _Cell | None = None
        self._part, self._from, self._units = Part(), 0.0, 1.0
        self._began = self._since = time.monotonic()
        self._share = 0.0  # that the bar has shown: it does not go back

    def begin(self, name: str, doing: str, units: float = 1.0, at: float | None = None) -> None:
        """Some units of a part begin; the parts before it are done.

        Args:
            name: of the part.
            doing: shown, "training network 3 of 8".
            units: that begin.
            at: units of the part that are done; None: as many as were told.
        """
        self._lap()
        self.doing, self.step, self.metrics = doing, "", {}
        self.parts.setdefault(name, Part())
        for other, part in self.parts.items():
            if other == name:
                part.skip(part.done if at is None else at)
                break
            part.skip(part.count)
        self._part, self._from, self._units = part, part.done, units
        self._draw()

    def expect(self, sizes: Sequence[float], most: int) -> None:
        """So many networks will be trained; `sizes` is the work of the first of them."""
        self.sizes = [*sizes, *[1.0] * (most - len(sizes))]
        self.parts.setdefault("network", Part()).count = sum(self.sizes)

    def network(self, doing: str) -> None:
        """The training, or another doing, of the network that is next begins."""
        number, of = self.place
        sizes = self.sizes or [1.0] * of
        before = sum(sizes[: number - 1])
        self.begin("network", f"{doing} network {number} of {of}", sizes[number - 1], before)

    def reach(self, share: float, before: bool = False) -> None:
        """This share of the units that have begun is done, by an earlier session if `before`."""
        self._lap()
        done = self._from + self._units * share
        if before:
            self._part.skip(done)
        self._part.done = done
        self._draw()

    def tell(self, metrics: Mapping[str, float], line: bool = True) -> None:
        """`step` has ended: its metrics are shown beside the bar, or as a line of its own.

        Args:
            line: else nothing is written where there is no bar.
        """
        self.metrics = _ordered(metrics)
        if self.quiet or self.live is not None or self.cell is not None or not line:
            self._draw()
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        parts = [f"{self.doing}, {self.step}", values, self.left]
        prefix = os.environ.get(PREFIX, "")
        print(prefix + "; ".join(part for part in parts if part), flush=True)

    @property
    def left(self) -> str:
        """The time that is left for all of the run, in words; "" as long as nobody knows."""
        seconds = self.remaining()
        return "" if seconds is None else f"{duration(seconds)} left"

    def remaining(self) -> float | None:
        """Seconds for what is left of all parts; None: not known yet."""
        self._lap()
        known = [part for part in self.parts.values() if part.measured and part.seconds > SURE]
        work = sum(part.work * part.measured for part in known)
        if not work:
            return None
        rate = sum(part.seconds for part in known) / work
        total = 0.0
        for part in self.parts.values():
            each = part.seconds / part.measured if part in known else part.work * rate
            total += max(0.0, part.count - part.done) * each
        return total

    def _lap(self) -> None:
        now = time.monotonic()
        self._part.seconds += now - self._since
        self._since = now

    def _draw(self) -> None:
        if self.cell is not None:
            self.cell.draw(self)

    def _shown(self) -> tuple[str, str, str]:
        """What is being done, how much of all of it is, and what is left."""
        remaining = self.remaining()
        if remaining is not None:
            spent = time.monotonic() - self._began
            self._share = max(self._share, spent / (spent + remaining))
        doing = f"{self.doing}, {self.step}" if self.step else self.doing
        return doing, f"{self._share:4.0%}", self.left

    def mimebundle(self) -> dict[str, str]:
        """The bar as a notebook shows it."""
        shown = [part for part in self._shown() if part.strip()]
        shown += [f"{name} {value:.4g}" for name, value in self.metrics.items()]
        text = ", ".join(part.strip() for part in shown)
        bar = f'<progress value="{self._share:.3f}" max="1"></progress>'
        return {"text/plain": text, "text/html": f"{bar} {escape(text)}"}

    def ended(self) -> str:
        """What is left of the bar in a notebook."""
        return f"{duration(time.monotonic() - self._began)} in all"

    def __rich__(self) -> Table:
        """The bar: one line, as wide as the terminal at most."""
        shown = self._shown()
        drawn = Table.grid(padding=(0, 1, 0, 0))
        width = (self.live.console.width if self.live else 80) - BAR - 1
        room = width - sum(len(text) + 1 for text in shown) - 1
        metrics = ""
        for name, value in self.metrics.items():
            longer = f"{metrics}{', ' * bool(metrics)}{name} {value:.4g}"
            if len(longer) > room:
                break
            metrics = longer
        bar = ProgressBar(total=1.0, completed=self._share, width=BAR)
        cells = [Text(text, no_wrap=True, overflow="ellipsis") for text in (*shown, metrics)]
        drawn.add_row(cells[0], bar, *cells[1:])
        return drawn


class _Cell:
    """The one output of a notebook's cell that a run's progress is drawn into again and again."""

    def __init__(self, progress: Progress) -> None:
        display = import_module("IPython.display").display
        self.handle: Any = display(progress.mimebundle(), raw=True, display_id=True)
        self.last = time.monotonic()

    def draw(self, progress: Progress) -> None:
        """Draw it, unless that was just done."""
        if time.monotonic() - self.last >= OFTEN:
            self.handle.update(progress.mimebundle(), raw=True)
            self.last = time.monotonic()

    def close(self, progress: Progress) -> None:
        """Leave the time that it took."""
        self.handle.update({"text/plain": progress.ended()}, raw=True)


def _in_notebook() -> bool:
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _ordered(metrics: Mapping[str, float]) -> dict[str, float]:
    """Scores before losses, those of validation first: a narrow terminal shows the first ones."""
    names = sorted(metrics, key=lambda name: ("loss" in name, "train" in name))
    return {name: float(metrics[name]) for name in names}


_current: ContextVar[Progress | None] = ContextVar("progress", default=None)


def current() -> Progress:
    """The progress of the run that this is part of; one that nobody sees, where there is none."""
    return _current.get() or Progress()


@contextmanager
def shown(parts: Mapping[str, Part], wanted: bool = True) -> Iterator[Progress]:
    """Show a run; inside another one, that one is shown.

    Args:
        parts: as in `Progress`.
        wanted: else nothing is shown.
    """
    if (outer := _current.get()) is not None:
        yield outer
        return
    made = Progress(dict(parts), quiet=not (wanted and is_main()))
    token = _current.set(made)
    try:
        if not made.quiet and _in_notebook():
            made.cell = _Cell(made)
            try:
                yield made
            finally:
                made.cell.close(made)
        elif made.quiet or PREFIX in os.environ or not sys.stdout.isatty():
            yield made
        else:
            with _bar(made):
                yield made
    finally:
        _current.reset(token)


@contextmanager
def _bar(made: Progress) -> Iterator[None]:
    # A descriptor of its own: exporters' output is caught from the usual one.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding) as terminal:
        live = Live(made, console=Console(file=terminal), transient=True, refresh_per_second=4)
        made.live = live
        with live:
            handlers = [h for h in logging.root.handlers if isinstance(h, logging.StreamHandler)]
            streams = [handler.setStream(sys.stdout) for handler in handlers]
            try:
                yield
            finally:
                for handler, stream in zip(handlers, streams, strict=True):
                    if stream is not None:
                        handler.setStream(stream)
        made.live = None

"""`PrefixTree`: scores of networks with given weights; first stages that are equal are run once.

What a stage gives, and the BatchNorm statistics in it, depend on the choices up to this stage, and
on nothing behind it. So networks are scored along the tree of their choices: of each only the
stages are run from the first one on that the network before did not have.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from nas.arch import Arch, Option
from nas.copying import copied
from nas.decision import Decision, Searchable, decisions
from nas.discretization import plain
from nas.errors import NotFiniteError
from nas.inputs import Inputs, moved, run
from nas.ops.blocks import InOrder
from nas.recalibrate import recalibrate
from nas.supernet.relax import HOOKS
from nas.supernet.speed import is_channels_last, prepare
from nas.tasks import Task

Batches = Iterable[tuple[Inputs, Tensor]]
Options = Mapping[Decision, Option]


class PrefixTree:
    """Scores networks one after the other, each with the weights it has in a supernet.

    The scores are those of each network alone, to the bit: every stage sees the same batches.

    Stages are what a supernet runs one after the other, the parts of an `nn.Sequential` or of an
    `InOrder`, each with its decisions. Any other supernet is one stage, and so is one where two
    stages have a BatchNorm in common: its networks share nothing.

    What the stages of the last network gave for each batch is kept, at most `memory` bytes of it;
    outputs of first stages, which are needed again most seldom, are dropped first. Beside them are
    the targets, and what one batch takes.

    Args:
        supernet: on `device`; its weights stay as they are.
        task: says what the scores are.
        validation: gives the batches to score on, the same each time.
        calibration: inputs on `device` to measure BatchNorm on; none: the statistics stay.
        speed: see `nas.supernet.speed.prepare_network`.
        memory: bytes; 0: every network is run as a whole.
    """

    def __init__(
        self,
        supernet: nn.Module,
        task: Task,
        validation: Callable[[], Batches],
        calibration: Sequence[Inputs],
        device: torch.device,
        speed: str,
        memory: int,
    ) -> None:
        self.supernet, self.task, self.validation = supernet, task, validation
        self.calibration, self.device, self.memory = calibration, device, memory
        self.decisions = dict(decisions(supernet))
        self.faster = speed != "none" and device.type == "cpu"
        self.path: list[_Stage] = []  # of the last network
        self.channels_last = False  # how it was run
        self.targets: list[Tensor] = []  # of the validation batches
        self.writes: dict[Hashable, bool] = {}  # key of a stage: whether it writes on its input

    def __call__(self, arch: Arch) -> dict[str, float]:
        """``val_loss`` and ``val_<metric>`` of a network.

        Raises:
            NotFiniteError: the loss is NaN or infinite.
        """
        try:
            return self._score(arch, self.faster or is_channels_last(self.supernet))
        except RuntimeError as error:
            # A network that takes a `view` of feature maps cannot run with channels last.
            if not self.faster or isinstance(error, NotFiniteError):
                raise
            return self._score(arch, False)

    def order(self, archs: Sequence[Arch]) -> list[int]:
        """The indices of networks, in the order in which the fewest stages are run."""
        known = {stage.key: number for number, stage in enumerate(self.path)}

        def place(index: int) -> list[int]:
            found = stages(self.supernet, self._options(archs[index]))
            return [known.setdefault(key, len(known)) for key, _ in found]

        return sorted(range(len(archs)), key=place)

    def _options(self, arch: Arch) -> Options:
        return {decision: arch.choices[name] for name, decision in self.decisions.items()}

    def _score(self, arch: Arch, channels_last: bool) -> dict[str, float]:
        path = self._stages(self._options(arch), channels_last)
        self.path = []  # until all batches are through; frees what is not in the new one
        # How many stages need not run again; the last one has to, for the loss of each network.
        done = max((i for i, stage in enumerate(path[:-1], 1) if stage.outputs), default=0)
        for stage in path[done:-1]:
            stage.begin()
        self.writes[path[0].key] = False  # inputs of the first one are not kept
        network = _Path(path[done:], self._given, partial(self._keep, path, done)).eval()
        count = len(self.calibration)
        # Copies, as a network may write on its input.
        calibration: Iterable[Inputs] = (tree_map(torch.clone, x) for x in self.calibration)
        validation = self._batches()
        if done:
            before = path[done - 1].outputs or []
            calibration = before[:count]
            validation = zip(before[count:], self.targets, strict=True)
        if count:
            recalibrate(network, calibration)
        scores = validated(network, self.task, validation, self.device)
        for stage in path:
            stage.check()
        self.path, self.channels_last = path, channels_last
        return scores

    def _stages(self, options: Options, channels_last: bool) -> list["_Stage"]:
        """The stages of a network; those that need not run again are of the last network."""
        found = stages(self.supernet, options)
        path: list[_Stage] = []
        for old, (key, _) in zip(self.path, found, strict=False):
            if old.key != key or channels_last != self.channels_last:
                break
            path.append(old)
        # The others are made anew, as a module may have changed when it was run.
        kept = (i for i, stage in enumerate(path[: len(found) - 1], 1) if stage.outputs)
        del path[max(kept, default=0) :]
        for key, modules in found[len(path) :]:
            parts = cast(nn.ModuleList, plain(nn.ModuleList(modules), options))
            if channels_last:
                parts.to(memory_format=torch.channels_last)
                if not path:
                    prepare(parts[0], "channels_last")
            elif self.faster:
                for part in parts:
                    prepare(part, "none")
            path.append(_Stage(key, parts))
        return path

    def _batches(self) -> Batches:
        self.targets = []
        for inputs, targets in self.validation():
            self.targets.append(targets)
            yield inputs, targets

    def _given(self, stage: "_Stage", x: Any) -> Any:
        """What a stage gets instead of an input that others need: a copy, where it may write."""
        if not isinstance(x, Tensor):
            return x
        if stage.key not in self.writes:
            self.writes[stage.key] = _writes(stage, x)
        return x.clone() if self.writes[stage.key] else x

    def _keep(self, path: Sequence["_Stage"], done: int, stage: "_Stage", y: Any) -> None:
        """Keep what a stage of `path` gave for a batch; of the `done` ones the last is in use."""
        stage.keep(y)
        for number, first in enumerate(path, 1):
            if sum(one.bytes for one in path) <= self.memory:
                return
            if number != done:
                first.drop()


class _Stage(nn.Module):
    """Plain modules in a row, and what they gave for each batch, calibration before validation.

    Attributes:
        outputs: None: they are not kept.
        bytes: of the outputs.
    """

    outputs: list[Tensor] | None
    bytes: int

    def __init__(self, key: Hashable, parts: nn.ModuleList) -> None:
        super().__init__()
        self.key, self.parts = key, parts
        self.drop()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for part in self.parts:
            y = part(*args, **kwargs)
            args, kwargs = (y,), {}
        return y

    def begin(self) -> None:
        """Keep outputs from now on."""
        self.outputs, self.versions, self.bytes = [], list[int](), 0

    def keep(self, y: Any) -> None:
        """Keep an output, where it can be the next stage's input by itself."""
        if not isinstance(y, Tensor):
            self.drop()
        if self.outputs is not None:
            self.outputs.append(y)
            self.versions.append(y._version)
            self.bytes += y.untyped_storage().nbytes()

    def check(self) -> None:
        """Drop outputs that another stage has written on."""
        if any(y._version != v for y, v in zip(self.outputs or (), self.versions, strict=False)):
            self.drop()

    def drop(self) -> None:
        """Keep no outputs."""
        self.begin()
        self.outputs = None


class _Path(nn.Module):
    """Stages in a row; `given` says what each gets for an input, `keep` is told what it gives."""

    def __init__(
        self,
        stages: Sequence[_Stage],
        given: Callable[[_Stage, Any], Any],
        keep: Callable[[_Stage, Any], None],
    ) -> None:
        super().__init__()
        self.stages, self.given, self.keep = nn.ModuleList(stages), given, keep

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for stage in self.stages:
            y = stage(*(self.given(cast(_Stage, stage), x) for x in args), **kwargs)
            self.keep(cast(_Stage, stage), y)
            args, kwargs = (y,), {}
        return y


def _writes(stage: _Stage, x: Tensor) -> bool:
    """Whether a stage changes an input like `x`, or cannot be tried.

    By a trial of a copy, as autograd does not count what is written through ``.data`` or NumPy: of
    numbers of any size and sign, which no ReLU and no clamp leaves as they are.
    """
    if not x.is_floating_point():
        return True
    x = torch.empty_like(x[:2])
    x.normal_(0, 100, generator=torch.Generator(x.device).manual_seed(0))
    before, version = x.clone(), x._version
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _Stage(stage.key, copied(stage.parts))(x)
    except Exception:  # whatever a module of the user's own raises for so few samples, or a copy
        return True
    return x._version != version or not torch.equal(x, before)


class _Part(NamedTuple):
    key: Hashable  # parts of equal keys become equal modules
    module: nn.Module  # of the supernet
    searched: bool  # whether it depends on a choice, or is there by one


def stages(supernet: nn.Module, options: Options) -> list[tuple[Hashable, list[nn.Module]]]:
    """What a network runs one after the other: of each stage a key, and parts of the supernet.

    Stages of equal keys become equal modules. All but the first begin with what a choice decides.
    """
    own = {id(module) for module in supernet.modules()}
    found: list[list[_Part]] = []
    for part in _parts(supernet, options, id(supernet), own):
        if part.searched or not found:
            found.append([])
        found[-1].append(part)
    norms = [
        {id(m) for part in stage for m in part.module.modules() if isinstance(m, _BatchNorm)}
        for stage in found
    ]
    if sum(map(len, norms)) > len(set().union(*norms)):
        return [(_taken(supernet, options), [supernet])]
    return [(tuple(part.key for part in stage), [part.module for part in stage]) for stage in found]


def _parts(
    module: nn.Module, options: Options, name: Hashable, own: set[int], searched: bool = False
) -> Iterator[_Part]:
    taken, inner, chosen = _taken(module, options), module, isinstance(module, Searchable)
    if isinstance(module, Searchable) and module.keeps_parts:
        inner = module.materialize(options)
    row = _in_order(inner)
    # Layers of a fixed module are no stages.
    if not row or not (id(inner) not in own or any(_taken(part, options) for part in row)):
        yield _Part((name, taken), module, searched or bool(taken))
        return
    for number, part in enumerate(row):
        # What was made for these options has no lasting identity.
        key = id(part) if id(part) in own else (name, taken, number)
        yield from _parts(part, options, key, own, searched or chosen)


def _in_order(module: nn.Module) -> Sequence[nn.Module]:
    """What a module runs one after the other and does nothing else; (): it is no such module."""
    hooks = {*module._forward_pre_hooks.values(), *module._forward_hooks.values()} - {*HOOKS}
    if hooks and not (len(hooks) == 1 and is_channels_last(module)):
        return ()
    if isinstance(module, InOrder) and type(module).forward is InOrder.forward:
        return module.in_order()
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return list(module)
    return ()


def _taken(module: nn.Module, options: Options) -> tuple[Option, ...]:
    """The options that all of `module` depends on."""
    inside = (m for m in module.modules() if isinstance(m, Searchable))
    return tuple(options[decision] for one in inside for decision in one.decisions())


def validated(
    network: nn.Module, task: Task, batches: Batches, device: torch.device
) -> dict[str, float]:
    """``val_loss`` and ``val_<metric>`` of a task over all samples of `batches`.

    Raises:
        NotFiniteError: the loss is NaN or infinite.
    """
    metrics, loss, seen = task.metrics().to(device), 0.0, 0
    with torch.no_grad():
        for x, targets in batches:
            outputs, targets = run(network, moved(x, device)), targets.to(device)
            metrics.update(outputs, targets)
            loss += float(task.loss(outputs, targets, reduction="sum"))
            seen += len(targets)
        found = {f"val_{name}": float(value) for name, value in metrics.compute().items()}
    if not isfinite(loss):
        raise NotFiniteError(f"the validation loss is {loss}")
    return {**found, "val_loss": loss / seen}

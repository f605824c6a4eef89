"""What a run is made of, and what it searches: supernet, exact costs and budgets."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.arch import Arch
from nas.compress.space import Original, OwnNetwork
from nas.config.calls import called
from nas.config.schema import short_repr
from nas.cost.analytic import MACs, Params
from nas.cost.dry_run import dry_run, init_lazy, inputs_of
from nas.cost.expected import Expected, NetworkCost, expected
from nas.cost.layer import LayerCost
from nas.cost.trace import trace
from nas.data import DataModule
from nas.data.contract import SearchData, read
from nas.data.own import as_data_module, memory
from nas.decision import apply, decisions, free
from nas.errors import UserError
from nas.inputs import Inputs, run, zeros
from nas.progress import Part
from nas.quantities import amount, parse_budget
from nas.ranks import each_rank_alone
from nas.selection import check_feasible, check_known, largest_of, select
from nas.supernet.choice import Relaxing
from nas.tasks import check_judged
from nas.tasks.classification import task_of

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from nas.train import Training

Amount = str | float
# Of a layer and a batch: where two threads have less each, they take as long as one or longer, and
# half as much processor time again, see experiments/speed. One thread gets along beside others.
MACS_PER_THREAD = 12.5e6
FITTED = 512  # images on which operations, kernels and narrower layers of a network are fitted


@dataclass
class SearchProblem:
    """What a run is made of: data, a supernet with its costs and budgets, and how it is trained.

    The arguments are the groups and keys of a configuration, instantiated but for what needs data
    or a model first.

    Args:
        data: what networks learn from.
        make_supernet: called with `input_shape` and `num_outputs`.
        relax: how alphas weigh the candidates.
        search: called by `nas.search.base.build_search`.
        cost_models: what the objective joins to the loss, by name.
        amounts: name of a cost -> at most so much, "50k" or "60%"; None: no budget.
        objective: of the search.
        finetune: called with `network` and `seed`, the training of a network.
        trainer: called with what a stage adds.
        seed: of the supernet's weights, the batches and the draws.
        inherit: whether networks start with the supernet's weights.
        onnx: write network.onnx.
        drawn: draw the network, in network.svg and as a graph in TensorBoard.
        front: number of networks to train, spread over the cost; 1: the best.
        stable_epochs: end the search once the architecture is the same for so many; None: never.
        guards: against collapse, by name.
        speed: see `nas.supernet.speed`.
        loggers: of Lightning, or what makes one, called with what it takes of `save_dir` (the
            run's folder) and `run_name`.
        callbacks: of every training, or what makes one for each; None: none.
        engine: where networks are scored one by one, see `nas.search.workers.Engine`; None: here.
        about: goes into result.json as it is.

    Attributes:
        supernet: as `seed` initialises it.
        space: the name of the space.
        priced: every cost that is reported, params and MACs among them.
        costs: the same, of this supernet.
        budgets: cost name -> at most so much, in the unit of the cost.
        layer_macs: multiply-accumulates of one sample in a layer, the mean over all candidates.
        original: the network of the user's own that is made smaller, once
            `nas.search.compress.original` has looked at it; None: there is none.

    Raises:
        UserError: see `DataModule`, the space, `trace`, `nas.quantities.parse_budget`, and
            `nas.selection.check_feasible`.
    """

    data: SearchData
    make_supernet: Callable[..., nn.Module]
    relax: Relaxing
    search: Callable[..., Any]
    cost_models: Mapping[str, LayerCost | NetworkCost]
    amounts: Mapping[str, Amount | None]
    objective: Any
    finetune: "Callable[..., Training]"
    trainer: "Callable[..., pl.Trainer]"
    seed: int
    inherit: bool
    onnx: bool
    stable_epochs: int | None
    drawn: bool = True
    front: int = 1
    guards: "Mapping[str, pl.Callback]" = field(default_factory=dict)
    speed: str = "kernels"
    loggers: Sequence[Any] = ()
    callbacks: Sequence[Any] | None = None
    engine: Any = None
    about: Mapping[str, Any] = field(default_factory=dict)
    supernet: nn.Module = field(init=False)
    space: str = field(init=False)
    priced: Mapping[str, LayerCost | NetworkCost] = field(init=False)
    costs: Mapping[str, Expected] = field(init=False)
    budgets: Mapping[str, float] = field(init=False)
    original: Original | None = field(init=False, default=None)
    layer_macs: float = field(init=False)

    def __post_init__(self) -> None:
        read(self.data)
        check_task(self.data)
        self.supernet = self.build()
        self.space = str(getattr(self.supernet, "name", type(self.supernet).__name__))
        traced = trace(self.supernet, self.data.example)
        macs = [MACs()(layer.spec) for layer in traced.layers if layer.spec.is_call]
        self.layer_macs = sum(macs) / max(1, len(macs))
        self.priced = {"params": Params(), "macs": MACs(), **self.cost_models}
        self.costs = {n: expected(self.supernet, c, traced) for n, c in self.priced.items()}
        self.budgets = self._budgets()

    def __getstate__(self) -> dict[str, Any]:
        # As bytes: tensors would be shared between the processes, and choosing writes to buffers.
        weights = io.BytesIO()
        torch.save(self.supernet.state_dict(), weights)
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        given["loggers"] = ()  # other processes write no curves
        return {"given": given, "weights": weights.getvalue()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["given"])  # type: ignore[misc]
        weights = torch.load(io.BytesIO(state["weights"]), map_location="cpu", weights_only=True)
        self.supernet.load_state_dict(weights)

    def made_callbacks(self) -> "list[pl.Callback]":
        """The user's own callbacks for one training.

        Raises:
            UserError: what is configured is no callback of Lightning.
        """
        import pytorch_lightning as pl

        given = self.callbacks or ()
        found = [one if isinstance(one, pl.Callback) else called(one, {}) for one in given]
        for one in found:
            if not isinstance(one, pl.Callback):
                raise UserError(f"callbacks: {short_repr(one)} is no callback of Lightning")
        return found

    def build(self) -> nn.Module:
        """A supernet as `seed` initialises it."""
        torch.manual_seed(self.seed)
        supernet = build(
            self.make_supernet, self.data.input_shape, self.data.num_outputs, fitting(self.data)
        )
        self.relax(supernet)
        init_lazy(supernet, inputs_of(self.data.example, supernet))
        return supernet

    @property
    def images(self) -> tuple[float, float]:
        """Images of an epoch of training, and of a validation; 0 where a loader has no length."""
        train, val = self.data.weight_loader(), self.data.val_dataloader()
        trained = validated = 0.0
        with suppress(TypeError, AttributeError):
            trained = float(len(train) * self.data.batch_size)
        with suppress(TypeError, AttributeError):  # a last batch, often the only one, is not full
            validated_on: Any = getattr(val.sampler, "indices", val.dataset)
            validated = float(len(validated_on))
        return trained, validated

    def threads(self, most: int) -> int:
        """CPU threads that the layers of a training batch keep busy, at most `most`.

        Counted, not timed: sums are rounded by the number of threads, and a run that is repeated
        must give the same.
        """
        return max(1, min(most, int(self.layer_macs * self.data.batch_size / MACS_PER_THREAD)))

    def work(self, epochs: int | None = None) -> Part:
        """Training of the networks of the front by the recipe `finetune`, see `nas.progress`.

        Args:
            epochs: instead of those of the recipe.
        """
        train, val = self.images
        known = epochs or self.epochs
        return Part(self.front, known * (3 * train + val) + 2 * val)

    @property
    def epochs(self) -> int:
        """Epochs of the recipe `finetune`; 1 where it does not say."""
        return getattr(self.finetune, "keywords", {}).get("epochs") or 1

    @property
    def shows_progress(self) -> bool:
        """Whether the run shows how far it is."""
        return bool(getattr(self.trainer, "keywords", {}).get("enable_progress_bar", True))

    def _budgets(self) -> dict[str, float]:
        given = {name: text for name, text in self.amounts.items() if text is not None}
        check_known(self.costs, given)
        found = {
            name: parse_budget(name, text, self.costs[name].unit, self.largest(name))
            for name, text in given.items()
        }
        check_feasible(self.costs, found)
        return found

    def largest(self, cost: str) -> float:
        """What percentages of a budget are of: the network given, or the largest of the space."""
        own = dict(decisions(self.supernet))
        if isinstance(self.make_supernet, OwnNetwork):
            return self.costs[cost].of({name: one.options[-1] for name, one in own.items()})
        return largest_of(self.costs[cost])

    def select(self) -> Arch:
        """The most probable architecture inside the budgets."""
        return select(self.supernet, self.space, self.costs, self.budgets)

    def check(self, arch: Arch) -> None:
        """Refuse an architecture of another space, or one outside the budgets.

        Raises:
            UserError: saying which decision or which budget.
        """
        apply(self.supernet, arch)
        free(self.supernet)
        for name, bound in self.budgets.items():
            value, unit = self.costs[name].of(arch.choices), self.costs[name].unit
            if value > bound:
                raise UserError(
                    f"this architecture has {name} {amount(value, unit)}, more than "
                    f"budget.{name}={amount(bound, unit)}"
                )


def check_task(data: SearchData) -> None:
    """Refuse a loss or a metric that does not take these data, see `nas.tasks.check_judged`."""
    _, targets = next(iter(data.weight_loader()))
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(len(targets), data.num_outputs, generator=draw, requires_grad=True)
    check_judged(task_of(data), outputs, targets)


def check_logits(network: nn.Module, example: Inputs, classes: int) -> None:
    """Refuse a network that does not give one row of logits for each image.

    Raises:
        UserError: saying what it gives instead.
    """
    wanted = (2, classes)
    found = dry_run(network, inputs_of(zeros(example, 2), network), _output)
    if not isinstance(found, Tensor):
        got = f"a {type(found).__name__}"
    elif tuple(found.shape) != wanted or not found.is_floating_point():
        got = f"a tensor {tuple(found.shape)} of {found.dtype}"
    else:
        return
    raise UserError(
        f"the network gives {got} for 2 images and {classes} classes: its forward must return one "
        f"tensor {wanted} of floats, the logits (N, classes)"
    )


def _output(network: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return run(network.eval(), inputs)


def build(
    space: Callable[..., nn.Module],
    shape: Any,
    classes: int,
    batches: Iterable[Inputs] | None = None,
) -> nn.Module:
    """The supernet for inputs of `shape` and so many classes.

    Args:
        batches: of training data, for a space that is fitted to them, see `fitting`.

    Raises:
        UserError: the space refuses them, or memory does not hold it.
    """
    if isinstance(space, OwnNetwork):  # in memory already
        return space(shape, classes, batches)
    make = partial(space, input_shape=shape, num_outputs=classes)
    check_memory(make)
    return make()


def fitting(data: SearchData) -> Iterator[Inputs]:
    """The training data on which parts of a network are fitted, the same on every rank."""
    with each_rank_alone(data):
        found = [x for x, _ in data.calibration_loader(FITTED)]
    yield from found


def check_memory(make: Callable[[], nn.Module]) -> None:
    """Refuse a supernet whose weights alone are larger than this machine's memory.

    Raises:
        UserError: with both sizes.
    """
    needed: float
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            made = make()
        needed = sum(t.nbytes for t in (*made.parameters(), *made.buffers()))
    except UserError:
        raise
    except Exception as error:
        if "overflow" not in str(error).lower():
            return  # a module that cannot be made without memory; building it will tell
        needed = float("inf")
    present = memory()
    if needed > present:
        size = f"{needed / 1e9:,.1f} GB" if needed < float("inf") else "more than any machine has"
        raise UserError(
            f"the weights of this space need {size} of memory, and this machine has "
            f"{present / 1e9:,.1f} GB: lower space.width, channels or the number of blocks"
        )


def data_for(make: Callable[..., Any], task: Any, seed: int) -> SearchData:
    """The data of a run for a task; a module of the user's own may have one of its own."""
    given = {"task": task, "seed": seed}
    made = called(make, given)
    return made if isinstance(made, DataModule) else as_data_module(made, **given)

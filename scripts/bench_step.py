"""What searching costs: training steps of a supernet against plain networks without decisions.

    python scripts/bench_step.py
    python scripts/bench_step.py --batch 32 128 --threads 1 --rounds 5 --json bench.json

The supernet is the five-block `chain` space on random 3 x 32 x 32 images. A step is draw, forward,
cross-entropy, backward, SGD on the weights, and Adam on the alphas unless they are frozen.

    soft   all paths, softmax        / a plain module that runs and adds the same branches
    hard   one path, Gumbel, STE     / the plain network of the very path drawn, mean over paths
    bytes  kept by autograd for the backward of `hard` / of that plain network
    cost   parameters and MACs under theta, and their gradient / a whole soft step

The steps that are compared follow one another at once, in turning order, so that what else the
machine does meets all of them; six times, each with another path (`hard`) or fresh copies (`soft`),
as copies differ by some per cent in where they lie in memory. "ratio" divides means over these six
of medians over rounds, "p20" of 20th percentiles, "cpu" of medians of processor time, which leaves
out what other processes took; "pairs" is the median, and "quartiles" the spread, of the ratios
within each round.
"""

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import decisions, resample, split_parameters
from nas.discrete import discretize
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import Relaxation, softmax, straight_through

SPACE = Path(__file__).parents[1] / "configs" / "space" / "chain.yaml"
INPUT_SHAPE, NUM_CLASSES = (3, 32, 32), 10
LIMITS = {"soft": 1.05, "hard": 1.10, "bytes": 1.02, "cost": 0.02}

REPEATS = 6

Step = Callable[[], object]
Statistic = Callable[[list[float]], float]
Batch = tuple[Tensor, Tensor]  # x (N, C, H, W), labels (N,)


@dataclass(frozen=True)
class Row:
    """One comparison; times in ms."""

    name: str
    batch: int
    ratio: float
    pairs: tuple[float, float, float]  # quartiles of the ratios of neighbours
    p20: float | None = None
    cpu: float | None = None
    ours: float | None = None
    plain: float | None = None

    @property
    def missed(self) -> bool:
        return self.ratio > LIMITS.get(self.name, float("inf"))


class Sum(nn.Module):
    """The branches of a choice block, added: what is left without theta."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class Trainee:
    """A network with its batch and its optimizers.

    Learning rates are 0: a step does all of its arithmetic, and the next one finds the same alphas
    and weights, so that every round does the same work.
    """

    def __init__(self, net: nn.Module, batch: Batch, frozen: bool = False) -> None:
        self.net, (self.x, self.labels) = net.train(), batch
        weights, alphas = split_parameters(net)
        for alpha in alphas:
            alpha.requires_grad_(not frozen)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=3e-4)
        ]
        if alphas and not frozen:
            self.optimizers.append(torch.optim.Adam(alphas, lr=0.0, betas=(0.5, 0.999), fused=True))

    def loss(self) -> Tensor:
        return F.cross_entropy(self.net(self.x), self.labels)

    def drawn_step(self, seed: int) -> None:
        """A step on the path of `seed`; the draw is part of it."""
        resample(self.net, torch.Generator().manual_seed(seed))
        self.step()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(self.loss())
        for optimizer in self.optimizers:
            optimizer.step()


def build_supernet(relax: Relaxation, gumbel: bool = False) -> nn.Module:
    torch.manual_seed(0)
    space = instantiate(OmegaConf.load(SPACE))
    net: nn.Module = space(input_shape=INPUT_SHAPE, num_classes=NUM_CLASSES)
    for _, block in decisions(net):
        assert isinstance(block, ChoiceBlock)
        block.relax, block.gumbel = relax, gumbel
    return net


def sum_of_branches(supernet: nn.Module) -> nn.Module:
    """A copy of `supernet` that runs the same branches of the same weights and adds them."""
    net = copy.deepcopy(supernet)
    for name, block in list(decisions(net)):
        net.set_submodule(name, Sum(list(block.gated().values())))
    return net


def network_drawn(supernet: nn.Module, seed: int) -> nn.Module:
    """The plain network of the path that `seed` draws."""
    one_path = copy.deepcopy(supernet)
    resample(one_path, torch.Generator().manual_seed(seed))
    for _, block in decisions(one_path):
        block.choose(block.options[int(block.theta.argmax())])
    return discretize(one_path)


def cost_step(supernet: nn.Module) -> Step:
    """Expected parameters and MACs of `supernet`, and what they give its alphas."""
    layers = trace(supernet, INPUT_SHAPE)
    costs = [ExpectedCost(supernet, cost, layers) for cost in (Params(), MACs())]
    return lambda: torch.autograd.backward([cost() for cost in costs])


def saved_bytes(trainee: Trainee) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainee.net.parameters()}
    # The tensors stay alive until all are counted: a freed address would be given out again.
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainee.loss()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in kept}
    del loss
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


class Times(NamedTuple):
    """Step -> ms of each round, by the clock and of the processor."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def interleave(steps: dict[str, Step], rounds: int) -> Times:
    """Time the steps one after the other, `rounds` times, each round beginning with another."""
    names = list(steps)
    times = Times({name: [] for name in names}, {name: [] for name in names})
    for step in steps.values():
        step()
    for i in range(rounds):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            start, start_cpu = time.perf_counter_ns(), time.process_time_ns()
            steps[name]()
            times.wall[name].append((time.perf_counter_ns() - start) / 1e6)
            times.cpu[name].append((time.process_time_ns() - start_cpu) / 1e6)
    return times


def compare(name: str, plain: str, batch: int, repeats: Sequence[Times]) -> Row:
    """Step `name` against step `plain`."""

    def mean(of: Statistic, step: str, clock: str) -> float:
        return statistics.fmean(of(getattr(times, clock)[step]) for times in repeats)

    def ratio(of: Statistic, clock: str = "wall") -> float:
        return mean(of, name, clock) / mean(of, plain, clock)

    pairs = [
        ours / theirs
        for times in repeats
        for ours, theirs in zip(times.wall[name], times.wall[plain], strict=True)
    ]
    return Row(
        name,
        batch,
        ratio(statistics.median),
        quartiles(pairs),
        ratio(percentile_20),
        ratio(statistics.median, "cpu"),
        mean(statistics.median, name, "wall"),
        mean(statistics.median, plain, "wall"),
    )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def percentile_20(values: list[float]) -> float:
    return statistics.quantiles(values, n=5, method="inclusive")[0]


def bench_soft(batch: Batch, rounds: int) -> list[Row]:
    """All paths: searched, with alphas frozen, and added without theta; and the cost."""
    times, size = [], len(batch[0])
    for _ in range(REPEATS):
        supernet = build_supernet(softmax)
        steps: dict[str, Step] = {
            "soft": Trainee(supernet, batch).step,
            "soft, alphas frozen": Trainee(copy.deepcopy(supernet), batch, frozen=True).step,
            "plain": Trainee(sum_of_branches(supernet), batch).step,
            "cost": cost_step(supernet),
        }
        times.append(interleave(steps, rounds))
    rows = [compare(name, "plain", size, times) for name in ("soft", "soft, alphas frozen")]
    return [*rows, compare("cost", "soft", size, times)]


def bench_hard(batch: Batch, rounds: int) -> list[Row]:
    """One path: searched, with alphas frozen, and its plain network; and the bytes kept."""
    times, kept, size = [], [], len(batch[0])
    supernet = build_supernet(straight_through, gumbel=True)
    searched, fixed = Trainee(supernet, batch), Trainee(copy.deepcopy(supernet), batch, frozen=True)
    for seed in range(REPEATS):
        plain = Trainee(network_drawn(supernet, seed), batch)
        steps: dict[str, Step] = {
            "hard": partial(searched.drawn_step, seed),
            "hard, alphas frozen": partial(fixed.drawn_step, seed),
            "plain": plain.step,
        }
        times.append(interleave(steps, rounds))
        kept.append(saved_bytes(searched) / saved_bytes(plain))
    rows = [compare(name, "plain", size, times) for name in ("hard", "hard, alphas frozen")]
    return [*rows, Row("bytes", size, statistics.fmean(kept), quartiles(kept))]


def machine() -> dict[str, str | float]:
    """What the figures depend on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def show(rows: Sequence[Row]) -> None:
    columns = ("step", "batch", "ratio", "limit", "p20", "cpu", "pairs", "quartiles", "ms", "of ms")
    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="left" if column == "step" else "right", no_wrap=True)
    for row in rows:
        low, middle, high = row.pairs
        table.add_row(
            row.name,
            str(row.batch),
            f"[red]{row.ratio:.3f}[/]" if row.missed else f"{row.ratio:.3f}",
            number(LIMITS.get(row.name), 2),
            number(row.p20, 3),
            number(row.cpu, 3),
            f"{middle:.3f}",
            f"{low:.3f}-{high:.3f}",
            number(row.ours, 1),
            number(row.plain, 1),
        )
    Console(width=100).print(table)
    missed = [f"{row.name} at batch {row.batch}" for row in rows if row.missed]
    print(f"above the limit: {', '.join(missed)}" if missed else "all within the limits")


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of each repeat, at least 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2 to have a spread, got {args.rounds}")

    torch.set_num_threads(args.threads)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    rows: list[Row] = []
    gc.disable()
    for size in args.batch:
        torch.manual_seed(0)
        batch = torch.randn(size, *INPUT_SHAPE), torch.randint(NUM_CLASSES, (size,))
        for bench in (bench_soft, bench_hard):
            rows += bench(batch, args.rounds)
            gc.collect()
    show(rows)
    if args.json:
        figures = {"machine": facts, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

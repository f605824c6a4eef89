"""Ranking along the tree of first stages, against each network calibrated and validated alone."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import torch

from bench.networks import NUM_CLASSES, SHAPES, Batch, build_supernet
from bench.timing import Row, Step, Times, interleave, quartiles
from nas.arch import Arch
from nas.discretization import discretize
from nas.recalibrate import recalibrate
from nas.search.prefix_tree import PrefixTree, validated
from nas.search.space import SearchSpace
from nas.supernet.relax import softmax
from nas.supernet.speed import prepare_network
from nas.tasks.classification import Classification

CALIBRATION, VALIDATION, EVAL_BATCH = 512, 1000, 500  # images, half of what a ranking takes
WHOLE = 300  # networks that are all ranked; of larger spaces the first ones
DRAWN = 32
ALONE = 24  # networks of each sequence that are scored alone, too
LIMITS = {"truth": 0.40, "chain": 0.25, "nas_bench_201": 1.02}
CPU = torch.device("cpu")


class Rankings:
    """Both ways to score the networks of a supernet on the same random images."""

    def __init__(self, space: str, batch: int) -> None:
        self.supernet, shape = build_supernet(space, softmax).eval(), SHAPES[space]
        self.space = SearchSpace.of(self.supernet, space, {}, {})
        self.task = Classification()
        self.task.outputs = NUM_CLASSES
        self.calibration = [torch.randn(batch, *shape) for _ in range(CALIBRATION // batch)]
        self.validation: list[Batch] = [
            (torch.randn(EVAL_BATCH, *shape), torch.randint(NUM_CLASSES, (EVAL_BATCH,)))
            for _ in range(VALIDATION // EVAL_BATCH)
        ]
        self.few = torch.zeros(2, *shape)

    def tree(self) -> PrefixTree:
        def batches() -> list[Batch]:
            return self.validation

        given = (self.supernet, self.task, batches, self.calibration)
        return PrefixTree(*given, CPU, "kernels", 10**9)

    def alone(self, arch: Arch) -> dict[str, float]:
        network = discretize(self.supernet, arch).eval()
        prepare_network(network, "kernels", self.few)
        recalibrate(network, self.calibration)
        return validated(network, self.task, self.validation, CPU)

    def timed(self, archs: Sequence[Arch]) -> Times:
        """Milliseconds of each network in the tree, and of some alone, right after."""
        tree, times = self.tree(), Times({"tree": [], "alone": []}, {"tree": [], "alone": []})
        # At random: in turn, every so-manieth network may have the same last option.
        both = torch.randperm(len(archs), generator=torch.Generator().manual_seed(0))[:ALONE]
        for place, arch in enumerate(archs):
            scores: list[dict[str, float]] = []
            ways: dict[str, Callable[[Arch], dict[str, float]]]
            ways = {"tree": tree, "alone": self.alone}
            if place not in both.tolist():
                del ways["alone"]
            steps: dict[str, Step] = {
                name: partial(_append, scores, way, arch) for name, way in ways.items()
            }
            found = interleave(steps, 1, warm_up=False)
            assert scores[0] == scores[-1]
            for name in ways:
                times.wall[name] += found.wall[name]
                times.cpu[name] += found.cpu[name]
        return times


def _append(
    scores: list[dict[str, float]], way: Callable[[Arch], dict[str, float]], arch: Arch
) -> None:
    scores.append(way(arch))


def rank(space: str, batch: Batch, rounds: int) -> list[Row]:
    """Milliseconds of a network: all of a space in turn; some drawn ones, in order and as drawn."""
    rankings, rows = Rankings(space, len(batch[0])), []
    rankings.alone(next(iter(rankings.space)))  # the first is slow
    generator = torch.Generator().manual_seed(0)
    drawn = [rankings.space.draw(generator) for _ in range(DRAWN)]
    first = list(islice(rankings.space, WHOLE if rankings.space.size <= WHOLE else DRAWN))
    sequences = {
        "all in turn" if len(first) == rankings.space.size else f"first {len(first)}": first,
        f"{DRAWN} drawn, in order": [drawn[i] for i in rankings.tree().order(drawn)],
        f"{DRAWN} drawn, as drawn": drawn,
    }
    for name, archs in sequences.items():
        repeats = [rankings.timed(archs) for _ in range(rounds)]

        def mean(way: str, clock: str, repeats: Sequence[Times] = repeats) -> list[float]:
            # Not the median: networks of a new first stage take the longest.
            return [statistics.fmean(getattr(times, clock)[way]) for times in repeats]

        ours, plain = mean("tree", "wall"), mean("alone", "wall")
        ratios = [a / b for a, b in zip(ours, plain, strict=True)]
        cpu = statistics.median(mean("tree", "cpu")) / statistics.median(mean("alone", "cpu"))
        rows.append(
            Row(
                f"rank, {name}",
                space,
                len(batch[0]),
                statistics.median(ours) / statistics.median(plain),
                quartiles(ratios),
                LIMITS[space] if archs is first else None,
                cpu=cpu,
                ours=statistics.median(ours),
                plain=statistics.median(plain),
            )
        )
    return rows

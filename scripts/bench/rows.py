"""The comparisons; each gives the rows of one space and batch."""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from bench.networks import (
    CONFIGS,
    NUM_CLASSES,
    SHAPES,
    Batch,
    Trainee,
    build_supernet,
    network_drawn,
    saved_bytes,
    sum_of_branches,
)
from bench.ranking import rank
from bench.timing import Row, Step, Times, compare, interleave, quartiles
from nas.compress.convert import searchable
from nas.cost import device
from nas.cost.analytic import MACs, Params
from nas.cost.device import Energy, Roofline
from nas.cost.expected import expected
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.decision import decisions, free
from nas.supernet.relax import one_path, softmax
from nas.supernet.speed import compiled, prepare, prepare_network

REPEATS = 6  # each with other paths, or fresh copies

Bench = Callable[[str, Batch, int], list[Row]]


def soft(space: str, batch: Batch, rounds: int) -> list[Row]:
    """All paths: searched, with alphas frozen, against the branches added without theta."""
    times, at = [], (space, len(batch[0]))
    for _ in range(REPEATS):
        supernet = build_supernet(space, softmax)
        steps: dict[str, Step] = {
            "soft": Trainee(supernet, batch).step,
            "frozen": Trainee(copy.deepcopy(supernet), batch, frozen=True).step,
            "plain": Trainee(sum_of_branches(supernet), batch).step,
        }
        times.append(interleave(steps, rounds))
    return [
        compare("soft", ("soft", "plain"), at, times, 1.00),
        compare("soft, alphas frozen", ("frozen", "plain"), at, times, 1.00),
    ]


def speed(space: str, batch: Batch, rounds: int) -> list[Row]:
    """All paths at each speed that needs no compilation, against the plain sum of branches."""
    times, at = [], (space, len(batch[0]))
    for _ in range(REPEATS // 2):
        supernet = build_supernet(space, softmax)
        steps: dict[str, Step] = {"plain": Trainee(sum_of_branches(supernet), batch).step}
        for name in ("kernels", "channels_last"):
            steps[name] = Trainee(_at_speed(supernet, name), batch).step
        times.append(interleave(steps, rounds))
    return [
        compare(f"soft, {name}", (name, "plain"), at, times, limit)
        for name, limit in (("kernels", 1.00), ("channels_last", 0.95))
    ]


def compile(space: str, batch: Batch, rounds: int) -> list[Row]:
    """All paths compiled, against the plain sum of branches; prints the seconds to set it up."""
    at, supernet = (space, len(batch[0])), build_supernet(space, softmax)
    plain = Trainee(sum_of_branches(supernet), batch)
    ours = Trainee(_at_speed(supernet, "compile"), batch)
    compiled(ours.net, batch[0])
    first = interleave({"compile": ours.step}, 1, warm_up=False)
    print(f"compiled in {first.wall['compile'][0] / 1000:.0f} s ({space})", flush=True)
    times = [interleave({"compile": ours.step, "plain": plain.step}, rounds) for _ in range(3)]
    return [compare("soft, compile", ("compile", "plain"), at, times, 0.93)]


def _at_speed(supernet: nn.Module, name: str) -> nn.Module:
    net = copy.deepcopy(supernet)
    prepare(net, name)
    return net


def mask(space: str, batch: Batch, rounds: int) -> list[Row]:
    """A converted network, under soft thetas and with every channel, against the one given."""
    times, at = [], (space, len(batch[0]))
    for _ in range(REPEATS // 2):
        given = mobilenet_v2(num_classes=NUM_CLASSES)
        supernet = searchable(given, SHAPES[space])
        steps: dict[str, Step] = {
            "soft": Trainee(supernet, batch).step,
            "frozen": Trainee(copy.deepcopy(supernet), batch, frozen=True).step,
            "plain": Trainee(given, batch).step,
        }
        kept = [saved_bytes(Trainee(net, batch)) for net in (supernet, given)]
        hard = Trainee(copy.deepcopy(supernet), batch, frozen=True)
        for _, decision in decisions(hard.net):
            decision.choose(decision.options[-1])
        times.append(interleave({**steps, "hard": hard.step}, rounds))
    bytes_kept = kept[0] / kept[1]
    return [
        compare("masks, soft", ("soft", "plain"), at, times, 1.10),
        compare("masks, alphas frozen", ("frozen", "plain"), at, times, 1.10),
        compare("masks, hard", ("hard", "plain"), at, times, 1.10),
        Row("bytes of masks, soft", *at, bytes_kept, (bytes_kept,) * 3, 1.05),
    ]


def cost(space: str, batch: Batch, rounds: int) -> list[Row]:
    """Costs under theta and their gradient, each and together, against a whole soft step."""
    at, supernet = (space, len(batch[0])), build_supernet(space, softmax)
    layers = trace(supernet, SHAPES[space])
    target = device.load(CONFIGS / "device" / "cortex_m7.yaml")
    models = (Params(), MACs(), PeakMemory(), Roofline(target), Energy(target))
    costs = {model.name: expected(supernet, model, layers) for model in models}
    steps: dict[str, Step] = {"soft": Trainee(supernet, batch).step}
    for name, one in costs.items():
        steps[name] = lambda one=one: torch.autograd.backward(one())
    steps["all"] = lambda: torch.autograd.backward([one() for one in costs.values()])
    times = [interleave(steps, rounds) for _ in range(3)]
    return [compare(f"cost: {name}", (name, "soft"), at, times, 0.02) for name in (*costs, "all")]


def hard(space: str, batch: Batch, rounds: int) -> list[Row]:
    """One path, drawn: time and bytes, against its plain network, for more and more candidates."""
    rows = []
    for count in (3, 6, 12) if space == "chain" else (None,):
        times, kept, at = [], [], (space, len(batch[0]))
        supernet = build_supernet(space, one_path, True, count)
        searched = Trainee(supernet, batch)
        fixed = Trainee(copy.deepcopy(supernet), batch, frozen=True)
        for seed in range(REPEATS):
            plain = Trainee(network_drawn(supernet, seed), batch)
            steps: dict[str, Step] = {
                "hard": partial(searched.drawn_step, seed),
                "frozen": partial(fixed.drawn_step, seed),
                "plain": plain.step,
            }
            times.append(interleave(steps, rounds))
            kept.append(saved_bytes(searched) / saved_bytes(plain))
        of = f" of {count}" if count else ""
        rows += [
            compare(f"hard{of}", ("hard", "plain"), at, times, 1.10),
            compare(f"hard{of}, alphas frozen", ("frozen", "plain"), at, times, 1.10),
            Row(f"bytes{of}", *at, statistics.fmean(kept), quartiles(kept), 1.02),
        ]
    return rows


def two_path(space: str, batch: Batch, rounds: int) -> list[Row]:
    """ProxylessNAS: a step of alphas on two paths, against the mean plain single-path network."""
    from nas.supernet.proxyless import TwoPaths, draw_mixing, draw_path, mixing

    at, times = (space, len(batch[0])), []
    supernet = build_supernet(space, softmax)
    alphas, weights = Trainee(supernet, batch), Trainee(copy.deepcopy(supernet), batch, frozen=True)

    def alpha_step(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with mixing(alphas.net, draw_mixing(alphas.net, TwoPaths.draw, generator)):
            alphas.step_alphas()

    def weight_step(seed: int) -> None:
        draw_path(weights.net, torch.Generator().manual_seed(seed))
        weights.step()

    hard_supernet = build_supernet(space, one_path, True)
    for seed in range(REPEATS):
        # As many draws as paths: the means are over the same distribution, not the same paths.
        plain = Trainee(network_drawn(hard_supernet, seed), batch)
        steps: dict[str, Step] = {
            "alpha": partial(alpha_step, seed),
            "weight": partial(weight_step, seed),
            "plain": plain.step,
        }
        times.append(interleave(steps, rounds))
    free(supernet)
    return [
        compare("two-path alpha step", ("alpha", "plain"), at, times, 2.2),
        compare("proxyless weight step", ("weight", "plain"), at, times, 1.10),
    ]


def bilevel(space: str, batch: Batch, rounds: int) -> list[Row]:
    """Both halves of a step of the NAS-Bench-201 supernet, against two plain steps of all ops."""
    at, times = (space, len(batch[0])), []
    for _ in range(REPEATS // 2):
        supernet = build_supernet(space, softmax)
        plain = Trainee(sum_of_branches(supernet), batch)
        eager = Trainee(copy.deepcopy(supernet), batch)
        steps: dict[str, Step] = {
            "eager": eager.bilevel_step,
            "kernels": Trainee(_at_speed(supernet, "kernels"), batch).bilevel_step,
            "channels_last": Trainee(_at_speed(supernet, "channels_last"), batch).bilevel_step,
            "gdas": Trainee(build_supernet(space, one_path, True), batch).bilevel_step,
            "plain": lambda plain=plain: (plain.step(), plain.step()),
        }
        times.append(interleave(steps, rounds))
    limits = {"eager": 0.95, "kernels": 0.95, "channels_last": 0.95, "gdas": 0.33}
    return [
        compare(f"bilevel, {name}", (name, "plain"), at, times, limit)
        for name, limit in limits.items()
    ]


def threads(space: str, batch: Batch, rounds: int) -> list[Row]:
    """A plain network on two threads, against one.

    Beside it the processor time of the main thread, which does half of what is shared and all that
    is not: what free cores would take at least.
    """
    network = network_drawn(build_supernet(space, softmax), 1)
    prepare_network(network, "kernels", batch[0][:2])
    trainee, main = Trainee(network, batch), dict[str, list[float]](one=[], two=[])

    def steps(name: str) -> None:
        torch.set_num_threads(1 + (name == "two"))
        start = time.thread_time_ns()
        for _ in range(4):
            trainee.step()
        main[name].append((time.thread_time_ns() - start) / 1e6)

    times = interleave({name: partial(steps, name) for name in main}, rounds)
    own = Times({name: found[1:] for name, found in main.items()}, times.cpu)
    at = space, len(batch[0])
    return [
        compare("two threads", ("two", "one"), at, [times], 1.00),
        compare("two threads, the main one", ("two", "one"), at, [own], 1.00),
    ]


def bf16(space: str, batch: Batch, rounds: int) -> list[Row]:
    """Steps with channels last under bf16 autocast, against float32: all paths, a plain network."""
    supernet = build_supernet(space, softmax)
    network, at = network_drawn(supernet, 1), (space, len(batch[0]))
    rows = []
    for name, net in (("all paths", supernet), ("network", network)):
        prepare(net, "channels_last")
        steps: dict[str, Step] = {
            "float32": Trainee(net, batch).step,
            "bf16": Trainee(copy.deepcopy(net), batch, bf16=True).step,
        }
        rows.append(
            compare(f"bf16, {name}", ("bf16", "float32"), at, [interleave(steps, rounds)], 1.00)
        )
    return rows


# Name -> comparison and the spaces that it is made on.
BENCHES: dict[str, tuple[Bench, tuple[str, ...]]] = {
    "soft": (soft, ("chain", "mobilenet")),
    "speed": (speed, ("chain", "mobilenet")),
    "compile": (compile, ("chain", "mobilenet")),
    "mask": (mask, ("mobilenet_v2",)),
    "cost": (cost, ("chain", "mobilenet")),
    "hard": (hard, ("chain", "mobilenet")),
    "two_path": (two_path, ("chain", "mobilenet")),
    "bilevel": (bilevel, ("nas_bench_201",)),
    "bf16": (bf16, ("chain", "mobilenet_tiny")),
    "threads": (threads, ("chain_tiny", "chain", "mobilenet_tiny")),
    "rank": (rank, ("chain", "nas_bench_201", "truth")),
}

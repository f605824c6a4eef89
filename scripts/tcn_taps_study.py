"""Do searched taps beat dilations set by hand, and does least squares help operations to start?

    python scripts/tcn_taps_study.py taps OUT.jsonl [--seeds 0 1 2] [--arms hand both]
    python scripts/tcn_taps_study.py starts OUT.jsonl --data FOLDER_OF_FASHION_MNIST [--seeds 0 1 2]
    python scripts/tcn_taps_study.py table OUT.jsonl

`taps`: the digits of scikit-learn as sequences of 64 values, a causal TCN of three layers of 17
taps, of which taps, channels or both are searched in one shot. Against it: TCNs of kernels,
dilations and widths set by hand, trained from scratch for as many epochs as all of that.
`starts`: a CNN trained on FashionMNIST; all its convolutions but the first become another
operation, fitted by least squares, by the weights alone (the same with white inputs), or at random.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, pstdev

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

from nas.arch import Arch
from nas.compress.candidates import fitted
from nas.compress.convert import converted
from nas.compress.moments import Moments, moments
from nas.compress.rules import Rules
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import decisions, sample_path, split_parameters
from nas.discretization import discretize
from nas.recalibrate import recalibrate

Data = tuple[Tensor, Tensor]
WARM, SEARCH, FINE = 12, 10, 8  # epochs
DRAWS = 100  # networks that are looked at for each budget
SHAPE = (1, 64)
BUDGETS = (0.05, 0.1, 0.2, 0.4)  # of the MACs of the largest network
BY_HAND = {  # kernel, dilations
    "k3 d1-2-4": (3, (1, 2, 4)),
    "k5 d1-2-4": (5, (1, 2, 4)),
    "k5 d1-1-1": (5, (1, 1, 1)),
    "k9 d1-2-2": (9, (1, 2, 2)),
}
KINDS = ("low_rank_2", "dw_pw", "grouped_2", "separable_2")


def tcn(kernel: int, dilations: Sequence[int], width: int) -> nn.Sequential:
    rows: list[nn.Module] = []
    inputs = 1
    for step in dilations:
        pad = nn.ConstantPad1d(((kernel - 1) * step, 0), 0.0)
        conv = nn.Conv1d(inputs, width, kernel, dilation=step, bias=False)
        rows += [pad, conv, nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*rows, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 10))


def batches(data: Data, size: int = 64) -> Iterator[Data]:
    order = torch.randperm(len(data[0]))
    for some in order.split(size):
        yield data[0][some], data[1][some]


def train(net: nn.Module, data: Data, epochs: int, lr: float = 3e-3) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01)
    steps = epochs * -(-len(data[0]) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for x, y in batches(data):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    net.eval()
    right = torch.cat([net(x).argmax(1) for x in data[0].split(256)]) == data[1]
    return float(right.float().mean())


def cost(net: nn.Module, shape: Sequence[int]) -> dict[str, float]:
    traced = trace(net, shape)
    return {c.name: float(ExpectedCost(net, c, traced)()) for c in (MACs(), Params())}


def one_shot(trained: nn.Module, arm: str, data: Data) -> nn.Module:
    """The supernet, its largest and a random network trained in each step."""
    both = {"channels": {"choices": 4}, "kernels": True}
    rules = Rules(**both | {"taps": {"channels": None}, "channels": {"kernels": None}}.get(arm, {}))
    supernet = converted(trained, SHAPE, rules).supernet
    own = dict(decisions(supernet))
    optimizer = torch.optim.Adam(split_parameters(supernet).weights, 1e-3)
    supernet.train()
    for _ in range(SEARCH):
        for x, y in batches(data):
            optimizer.zero_grad()
            for decision in own.values():
                decision.choose(decision.options[-1])
            F.cross_entropy(supernet(x), y).backward()
            sample_path(supernet)
            F.cross_entropy(supernet(x), y).backward()
            optimizer.step()
    return supernet


def selected(supernet: nn.Module, share: float, train_set: Data, held: Data) -> nn.Module | None:
    """The best on `held` of random networks under a budget of MACs; None: none is so small."""
    own = dict(decisions(supernet))
    macs = ExpectedCost(supernet, MACs(), trace(supernet, SHAPE))
    budget = share * macs.of({name: d.options[-1] for name, d in own.items()})
    if macs.of({name: d.options[0] for name, d in own.items()}) > budget:
        return None
    best: tuple[float, Arch] | None = None
    for _ in range(DRAWS):
        picks = {name: random.randrange(len(d.options)) for name, d in own.items()}

        def arch(picks: dict[str, int] = picks) -> Arch:
            return Arch("tcn", {name: own[name].options[k] for name, k in picks.items()})

        while macs.of(arch().choices) > budget:
            picks[random.choice([name for name, k in picks.items() if k])] -= 1
        network = discretize(supernet, arch())
        recalibrate(network, train_set[0][:512].split(128))
        score = accuracy(network, held)
        if best is None or score > best[0]:
            best = score, arch()
    assert best is not None
    network = discretize(supernet, best[1])
    assert cost(network, SHAPE)["macs"] <= budget
    return network


def taps(seed: int, arms: Sequence[str]) -> Iterator[dict[str, object]]:
    torch.manual_seed(seed)
    random.seed(seed)
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y))
    x = torch.tensor(x, dtype=torch.float32)[order].reshape(-1, *SHAPE) / 8 - 1
    y = torch.tensor(y)[order]
    data, test = (x[:1400], y[:1400]), (x[1400:], y[1400:])
    largest = tcn(17, (1, 1, 1), 32)
    train(largest, data, WARM)
    yield {"arm": "largest", **cost(largest, SHAPE), "accuracy": accuracy(largest, test)}
    searched_on, held = (x[:1200], y[:1200]), (x[1200:1400], y[1200:1400])
    for arm in set(arms) - {"hand"}:
        supernet = one_shot(largest, arm, searched_on)
        for share in BUDGETS:
            network = selected(supernet, share, searched_on, held)
            if network is None:
                continue
            train(network, data, FINE)
            convs = [m for m in network.modules() if isinstance(m, nn.Conv1d)]
            found = [(c.out_channels, c.kernel_size[0], c.dilation[0]) for c in convs]
            row = {"arm": arm, "budget": share, **cost(network, SHAPE), "layers": found}
            yield {**row, "accuracy": accuracy(network, test)}
    for name, (kernel, dilations) in BY_HAND.items() if "hand" in arms else ():
        for width in (8, 16, 32):
            net = tcn(kernel, dilations, width)
            train(net, data, WARM + SEARCH + FINE)
            row = {"arm": "by hand", "name": f"{name} w{width}", **cost(net, SHAPE)}
            yield {**row, "accuracy": accuracy(net, test)}


def cnn() -> nn.Sequential:
    rows: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        rows += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*rows, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def replaced(
    net: nn.Sequential, name: str, start: str, known: dict[nn.Module, Moments]
) -> nn.Module:
    """`net` with another operation in the place of each convolution but the first."""
    rows, errors = [], []
    for module in net:
        if module not in known:
            rows.append(module)
            continue
        seen = known[module]
        if start == "weights":
            seen = Moments(torch.eye(seen.gram.shape[-1])[None].double(), 0 * seen.mean)
        fit = fitted(name, module, seen)
        if start == "random":
            for layer in fit.module.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.reset_parameters()
        errors.append(fit.error)
        rows.append(fit.module)
    # Norms and the classifier are shared with the given network: a copy is trained.
    made = discretize(nn.Sequential(*rows))
    made.error = mean(errors)
    return made


def starts(seed: int, folder: Path) -> Iterator[dict[str, object]]:
    torch.manual_seed(seed)
    parts = []
    for is_train, count in ((True, 2000), (False, 2000)):
        own = FashionMNIST(folder, train=is_train)
        some = torch.randperm(len(own.data))[:count]
        parts.append((own.data[some][:, None].float() / 127.5 - 1, own.targets[some]))
    data, test = parts
    net = cnn()
    train(net, data, 5)
    given = accuracy(net, test)
    convs = [m for m in net if isinstance(m, nn.Conv2d)][1:]
    known = moments(net, convs, data[0][:512].split(128))
    yield {"kind": "given", "before": given, "after": given, **cost(net, (1, 28, 28))}
    for name in KINDS:
        for start in ("least squares", "weights", "random"):
            made = replaced(net, name, start, known)
            row = {"kind": name, "start": start, "error": made.error, **cost(made, (1, 28, 28))}
            before = accuracy(made, test)
            train(made, data, 1, 1e-3)
            yield {**row, "before": before, "after": accuracy(made, test)}


def table(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        words = (
            row.get("kind") or row["arm"],
            row.get("start") or row.get("name"),
            row.get("budget"),
        )
        by[tuple(str(word) for word in words if word)].append(row)
    numbers = [
        n for n in ("macs", "params", "error", "before", "after", "accuracy") if n in rows[-1]
    ]
    print("| |", " | ".join(numbers), "| seeds |")
    for words, several in by.items():
        cells = []
        for number in numbers:
            values = [row[number] for row in several if number in row]
            if not values:
                cells.append("")
            elif number in ("macs", "params"):
                cells.append(f"{mean(values) / 1000:.1f} k")
            else:
                scale = 1 if number == "error" else 100
                cells.append(f"{scale * mean(values):.2f} ± {scale * pstdev(values):.2f}")
        print(f"| {' '.join(words)} |", " | ".join(cells), f"| {len(several)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["taps", "starts", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--arms", nargs="+", default=["hand", "both", "channels", "taps"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "table":
        table(args.out)
        return
    for seed in args.seeds:
        for row in taps(seed, args.arms) if args.part == "taps" else starts(seed, args.data):
            with args.out.open("a") as file:
                file.write(json.dumps({"seed": seed, **row}) + "\n")
            print(seed, row, flush=True)


if __name__ == "__main__":
    main()

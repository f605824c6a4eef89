"""Does least squares help an operation to start in the place of a trained layer?

    python scripts/starts_study.py OUT.jsonl --data FOLDER_OF_FASHION_MNIST [--seeds 0 1 2]
    python scripts/starts_study.py OUT.jsonl --table

A CNN is trained on FashionMNIST; all its convolutions but the first become another operation,
fitted by least squares, by the weights alone (the same with white inputs), or at random.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, pstdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

from nas.compress.candidates import fitted
from nas.compress.moments import Moments, moments
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.discretization import discretize

Data = tuple[Tensor, Tensor]
KINDS = ("low_rank_2", "dw_pw", "grouped_2", "separable_2")


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
    by: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        by[f"{row['kind']} {row.get('start', '')}".strip()].append(row)
    print("| | macs | params | error | before | after | seeds |\n|---|---|---|---|---|---|---|")
    for words, several in by.items():
        cells = []
        for number in ("macs", "params", "error", "before", "after"):
            values = [row[number] for row in several if number in row]
            if not values:
                cells.append("")
            elif number in ("macs", "params"):
                cells.append(f"{mean(values) / 1000:.1f} k")
            else:
                scale = 1 if number == "error" else 100
                cells.append(f"{scale * mean(values):.2f} ± {scale * pstdev(values):.2f}")
        print(f"| {words} |", " | ".join(cells), f"| {len(several)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", action="store_true", help="of what is in OUT.jsonl")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table:
        table(args.out)
        return
    for seed in args.seeds:
        for row in starts(seed, args.data):
            with args.out.open("a") as file:
                file.write(json.dumps({"seed": seed, **row}) + "\n")
            print(seed, row, flush=True)


if __name__ == "__main__":
    main()

"""Mixed precision against uniform bits at equal size, by the same training with rounding.

    python scripts/bits_study.py OUT --root FOLDER [--seeds 3] [--task fashion] [--channels]

`FOLDER` is the one that torchvision keeps Fashion-MNIST in; for `--task cifar` it has a folder of
images for each class below `train` and `test`. For each seed a network is trained in
float32, and goes on from there with rounding: uniform bits 8, 4 and 2, and mixed ones at four
budgets of bytes. Which layer has how many bits is said by the sensitivity of the loss and the exact
program, by alphas that are trained with the weights, and by chance. What is in OUT is not done
again. Prints the tables of experiments/bits/README.md. With --channels the one of bits by channel.
"""

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from math import cos, pi
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.arch import Arch, Option
from nas.artifacts.files import write_json
from nas.cost.analytic import Size
from nas.cost.expected import ExpectedCost
from nas.decision import decisions, free, resample, sample_path, split_parameters
from nas.discretization import discretize
from nas.integer import integer_graph
from nas.integer.operators import Conv
from nas.ops.blocks import GlobalPool
from nas.quantization.network import Quantize, quantized
from nas.quantization.sensitivity import order_channels, sensitivity, set_prior
from nas.selection import select
from nas.supernet.relax import straight_through

TRAIN, VAL, BATCH = 3000, 1000, 64
CIFAR_TRAIN = 10_000
FLOAT_EPOCHS, QAT_EPOCHS, SEARCH_EPOCHS = 16, 6, 6
SPACE = "Sequential"
# What an integer graph stores: packed weights, 16 bits for each bias and for each multiplier.
STORED = Size(dtype="int8", fold_norm=True, bias_bits=16, scale_bits=16)
Parts = dict[str, tuple[Tensor, Tensor]]
Prior = dict[str, dict[Option, float]]  # decision -> option -> what it adds to the loss


def main() -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", choices=TASKS, default="fashion")
    parser.add_argument("--channels", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        study = Study(given.task, given.out / given.task / str(seed), given.root, seed)
        rows += study.channel_rows() if given.channels else study.rows()
        print(table(rows), agreement(given.out), sep="\n\n", flush=True)


class Study:
    """All trainings of one seed."""

    def __init__(self, task: str, out: Path, root: Path, seed: int) -> None:
        self.out, self.seed = out, seed
        read, make = TASKS[task]
        self.parts = read(root, seed)
        self.shape = tuple(self.parts["train"][0].shape[1:])
        torch.manual_seed(seed)
        self.network = make()
        self.out.mkdir(parents=True, exist_ok=True)
        self._float()
        self._take(1)

    def _take(self, channels: int) -> None:
        """Search bits of so many parts of the channels of each layer."""
        self.channels = channels
        self.supernet = self._quantized()
        self.size = ExpectedCost(self.supernet, STORED, self.shape)
        self.paths = [name for name, _ in decisions(self.supernet)]

    def _quantized(self) -> nn.Module:
        how, some = Quantize(channels=self.channels), [self.parts["train"][0][:512]]
        made = quantized(self.network, how, calibration=some).eval()
        val = [x.split(BATCH) for x in self.parts["val"]]
        losses = (F.cross_entropy(made(x), y) for x, y in zip(*val, strict=True))
        order_channels(made, lambda _: losses)
        return made

    def _float(self) -> None:
        path = self.out / "float.pt"
        if path.exists():
            self.network.load_state_dict(torch.load(path, weights_only=True))
            return
        train(self.network, self.parts["train"], FLOAT_EPOCHS, 0.1, self.seed)
        torch.save(self.network.state_dict(), path)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network: how its bits were chosen, bytes, accuracy."""
        whole = {bits: self._uniform(bits) for bits in (8, 4, 2)}
        bytes_of = {bits: self.size.of(arch.choices) for bits, arch in whole.items()}
        budgets = {
            "half of 8 bits": bytes_of[8] / 2,
            "as 4 bits": bytes_of[4],
            "between 4 and 8": (bytes_of[4] + bytes_of[8]) / 2,
            "between 2 and 4": (bytes_of[2] + bytes_of[4]) / 2,
        }
        plain = float(ExpectedCost(self.network, Size(fold_norm=True), self.shape)())
        rows = [{"way": "float32", "size": plain, **self._scores(self.network)}]
        rows += [self._row(f"uniform {bits}", arch) for bits, arch in whole.items()]
        for name, bound in budgets.items():
            for way, choose in self._ways().items():
                rows.append(self._row(f"{way}, {name}", choose(bound)))
        return rows

    def channel_rows(self) -> list[dict[str, Any]]:
        """A row for each number of parts that channels are split into, at equal bytes."""
        whole, rows = self.size.of(self._uniform(8).choices), []
        for share in (0.5, 0.4):
            for channels in (1, 4, 8):
                self._take(channels)
                for way in ("sensitivity", "searched"):
                    arch = self._ways()[way](share * whole)
                    row = self._row(f"{way}, {channels} parts, {share:.0%} of uniform 8", arch)
                    before = accuracy(discretize(self.supernet, arch), *self.parts["test"])
                    rows.append({**row, "untrained": before})
        return rows

    def _ways(self) -> dict[str, Callable[[float], Arch]]:
        return {
            "sensitivity": partial(self._selected, self._sensitivity),
            "searched": partial(self._selected, self._searched),
            "random": self._random,
        }

    def _uniform(self, bits: int) -> Arch:
        return Arch(SPACE, dict.fromkeys(self.paths, bits))

    def _selected(self, priors: Callable[[], Prior], bound: float) -> Arch:
        set_prior(self.supernet, priors())
        return select(self.supernet, SPACE, {"size": self.size}, {"size": bound})

    def _random(self, bound: float) -> Arch:
        """Of networks drawn at random, that of the most bytes inside the budget of many."""
        draw = random.Random(self.seed)
        best = self._uniform(2)
        for _ in range(200):
            arch = Arch(SPACE, {path: draw.choice((2, 4, 8)) for path in self.paths})
            if self.size.of(best.choices) < self.size.of(arch.choices) <= bound:
                best = arch
        return best

    def _sensitivity(self) -> Prior:
        def loss(model: nn.Module) -> float:
            x, y = self.parts["val"]
            return float(F.cross_entropy(model.eval()(x), y))

        return self._kept("sensitivity", lambda: sensitivity(self.supernet, loss))

    def _searched(self) -> Prior:
        """Minus the alphas that are trained with the weights, one sample of bits a step."""
        return self._kept("alphas", self._search)

    def _search(self) -> Prior:
        model = self._quantized()
        for _, decision in decisions(model):
            decision.relax, decision.gumbel = straight_through, True
        weights, alphas = split_parameters(model)
        slow = torch.optim.SGD(weights, 0.02, 0.9)
        fast = torch.optim.Adam(alphas, 0.02, betas=(0.5, 0.999))
        generator = torch.Generator().manual_seed(self.seed)
        model.train()
        x_val, y_val = self.parts["val"]
        for epoch in range(SEARCH_EPOCHS):
            for x, y in batches(self.parts["train"], generator):
                sample_path(model, generator)
                step(slow, F.cross_entropy(model(x), y), weights)
                free(model)
                if epoch >= SEARCH_EPOCHS // 2:
                    resample(model, generator)
                    some = torch.randint(len(x_val), (BATCH,), generator=generator)
                    # No price: budgets are met by the exact program, which reads these alphas.
                    step(fast, F.cross_entropy(model(x_val[some]), y_val[some]), alphas)
        return {
            name: {b: -a for b, a in zip(d.options, d.alpha.tolist(), strict=True)}
            for name, d in decisions(model)
        }

    def _kept(self, name: str, make: Callable[[], Prior]) -> Prior:
        path = self.out / f"{name}{'' if self.channels == 1 else self.channels}.json"
        if not path.exists():
            write_json(path, {k: {str(b): v for b, v in o.items()} for k, o in make().items()})
        found, own = json.loads(path.read_text()), dict(decisions(self.supernet))
        return {k: {b: found[k][str(b)] for b in d.options} for k, d in own.items()}

    def _row(self, way: str, arch: Arch) -> dict[str, Any]:
        path = self.out / f"{arch.hash}.json"
        if not path.exists():
            network = discretize(self.supernet, arch)
            train(network, self.parts["train"], QAT_EPOCHS, 0.02, self.seed)
            torch.save(network.state_dict(), path.with_suffix(".pt"))
            content = {"size": self.size.of(arch.choices), **self._scores(network)}
            content["integer"] = self._integer(network, content["size"])
            write_json(path, {**content, "bits": dict(arch.choices)})
        return {"way": way, **json.loads(path.read_text())}

    def _integer(self, network: nn.Module, size: float) -> float:
        """Test accuracy of the integer graph, of exactly the bytes that were predicted."""
        graph = integer_graph(network, self.parts["train"][0][:512])
        stored = sum(one.stored for one in graph.operators if isinstance(one, Conv))
        assert stored == size
        return accuracy(graph, *self.parts["test"])

    def _scores(self, network: nn.Module) -> dict[str, float]:
        return {part: accuracy(network, *self.parts[part]) for part in ("val", "test")}


def train(
    network: nn.Module, part: tuple[Tensor, Tensor], epochs: int, lr: float, seed: int
) -> None:
    """SGD with a cosine; BatchNorm keeps its statistics in the last quarter of the epochs."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr, 0.9, weight_decay=1e-4, nesterov=True)
    steps, done = epochs * (len(part[0]) // BATCH), 0
    for epoch in range(epochs):
        network.train(epoch < 0.75 * epochs)
        for x, y in batches(part, generator):
            optimizer.param_groups[0]["lr"] = lr * (1 + cos(pi * done / steps)) / 2
            step(optimizer, F.cross_entropy(network(x), y), parameters)
            done += 1
    network.eval()


def step(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """One step of an optimizer; the gradient is clipped."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 5.0)
    optimizer.step()


def batches(part: tuple[Tensor, Tensor], generator: torch.Generator) -> Any:
    """One epoch in another order; what does not fill a batch is left out."""
    order = torch.randperm(len(part[0]), generator=generator)
    for some in order[: len(order) // BATCH * BATCH].split(BATCH):
        yield part[0][some], part[1][some]


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Percent."""
    if isinstance(network, nn.Module):
        network.eval()
    parts = zip(x.split(500), y.split(500), strict=True)
    right = sum(int((network(a).argmax(1) == b).sum()) for a, b in parts)
    return 100 * right / len(y)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds of bytes and of test accuracy, with its standard error, as Markdown."""
    columns = {"untrained": "not trained", "test": "fake-quantised", "integer": "integer graph"}
    columns = {key: head for key, head in columns.items() if any(key in row for row in rows)}
    lines = [f"| bits | bytes | {' | '.join(columns.values())} | seeds |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        size, texts = mean(row["size"] for row in own), []
        for key in columns:
            found = [row[key] for row in own if key in row]
            error = stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
            texts.append(f"{mean(found):.2f} +- {error:.2f} %" if found else "")
        lines.append(f"| {way} | {size:,.0f} | {' | '.join(texts)} | {len(own)} |")
    return "\n".join(lines)


def agreement(out: Path) -> str:
    """How far integer graphs of all tasks are from their networks, in points of test accuracy."""
    rows = [json.loads(path.read_text()) for path in out.glob("*/*/*.json")]
    apart = [abs(row["test"] - row["integer"]) for row in rows if "integer" in row]
    within = sum(points <= 0.1 for points in apart)
    return (
        f"{len(apart)} integer graphs: {within} within .1 points of the network, {mean(apart):.2f} "
        f"apart in the mean, {max(apart):.2f} at most"
    )


def fashion(root: Path, seed: int) -> Parts:
    """4,000 training images, 1,000 of them for validation, and all 10,000 test images: 14 x 14."""
    from torchvision.datasets import FashionMNIST

    def part(train: bool) -> tuple[Tensor, Tensor]:
        data = FashionMNIST(str(root), train, download=False)
        images = F.avg_pool2d(data.data[:, None].float(), 2)
        return (images / 255 - 0.286) / 0.324, data.targets

    (x, y), test = part(True), part(False)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: TRAIN + VAL]
    ours, held = order[:TRAIN], order[TRAIN:]
    return {"train": (x[ours], y[ours]), "val": (x[held], y[held]), "test": test}


def rows_as_sequence(root: Path, seed: int) -> Parts:
    """The same images as sequences of 14 rows of 14 features."""
    return {name: (x[:, 0], y) for name, (x, y) in fashion(root, seed).items()}


def cifar(root: Path, seed: int) -> Parts:
    """11,000 training images, 1,000 of them for validation, and all 10,000 test images: 32 x 32."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    def part(name: str, some: int | None) -> tuple[Tensor, Tensor]:
        data = ImageFolder(str(root / name))
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:some]
        pairs = [data[int(index)] for index in order]
        images = torch.stack([pil_to_tensor(image) for image, _ in pairs]).float()
        return (images / 255 - 0.473) / 0.251, torch.tensor([label for _, label in pairs])

    (x, y), test = part("train", CIFAR_TRAIN + VAL), part("test", None)
    ours, held = slice(CIFAR_TRAIN), slice(CIFAR_TRAIN, None)
    return {"train": (x[ours], y[ours]), "val": (x[held], y[held]), "test": test}


def separable(inputs: int = 1, width: int = 16, stride: int = 1) -> nn.Sequential:
    """A small depthwise separable network for images; `stride` of its first convolution."""
    first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
    layers: list[nn.Module] = [*normed(first, 2)]
    for inputs, outputs, stride in ((1, 2, 2), (2, 4, 2), (4, 4, 1)):
        inputs, outputs = inputs * width, outputs * width
        layers += normed(nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), 2)
        layers += normed(nn.Conv2d(inputs, outputs, 1, bias=False), 2)
    return nn.Sequential(*layers, GlobalPool(), nn.Linear(4 * width, 10))


def sequence() -> nn.Sequential:
    """A small temporal network for sequences of 14 features."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((14, 24, 1), (24, 32, 1), (32, 48, 2)):
        layers += normed(nn.Conv1d(inputs, outputs, 5, stride, 2, bias=False), 1)
    return nn.Sequential(*layers, GlobalPool(), nn.Linear(48, 10))


def normed(conv: nn.Module, ndim: int) -> list[nn.Module]:
    """A convolution, its BatchNorm and ReLU."""
    channels = int(str(conv.out_channels))
    return [conv, nn.BatchNorm1d(channels) if ndim == 1 else nn.BatchNorm2d(channels), nn.ReLU()]


TASKS: dict[str, tuple[Callable[[Path, int], Parts], Callable[[], nn.Sequential]]] = {
    "fashion": (fashion, separable),
    "cifar": (cifar, partial(separable, 3, 32, 2)),
    "rows": (rows_as_sequence, sequence),
}


if __name__ == "__main__":
    main()

"""A trained network made smaller: `nas.compress` beside pruning of the same groups of channels.

    python scripts/compress_study.py OUT [--data image_folder --root FOLDER] [--seeds 3]

A ResNet-8 is trained; `nas search model=` makes it fit a part of its MACs, by channels, and by
channels and operations. Beside it stand networks inside the same budgets whose channels are chosen
at once: as even a share of every group as fits, by the weights, at random, or trained from fresh
weights (a narrower network), and those of the least Taylor scores over all groups. All are trained
for as many epochs, by the same recipe and with the same teacher. Last, random networks are ranked
by the weights that least squares gives them and by their accuracy once trained.

What is in OUT is not done again. Prints the tables of experiments/compress.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from channel_order import put_in_order, taylor, widths
from scipy.stats import kendalltau
from torch import Tensor, nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.cli import run as nas
from nas.config.compose import compose_config, with_budgets
from nas.config.model import with_model
from nas.decision import sample_path
from nas.discretization import arch_of
from nas.pipeline import Run
from nas.problem import SearchProblem
from nas.search.compress import original
from nas.search.evaluate import WeightSharing
from nas.tasks.classification import task_of
from nas.verbs import components_of

METHODS = ("even", "random", "taylor", "narrow")
SEARCHES = {
    "compress": [],
    "operations": ["space.rules.operations={candidates: [dw_pw_2]}", "search.trials=32"],
}
NAMES = {
    "given": "the network given",
    "compress": "`nas search model=`",
    "operations": "the same, with `space.rules.operations`",
    "even": "even shares, by L1 magnitude",
    "random": "even shares, random channels",
    "taylor": "Taylor scores over all groups",
    "narrow": "uniform width multiplier, fresh weights",
}
SHORT = 4  # epochs of the trainings for tau
IMAGES = 2048  # of the train part, for Taylor scores


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ResNet8(nn.Module):
    """ResNet-8 of MLPerf Tiny; `stride` and channels (`width`) of its first convolution."""

    def __init__(self, inputs: int = 3, stride: int = 1, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        first = Block(width, width, 1)
        self.body = nn.Sequential(first, Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(F.relu(self.bn(self.conv(x)))).mean((2, 3)))
        return y


def main() -> None:
    """Do what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="fashion_mnist", help="cifar10 | image_folder")
    parser.add_argument("--root", default="data")
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--cost", default="macs", help="of the budgets: macs | params")
    parser.add_argument("--words", default="", help="further words of every command")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base", type=int, default=12, help="epochs of the network given")
    parser.add_argument("--tune", type=int, default=12, help="epochs of each smaller network")
    parser.add_argument("--budgets", default="25%,50%")
    parser.add_argument("--arms", default=",".join(NAMES), help="which networks to train")
    parser.add_argument("--sampled", type=int, default=40, help="networks for tau; 0: none")
    given = parser.parse_args()
    given.budgets, given.arms = given.budgets.split(","), given.arms.split(",")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        study = Study(given, seed)
        for budget in given.budgets:
            rows += study.rows(budget)
            table(rows, given.budgets)
        if seed == 0 and given.sampled:
            study.tau()


class Study:
    """One seed.

    Args:
        given: the words of the command.
        seed: of data, weights and draws.
    """

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given, self.seed, self.out = given, seed, given.out / str(seed)
        grey = given.data == "fashion_mnist"
        words = [f"data={given.data}", f"data.root={given.root}", f"data.limit={given.limit}"]
        words += ["data.size=32"] if given.data == "image_folder" else []
        words += ["data.download=false"] if given.data in ("fashion_mnist", "cifar10") else []
        words += [f"data.batch_size={given.batch}", f"seed={seed}", "onnx=false", "threads=1"]
        words += ["logger=[]"]
        words += ["trainer.enable_progress_bar=false", "model=compress_study:ResNet8"]
        self.words = [*words, f"model.args.inputs={1 if grey else 3}"]
        self.words += [f"model.args.stride={given.stride}", f"model.args.width={given.width}"]
        self.words += given.words.split()
        self.weights = [f"model.weights={self.out}/given/network.pt"]

    def rows(self, budget: str) -> Iterator[dict[str, Any]]:
        """Test accuracy and MACs of each method inside a budget."""
        done = self.trained("given", [f"finetune.epochs={self.given.base}", "finetune=default"])
        yield row("given", budget, done)
        for method, words in SEARCHES.items():
            if method in self.given.arms:
                yield row(method, budget, self.compressed(f"{method}-{budget}", budget, words))
        for method in filter(self.given.arms.__contains__, METHODS):
            fresh = method == "narrow"
            longer = self.given.tune + (self.given.base if fresh else 0)
            words = [
                *self.weights,
                f"finetune.epochs={longer}",
                f"budget.{self.given.cost}={budget}",
            ]
            words += ["space.refit=false"]
            words += ["weights=fresh"] if fresh else []
            yield row(method, budget, self.trained(f"{method}-{budget}", words, method))

    def compressed(self, name: str, budget: str, words: Sequence[str]) -> Mapping[str, Any]:
        """The network that `nas search model=` finds."""
        if not RunDir(self.out / name).finished:
            words = [*self.words, *self.weights, *words, f"budget.{self.given.cost}={budget}"]
            words += [f"finetune.epochs={self.given.tune}", f"out={self.out}", f"name={name}"]
            assert nas(["search", *words]) == 0
        return RunDir(self.out / name).read_result() or {}

    def trained(
        self, name: str, words: Sequence[str], method: str | None = None
    ) -> Mapping[str, Any]:
        """The result of a network that is chosen at once and trained."""
        run = RunDir(self.out / name)
        if not run.finished:
            problem = self.problem(words)
            if method is None:
                arch = Arch(
                    problem.space, {n: one.options[-1] for n, one in widths(problem.supernet)}
                )
            else:
                arch = self.chosen(problem, method)
            if method == "narrow":
                problem = self.narrow(problem, words)
            run.create()
            Run(problem, run, arch)()
            run.finetune_checkpoint.unlink(missing_ok=True)
        return run.read_result() or {}

    def narrow(self, problem: SearchProblem, words: Sequence[str]) -> SearchProblem:
        """The same problem from fresh weights, with the same teacher."""
        found = original(problem)
        assert found is not None
        fresh = self.problem([word for word in words if not word.startswith("model.weights")])
        fresh.finetune = partial(fresh.finetune, teacher=found.network)
        return fresh

    def problem(self, words: Sequence[str]) -> SearchProblem:
        """What `nas finetune` makes of these words."""
        config = compose_config(with_budgets(with_model([*self.words, *words, "name=x"])))
        return SearchProblem(**components_of(config))

    def chosen(self, problem: SearchProblem, method: str) -> Arch:
        """The architecture of a method; the channels of `problem` are put in its order."""
        own = dict(widths(problem.supernet))
        if method == "random":
            draw = torch.Generator().manual_seed(self.seed)
            put_in_order({one: torch.rand(len(one.first), generator=draw) for one in own.values()})
        if method != "taylor":
            return even(problem)
        batches = problem.data.calibration_loader(IMAGES)
        scores = taylor(problem.supernet, batches, task_of(problem.data).loss)
        put_in_order(scores)
        named = {name: scores[one] for name, one in own.items()}
        return least_lost(problem, named, self.given.cost)

    def tau(self) -> None:
        """How refitted weights rank random networks, beside their accuracy once trained."""
        file = self.out / "tau.json"
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        problem = self.problem([*self.weights, f"finetune.epochs={SHORT}"])
        score = WeightSharing()(problem)
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(self.given.sampled):
            sample_path(problem.supernet, draw)
            arch = Arch(problem.space, arch_of(problem.supernet).choices)
            if arch.hash not in known:
                run = RunDir(self.out / "tau" / arch.hash)
                if not run.finished:
                    run.create()
                    Run(problem, run, arch)()
                metrics = (run.read_result() or {})["metrics"]
                known[arch.hash] = {
                    "inherited": score(arch)["val_loss"],
                    "macs": problem.costs["macs"].of(arch.choices),
                    "test_acc": metrics["test_acc"],
                    "val_loss": metrics["val_loss"],
                }
                file.write_text(json.dumps(known, indent=1))
            if len(known) % 10 == 0 and known:
                tell(known)
        tell(known)


def even(problem: SearchProblem) -> Arch:
    """As even a share of every group as the budgets allow."""
    own = {name: one.options for name, one in widths(problem.supernet)}
    taken = dict.fromkeys(own, 0)
    grown = True
    while grown:
        grown = False
        for name in sorted(own, key=lambda name: own[name][taken[name]] / own[name][-1]):
            more = {**taken, name: taken[name] + 1}
            if more[name] < len(own[name]) and fits(problem, own, more):
                taken, grown = more, True
                break
    return arch_at(problem, own, taken)


def least_lost(problem: SearchProblem, scores: Mapping[str, Tensor], cost: str) -> Arch:
    """Step by step without the channels of the least score for what they cost."""
    modules = dict(widths(problem.supernet))
    own = {name: one.options for name, one in modules.items()}
    taken = {name: len(options) - 1 for name, options in own.items()}
    counted = problem.costs[cost]
    while not fits(problem, own, taken):
        now = counted.of(arch_at(problem, own, taken).choices)
        rates = {}
        for name in own:
            if taken[name]:
                fewer = arch_at(problem, own, {**taken, name: taken[name] - 1})
                lost = scores[name][modules[name].first == taken[name]].sum()
                rates[name] = float(lost) / (now - counted.of(fewer.choices))
        taken[min(rates, key=rates.__getitem__)] -= 1
    return arch_at(problem, own, taken)


def arch_at(
    problem: SearchProblem, own: Mapping[str, Sequence[int]], taken: Mapping[str, int]
) -> Arch:
    """The architecture of these numbers of options."""
    return Arch(problem.space, {name: options[taken[name]] for name, options in own.items()})


def fits(
    problem: SearchProblem, own: Mapping[str, Sequence[int]], taken: Mapping[str, int]
) -> bool:
    """Whether it is inside the budgets."""
    choices = arch_at(problem, own, taken).choices
    return all(problem.costs[n].of(choices) <= bound for n, bound in problem.budgets.items())


def row(method: str, budget: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says of a result.json."""
    found = {"method": method, "budget": budget, "macs": result["costs"]["macs"]}
    return {**found, "params": result["costs"]["params"], "acc": result["metrics"]["test_acc"]}


def table(rows: Sequence[Mapping[str, Any]], budgets: Sequence[str]) -> None:
    """Mean and standard deviation over the seeds."""
    print("\n| budget | network | test accuracy | MACs | parameters | seeds |")
    print("|---|---|---|---|---|---|")
    for budget in budgets:
        for method, name in NAMES.items():
            own = [one for one in rows if (one["method"], one["budget"]) == (method, budget)]
            if own:
                scores = [100 * one["acc"] for one in own]
                spread = f" +- {stdev(scores):.2f}" if len(own) > 1 else ""
                sizes = " | ".join(
                    f"{mean(one[key] for one in own):,.0f}" for key in ("macs", "params")
                )
                print(
                    f"| {budget} | {name} | {mean(scores):.2f}{spread} % | {sizes} | {len(own)} |",
                    flush=True,
                )


def tell(known: Mapping[str, Mapping[str, float]]) -> None:
    """Kendall's tau of what is known so far."""
    rows = list(known.values())
    for name in ("test_acc", "val_loss"):
        found = kendalltau([one["inherited"] for one in rows], [one[name] for one in rows])
        print(
            f"tau of inherited val_loss and {name} of {len(rows)} trained networks: {found[0]:+.3f}"
        )
    sizes = kendalltau([one["macs"] for one in rows], [one["test_acc"] for one in rows])
    print(f"tau of MACs and test_acc: {sizes[0]:+.3f}", flush=True)


if __name__ == "__main__":
    main()

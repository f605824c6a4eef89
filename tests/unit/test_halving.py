"""Successive halving: how many train how long, who goes on, and that nothing is trained twice."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas import ChoiceBlock, build_op
from nas.arch import Arch
from nas.data import digits
from nas.errors import NotFiniteError, UserError
from nas.search.evaluate import TrainFromScratch, WeightSharing
from nas.search.halving import Halving, in_rungs
from nas.search.scoring import in_turn
from nas.search.searchers import best, search
from nas.search.space import SearchSpace
from nas.search.trial_search import TrialSearch
from nas.search.trials import Trial, TrialLog, front_of, table_of
from nas.train import Training

SPACE = SearchSpace("s", {"a": tuple(range(40))})
ARCHS = [SPACE.arch({"a": i}) for i in range(40)]


class Listed:
    """Proposes all of `ARCHS` in their order."""

    def __init__(self, count: int) -> None:
        self.left, self.told = ARCHS[:count], []

    def ask(self, count: int):
        asked, self.left = self.left[:count], self.left[count:]
        return asked

    def tell(self, trials) -> None:
        self.told += trials


def loss(arch: Arch, epochs: int) -> float:
    """Falls with training; which is the better one changes at the way."""
    number = int(arch.choices["a"])
    return (number * 7 % 40 + 1) / epochs + (number * 11 % 40) / 10


class Memory(TrialLog):
    """Spares the disk."""

    def __init__(self, lines=()) -> None:
        self.known, self.lines = {}, []
        for line in lines:
            self.append(Trial.from_json(line))

    def append(self, trial: Trial) -> None:
        self.lines.append(trial.to_json())
        self.known[trial.arch.hash] = trial

    def sort(self, batches) -> None:
        """One worker leaves them in order."""


def run(halving: Halving, count: int, log: Memory, folder: Path, batch: int | None = None):
    calls = []

    def score(arch, epochs):
        calls.append((arch.choices["a"], epochs))
        if arch.choices["a"] == 5 and epochs > 1:
            raise NotFiniteError("nan")
        return {"val_loss": loss(arch, epochs)}

    evaluate = halving.evaluation(
        partial(in_turn, score), SPACE, log, lambda _: None, "val_loss", folder
    )
    searcher = Listed(count)
    found = search(searcher, evaluate, log, count, batch or halving.cohort, whole=True)
    return found, calls, searcher


@given(
    count=st.integers(1, 40),
    eta=st.integers(2, 4),
    epochs=st.lists(st.integers(1, 9), min_size=2, max_size=4, unique=True).map(sorted),
    batch=st.integers(1, 40),
)
def test_each_rung_keeps_the_best_of_the_one_before(count, eta, epochs, batch, tmp_path_factory):
    found, calls, searcher = run(
        Halving(eta, epochs), count, Memory(), tmp_path_factory.getbasetemp(), batch
    )
    assert [trial.arch for trial in found] == [t.arch for t in searcher.told] == ARCHS[:count]
    assert len(calls) == len(set(calls))
    ran = set(calls)
    for start in range(0, count, batch):
        racing = set(range(start, min(start + batch, count)))
        for length in epochs:
            assert {a for a, e in ran if e == length and start <= a < start + batch} == racing
            scores = {a: loss(ARCHS[a], length) for a in racing if a != 5 or length == 1}
            keep = min(len(scores), max(1, len(racing) // eta))
            racing = set(sorted(scores, key=scores.get)[:keep])
    for trial in found:
        number = trial.arch.choices["a"]
        assert [rung.epochs for rung in trial.rungs] == sorted(e for a, e in ran if a == number)
        assert trial.metrics == trial.rungs[-1].metrics


@given(cut=st.integers(0, 30), count=st.integers(1, 20))
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(cut, count, tmp_path_factory):
    halving, folder = Halving(2, [1, 2, 4]), tmp_path_factory.getbasetemp()
    whole = Memory()
    expected, calls, _ = run(halving, count, whole, folder)
    log = Memory(whole.lines[:cut])
    found, more, searcher = run(halving, count, log, folder)
    same = lambda trials: [(t.arch, t.metrics, t.rungs) for t in trials]  # noqa: E731
    assert same(found) == same(searcher.told) == same(expected)
    assert more == calls[cut:]
    assert len(log.lines) == len(whole.lines)


def test_the_best_and_the_front_are_of_those_trained_longest(tmp_path):
    found, _, _ = run(Halving(2, [1, 4]), 8, Memory(), tmp_path)
    longest = [t for t in found if t.rungs[-1].epochs == 4]
    assert Counter(t.rungs[-1].epochs for t in found) == {1: 4, 4: 4}
    assert best(found, "val_loss") in longest
    assert {t.arch for t in front_of(found, ("val_loss",))} <= {t.arch for t in longest}
    rows = table_of(found, ("val_loss",)).splitlines()
    assert "epochs" in rows[0].split(",")


def test_a_record_of_a_search_without_rungs_reads_as_before():
    trial = Trial(ARCHS[0], {"val_loss": 1.0})
    assert "rungs" not in trial.to_json()
    assert Trial.from_json(trial.to_json()) == trial


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eta": 1, "epochs": [1, 2]}, "eta=1 must be at least 2"),
        ({"epochs": [3]}, "at least two"),
        ({"epochs": [1, 3, 3]}, "rise"),
        ({"epochs": [0, 3]}, "at least 1"),
        ({"epochs": ["a", 3]}, "whole numbers"),
        ({"epochs": [1.5, 3]}, "whole numbers"),
        ({"epochs": [True, 3]}, "whole numbers"),
    ],
)
def test_values_that_cannot_be(options, said):
    with pytest.raises(UserError, match=f"search.halving.*{said}"):
        Halving(**options)


def test_only_networks_trained_one_by_one_are_halved():
    halving = Halving(3, [1, 3])
    with pytest.raises(UserError, match=r"inherited"):
        TrialSearch(nn.Identity(), "random", WeightSharing(), halving=halving)
    with pytest.raises(UserError, match=r"epochs=5 is not the last of search.halving.epochs"):
        TrialSearch(nn.Identity(), "random", TrainFromScratch(5), halving=halving)
    made = TrialSearch(nn.Identity(), "random", TrainFromScratch(), halving=halving)
    assert made.batch == 3
    assert (
        TrialSearch(nn.Identity(), "random", TrainFromScratch(), batch=5, halving=halving).batch
        == 5
    )


class Problem:
    """One block of two small convolutions on the digits."""

    space, costs, budgets, speed = "s", {}, {}, "kernels"

    def __init__(self) -> None:
        data = digits(limit=200)
        data.setup()
        trainer = partial(pl.Trainer, accelerator="cpu", devices=1)
        self.data, self.finetune, self.trainer, self.seed = data, trained, trainer, 0
        self.supernet = self.build()

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        blocks = [
            ChoiceBlock({n: build_op(n, 1, 4) for n in ("conv_k3", "sep_k3")}),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(256, 10),
        ]
        return nn.Sequential(*blocks)


def trained(**options):
    options = {"epochs": 3, "warmup_epochs": 0.5, **options}
    return Training(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), **options)


@pytest.mark.filterwarnings("ignore")
def test_going_on_ends_where_unbroken_training_does_and_trains_no_epoch_twice(tmp_path):
    problem, arch = Problem(), Arch("s", {"0": "sep_k3"})
    expected = TrainFromScratch(epochs=4)(problem)(arch)
    ran = []

    class Counted(Training):
        def on_train_epoch_start(self):
            ran.append(self.current_epoch)
            super().on_train_epoch_start()

    def counted(**options):
        module = trained(**options)
        module.__class__ = Counted
        return module

    problem.finetune = counted
    score = in_rungs(TrainFromScratch(), 4, tmp_path, problem)
    assert score(arch, 1) != expected
    assert ran == [0]
    second = score(arch, 3)
    assert ran == [0, 1, 2]
    # Killed before the outcome was on record: it is there already.
    again = in_rungs(TrainFromScratch(), 4, tmp_path, problem)
    assert again(arch, 3) == second
    assert ran == [0, 1, 2]
    assert again(arch, 4) == expected
    assert ran == [0, 1, 2, 3]
    # A file of no use is as none.
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"torn")
    assert again(arch, 1) == score(arch, 1) != expected

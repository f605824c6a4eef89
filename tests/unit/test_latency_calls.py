"""Things that can be called, timed beside each other."""

import time
from itertools import pairwise

import pytest
import torch

from nas.latency.calls import timings


def busy(milliseconds: float, called: list[str], name: str):
    def call() -> None:
        called.append(name)
        end = time.perf_counter_ns() + milliseconds * 1e6
        while time.perf_counter_ns() < end:
            pass

    return call


def test_they_take_turns_and_their_ratio_is_right():
    called: list[str] = []
    models = {"one": busy(0.5, called, "one"), "two": busy(1.5, called, "two")}
    found = timings(models, seconds=0.5)
    assert list(found) == ["one", "two"]
    assert found["two"].seconds / found["one"].seconds == pytest.approx(3, rel=0.25)
    assert found["one"].calls >= 20
    turns = sum(a != b for a, b in pairwise(called))
    assert turns > 5


def test_one_thread_and_no_gradients_while_it_measures():
    seen = set()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        timings(
            {"a": lambda: seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled()))},
            seconds=0.05,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == {(1, True)}

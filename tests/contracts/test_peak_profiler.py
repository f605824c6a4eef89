"""`peak_memory` against what torch's profiler sees allocated while a real network runs.

Run through torch.fx's interpreter, which drops each value after its last use: in a module's own
`forward` Python variables keep some for longer. The input is allocated before and not seen.

A kernel may allocate scratch and free it before it returns: im2col columns, reordered weights (for
the last convolutions of ResNet-18 9.4 MB, more than any activation). No count of activations holds
it, so it is left out here, except where kernels are taken that have none to speak of.
"""

import gc
import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models import densenet121, mnasnet1_0, mobilenet_v2, resnet18

from nas.cost.memory import PeakMemory
from nas.decision import sample_path
from nas.discretization import discretize
from nas.spaces.staged import StagedSpace
from nas.spaces.transformer import EncoderBlock

SHAPE = (3, 128, 128)


def own() -> nn.Module:
    ops = ["mb_k3_e3", "mb_k5_e6", "mb_k3_e6_se", "identity"]
    stages = [{"ops": ops, "channels": 24, "repeat": 3}, {"ops": ops, "channels": 40, "stride": 2}]
    space = StagedSpace(SHAPE, 10, stages, stem={"channels": 16, "kernel": 3, "stride": 2})
    sample_path(space, torch.Generator().manual_seed(3))
    return discretize(space)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def attention() -> nn.Module:
    """Of 1024 tokens, whose scores are larger than all else."""
    return nn.Sequential(nn.Conv2d(3, 32, 4, 4), Tokens(), EncoderBlock(32, 8, 4, 32))


def allocations(network: nn.Module, path) -> list[dict]:
    """Events of the profiler, in time: what runs, and what is allocated (or freed)."""
    interpreter = fx.Interpreter(fx.symbolic_trace(network.eval()))
    with torch.no_grad():
        interpreter.run(torch.randn(1, *SHAPE))  # what a kernel allocates once for good
        x = torch.randn(1, *SHAPE)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            interpreter.run(x)
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kinds = ("cpu_op", "cpu_instant_event")
    return sorted((e for e in events if e.get("cat") in kinds), key=lambda e: e["ts"])


def changes(events: list[dict]) -> Iterator[tuple[int, int, int]]:
    """Bytes (negative: freed), address, and a number for the operator within which it happens."""
    outermost, until = 0, 0.0
    for event in events:
        if event["cat"] == "cpu_op":
            if event["ts"] >= until:
                outermost, until = outermost + 1, event["ts"] + event["dur"]
        elif event["name"] == "[memory]":
            inside = outermost if event["ts"] < until else -1
            yield event["args"]["Bytes"], event["args"]["Addr"], inside


def allocated(events: list[dict], scratch: bool) -> int:
    """The largest sum of what is allocated at once; `scratch`: of what one operator frees too."""
    found: list[tuple[int, bool]] = []  # change, is scratch
    live: dict[int, tuple[int, int]] = {}  # address -> place in `found`, operator
    for size, address, inside in changes(events):
        if size > 0:
            live[address] = (len(found), inside)
            found.append((size, False))
        elif address in live:
            place, since = live.pop(address)
            passing = since == inside != -1
            found[place] = (found[place][0], passing)
            found.append((size, passing))
    total = largest = 0
    for size, passing in found:
        total += size if scratch or not passing else 0
        largest = max(largest, total)
    return largest


@pytest.mark.parametrize("make", [mobilenet_v2, mnasnet1_0, resnet18, densenet121, own, attention])
def test_the_profiler_sees_the_same_peak(make: Callable[[], nn.Module], tmp_path):
    network = make()
    counted = PeakMemory(fuse=False).expected(network, SHAPE)().item()
    events = allocations(network, tmp_path / "trace.json")
    assert counted == pytest.approx(allocated(events, scratch=False), rel=0.001)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # `flags` sets that too
@pytest.mark.parametrize(("make", "onednn"), [(mobilenet_v2, False), (densenet121, True)])
def test_and_with_kernels_that_need_no_scratch_to_speak_of(make, onednn, tmp_path):
    network = make()
    counted = PeakMemory(fuse=False).expected(network, SHAPE)().item()
    # Those of oneDNN reorder inputs and outputs; the others unfold for dense 3x3 convolutions.
    with torch.backends.mkldnn.flags(enabled=onednn):
        events = allocations(network, tmp_path / "trace.json")
    assert counted == pytest.approx(allocated(events, scratch=True), rel=0.05)

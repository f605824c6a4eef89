"""What is profiled is, byte for byte, what is exported: one lowering per runtime."""

import copy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.discretization import discretize
from nas.export.formats import Source, chosen
from nas.latency import runtimes
from nas.latency.job import Measuring, Work
from nas.latency.runtimes import onnx_file, runtime
from nas.spaces.staged import StagedSpace

FORMATS = {"onnxruntime": "onnx", "executorch": "pte"}


def space() -> StagedSpace:
    stages = [
        {"ops": ["conv_k3", "sep_k3"], "channels": 4},
    ]
    return StagedSpace((2, 8, 8), 3, stages, name="small").eval()


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[bytes]:
    """The files that a runtime is given while this test runs."""
    given: list[bytes] = []

    def keep(owner: object, name: str) -> None:
        before = getattr(owner, name)

        def run(content: bytes, *others: object) -> object:
            given.append(content)
            return before(content, *others)

        monkeypatch.setattr(owner, name, run)

    keep(runtimes, "onnx_session")
    if request.node.callspec.params["name"] == "executorch" and find_spec("executorch"):
        keep(import_module("executorch.runtime").Runtime.get(), "load_program")
    return given


@pytest.mark.parametrize(
    "name", ["onnxruntime", pytest.param("executorch", marks=pytest.mark.slow)]
)
def test_the_profiled_file_of_a_network_is_the_exported_one(
    name: str, profiled: list[bytes], tmp_path: Path
) -> None:
    pytest.importorskip(name)
    net = space()
    plan = Measuring(runtime=name, networks=1, calibrate=0)
    work = Work(plan, net, net.input_shape, runtime(name, "cpu", plan.conditions))
    (arch,) = work.archs["validation"]
    work.runtime.prepare(*work.network(arch))()

    example = torch.randn(16, *net.input_shape)  # other samples, and more of them
    source = Source(discretize(net, arch).eval(), example, "", {})
    (form,) = chosen([FORMATS[name]], source.network).values()
    form.write(source, tmp_path)
    (content,) = profiled
    assert content == (tmp_path / form.files[0]).read_bytes()


def test_another_network_has_other_bytes() -> None:
    pytest.importorskip("onnx")
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(1, 2, 8, 8)
    before = onnx_file(network, (x,))
    assert onnx_file(copy.deepcopy(network), (torch.randn(3, 2, 8, 8),)) == before
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert onnx_file(network, (x,)) != before


class Sum(nn.Module):
    """Takes two inputs; `fixed` adds a table that is made for one batch size."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 2)) if fixed else None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y if self.table is None else (x + y).reshape(3, 2) + self.table


@pytest.mark.parametrize("fixed", [False, True])
def test_several_inputs_are_lowered_and_a_batch_that_cannot_be_free_is_fixed(fixed: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = Sum(fixed).eval()
    inputs = (torch.randn(3, 2), torch.randn(3, 2))
    session = onnxruntime.InferenceSession(
        onnx_file(module, inputs), providers=["CPUExecutionProvider"]
    )
    shapes = {node.name: node.shape[0] for node in session.get_inputs()}
    assert list(shapes) == ["input0", "input1"]
    assert all((size == 3) == fixed for size in shapes.values())
    (out,) = session.run(None, {f"input{i}": x.numpy() for i, x in enumerate(inputs)})
    torch.testing.assert_close(torch.as_tensor(out), module(*inputs), rtol=1e-5, atol=1e-6)

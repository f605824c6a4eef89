"""ExecuTorch files for a Cortex-M: what is in the file computes what the network computes."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.errors import UserError
from nas.export import cortex_m
from nas.export.formats import Source, chosen

installed = pytest.mark.skipif(
    not all(map(find_spec, ("executorch", "torchao", "tosa_serializer"))),
    reason="pip install 'dnas[executorch]', pip install --no-deps tosa-tools==2026.5.0",
)
IMAGES = torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Pooled(nn.Module):
    """A depthwise layer, a sum and the mean of flattened maps, as the spaces end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.last((x + self.second(x)).flatten(2).mean(-1))


class Flattened(nn.Module):
    """Its linear layer reads some positions of the maps, each in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, 2, 1), nn.Linear(64, 4)

    def forward(self, x):
        return self.last(self.first(x).relu().flatten(2)[..., 4:12].flatten(1))


def contents(network: nn.Module, images: torch.Tensor = IMAGES, cpu: str = "cortex_m4") -> bytes:
    return cortex_m.cortex_m_pte_bytes(network, images[:4], images, cpu)


@installed
@pytest.mark.parametrize("make", [Pooled, Flattened])
def test_the_instructions_of_the_file_give_the_logits(make, tmp_path):
    torch.manual_seed(0)
    network = make().eval()
    (form,) = chosen(["pte_cortex_m"], network).values()
    form.write(Source(network, IMAGES[:4], "a test", {}, IMAGES), tmp_path)
    path = tmp_path / form.files[0]
    operators = cortex_m._Plan(path.read_bytes()).operators
    assert not any(map(cortex_m._is_float_layer, operators))
    assert not any("mean" in name for name in operators)
    with torch.no_grad():
        expected, found = network(IMAGES), form.open(path)(IMAGES)
    assert (found - expected).abs().max() < 0.03 * (expected.max() - expected.min())
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95


@installed
def test_a_file_with_other_weights_gives_other_logits(tmp_path: Path):
    torch.manual_seed(0)
    network = Pooled().eval()
    content = contents(network)
    program = cortex_m._Plan(content).program
    largest = max((buffer.storage for buffer in program.constant_buffer), key=len)
    assert content.count(bytes(largest)) == 1
    spoiled = content.replace(bytes(largest), bytes(len(largest)))
    outputs = []
    for name, bytes_ in (("own", content), ("spoiled", spoiled)):
        (tmp_path / name).write_bytes(bytes_)
        outputs.append(cortex_m.open_cortex_m(tmp_path / name)(IMAGES[:2]))
    assert not torch.equal(*outputs)


@installed
def test_processors_have_memory_of_their_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 5), nn.Flatten()).eval()
    sizes = {
        cpu: cortex_m._Plan(contents(network, cpu=cpu)).method.non_const_buffer_sizes[1]
        for cpu in ("cortex_m4", "cortex_m55")
    }
    assert sizes["cortex_m4"] != sizes["cortex_m55"]


@installed
def test_what_the_backend_leaves_in_floating_point_is_refused():
    network = nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2), nn.ReLU(), nn.Flatten()).eval()
    with pytest.raises(UserError, match=r"does not take this network .*floating point.* format=c"):
        contents(network, torch.randn(8, 2, 16))


def test_what_is_missing_is_named(monkeypatch):
    pytest.importorskip("executorch")
    pytest.importorskip("torchao")
    monkeypatch.setattr(cortex_m, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps tosa-tools=="):
        chosen(["pte_cortex_m"], nn.Identity())

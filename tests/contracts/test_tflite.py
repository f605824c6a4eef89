"""LiteRT files: whole numbers from the input to the output, near the network in floating point."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from nas.export import tflite
from nas.export.formats import Source, chosen

pytestmark = pytest.mark.skipif(
    find_spec("litert_torch") is None, reason="pip install 'dnas[tflite]'"
)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.gate, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.last(x.flatten(2).mean(-1))


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 8, 3, padding=2, dilation=2), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.first(x).relu()[..., -1])


@pytest.mark.parametrize(("make", "shape"), [(Images, (2, 8, 8)), (Sequences, (2, 16))])
def test_the_interpreter_gives_the_logits(make, shape, tmp_path):
    torch.manual_seed(0)
    network, x = make().eval(), torch.randn(64, *shape)
    (form,) = chosen(["tflite_int8"], network).values()
    form.write(Source(network, x[:4], "a test", {}, x), tmp_path)
    path = tmp_path / form.files[0]
    interpreter = tflite._interpreter(path)
    ends = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert all(end["dtype"].__name__ == "int8" for end in ends)
    with torch.no_grad():
        expected, found = network(x), form.open(path)(x)
    assert (found - expected).abs().max() < 0.05 * (expected.max() - expected.min())
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.9
    assert not torch.equal(*form.open(path)(x[:2]))

"""Every space of `configs/space` in every format that needs no search: what comes out is the same.

int8 is judged by accuracy, on trained networks: tests/pipeline/test_export.py.
"""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from nas.data import Arrays, DataModule
from nas.decision import decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.export import job
from nas.export.check import compare, complaint
from nas.export.formats import FORMATS, Source, chosen
from nas.export.job import Export, ExportOptions, Subject
from nas.spaces.staged import StagedSpace
from nas.tasks.classification import Classification

from .strategies import randomized, sample
from .test_spaces import CONFIGS, built, covering, shape_of

INPUT = {"shape": [2, 8, 8], "classes": ["a", "b", "c"], "mean": [0.1, 0.2], "std": [1.0, 1.0]}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def network(request) -> nn.Module:
    space = randomized(built(request.param, shape_of(request.param, 2, 8, 8), width=0.1)).eval()
    return discretize(space, list(covering(space))[1])


def check(name: str, network: nn.Module, folder: Path) -> None:
    assert not any(decisions(network))
    source = Source(network, sample(network, batch=4), "a test", INPUT)
    form = chosen([name], network)[name]
    form.write(source, folder)
    model = form.open(folder / form.files[0])
    # 5 and 1 images, where 4 were traced: the batch is free.
    batches = [(sample(network, batch=6), torch.zeros(6, dtype=torch.int64))]
    found = compare(network, model, batches, Classification())
    assert not complaint(name, found, form.tolerance, None)
    assert found.argmax_agreement == 1


@pytest.mark.parametrize("name", ["state_dict", "python"])
def test_the_file_computes_what_the_network_computes(name, network, tmp_path):
    check(name, network, tmp_path)


# Of every space they are exported by scripts/deploy_study.py; here each exporter takes its seconds.
@pytest.mark.parametrize("name", ["onnx", "pt2", pytest.param("pte", marks=pytest.mark.slow)])
def test_exporters_with_every_operation(name, tmp_path):
    ops = ["mb_k3_e2_se", "grp_k3_g2", "avgpool_k3", "zero", "identity"]
    space = StagedSpace((2, 8, 8), 3, [{"ops": [op], "channels": 4} for op in ops])
    check(name, discretize(randomized(space).eval()), tmp_path)


@pytest.mark.parametrize("name", ["tcn", "vit_tiny", "recurrent"])
def test_spaces_of_sequences_in_onnx(name, tmp_path):
    if name == "recurrent":
        stages = [{"ops": [op], "channels": 5} for op in ("lstm", "gru")]
        space: nn.Module = StagedSpace((2, 8), 3, stages)
    else:
        space = built(name, (2, 8), width=0.1)
    check("onnx", discretize(randomized(space).eval()), tmp_path)


def test_the_list_of_formats_is_whole(monkeypatch):
    for place in ("cortex_m", "formats"):  # here or not
        monkeypatch.setattr(f"nas.export.{place}.find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")  # here or not
    assert list(chosen(FORMATS, nn.Identity())) == list(FORMATS)


def test_a_wrong_file_is_noticed():
    one, two = nn.Linear(4, 3), nn.Linear(4, 3)
    batches = [(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))]
    for wrong in (two, lambda x: one(x) * float("nan")):
        found = compare(one, wrong, batches, Classification())
        assert "max difference" in complaint("onnx", found, 1e-4, None)


# Networks of a user's own: exported, or refused in one line, never wrong and never a traceback.


class Recurrent(nn.Module):
    """A recurrent layer over the pixels: its last output, or the state that it ends in."""

    def __init__(self, layer: nn.RNNBase, start: bool, state: bool) -> None:
        super().__init__()
        self.layer, self.start, self.state = layer, start, state
        self.back = nn.LazyLinear(4)

    def forward(self, x):
        pixels = x.flatten(2).transpose(1, 2)
        if not self.layer.batch_first:
            pixels = pixels.transpose(0, 1)
        paths = self.layer.num_layers * (1 + self.layer.bidirectional)
        size = self.layer.proj_size or self.layer.hidden_size
        begin = x.mean((1, 2, 3))[None, :, None].expand(paths, -1, size).contiguous()
        if self.start and isinstance(self.layer, nn.LSTM):
            cell = begin[..., :1].expand(-1, -1, self.layer.hidden_size).contiguous()
            outputs, end = self.layer(pixels, (begin, cell))
        elif self.start:
            outputs, end = self.layer(pixels, begin)
        else:
            outputs, end = self.layer(pixels)
        if isinstance(end, tuple):
            end, _ = end
        last = outputs[:, -1] if self.layer.batch_first else outputs[-1]
        return x + self.back(end[-1] if self.state else last)[:, :, None, None]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        pixels = x.flatten(2).transpose(1, 2)
        return self.attention(pixels, pixels, pixels)[0].transpose(1, 2).reshape(x.shape)


class Parts(nn.Module):
    """Tuples and lists of tensors, and constants told a layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        first, second = x.chunk(2, 1)
        pooled, places = self.pool(torch.cat([second, *first.split(1, 1)], 1))
        return self.unpool(pooled, places, output_size=[4, 4])


class Values(nn.Module):
    def forward(self, x):
        return x * 0 if float(x.abs().max()) > 1e6 else x


class Forgotten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x):
        return x * self.mask


@st.composite
def recurrent(draw) -> nn.Module:
    kind, flag = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN])), st.booleans()
    options = {"num_layers": draw(st.integers(1, 2)), "bias": draw(flag)}
    options |= {"batch_first": draw(flag), "bidirectional": draw(flag)}
    if kind is nn.LSTM:
        options["proj_size"] = draw(st.integers(0, 2))
    if kind is nn.RNN:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return Recurrent(kind(4, 3, **options), draw(flag), draw(flag))


groups = st.sampled_from([1, 2, 4])
MODULES = st.one_of(
    recurrent(),
    groups.map(lambda g: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=g)),
    groups.map(lambda g: nn.Conv2d(4, 4, 3, padding=1, groups=g)),
    st.sampled_from([Attention, Parts, Values, Forgotten, nn.Hardswish]).map(lambda kind: kind()),
    st.just(None).map(lambda _: nn.Sequential(nn.LayerNorm((4, 4)), nn.BatchNorm2d(4))),
)


def plain(*modules: nn.Module) -> nn.Module:
    """A network of them for images of 4 x 4; its weights decide the classes clearly."""
    torch.manual_seed(0)
    network = nn.Sequential(*modules, nn.Flatten(), nn.Linear(64, 3)).eval()
    network(torch.zeros(2, 4, 4, 4))
    return network


def subject(network: nn.Module) -> Subject:
    pixels = torch.randint(256, (90, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    classes = torch.arange(90) % 3
    images = Arrays(pixels.byte(), classes, ("a", "b", "c"), {"train": torch.arange(90)})
    data = DataModule(lambda: images, batch_size=8)
    input_ = {"shape": [4, 4, 4], "classes": ["a", "b", "c"], "mean": data.mean, "std": data.std}
    result = {"space": "mine", "data": "drawn", "arch": {}, "input": input_}
    return Subject(network, data, result, False, "a test")


@given(st.lists(MODULES, min_size=1, max_size=3))
@example([Parts()])
@example([Recurrent(nn.LSTM(4, 3, bidirectional=True, proj_size=1), start=True, state=True)])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_drawn_network_as_python_is_the_same_or_refused_in_one_line(tmp_path_factory, modules):
    out = tmp_path_factory.mktemp("export")
    hopeless = [m for m in modules if isinstance(m, Attention | Values | Forgotten)]
    export = Export(subject(plain(*modules)), ExportOptions(("python",), latency=False), out)

    if hopeless:
        with pytest.raises(UserError, match="cannot be written as Python code") as caught:
            export()
        assert "\n" not in str(caught.value)
        assert not (out / "network.py").exists()
    else:
        assert export()["formats"]["python"]["max_abs_diff"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given_", "groups_", "bias"),
    [(4, 2, True), (2, 2, False), (4, 4, False), (4, 1, True), (4, 1, False)],
)
def test_transposed_convolutions_in_int8(tmp_path, given_, groups_, bias):
    """The network is right to within int8's own rounding."""
    layer = nn.ConvTranspose2d(given_, 8, 3, padding=1, groups=groups_, bias=bias)
    network = plain(nn.Conv2d(4, given_, 1), layer, nn.Conv2d(8, 4, 1))
    content = Export(subject(network), ExportOptions(("int8_onnx",), latency=False), tmp_path)()
    assert 0 < content["formats"]["int8_onnx"]["max_abs_diff"] < 0.05


@pytest.mark.slow
def test_what_onnx_cannot_hold_is_refused_and_the_rest_is_kept(tmp_path, monkeypatch):
    def train(*_):
        raise AssertionError("trained for a format that cannot be written")

    monkeypatch.setattr(job, "fine_tune", train)
    options = ExportOptions(("onnx", "int8_onnx", "state_dict"), qat=True, latency=False)
    with pytest.raises(UserError) as caught:
        Export(subject(plain(Values())), options, tmp_path)()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 800
    for part in (
        "as onnx (Guard",
        "as int8_onnx (Guard",
        "onnx_error.txt",
        "; written: state_dict",
    ):
        assert part in said
    assert "Traceback" in (tmp_path / "int8_onnx_error.txt").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ".txt", ".json", ".md"}

"""Every space of `configs/space` in every format that needs no search: what comes out is the same.

int8 is judged by accuracy, on trained networks: tests/pipeline/test_export.py.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from nas.decision import decisions
from nas.discrete import discretize
from nas.export.formats import FORMATS, chosen
from nas.export.parity import compare, complaint
from nas.export.source import Source
from nas.spaces.staged import StagedSpace

from .drawn import randomized, sample
from .test_spaces import CONFIGS, built, covering

INPUT = {"shape": [2, 8, 8], "classes": ["a", "b", "c"], "mean": [0.1, 0.2], "std": [1.0, 1.0]}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def network(request) -> nn.Module:
    space = randomized(built(request.param, (2, 8, 8), width=0.1)).eval()
    return discretize(space, list(covering(space))[1])


def check(name: str, network: nn.Module, folder: Path) -> None:
    assert not any(decisions(network))
    source = Source(network, sample(network, batch=4), "a test", INPUT)
    form = chosen([name], network)[name]
    form.write(source, folder)
    model = form.open(folder / form.files[0])
    # 5 and 1 images, where 4 were traced: the batch is free.
    batches = [(torch.randn(6, 2, 8, 8), torch.zeros(6, dtype=torch.int64))]
    found = compare(network, model, batches)
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


def test_the_list_of_formats_is_whole():
    assert list(chosen(FORMATS, nn.Identity())) == list(FORMATS)


def test_a_wrong_file_is_noticed():
    one, two = nn.Linear(4, 3), nn.Linear(4, 3)
    batches = [(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))]
    assert "max difference" in complaint("onnx", compare(one, two, batches), 1e-4, None)
    assert "max difference" in complaint(
        "onnx", compare(one, lambda x: one(x) * float("nan"), batches), 1e-4, None
    )

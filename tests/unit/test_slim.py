"""A slimmed int8 file computes the same, is as well fused, and is smaller."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from nas.discretization import arch_of, discretize  # noqa: E402
from nas.export.int8 import qdq_model, slim  # noqa: E402
from nas.spaces.staged import StagedSpace  # noqa: E402

OPS = ["mb_k3_e3", "mb_k5_e3", "sep_k3", "conv_k3", "identity"]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    space = StagedSpace((2, 8, 8), 3, [{"ops": [op], "channels": 16} for op in OPS])
    for parameter in space.parameters():
        if parameter.ndim == 1:  # a BatchNorm that adds nothing would leave no bias
            torch.nn.init.normal_(parameter)
    network = discretize(space, arch_of(space)).eval()
    x = torch.randn(32, 2, 8, 8)
    return qdq_model(network, x[:2], x)


def run(model: Any, folder: Path) -> tuple[Any, Counter[str]]:
    """Outputs, and what onnxruntime makes of the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # that an optimized file is for this machine is known here
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((5, 2, 8, 8), dtype=np.float32)
    graph = onnx.load(options.optimized_model_filepath).graph
    return made.run(["logits"], {"input": x})[0], Counter(node.op_type for node in graph.node)


def test_it_computes_the_same_to_the_bit_and_is_fused_as_before(model, tmp_path):
    slimmed = onnx.ModelProto()
    slimmed.CopyFrom(model)
    slim(slimmed)
    onnx.checker.check_model(slimmed, full_check=True)
    (before, fused), (after, still) = run(model, tmp_path), run(slimmed, tmp_path)
    assert np.array_equal(before, after)
    assert fused["QLinearConv"] > 5
    assert fused["QGemm"] == 1
    assert {k: still[k] for k in fused if k.startswith("Q")} == {
        k: n for k, n in fused.items() if k.startswith("Q")
    }
    assert slimmed.ByteSize() < 0.65 * model.ByteSize()


def test_scales_that_are_no_product_and_zero_points_that_are_not_zero_stay(model, tmp_path):
    odd = onnx.ModelProto()
    odd.CopyFrom(model)
    values = {tensor.name: tensor for tensor in odd.graph.initializer}
    made = {node.output[0]: node for node in odd.graph.node}
    for node in odd.graph.node:
        if node.op_type == "Conv":
            weight, bias = (made[name].input for name in node.input[1:])
            scale = onnx.numpy_helper.to_array(values[bias[1]]) * 1.5
            values[bias[1]].CopyFrom(onnx.numpy_helper.from_array(scale, bias[1]))
            zero = onnx.numpy_helper.to_array(values[weight[2]]) + np.int8(3)
            values[weight[2]].CopyFrom(onnx.numpy_helper.from_array(zero, weight[2]))
    slimmed = onnx.ModelProto()
    slimmed.CopyFrom(odd)
    slim(slimmed)
    assert np.array_equal(run(odd, tmp_path)[0], run(slimmed, tmp_path)[0])

"""One lowering per runtime: `nas profile` times the bytes that `nas export` ships.

The package `latency` profiles and `export` ships, and `export` imports `latency`; so this stands
below both.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nas.errors import UserError
from nas.inputs import Inputs

Tensors = tuple[Tensor, ...]


def required(module: str, extra: str) -> Any:
    """Import `module`.

    Raises:
        UserError: it is not installed; names the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(f"{package} is not installed: pip install 'dnas[{extra}]'") from None


def onnx_bytes(
    module: nn.Module, inputs: Tensors | Mapping[str, Tensor], free_batch: bool = True
) -> bytes:
    """The content of an ONNX file; output "logits", input "input" (or "input0", "input1", ...).

    Inputs by name have these names in the file.

    Args:
        inputs: ``(N, ...)``. Of a free batch only the first sample is looked at, so that the same
            module always gives the same bytes.
        free_batch: the file runs any number of samples; False: exactly these shapes.
    """
    if isinstance(inputs, Mapping):
        names = list(inputs)
    else:
        names = ["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))]
    if not free_batch:
        return _onnx(module, inputs, names, None)
    # Two samples: the exporter takes a size of 1 for a constant.
    pair = tree_map(lambda x: torch.cat([x[:1], x[:1]]), inputs)
    sizes = tree_map(lambda _: {0: torch.export.Dim("batch", min=1)}, inputs)
    return _onnx(module, pair, names, sizes)


def _onnx(module: nn.Module, inputs: Any, names: list[str], shapes: Any) -> bytes:
    by_name = isinstance(inputs, Mapping)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            module.eval(),
            () if by_name else inputs,
            kwargs=inputs if by_name else None,
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=shapes,
            verbose=False,
        )
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # stack traces with this machine's paths, half of a small file
        part.doc_string = ""
    content: bytes = model.SerializeToString()
    return content


def onnx_session(
    content: bytes | str, threads: int = 1, provider: str = "CPUExecutionProvider"
) -> Any:
    """A session of onnxruntime on the content of an ONNX file, or on the file at a path."""
    onnxruntime = required("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=[provider])


def open_onnx(model: bytes | str | Path) -> Callable[[Inputs], Tensor]:
    """A file, or its content, in onnxruntime on one thread of the CPU."""
    content = model if isinstance(model, bytes) else str(model)
    session = onnx_session(content)
    names = [node.name for node in session.get_inputs()]

    def run(x: Inputs) -> Tensor:
        given = x if isinstance(x, Mapping) else dict(zip(names, tree_leaves(x), strict=True))
        fed = {name: given[name].numpy() for name in names}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def pte_bytes(module: nn.Module, inputs: Tensors) -> bytes:
    """The content of a .pte file for inputs of exactly these shapes, XNNPACK's part inside."""
    exir = required("executorch.exir", "executorch")
    xnnpack = required("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    with executorch_silenced():
        program = torch.export.export(module, inputs)
        edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        return bytes(edge.to_executorch().buffer)


def open_pte(path: Path) -> Callable[[Tensor], Tensor]:
    """The program in ExecuTorch's runtime, on one thread; a batch goes through image by image."""
    from executorch.extension.pybindings import portable_lib

    with executorch_silenced():
        portable_lib._unsafe_reset_threadpool(1)
        program = portable_lib._load_for_executorch(str(path))

    def run(x: Tensor) -> Tensor:
        # Cloned: the next image's output is written where this one's was.
        outputs = [program.forward((image,))[0].clone() for image in torch.split(x, 1)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return run


@contextmanager
def executorch_silenced() -> Iterator[None]:
    """Without what ExecuTorch's C++ side and its compiler's parts tell their developers."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

"""ExecuTorch files for microcontrollers: the operators of its Cortex-M backend, which is CMSIS-NN.

The wheel has these operators in Python alone, for no runtime of this machine: `open_cortex_m` runs
a file's instructions with them, so that what is compared is what was written.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.copying import copied
from nas.diagnostics import reason
from nas.errors import UserError
from nas.export.int8 import pt2e_model
from nas.lowering import executorch_silenced

CPUS = {"cortex_m4": "M4", "cortex_m7": "M7", "cortex_m55": "M55"}  # as `nas.integer.boards` has
DEFAULT = "cortex_m55"
_TOSA = "tosa-tools==2026.5.0"  # the version that ExecuTorch 1.5 names in its extra ethos-u
_LAYERS = ("convolution", "linear", "addmm", "mm", "bmm")
_CLOSE = 0.1  # of the spread of the logits: they are rounded in other places
_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32)


def check_cortex_m() -> None:
    """Raises UserError, naming how to install it, where a part of the backend is missing."""
    if find_spec("tosa_serializer") is None:
        raise UserError(
            "format=pte_cortex_m needs tosa_serializer, which ExecuTorch's wheel loads and lacks: "
            f"pip install --no-deps {_TOSA} (with its dependencies it would replace numpy)"
        )


def cortex_m_pte_bytes(network: nn.Module, example: Tensor, calibration: Tensor, cpu: str) -> bytes:
    """The content of a .pte file for one sample, in int8.

    Args:
        example: inputs ``(N, ...)``, N at least 2.
        calibration: inputs ``(M, ...)`` from which the ranges of activations are learned.
        cpu: of `CPUS`: how much memory CMSIS-NN works in depends on it.

    Raises:
        UserError: a layer with weights would stay in floating point, or the backend writes a file
            that computes something else.
    """
    found: list[str] = []
    plain = _pooled(network, example[:1])
    for explicit in (False, True):
        with executorch_silenced():
            try:
                content, expected = _lowered(plain, example, calibration, cpu, explicit)
                plan = _Plan(content)
                if left := sorted({name for name in plan.operators if _is_float_layer(name)}):
                    raise ValueError(f"it leaves layers in floating point: {', '.join(left)}")
                given = torch.cat([plan.run(sample) for sample in torch.split(example, 1)])
                if not (given - expected).abs().mean() <= _CLOSE * expected.std():
                    raise ValueError("its file computes something else than its quantized network")
                return content
            except Exception as error:
                found.append(reason(error.__cause__ or error))
    raise UserError(
        f"ExecuTorch's Cortex-M backend does not take this network ({'; '.join(found)}): it takes "
        "convolutions in two dimensions, linear layers, sums and pooling; format=c takes more"
    )


def _lowered(
    network: nn.Module, example: Tensor, calibration: Tensor, cpu: str, explicit: bool
) -> tuple[bytes, Tensor]:
    """The file, and what its quantized network gives for the examples.

    Args:
        explicit: maps whose channels come last in shape, which is new in ExecuTorch and takes fewer
            networks; else they do so in memory alone. Views of those are no copies there, so that a
            flattened map of several positions has its numbers in another order.
    """
    from executorch.backends.cortex_m.edge_compile_config import cortex_m_edge_compile_config
    from executorch.backends.cortex_m.passes.cortex_m_pass_manager import CortexMPassManager
    from executorch.backends.cortex_m.quantizer.quantizer import CortexMQuantizer
    from executorch.backends.cortex_m.target_config import CortexM, CortexMTargetConfig
    from executorch.exir import to_edge

    last = example.ndim == 4 and not explicit
    order = torch.channels_last if last else torch.contiguous_format
    samples, data = (x.contiguous(memory_format=order) for x in (example, calibration))
    quantizer = CortexMQuantizer(use_explicit_layout=explicit)
    converted = pt2e_model(copied(network).to(memory_format=order), samples[:1], data, quantizer)
    with torch.no_grad():
        expected = torch.cat([converted(sample) for sample in torch.split(samples, 1)])
    program = torch.export.export(converted, (samples[:1],))
    edge = to_edge(program, compile_config=cortex_m_edge_compile_config())
    passes = CortexMPassManager(
        edge.exported_program(),
        target_config=CortexMTargetConfig(CortexM[CPUS[cpu]]),
        use_explicit_layout=explicit,
    )
    edge._edge_programs["forward"] = passes.transform()
    return bytes(edge.to_executorch().buffer), expected


def _pooled(network: nn.Module, sample: Tensor) -> nn.Module:
    """The network with the mean of a flattened map written as that of a map, which is a kernel."""
    aten = torch.ops.aten
    module = torch.export.export(network, (sample,)).module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    for node in module.graph.nodes:
        flat = node.args[0] if node.target is aten.mean.dim else None
        if flat is None or node.args[1:] not in (([-1],), ([2],)):
            continue
        flattens = flat.target is aten.flatten.using_ints and flat.args[1:] == (2,)
        if flattens and flat.args[0].meta["val"].ndim == 4:
            node.args = (flat.args[0], [2, 3])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _is_float_layer(name: str) -> bool:
    space, _, own = name.partition("::")
    return space == "aten" and own.partition(".")[0] in _LAYERS


def open_cortex_m(path: Path) -> Callable[[Tensor], Tensor]:
    """The file, run by its instructions in its own plan of memory; a batch sample by sample."""
    plan = _Plan(path.read_bytes())

    def run(x: Tensor) -> Tensor:
        return torch.cat([plan.run(sample) for sample in torch.split(x, 1)])

    return run


class _Plan:
    """The one method of a .pte file."""

    def __init__(self, content: bytes) -> None:
        import executorch.backends.cortex_m.passes  # noqa: F401, it defines torch.ops.cortex_m
        from executorch.exir._serialize._program import deserialize_pte_binary
        from executorch.exir.tensor import scalar_type_enum

        self.program = deserialize_pte_binary(content).program
        (self.method,) = self.program.execution_plan
        self.dtypes = {int(scalar_type_enum(dtype)): dtype for dtype in _DTYPES}
        self.operators = [f"{o.name}.{o.overload}" for o in self.method.operators]
        sizes = self.method.non_const_buffer_sizes
        self.memory = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
        self.values = [self._value(entry.val) for entry in self.method.values]
        (chain,) = self.method.chains
        self.calls = [self._call(step.instr_args) for step in chain.instructions]

    def run(self, x: Tensor) -> Tensor:
        """Logits ``(1, K)`` of one sample."""
        (given,), (made,) = self.method.inputs, self.method.outputs
        self.values[given].copy_(x)
        for call in self.calls:
            call()
        output: Tensor = self.values[made].clone()
        return output

    def _value(self, value: Any) -> Any:
        kind = type(value).__name__
        if kind == "Tensor":
            return self._tensor(value)
        if kind in ("Int", "Bool", "Double", "String"):
            return getattr(value, f"{kind.lower()}_val")
        return None if kind == "Null" else value  # a list: of values, which are not all made yet

    def _tensor(self, value: Any) -> Tensor:
        """Where it lies in the file, or in the memory that is planned for it."""
        dtype = self.dtypes[int(value.scalar_type)]
        strides, step = [0] * len(value.sizes), 1
        for axis in reversed(value.dim_order):
            strides[axis], step = step, step * max(1, value.sizes[axis])
        place = value.allocation_info
        if place is None:
            stored = self.program.constant_buffer[value.data_buffer_idx].storage
            raw, offset = torch.frombuffer(bytearray(stored or b"\0" * 8), dtype=torch.uint8), 0
        else:
            raw = self.memory[place.memory_id]
            offset = (place.memory_offset_high << 32) + place.memory_offset_low
        length = step * dtype.itemsize if 0 not in value.sizes else 0
        return raw[offset : offset + length].view(dtype).as_strided(value.sizes, strides)

    def _call(self, step: Any) -> Callable[[], object]:
        from executorch.exir.schema import KernelCall

        assert isinstance(step, KernelCall), f"{type(step).__name__} in a file without control flow"
        operator = self.method.operators[step.op_index]
        space, _, name = operator.name.partition("::")
        packet = getattr(getattr(torch.ops, space), name)
        function = getattr(packet, operator.overload)
        # The result stands behind the arguments, and is the last of these.
        schema = function._schema.arguments
        values = [self._argument(a, place) for a, place in zip(schema, step.args, strict=False)]
        out = values[-1]
        if space == "cortex_m":
            return lambda: out.copy_(packet.default(*values[:-1]))
        pairs = list(zip(schema, values, strict=True))
        given = [value for argument, value in pairs if not argument.kwarg_only]
        named = {argument.name: value for argument, value in pairs if argument.kwarg_only}
        return partial(function, *given, **named)

    def _argument(self, argument: Any, place: int) -> Any:
        value = self.values[place]
        if argument.name == "dtype" and value is not None:
            return self.dtypes[value]
        items = getattr(value, "items", None)
        if not isinstance(items, list):
            return value
        if type(value).__name__ in ("IntList", "TensorList", "OptionalTensorList"):  # of places
            return [None if i < 0 else self.values[i] for i in items]
        return items

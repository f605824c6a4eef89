"""A network as a list of steps that have an integer form: norms folded, activations fused.

`torch.export` gives the operators of PyTorch that run for one shape of input. Of these, views
become moves of numbers, everything that maps one number to one number becomes a table, and
BatchNorm goes into the convolution in front of it, or becomes a depthwise one of kernel 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.errors import UserError
from nas.integer.operators import sides_of
from nas.integer.steps import Grid, Step, Steps, arguments_of, name_of, path_of, refuse
from nas.integer.views import VIEWS, read_item, read_view, read_zeros

_CLAMPED = ("conv", "add", "mul", "mean")  # steps that an activation's limits can go into
_WEIGHTED = ("conv1d", "conv2d", "linear")
_FUNCTIONS = frozenset(  # of one number, where they are given one tensor
    {
        *("abs", "add", "clamp", "div", "elu", "exp", "gelu", "hardsigmoid", "hardswish"),
        *("hardtanh", "leaky_relu", "mul", "neg", "pow", "relu", "sigmoid", "silu", "softplus"),
        *("sqrt", "sub", "tanh"),
    }
)


@dataclass
class NetworkSteps:
    """Steps in their order.

    Args:
        steps: what runs.
        start: name and shape of the input.
        end: name of the output.
        ranges: inputs ``(M, ...)`` -> name -> smallest and largest number that it takes on them.
    """

    steps: list[Step]
    start: tuple[str, tuple[int, ...]]
    end: str
    ranges: Callable[[Tensor], dict[str, tuple[float, float]]]


def steps_of(network: nn.Module, example: Tensor) -> NetworkSteps:
    """The steps of a network in eval mode.

    Args:
        example: an input ``(N, *shape)``.

    Raises:
        UserError: naming the layer that has no integer form.
    """
    try:
        program = torch.export.export(network, (example,)).run_decompositions({})
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"this network has no integer form: torch.export fails ({why})") from error
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {node: held[name].detach() for node, name in names.items()}
    paths = {node: name.rpartition(".")[0] for node, name in names.items()}
    ((start,), (end,)) = signature.user_inputs, signature.user_outputs
    steps = Steps(str(start), tuple(example.shape[1:]), len(example), tensors, paths)
    reader = _Reader(steps)
    for node in program.graph.nodes:
        if node.op == "call_function":
            reader(node)
    last = steps.value(str(end))
    ranges = partial(_ranges, program.graph_module, steps)
    return NetworkSteps(steps.used(last), (steps.start, steps.shapes[steps.start]), last, ranges)


class _Limits(fx.Interpreter):
    """Runs a program and keeps the limits of every floating point result."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As its base class does."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            low, high = (float(v) for v in value.aminmax())
            before = self.found.get(n.name, (low, high))
            self.found[n.name] = (min(low, before[0]), max(high, before[1]))
        return value


def _ranges(graph: fx.GraphModule, steps: Steps, inputs: Tensor) -> dict[str, tuple[float, float]]:
    limits = _Limits(graph)
    starts = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    for part in torch.split(inputs, steps.batch):
        # The program is for one batch size; a sample that comes twice changes no limit.
        filled = part[torch.arange(steps.batch) % len(part)]
        limits.run(*(filled if name == steps.start else steps.tensors[name] for name in starts))
    return limits.found


class _Reader:
    """Puts the steps of one node after the other."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.readers: dict[str, Callable[[fx.Node], None]] = {
            "conv1d": self._conv,
            "conv2d": self._conv,
            "linear": self._linear,
            "_native_batch_norm_legit_no_training": self._norm,
            "add": self._add,
            "sub": partial(self._add, sign=-1),
            "mul": self._mul,
            "cat": self._concat,
            "mean": self._mean,
            "adaptive_avg_pool1d": self._adaptive,
            "adaptive_avg_pool2d": self._adaptive,
            "max_pool1d": partial(self._pool, largest=True),
            "max_pool2d": partial(self._pool, largest=True),
            "avg_pool1d": partial(self._pool, largest=False),
            "avg_pool2d": partial(self._pool, largest=False),
            "fake_quantize_per_tensor_affine": self._rounding,
            "getitem": partial(read_item, steps),
            "new_zeros": partial(read_zeros, steps),
            "zeros_like": partial(read_zeros, steps),
        }

    def __call__(self, node: fx.Node) -> None:
        name, alone = name_of(node), len(self.steps.read_by(node)) == 1
        if alone and name in _FUNCTIONS:
            self._function(node)
        elif alone and name in VIEWS:
            read_view(self.steps, node)
        elif name in self.readers:
            self.readers[name](node)
        else:
            refuse(node)

    # Layers with weights

    def _linear(self, node: fx.Node) -> None:
        (value,) = self.steps.read_by(node)
        if len(self.steps.shapes[value]) != 1:
            refuse(node, "a linear layer over several positions")
        weight = self.steps.constant(node, arguments_of(node)["weight"])
        step = self._weighted(node, weight[:, :, None, None], (1, 1), (0, 0), (1, 1), 1)
        move = self.steps.by_output.get(value)
        if move is not None and move.kind == "move":
            # Over all positions, flattened: one place of a convolution, which need not be copied.
            shape = self.steps.shapes[move.inputs[0]]
            whole = torch.arange(prod(shape))
            if len(shape) <= 3 and torch.equal(move.settings["index"], whole):
                sides = sides_of(shape)
                step.inputs = move.inputs
                step.settings["sides_in"] = sides
                step.settings["weight"] = weight.double().reshape(len(weight), shape[0], *sides)

    def _conv(self, node: fx.Node) -> None:
        given, images = arguments_of(node), name_of(node) == "conv2d"
        if isinstance(given.get("padding", 0), str):
            refuse(node, f"padding={given['padding']!r}")
        weight = self.steps.constant(node, given["weight"])
        stride, padding, dilation = (
            _pair(given.get(key, usual), images, usual)
            for key, usual in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        weight = weight if images else weight[:, :, None]
        step = self._weighted(node, weight, stride, padding, dilation, given.get("groups", 1))
        move = self.steps.by_output.get(step.inputs[0])
        if move is not None and "around" in move.settings:
            # Zeros put around the input are padding of the convolution.
            above, before = move.settings["around"]
            step.inputs = move.inputs
            step.settings["padding"] = (padding[0] + above, padding[1] + before)
            step.settings["sides_in"] = sides_of(self.steps.shapes[move.inputs[0]])

    def _weighted(
        self,
        node: fx.Node,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Step:
        (value,) = self.steps.read_by(node)
        given = arguments_of(node)
        bias, ones = given.get("bias"), torch.ones(len(weight), dtype=torch.float64)
        step = self.steps.put(
            node,
            "conv",
            [value],
            weight=weight.double(),
            bias=ones * 0 if bias is None else self.steps.constant(node, bias).double(),
            factor=ones,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            sides_in=sides_of(self.steps.shapes[value]),
        )
        step.path = self.steps.paths.get(given["weight"].name, step.path)
        source: Any = node.args[0]
        step.grid = self.steps.grids.get(source.name)
        return step

    def _rounding(self, node: fx.Node) -> None:
        """Of the input of a layer with weights: it says in which levels that is."""
        if any(name_of(user) not in _WEIGHTED for user in node.users):
            refuse(node, "rounding of what is not the input of a layer with weights")
        (value,) = self.steps.read_by(node)
        scale, zero, low, high = node.args[1:5]
        self.steps.grids[node.name] = Grid(float(scale), int(zero), int(low), int(high))  # type: ignore[arg-type]
        self.steps.same[node.name] = value

    def _norm(self, node: fx.Node) -> None:
        """``y = (x - mean) / sqrt(variance + eps) * weight + bias``, folded in float64."""
        weight, bias, mean, variance = (
            None if given is None else self.steps.constant(node, given).double()
            for given in node.args[1:5]
        )
        assert mean is not None
        assert variance is not None
        eps: Any = node.args[6]
        factor = (variance + eps).rsqrt() * (1 if weight is None else weight)
        made = next(user for user in node.users if user.args[1] == 0)
        step = self.steps.sole(node, ["conv"])
        if step is None or (step.low, step.high) != (-inf, inf):
            ones = torch.ones_like(mean)
            (value,) = self.steps.read_by(node)
            shape = self.steps.shapes[value]
            step = Step("conv", path_of(node), made.name, shape, (value,))
            step.settings = {
                "weight": ones[:, None, None, None],
                **{"bias": ones * 0, "factor": ones, "groups": len(ones)},
                **{"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)},
                "sides_in": sides_of(shape),
            }
            self.steps.keep(step)
        else:
            self.steps.rename(step, made)
        own = step.settings
        own["weight"] = own["weight"] * factor[:, None, None, None]
        own["bias"] = (own["bias"] - mean) * factor + (0 if bias is None else bias)
        own["factor"] = own["factor"] * factor

    # Numbers, one by one

    def _function(self, node: fx.Node) -> None:
        (value,) = self.steps.read_by(node)
        if (limits := _limits(node)) is not None:
            low, high = limits
            step = self.steps.sole(node, _CLAMPED)
            if step is None:
                step = self.steps.put(node, "add", [value], signs=(1,))
            else:
                self.steps.rename(step, node)
            step.low = min(max(step.low, low), high)
            step.high = max(min(step.high, high), step.low)
            return
        function = self._of_one(node)
        if (step := self.steps.sole(node, ["table"])) is not None:
            step.settings["functions"].append(function)
            self.steps.rename(step, node)
        else:
            self.steps.put(node, "table", [value], functions=[function])

    def _of_one(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """What the node computes of its one tensor; all else that it is given must be numbers."""
        tensors = self.steps.tensors
        if any(n.name in tensors and tensors[n.name].numel() > 1 for n in node.all_input_nodes):
            refuse(node, "arithmetic with a tensor of constants")
        target: Any = node.target

        def function(x: Tensor) -> Tensor:
            def given(part: fx.Node) -> Any:
                return float(tensors[part.name]) if part.name in tensors else x

            args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
            result: Tensor = target(*args, **kwargs)
            return result

        return function

    def _add(self, node: fx.Node, sign: int = 1) -> None:
        first, second = self._two(node)
        shapes = self.steps.shapes
        if shapes[first] != shapes[second]:
            refuse(node, f"a sum of shapes {shapes[first]} and {shapes[second]}")
        if node.kwargs.get("alpha", 1) != 1:
            refuse(node, "a sum with alpha")
        self.steps.put(node, "add", [first, second], signs=(1, sign))

    def _mul(self, node: fx.Node) -> None:
        shapes = self.steps.shapes
        large, small = sorted(self._two(node), key=lambda name: -prod(shapes[name]))
        channel = (shapes[large][0], *[1] * (len(shapes[large]) - 1))
        if shapes[small] not in (shapes[large], channel):
            refuse(node, f"a product of shapes {shapes[large]} and {shapes[small]}")
        self.steps.put(node, "mul", [large, small])

    def _two(self, node: fx.Node) -> tuple[str, str]:
        given = [part for part in node.args[:2] if isinstance(part, fx.Node)]
        if len(given) < 2 or any(part.name in self.steps.tensors for part in given):
            refuse(node, "arithmetic with a tensor of constants")
        return self.steps.value(given[0].name), self.steps.value(given[1].name)

    # Positions

    def _mean(self, node: fx.Node) -> None:
        (value,) = self.steps.read_by(node)
        rank = len(self.steps.shapes[value]) + 1
        dims = arguments_of(node).get("dim") or []
        if rank < 3 or {dim % rank for dim in dims} != set(range(2, rank)):
            refuse(node, f"a mean over the dimensions {[*dims]}")
        self.steps.put(node, "mean", [value])

    def _adaptive(self, node: fx.Node) -> None:
        if set(node.meta["val"].shape[2:]) != {1}:
            refuse(node, "adaptive pooling to several positions")
        self.steps.put(node, "mean", self.steps.read_by(node))

    def _pool(self, node: fx.Node, largest: bool) -> None:
        (value,) = self.steps.read_by(node)
        given, images = arguments_of(node), len(self.steps.shapes[value]) == 3
        padding = _pair(given.get("padding", 0), images, 0)
        whole = bool(given.get("count_include_pad", True)) and padding != (0, 0)
        if given.get("divisor_override") or (whole and given.get("ceil_mode")):
            refuse(node, "pooling with a divisor of its own, or with ceil_mode and padding")
        self.steps.put(
            node,
            "pool",
            [value],
            largest=largest,
            whole=whole,
            kernel=_pair(given["kernel_size"], images, 1),
            stride=_pair(given.get("stride") or given["kernel_size"], images, 1),
            padding=padding,
            dilation=_pair(given.get("dilation", 1), images, 1),
            sides_in=sides_of(self.steps.shapes[value]),
        )

    def _concat(self, node: fx.Node) -> None:
        given = arguments_of(node)
        if given.get("dim", 0) != 1:
            refuse(node, "a concatenation of positions")
        parts: Sequence[fx.Node] = given["tensors"]
        self.steps.put(node, "concat", [self.steps.value(part.name) for part in parts])


def _pair(value: Any, images: bool, usual: int) -> tuple[int, int]:
    """Of height and width; a sequence has the usual number for the height that it lacks."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1]) if images else (usual, values[-1])


def _limits(node: fx.Node) -> tuple[float, float] | None:
    """Of an activation that only keeps numbers between two limits."""
    given, name = arguments_of(node), name_of(node)
    if name == "relu":
        return 0.0, inf
    if name == "hardtanh":
        return float(given.get("min_val", -1)), float(given.get("max_val", 1))
    if name == "clamp" and not isinstance(given.get("min"), fx.Node):
        low, high = given.get("min"), given.get("max")
        return (-inf if low is None else float(low)), (inf if high is None else float(high))
    return None

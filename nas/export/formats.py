"""The formats by name. A new one is a `Format` and a line here."""

from collections.abc import Sequence

from torch import nn

from nas.errors import UserError
from nas.export.executorch_formats import INT8_PTE, PTE
from nas.export.onnx_formats import INT8_ONNX, ONNX
from nas.export.source import Format
from nas.export.torch_formats import PT2, PYTHON, state_dict_format

FORMATS = ("state_dict", "python", "onnx", "pt2", "pte", "int8_onnx", "int8_pte")


def chosen(names: Sequence[str], network: nn.Module) -> dict[str, Format]:
    """Name -> format, each of them usable here.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    known = {
        "state_dict": state_dict_format(network),
        "python": PYTHON,
        "onnx": ONNX,
        "pt2": PT2,
        "pte": PTE,
        "int8_onnx": INT8_ONNX,
        "int8_pte": INT8_PTE,
    }
    for name in names or [""]:
        if name not in known:
            raise UserError(f"format={name!r} is not one of {', '.join(known)}")
        known[name].check_installed()
    return {name: known[name] for name in dict.fromkeys(names)}

"""Formats that torch itself runs: state dict, stand-alone Python, torch.export."""

import importlib.util
import io
from pathlib import Path

import torch
from torch import nn

from nas.copying import copied
from nas.export.codegen import python_source
from nas.export.loading import load_weights, state_bytes
from nas.export.source import Format, Model, Source
from nas.run import write_atomic


def write_state_dict(source: Source, folder: Path) -> None:
    """The weights as `torch.save` writes them."""
    write_atomic(folder / "network.pt", state_bytes(source.network))


def state_dict_format(network: nn.Module) -> Format:
    """The format that is read back into a module like `network`."""

    def opened(path: Path) -> Model:
        fresh = copied(network)
        for tensor in fresh.state_dict().values():
            tensor.zero_()  # what is not in the file must not pass for having been read from it
        load_weights(fresh, path)
        return fresh.eval()

    return Format(("network.pt",), "PyTorch", write_state_dict, opened, 0.0)


def write_python(source: Source, folder: Path) -> None:
    """A module that imports only torch, and its weights."""
    known = source.input
    constants = {
        "INPUT_SHAPE": list(known["shape"]),
        "MEAN": list(known["mean"]),
        "STD": list(known["std"]),
        "CLASSES": list(known["classes"]),
    }
    text = python_source(source.network, source.example[:2], source.about, constants, "network.pt")
    write_atomic(folder / "network.py", text)
    write_state_dict(source, folder)


def open_python(path: Path) -> Model:
    """Import the file, which this process has just written, and load its weights."""
    spec = importlib.util.spec_from_file_location("nas_exported_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.load()
    return network


def write_pt2(source: Source, folder: Path) -> None:
    """torch.export, with a free batch size."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(source.network, (source.example,), dynamic_shapes=({0: batch},))
    program.example_inputs = None  # the user's images do not belong into the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # nor this machine's paths
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomic(folder / "network.pt2", buffer.getvalue())


def open_pt2(path: Path) -> Model:
    """The exported program as a module."""
    module: nn.Module = torch.export.load(path).module()
    return module


PYTHON = Format(("network.py", "network.pt"), "PyTorch", write_python, open_python, 0.0)
PT2 = Format(("network.pt2",), "torch.export", write_pt2, open_pt2, 1e-4)

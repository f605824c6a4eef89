"""From a run directory to a network, and to files that deploy, each checked against eager."""

from nas.export.formats import onnx
from nas.export.loading import load, load_supernet, load_weights, state_bytes

__all__ = ["load", "load_supernet", "load_weights", "onnx", "state_bytes"]

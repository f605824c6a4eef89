"""Networks of whole numbers: made of a trained network, run to the bit as a device runs them."""

from nas.integer.build import integer_graph
from nas.integer.graph import IntegerGraph

__all__ = ["IntegerGraph", "integer_graph"]

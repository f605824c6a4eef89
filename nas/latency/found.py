"""The network that a search has found, measured where it was profiled, beside its prediction."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.cost.base import Expected
from nas.errors import UserError
from nas.latency.calls import timings
from nas.latency.cost import ExpectedLatency
from nas.latency.figure import add_picture, picture
from nas.latency.job import inputs_like, plain
from nas.latency.machine import machine_name
from nas.latency.measure import Timing
from nas.latency.profile import About
from nas.latency.runtime import runtime
from nas.run import write_atomic

SECONDS = 20.0  # at most, for one network
NAME = "latency_measured"  # beside the cost "latency" in result.json
PICTURE = "latency.png"


def measure_network(network: nn.Module, inputs: tuple[Tensor, ...], about: About) -> Timing | None:
    """Time `network` as its profile was measured; None where this is not that machine.

    Args:
        inputs: for one sample.
    """
    if not about.machine or about.machine != machine_name(about.accelerator):
        return None
    shapes, dtypes = [tuple(x.shape) for x in inputs], [x.dtype for x in inputs]
    threads = torch.get_num_threads()
    try:
        ready = runtime(about.runtime, about.accelerator, about.conditions)
        made = inputs_like(shapes, dtypes, about.conditions)
        call = ready.prepare(plain(network, about.conditions), made)
        return timings({"found": call}, SECONDS, about.conditions.threads)["found"]
    except UserError as error:
        logging.getLogger("nas").warning("the network found was not measured: %s", error)
        return None
    finally:
        torch.set_num_threads(threads)


def measured_fields(
    network: nn.Module, inputs: tuple[Tensor, ...], costs: Mapping[str, Expected], arch: Any
) -> dict[str, Any]:
    """For result.json: predicted and measured seconds, and on what; empty without the cost."""
    cost = costs.get("latency")
    if not isinstance(cost, ExpectedLatency):
        return {}
    about = cost.profile.about
    found = measure_network(network, inputs, about)
    return {
        "predicted": cost.of(arch.choices),
        "measured": None if found is None else found.seconds,
        "timing": None if found is None else found.to_json(),
        "device": about.device,
        "runtime": about.runtime,
        "conditions": str(about.conditions),
    }


def write_picture(
    folder: Path, writer: Any, costs: Mapping[str, Expected], fields: Mapping[str, Any]
) -> None:
    """The profile's figure with the network found in it, as a file and for TensorBoard."""
    cost = costs.get("latency")
    if not isinstance(cost, ExpectedLatency) or not cost.profile.networks:
        return
    found = None
    if fields["measured"] is not None:
        found = (fields["measured"], fields["predicted"])
    try:
        png = picture(cost.profile, found)
        write_atomic(folder / PICTURE, png)
        add_picture(writer, png)
    except UserError as error:  # no matplotlib
        logging.getLogger("nas").info("no picture of the latencies: %s", error)

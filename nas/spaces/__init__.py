"""Search spaces: a table in, a supernet out."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nas.config import given
from nas.errors import UserError
from nas.spaces.autoencoder import Autoencoder
from nas.spaces.darts import Darts
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.staged import StagedSpace
from nas.spaces.transformer import Transformer

SPACES: dict[str, type[nn.Module]] = {
    f"{space.__module__}.{space.__qualname__}": space
    for space in (StagedSpace, NasBench201, Darts, Autoencoder, Transformer)
}


def build(config: Mapping[str, Any], input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Build the supernet of a space's configuration, without importing what it names.

    Raises:
        UserError: the space is none of `SPACES`, or its keys are not the space's.
    """
    target = config.get("_target_") if isinstance(config, Mapping) else config
    if target == given.TARGET:
        supernet: nn.Module = given.given("space", str(config.get("kind")))(
            input_shape, num_outputs
        )
        return supernet
    if not isinstance(target, str) or target not in SPACES:
        raise UserError(
            f"the space is built by {target!r}, which is not run from a file: pass "
            "nas.load(run, space=your_function), with your_function(input_shape, num_outputs), "
            "or trust=true to `nas export` and `nas extract`"
        )
    keys = {key: value for key, value in config.items() if not str(key).startswith("_")}
    try:
        return SPACES[target](input_shape=input_shape, num_outputs=num_outputs, **keys)
    except TypeError as error:
        raise UserError(f"the configuration of space {config.get('name')!r}: {error}") from None

"""From the words of `nas extract` to the networks taken out of a run."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from nas.config import check, register
from nas.errors import InterruptedRunError, UserError
from nas.extract.extraction import Extraction
from nas.launch import cores, plan_of
from nas.quiet import quiet
from nas.run import RunDir, shown
from nas.saved import change, saved_config

# Keys of `nas extract` that are not the run's own.
_OWN = ("front", "along", "fine_tune", "out", "trust")


def extract(arguments: Sequence[str]) -> int:
    """``nas extract RUN key=value ...``: see `Extraction`; the exit code."""
    words = dict(word.partition("=")[::2] for word in arguments[1:] if "=" in word)
    own = {key: yaml.safe_load(words.pop(key)) for key in _OWN if key in words}
    source = RunDir(Path(arguments[0]))
    config = saved_config(source, trust=bool(own.pop("trust", False)))
    register()
    change(config, [f"{key}={value}" for key, value in words.items()])
    check(config)
    quiet()
    import torch

    torch.set_num_threads(config.threads or cores())
    size = own.get("front", 0)
    if not isinstance(size, int) or size < 0:
        raise UserError(f"front={size} must be a whole number of networks, e.g. front=8")
    extraction = Extraction(
        size,
        own.get("along", "params"),
        bool(own.get("fine_tune", False)),
        Path(own["out"]) if "out" in own else None,
    )
    about = {
        "seed": config.seed,
        "overrides": {key: yaml.safe_load(value) for key, value in words.items()},
        "command": " ".join(["nas extract", *arguments]),
    }
    try:
        runs = extraction(plan_of(config, about), source, OmegaConf.to_yaml(config, resolve=True))
    except InterruptedRunError as error:
        print(f"nas: {error}; the same command goes on", file=sys.stderr)
        return 130
    print(f"{len(runs)} network(s) in {shown(runs[0].path.parent)}")
    return 0

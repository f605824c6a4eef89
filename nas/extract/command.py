"""From the words of `nas extract` to the networks taken out of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from nas.config import check, register
from nas.errors import FailedRunError, InterruptedRunError, UserError, is_full, refusal
from nas.extract.devices import COST, Device, folders, summarise, words_of_each
from nas.extract.extraction import Extraction
from nas.launch import cores, one_voice, plan_of
from nas.quiet import quiet
from nas.run import RunDir, is_main, shown
from nas.saved import add_cost, change, saved_config
from nas.values import Count, Whole, parsed

# Keys of `nas extract` that are not the run's own.
_OWN: Mapping[str, Any] = {
    "front": Whole,
    "layers": Count,
    "along": str,
    "fine_tune": bool,
    "out": str,
    "trust": bool,
}


def extract(arguments: Sequence[str]) -> int:
    """``nas extract RUN key=value ...``: see `Extraction`; the exit code."""
    for word in arguments[1:]:
        if "=" not in word:
            raise UserError(f"{word!r} is not of the form key=value; see `nas extract --help`")
    words = dict(word.split("=", 1) for word in arguments[1:])
    own = parsed(words, _OWN)
    source = RunDir(Path(arguments[0]))
    each = words_of_each(words)
    configs = [_config(source, given, own, len(each) > 1) for given in each]
    extraction = _extraction(own)
    quiet()
    import torch

    torch.set_num_threads(configs[0].threads or cores())
    command = " ".join(["nas extract", *arguments])
    folder = Path(own["out"]) if "out" in own else source.extracts
    try:
        # All of them before the first network: a mistake in the last one is found at once.
        with one_voice():
            devices = _devices(extraction, source, folder, each, configs, command)
            taken = [
                (d, r) for d in devices for r in extraction(d.problem, source, d.folder, d.config)
            ]
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; the same command goes on") from None
    except (FailedRunError, InterruptedRunError) as error:
        raise type(error)(f"{error}; the same command goes on") from error
    except OSError as error:
        if not is_full(error):
            raise
        raise FailedRunError(f"{refusal(error)}; the same command goes on") from error
    if not is_main():
        return 0
    if len(devices) > 1:
        summarise(folder, taken)
    print(f"{len(taken)} network(s) in {shown(folder)}")
    return 0


def _extraction(own: Mapping[str, Any]) -> Extraction:
    size, layers = own.get("front", 0), own.get("layers", 1)
    if layers > 1 and not size:
        raise UserError(f"layers={layers} is of a front: say of how many networks, e.g. front=40")
    return Extraction(size, own.get("along", "params"), own.get("fine_tune", False), layers)


def _config(
    source: RunDir, words: Mapping[str, str], own: Mapping[str, Any], several: bool
) -> DictConfig:
    """The run's configuration with these words; a profile brings its cost along."""
    config = saved_config(source, trust=own.get("trust", False))
    register()
    if "profile" in words:
        add_cost(config, COST)
        # A run saves the cost with the profile it was searched with.
        config.cost[COST].profile = words["profile"]
        if several:
            config.cost[COST].expect_device = None  # the run's own can be one of them only
    change(config, [f"{key}={value}" for key, value in words.items()])
    check(config)
    return config


def _devices(
    extraction: Extraction,
    source: RunDir,
    folder: Path,
    words: Sequence[Mapping[str, str]],
    configs: Sequence[DictConfig],
    command: str,
) -> list[Device]:
    plans = []
    for given, config in zip(words, configs, strict=True):
        overrides = {key: yaml.safe_load(value) for key, value in given.items()}
        about = {"seed": config.seed, "overrides": overrides, "command": command}
        plans.append(plan_of(config, about))
    names, places = [""], [folder]
    if len(plans) > 1:
        names = [plan.costs[COST].profile.device for plan in plans]
        places = [folder / name for name in folders(names, [given["profile"] for given in words])]
    found = []
    for name, place, plan, config in zip(names, places, plans, configs, strict=True):
        try:
            problem = extraction.problem(plan, source)
        except UserError as error:
            raise UserError(f"{name}: {error}" if name else str(error)) from None
        found.append(Device(name, place, problem, OmegaConf.to_yaml(config, resolve=True)))
    return found

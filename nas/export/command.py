"""From the words of `nas export` to a network, its data and the files to write."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.config.check import check
from nas.config.compose import Arguments, compose_config, made, nearest
from nas.config.help import groups
from nas.config.options import ExportOptions
from nas.config.saved import change, saved_config
from nas.diagnostics import silence_third_party_warnings
from nas.discretization import discretize
from nas.errors import UserError
from nas.export.job import Export, Subject
from nas.export.loading import load, load_weights
from nas.problem import data_for
from nas.result import input_fields
from nas.tasks.classification import task_of


def export(given: Arguments) -> dict[str, Any]:
    """``nas export RUN|arch.json key=value ...``; what is in export.json."""
    options: ExportOptions = given.options
    source = Path(given.places[0])
    silence_third_party_warnings()
    # Those among exporters are not for the user of a network.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|torchao|copyreg")
    own_arch = source == RunDir(source.parent).arch and RunDir(source.parent).finished
    if source.suffix == ".json" and not own_arch:
        subject, folder = _bare(source, given), source.parent
    else:
        folder = source.parent if source.suffix == ".json" else source
        if options.weights is not None:
            raise UserError("weights=FILE goes with an arch.json; a run has weights of its own")
        subject = _of_run(RunDir(folder), given)
    torch.set_num_threads(1)  # as the runtimes that it is compared with
    return Export(subject, options, Path(options.out or folder / "export"))()


def _of_run(run: RunDir, given: Arguments) -> Subject:
    result = run.read_result()
    if not run.path.is_dir() or result is None or result.get("status") != "finished":
        load(run.path)  # says what is wrong
        raise AssertionError("an unfinished run was loaded")
    trust = given.options.trust
    config = saved_config(run, trust=trust)
    keys = [word.lstrip("+~").partition("=")[0] for word in given.overrides]
    if strange := [key for key in keys if key.partition(".")[0] != "data"]:
        own = ["data.KEY", *(entry.name for entry in fields(ExportOptions))]
        raise UserError(f"unknown key {strange[0]!r}.{nearest(strange[0], own)}")
    change(config, given.overrides)
    check(config)
    network = load(run.path, made(config.space) if trust else None)
    if "value_range" in config.data and config.data.value_range is None:
        config.data.value_range = result["input"].get("value_range")  # as the network was trained
    data = _data(config)
    _check_fits(data, result["input"])
    data.normalise_as(result["input"]["mean"], result["input"]["std"])
    if "task" in result:  # an earlier version wrote none
        task_of(data).restore(result["task"])
    return Subject(network, data, result, result.get("trained", True), given.command)


def _data(config: DictConfig) -> Any:
    check(config)
    data = data_for(made(config.data), made(config.get("task")), config.seed)
    data.setup()
    return data


def _check_fits(data: Any, known: Mapping[str, Any]) -> None:
    shape = input_fields(data)["shape"]
    for name, found in (("classes", list(data.classes)), ("shape", shape)):
        if found != known[name]:
            raise UserError(
                f"the network was trained on the {name} {_short(known[name])} and the data "
                f"{data.name!r} have {_short(found)}: pass the data it was trained on"
            )


def _short(values: Sequence[object] | Mapping[str, object]) -> str:
    if isinstance(values, Mapping):
        values = [f"{name} {value}" for name, value in values.items()]
    shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    return f"({shown}; {len(values)} in all)" if len(values) > 6 else f"({shown})"


def _bare(path: Path, given: Arguments) -> Subject:
    """An architecture without a run: weights from a file, or as they are drawn."""
    arch = Arch.load(path)
    words, weights = list(given.overrides), given.options.weights
    if not any(word.startswith("space=") for word in words):
        words.append(f"space={_space(arch.space, path, given.options.config_dir)}")
    config = compose_config(words, given.options.config_dir)
    data = _data(config)
    torch.manual_seed(config.seed)
    space = made(config.space)
    supernet = space(input_shape=data.input_shape, num_outputs=data.num_outputs)
    network = discretize(supernet, arch).eval()
    if weights is not None:
        load_weights(network, Path(weights))
    else:
        print(
            f"{path} has no weights with it (no finished run in its folder, no weights=FILE): the "
            "network is exported UNTRAINED, with random weights"
        )
    result = {
        "space": arch.space,
        "data": data.name,
        "arch": dict(arch.choices),
        "input": input_fields(data),
        "task": task_of(data).described(),
    }
    return Subject(network, data, result, weights is not None, given.command)


def _space(name: str, path: Path, folder: str | None) -> str:
    """The space that a file names, as an option of Hydra's, which would take any path."""
    known = groups()["space"]
    if folder:
        known += sorted(file.stem for file in (Path(folder) / "space").glob("*.yaml"))
    if name not in known:
        raise UserError(
            f"{path} is of space {name!r}, which is none of {', '.join(known)}: pass space=NAME, "
            "and --config-dir=FOLDER for one of your own"
        )
    return name

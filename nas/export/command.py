"""From the words of `nas export` to a network, its data and the files to write."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.config.check import check
from nas.config.compose import config_dir, groups, hydra_message
from nas.config.saved import change, saved_config
from nas.config.schema import parsed, register
from nas.diagnostics import silence_third_party_warnings
from nas.discretization import discretize
from nas.errors import UserError
from nas.export.job import Export, ExportOptions, Subject
from nas.export.loading import load, load_weights
from nas.result import input_fields

_OWN = ("format", "out", "trust", "weights")


def export(arguments: Sequence[str]) -> int:
    """``nas export RUN|arch.json key=value ...``; the exit code."""
    words = _words(arguments[1:])
    options = _options(words)
    own = parsed(words, {"format": str, "out": str, "weights": str, "trust": bool})
    silence_third_party_warnings()
    # Those among exporters are not for the user of a network.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|torchao|copyreg")

    source = Path(arguments[0])
    command = " ".join(["nas export", *arguments])
    own_arch = source == RunDir(source.parent).arch and RunDir(source.parent).finished
    if source.suffix == ".json" and not own_arch:
        subject, folder = _bare(source, words, own.get("weights"), command), source.parent
    else:
        folder = source.parent if source.suffix == ".json" else source
        if "weights" in own:
            raise UserError("weights=FILE goes with an arch.json; a run has weights of its own")
        subject = _of_run(RunDir(folder), words, own.get("trust", False), command)
    torch.set_num_threads(1)  # as the runtimes that it is compared with
    Export(subject, options, Path(own.get("out", folder / "export")))()
    return 0


def _words(arguments: Sequence[str]) -> dict[str, str]:
    """``--format onnx,pt2``, ``--format=onnx`` and ``format=onnx`` are one and the same."""
    flat: list[str] = []
    for word in arguments:
        if flat and flat[-1].startswith("--") and "=" not in flat[-1]:
            flat[-1] = f"{flat[-1]}={word}"
        else:
            flat.append(word)
    for word in flat:
        if "=" not in word:
            raise UserError(f"{word!r} is not of the form key=value; see nas export --help")
    return dict(word.removeprefix("--").split("=", 1) for word in flat)


def _options(words: dict[str, str]) -> ExportOptions:
    """Takes the words that `ExportOptions` knows out of `words`."""
    hints = get_type_hints(ExportOptions, include_extras=True)
    taken = parsed(words, {key: hint for key, hint in hints.items() if key != "formats"})
    if "format" in words:
        taken["formats"] = tuple(words["format"].strip("[]").replace(" ", "").split(","))
    return ExportOptions(**taken)


def _of_run(run: RunDir, words: Mapping[str, str], trust: bool, command: str) -> Subject:
    result = run.read_result()
    if not run.path.is_dir() or result is None or result.get("status") != "finished":
        load(run.path)  # says what is wrong
        raise AssertionError("an unfinished run was loaded")
    config = saved_config(run, trust=trust)
    strange = [k for k in words if k != "data" and not k.startswith("data.")]
    if strange:
        raise UserError(
            f"unknown key {strange[0]!r}; nas export takes data.KEY, "
            f"{', '.join(sorted({*_OWN, *(f.name for f in fields(ExportOptions))} - {'formats'}))}"
        )
    change(config, [f"{key}={value}" for key, value in words.items()])
    check(config)
    network = load(run.path, _made(config.space) if trust else None)
    if "value_range" in config.data and config.data.value_range is None:
        config.data.value_range = result["input"].get("value_range")  # as the network was trained
    data = _data(config)
    _check_fits(data, result["input"])
    data.normalise_as(result["input"]["mean"], result["input"]["std"])
    return Subject(network, data, result, result.get("trained", True), command)


def _data(config: DictConfig) -> Any:
    check(config)
    data = _made(config.data)(seed=config.seed)
    data.setup()
    return data


def _made(node: Any) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__  # Hydra wraps what a constructor raised
        raise cause if isinstance(cause, UserError) else UserError(hydra_message(error)) from None


def _check_fits(data: Any, known: Mapping[str, Any]) -> None:
    for name, found in (("classes", list(data.classes)), ("shape", list(data.input_shape))):
        if found != list(known[name]):
            raise UserError(
                f"the network was trained on the {name} {_short(known[name])} and the data "
                f"{data.name!r} have {_short(found)}: pass the data it was trained on"
            )


def _short(values: Sequence[object]) -> str:
    shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    return f"({shown}; {len(values)} in all)" if len(values) > 6 else f"({shown})"


def _bare(path: Path, words: dict[str, str], weights: str | None, command: str) -> Subject:
    """An architecture without a run: weights from a file, or as they are drawn."""
    arch = Arch.load(path)
    if "space" not in words:
        words["space"] = _space(arch.space, path, words.get("config-dir"))
    config = _composed(words)
    data = _data(config)
    torch.manual_seed(config.seed)
    space = _made(config.space)
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
    }
    return Subject(network, data, result, weights is not None, command)


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


def _composed(words: Mapping[str, str]) -> DictConfig:
    register()
    given = dict(words)
    folder = given.pop("config-dir", None)
    listed = [f"{key}={value}" for key, value in given.items()]
    if folder:
        listed.append(f"hydra.searchpath=[file://{Path(folder).resolve()}]")
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose("config", listed)
    except HydraException as error:
        raise UserError(hydra_message(error, listed)) from None

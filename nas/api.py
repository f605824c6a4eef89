"""`nas search` as a function, for notebooks and scripts: the same code, and a result in Python."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from nas.artifacts import RunDir
from nas.artifacts.files import display_path
from nas.config.calls import CALLED
from nas.config.compose import (
    check_values,
    compose_choices,
    in_words,
    made,
    parse_overrides,
    with_budgets,
)
from nas.config.given import Given, giving, is_plain, kind_of
from nas.config.model import with_model
from nas.config.saved import COMMAND, COMPRESS, PYTHON, read_saved
from nas.config.schema import short_repr
from nas.errors import InterruptedRunError, UserError
from nas.finished import TRUSTED, FinishedRun, Space
from nas.process import undisturbed
from nas.verbs import Job, carry_out, cores, most_threads

STAGED = "nas.spaces.staged.StagedSpace"
OWN = "data=own"
MODEL = "space.model"


def search(
    space: str | Mapping[str, Any] | nn.Module | Callable[..., nn.Module] | None = None,
    data: Any = None,
    *,
    budget: Mapping[str, str | float] | None = None,
    front: int | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    resume: bool | str | Path = False,
    config_dir: str | Path | None = None,
    **keys: Any,
) -> FinishedRun:
    """Search for networks, train and test them, as ``nas search`` does.

    Every key of the command line is a keyword, with ``__`` for each dot: ``search.epochs=3`` is
    ``search__epochs=3``, and ``search=spos`` is ``search="spos"``. A mapping sets the keys below
    its own: ``search={"epochs": 3}``. A key that is new there begins with a plus:
    ``**{"+finetune.optimizer.nesterov": True}``. Where the configuration names a class by
    ``_target_``, a mapping with ``_target_`` or the object itself can be given.

    The same settings give the same networks as the command. Random state, signals, loggers,
    filters of warnings and the environment of the calling process are afterwards as they were.
    Ctrl-C, or a notebook's stop button, raises `KeyboardInterrupt`, which says how to go on.

    Args:
        space: the name of a space, a table of stages as in a space's YAML file, a supernet (which
            is copied), or a function ``(input_shape, num_outputs) -> supernet``; None: chain_tiny.
        data: the name of a data set, or data of your own, see `nas.data.own.as_data_module`; None:
            digits.
        budget: cost -> at most so much, ``{"params": "50k", "latency": "3ms"}``.
        front: networks to train; None: 8 without a budget, if the search only proposes them, else
            1.
        out: the folder of the runs.
        name: of the run's folder; None: the time. A folder with an unfinished run of the same
            settings is gone on with, and a finished one is read.
        resume: True: go on with the newest run of the same settings below `out`; a folder: with
            the run in it.
        config_dir: a folder with options of your own, as of ``--config-dir``.
        keys: all other keys.

    Raises:
        UserError: a wrong setting, before anything is trained, in one line.
        nas.errors.FailedRunError: the run began and did not end well.

    Example:
        >>> import nas
        >>> run = nas.search("chain_tiny", "digits", budget={"params": "50k"})  # doctest: +SKIP
        >>> run.best.network  # doctest: +SKIP
    """
    own: dict[str, Any] = {"space": space, "data": data, "budget": budget, "front": front}
    own |= {"out": None if str(out) == "runs" else out, "name": name, "resume": resume or None}
    return _finished(PYTHON, {**own, **keys}, config_dir)


def compress(
    model: nn.Module | Callable[[], nn.Module] | str,
    data: Any = None,
    *,
    budget: Mapping[str, str | float] | None = None,
    front: int | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    resume: bool | str | Path = False,
    config_dir: str | Path | None = None,
    **keys: Any,
) -> FinishedRun:
    """Make a network of your own fit: channels are left out, and what stays is trained again.

    As ``nas search model=MODULE:FACTORY``: the networks that are searched are parts of the one
    given, which is the largest of them. They start with its weights and learn from it, if it is
    trained. What is found is a module of your own classes, with smaller tensors.

    Args:
        model: the network, which is copied, what makes it, or the name of that,
            ``"module:factory"``.
        data: as of `nas.search`: samples as the network knows them. Tensors are normalised per
            channel; what a Dataset gives is taken as it is.
        budget: cost -> at most so much, ``{"macs": "50%", "params": "30k"}``; percentages are of
            the network given.
        front, out, name, resume, config_dir, keys: as of `nas.search`; ``model__weights=FILE`` is a
            state dict for what a factory makes, ``model__args={...}`` are arguments of one that is
            named.

    Raises:
        UserError: a wrong setting, or a network that cannot be made searchable, before anything is
            trained, in one line.
        nas.errors.FailedRunError: the run began and did not end well.

    Example:
        >>> import nas
        >>> run = nas.compress(network, (x, y), budget={"macs": "50%"})  # doctest: +SKIP
        >>> run.best.network  # doctest: +SKIP
    """
    own: dict[str, Any] = {"model": model, "data": data, "budget": budget, "front": front}
    own |= {"out": None if str(out) == "runs" else out, "name": name, "resume": resume or None}
    return _finished(COMPRESS, {**own, **keys}, config_dir)


def _finished(
    function: str, arguments: Mapping[str, Any], config_dir: str | Path | None
) -> FinishedRun:
    """Carry out a call; arguments that are None are left out."""
    arguments = {key: value for key, value in arguments.items() if value is not None}
    given = _given(arguments)
    with undisturbed(), giving(given.objects), _interruptible(), in_words(given.words):
        os.environ[COMMAND] = function
        folder = _searched(
            given, _call(function, arguments), None if config_dir is None else str(config_dir)
        )
    named = {}
    if isinstance(arguments.get("model"), str):
        # The call has named it: what is done with its result runs it, too.
        named = {MODEL: made(read_saved(RunDir(folder)).space.model), TRUSTED: True}
    return FinishedRun(folder, {**given.objects, **named})


def open_run(folder: str | Path, **given: Any) -> FinishedRun:
    """A finished run, made by the command or from Python, as `search` returns it.

    Args:
        folder: of the run.
        given: what the folder does not hold, since it was given from Python: ``space=...``,
            ``data=...``, ``model=...``; also the function of a space of your own in Python.

    Raises:
        UserError: no finished run there.
    """
    found = _given(given)
    if found.nodes or set(found.words) - {OWN}:
        raise UserError(
            f"{', '.join(given)}: nas.open_run takes objects that a run's folder does not hold, "
            "and no settings"
        )
    return FinishedRun(Path(folder), found.objects)


def _given(arguments: Mapping[str, Any]) -> Given:
    """The arguments of a call, sorted."""
    given = Given()
    for key, value in arguments.items():
        if key == "space":
            _add_space(given, value)
        elif key == "data":
            _add_data(given, value)
        elif key == "model" and not is_plain(value):
            _add_model(given, value)
        else:
            given.add(key, value)
    if {"space", MODEL} <= given.objects.keys():
        raise UserError("space= and model=: both say what is searched; leave one of them out")
    _check_called(given)
    return given


def _call(function: str, arguments: Mapping[str, Any]) -> str:
    """The call as it was typed, but for objects, whose kind it says."""
    shown = {key: repr(one) if is_plain(one) else kind_of(one) for key, one in arguments.items()}
    return f"{function}({', '.join(f'{key}={text}' for key, text in shown.items())})"


def _add_space(given: Given, space: Any) -> None:
    if isinstance(space, Mapping):
        given.add("space", {"_target_": STAGED, **space})
    elif isinstance(space, str):
        given.add("space", space)
    elif isinstance(space, nn.Module) or callable(space):
        given.objects["space"] = Space(space)
    else:
        raise UserError(
            f"space={short_repr(space)} must be a name, a table of stages, a supernet, or a "
            "function (input_shape, num_outputs) -> supernet"
        )


def _add_data(given: Given, data: Any) -> None:
    if isinstance(data, str) or (isinstance(data, Mapping) and "_target_" in data):
        given.add("data", data)
    else:
        given.words.append(OWN)
        given.objects["data.source"] = data


def _add_model(given: Given, model: Any) -> None:
    if not (isinstance(model, nn.Module) or callable(model)):
        raise UserError(
            f"model={short_repr(model)} must be a network, a function that gives one, or the name "
            "of such a function, 'module:factory'"
        )
    given.objects[MODEL] = model


def _check_called(given: Given) -> None:
    """What a run calls must be callable; of a mapping that describes it, it says so itself."""
    for key, value in given.objects.items():
        if key in CALLED and not callable(value):
            taken = ", ".join(CALLED[key]) or "what a run adds"
            raise UserError(
                f"{key}={short_repr(value)} is called by the run, with {taken}: give a class, a "
                f"function, or settings, {key}={{...}}"
            )
    for key, node in given.nodes.items():
        if key in CALLED and "_target_" in node:
            given.nodes[key] = {"_partial_": True, **node}


def _searched(given: Given, command: str, config_dir: str | None) -> Path:
    """Compose the configuration and search; the folder of the run."""
    own = {key.removeprefix("cost.") for key in given.described if key.startswith("cost.")}
    words = with_model(given.words, MODEL in given.objects)
    check_values(parse_overrides(words))
    config, choices = compose_choices(with_budgets(words, config_dir, own), config_dir)
    given.complete(config)
    asked = Job(
        command=command,
        words=given.asked,
        folder=display_path(Path(str(config.out), str(config.name))),
        search=kind_of(given.objects["search"]) if "search" in given.objects else choices["search"],
        sweep=None,
        swept=(),
        threads=most_threads(cores()),
        announced=False,
    )
    return carry_out("search", config, asked)


@contextmanager
def _interruptible() -> Iterator[None]:
    """An interruption as Python knows it."""
    try:
        yield
    except InterruptedRunError as error:
        raise KeyboardInterrupt(str(error)) from None

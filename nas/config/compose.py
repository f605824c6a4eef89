"""One grammar for what follows every verb of `nas`, Hydra's; and its messages made fit for people.

Arguments are places (folders or files), ``key=value`` overrides, and flags. ``--key value`` and
``--key=value`` are other ways to write an override of a verb's own key.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import hydra
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Override,
    Quote,
    QuotedString,
    Transformer,
    ValueType,
)
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nas.config import options as own_options
from nas.config.help import VERBS, config_dir, groups, keys_of, keys_of_run
from nas.config.model import with_model
from nas.config.schema import run_violation, short_repr, violation
from nas.errors import UserError

# Launcher -> what has it.
_LAUNCHERS = {
    "joblib": "'dnas[sweep]'",
    "submitit_local": "'dnas[slurm]'",
    "submitit_slurm": "'dnas[slurm]'",
    "ray": "hydra-ray-launcher",
}
_FOR_A_SHELL = ("command", "measure.command")


@dataclass(frozen=True)
class Arguments:
    """What follows a verb.

    Args:
        places: folders and files.
        options: values of the verb's own keys, see `nas.config.options`; None for verbs that have
            none.
        overrides: ``key=value`` of the configuration.
        flags: of Hydra's command line.
        typed: the verb and all that follows it, as they were typed.
    """

    places: Sequence[str]
    options: Any
    overrides: Sequence[str]
    flags: Sequence[str]
    typed: Sequence[str]

    @property
    def command(self) -> str:
        """The command line, for result.json."""
        return " ".join(["nas", *self.typed])


def parse(verb: str, arguments: Sequence[str]) -> Arguments:
    """Read what follows `verb`.

    Raises:
        UserError: an unknown flag or key, a word that is no override, a wrong value of a key of
            the verb's own, or no place where it needs one.
    """
    typed, arguments = (verb, *arguments), [_quoted(word) for word in arguments]
    name = VERBS[verb].options
    if name is None:
        overrides, flags = _of_hydra(verb, arguments)
        return Arguments((), None, overrides, flags, typed)
    kind = getattr(own_options, name)
    own = [entry.name for entry in fields(kind)]
    several = "..." in VERBS[verb].usage.partition("[key")[0]
    places, words = _sorted(verb, arguments, kind, several)
    if not places:
        raise UserError(f"nas {verb} needs {VERBS[verb].usage.split()[0]}; {_see(verb)}")
    if len(places) > 1 and not several:
        raise UserError(f"{places[1]!r} is not of the form key=value; {_see(verb)}")
    given = parse_overrides(words)
    rest = [one for one in given if one.key_or_group not in own]
    if rest and several:
        key = rest[0].key_or_group
        raise UserError(f"unknown key {key!r}.{nearest(key, own)}; {_see(verb)}")
    values = dict(_own_value(one, kind) for one in given if one not in rest)
    return Arguments(places, kind(**values), [str(one.input_line) for one in rest], (), typed)


def _quoted(word: str) -> str:
    """The grammar takes letters that are not ASCII in quotes only; a path may have them."""
    key, equals, text = word.partition("=")
    if not equals or text.isascii() or set(text) & set("'\"[]{}(),$"):
        return word
    return f"{key}='{text}'"


def _for_a_shell(word: str) -> str:
    """A command is taken as it is, in the quotes of the grammar; `null` and quoted ones stay."""
    key, _, text = word.partition("=")
    if key not in _FOR_A_SHELL or not text:
        return word
    try:
        (found,) = parse_overrides([word])
    except UserError:
        found = None
    if found is not None and isinstance(found._value, QuotedString | None):
        return word
    # ${HOME} is of the shell, not of the configuration; `instantiate` resolves it twice.
    for _ in range(2):
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def _see(verb: str) -> str:
    return f"see `nas {verb} --help`"


def _sorted(
    verb: str, arguments: Sequence[str], options: type, several: bool
) -> tuple[list[str], list[str]]:
    """Places, and overrides; a flag is an override by another name."""
    hints = get_type_hints(options)
    places: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.startswith("-"):
            name, equals, text = word.removeprefix("--").partition("=")
            key = name.replace("-", "_")
            if key not in hints:
                raise UserError(f"unrecognized argument: {word}; {_see(verb)}")
            if not equals:
                text = "true" if hints[key] is bool else next(words, "")
            overrides.append(f"{key}={text}")
        elif "=" not in word or (Path(word).exists() and (several or not places)):
            places.append(word)
        else:
            overrides.append(word)
    return places, overrides


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Overrides by Hydra's grammar.

    Raises:
        UserError: a word that the grammar does not allow, or without a key.
    """
    parser, found = OverridesParser.create(), []
    for word in words:
        try:
            found.append(parser.parse_override(word))
        except HydraException as error:
            raise UserError(f"{word}: {hydra_message(error)}") from None
        if not found[-1].key_or_group:
            raise UserError(f"unknown key '' in {word!r}")
    return found


def value_of(override: Override) -> Any:
    """The value of an override; ``a,b`` is a list, as ``[a,b]`` is; ``interval(...)`` is text."""
    if not override.is_sweep_override():
        return override.value()
    if override.value_type in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP):
        return str(override.input_line).partition("=")[2]  # what it stands for a sweeper knows
    values = override.sweep_iterator(Transformer.identity)
    return [Override._convert_value(value) for value in values]


def check_values(overrides: Sequence[Override]) -> None:
    """Refuse what is wrong without a look at the configuration that is overridden.

    Raises:
        UserError: a group without an option, or a wrong value of a key of the run.
    """
    for one in overrides:
        key, value = one.key_or_group, value_of(one)
        if one.is_delete():
            continue
        if key in groups() and not isinstance(value, str | list):
            names = ", ".join(groups()[key])
            raise UserError(f"{one.input_line}: choose one of {names}, or leave it out")
        several = one.is_sweep_override()
        later = several and not isinstance(value, list)  # the sweeper finds the values
        for each in value if several and not later else [value]:
            reason = run_violation(key, each)
            if reason and not (later or "${" in str(each)):
                raise UserError(f"{key}={short_repr(each)} {reason}")


def _own_value(override: Override, options: type) -> tuple[str, Any]:
    """Key and value of one of a verb's own keys, checked against its annotation."""
    key, value = override.key_or_group, value_of(override)
    hint = get_type_hints(options, include_extras=True)[key]
    plain = get_type_hints(options)[key]
    text = str(override.input_line).partition("=")[2]
    if isinstance(value, int | float) and plain in (str, str | None):
        value = text  # the name of a file may be a number
    several = tuple in [get_origin(part) for part in (plain, *get_args(plain))]
    if several and not isinstance(value, list):
        value = [value]
    reason = violation(value, hint) if text else "is empty: give a value, or leave it out"
    if reason:
        raise UserError(f"{override.input_line} {reason}")
    return key, tuple(value) if isinstance(value, list) else value


def _of_hydra(verb: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides and flags of Hydra's command line, which wants the flags first.

    What Hydra's own parser does not know is refused here: it would print its usage and exit.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; {_see(verb)}")

    parser.error = refuse  # type: ignore[method-assign]
    arguments = with_model([_of_experiment(_for_a_shell(word)) for word in arguments])
    overrides = [word for word in arguments if word[0] != "-" and (word[0] == "~" or "=" in word)]
    flags = [word for word in arguments if word not in overrides]
    found = parser.parse_args([*flags, *overrides])
    for word in found.overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word!r} is not of the form key=value; {_see(verb)}")
    if found.config_dir and not Path(found.config_dir).is_dir():
        raise UserError(f"--config-dir={found.config_dir} is no folder")
    check_values(parse_overrides(found.overrides))
    if short := VERBS[verb].short:
        own = {key.name for key in keys_of(short, "default")} - {"seed"}
        return [f"{short}.{w}" if w.partition("=")[0] in own else w for w in overrides], flags
    return with_budgets(overrides, found.config_dir), flags


def _of_experiment(word: str) -> str:
    """``experiment=NAME`` is written as the groups are, though for Hydra it adds to them."""
    return f"+{word}" if word.startswith("experiment=") else word


def with_budgets(
    words: Sequence[str], folder: str | None = None, own: Collection[str] = ()
) -> list[str]:
    """The costs that budgets name are computed, and by default the search keeps the budgets.

    ``budget.macs=5M`` alone means ``cost=[macs] objective=augmented_lagrangian`` as well. A cost
    that config.yaml does not list, also one in the user's `folder`, can have a budget, too.

    Args:
        own: names of costs that no file describes.
    """
    given = dict(word.partition("=")[::2] for word in words if "=" in word)
    named = {
        key.lstrip("+").removeprefix("budget."): value
        for key, value in given.items()
        if key.lstrip("+").startswith("budget.")
    }
    # Of names that are no cost Hydra complains, and says which there are.
    files = {path.stem for path in Path(folder).glob("cost/*.yaml")} if folder else set()
    known = {*groups()["cost"], *files, *own}
    budgets = [n for n, value in named.items() if n in known and value not in ("null", "")]
    if not budgets:
        return list(words)
    new = {f"budget.{name}" for name in budgets} - {key.name for key in keys_of_run()}
    kept = [
        f"+{word}" if word.partition("=")[0] in new else word
        for word in words
        if word.partition("=")[0] != "cost"
    ]
    costs = [name for name in given.get("cost", "").strip("[]").split(",") if name]
    chosen = [name for name in dict.fromkeys([*costs, *budgets]) if name not in own]
    added = [f"cost=[{','.join(chosen)}]"]
    if "objective" not in given:
        added.append("objective=augmented_lagrangian")
    return [*kept, *added]


def compose_config(overrides: Sequence[str] = (), folder: str | None = None) -> DictConfig:
    """The configuration that overrides make of the shipped one, see `compose_choices`."""
    return compose_choices(overrides, folder)[0]


def compose_choices(
    overrides: Sequence[str] = (), folder: str | None = None
) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration that overrides make of the shipped one, and group -> option chosen.

    Args:
        overrides: as on the command line.
        folder: with options of the user's own, as ``--config-dir`` names it.

    Raises:
        UserError: an unknown key or option, or a word that the grammar does not allow.
    """
    words = [_of_experiment(word) for word in overrides]
    if folder and not Path(folder).is_dir():
        raise UserError(f"config_dir={folder} is no folder")
    if folder:
        words.append(f"hydra.searchpath=[file://{Path(folder).resolve()}]")
    try:
        with _aside(), initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = hydra.compose("config", words, return_hydra_config=True)
    except HydraException as error:
        raise UserError(hydra_message(error, overrides)) from None
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


@contextmanager
def _aside() -> Iterator[None]:
    """What Hydra keeps for the whole process is afterwards as an application of Hydra's left it."""
    kept, base = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = kept
        VersionBase.instance().version_base = base


def apply(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Change a configuration in place, as Hydra changes what it has composed.

    Raises:
        UserError: an unknown key, or a value that does not fit there.
    """
    OmegaConf.set_struct(config, True)
    try:
        ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)
    except HydraException as error:
        raise UserError(hydra_message(error, config=config)) from None
    OmegaConf.set_struct(config, False)


def made(node: Any) -> Any:
    """What a node of a configuration describes, Hydra's own lists and mappings as Python's.

    Raises:
        UserError: a constructor refuses its values.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        # Hydra wraps what a constructor raised; its own words are the useful ones.
        cause = error.__cause__
        raise cause if isinstance(cause, UserError) else UserError(hydra_message(error)) from None


@contextmanager
def in_words(words: Sequence[str]) -> Iterator[None]:
    """What Hydra and OmegaConf raise, as a `UserError`; `words` are the overrides composed."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error, words)) from None


def hydra_message(
    error: Exception, words: Sequence[str] = (), config: DictConfig | None = None
) -> str:
    """Hydra's message in one line, with the alternatives to an unknown key.

    Args:
        words: the overrides that were composed.
        config: in which the key is unknown, where it is composed already.
    """
    causes = [error, error.__cause__] if error.__cause__ else [error]
    text = " ".join(" ".join(str(cause).split()) for cause in causes)
    missing = re.search(r"Could not find 'hydra/launcher/(\w+)'", text)
    if missing and (package := _LAUNCHERS.get(missing[1])):
        return f"hydra/launcher={missing[1]} needs a package: pip install {package}"
    if option := re.search(
        r"Could not find '(\w+)/([^']+)'\s*Available options in '\w+': (.*?) Config ", text
    ):
        group, name, known = option.groups()
        return f"{group}={name} is none of {', '.join(known.split())}.{meant(name, known.split())}"
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if unknown and "Available options" not in text:
        # The keys of a group are those of the option that was chosen for it.
        chosen = [word for word in words if word.partition("=")[0] in groups()]
        try:
            known = config or compose_config(chosen)
        except UserError:  # an option from the user's own --config-dir
            known = compose_config()
        key = unknown[1] or unknown[2]
        below = re.search(rf"full_key: ({re.escape(key)}\.\S+)", text)  # of a mapping
        key = below[1] if below else key
        text = f"unknown key {key!r}.{alternatives(known, key)}"
    return re.sub(r"\s*(object_type=\S+|full_key: \S+|reference_type=\S+)", "", text)


def alternatives(config: DictConfig, key: str) -> str:
    """What to write instead of the unknown `key`: the nearest key, and all beside it."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    beside = node if isinstance(node, DictConfig) else ()
    return nearest(name, [str(k) for k in beside if not str(k).startswith("_")], parent)


def nearest(name: str, known: Sequence[str], parent: str = "") -> str:
    """What to write instead of the unknown `name`: the nearest of the known ones, and all."""
    of = f" of {parent}" if parent else ""
    return f"{meant(name, known)} Known keys{of}: {', '.join(known)}"


def meant(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, as a question; "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""

"""Where configurations lie, the grammar of overrides, and Hydra's messages made fit for people."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from nas.errors import UserError


def config_dir() -> Path:
    """The folder of the YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def groups() -> dict[str, list[str]]:
    """Group name -> its options."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_dir().iterdir())
        if folder.is_dir()
    }


def alternatives(config: DictConfig, key: str, known: Sequence[str] = ()) -> str:
    """What to write instead of the unknown `key`: the nearest key, and all beside it."""
    parent, _, name = key.rpartition(".")
    if not known:
        node = OmegaConf.select(config, parent) if parent else config
        beside = node if isinstance(node, DictConfig) else ()
        known = [str(k) for k in beside if not str(k).startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"{meant} Known keys{f' of {parent}' if parent else ''}: {', '.join(known)}"


def top_level_help() -> str:
    """The keys outside the groups, with the comments of config.yaml."""
    lines = (config_dir() / "config.yaml").read_text(encoding="utf-8").splitlines()
    start, end = lines.index("  - override hydra/job_logging: none") + 1, lines.index("hydra:")
    return "\n".join(f"  {line}" for line in lines[start:end] if line)


def check_flags(verb: str, words: Sequence[str]) -> None:
    """Refuse what Hydra's own parser of flags does not know; it would print its usage and exit.

    Raises:
        UserError: an unknown flag, or one without its value.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see `nas {verb} --help`")

    parser.error = refuse  # type: ignore[method-assign]
    found = parser.parse_args(list(words))
    for word in found.overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word!r} is not of the form key=value; see `nas {verb} --help`")
    for key, _, value in (word.partition("=") for word in found.overrides):
        if key.lstrip("+") in groups() and not isinstance(_read(value), str | list):
            options = ", ".join(groups()[key.lstrip("+")])
            raise UserError(f"{key}={value}: choose one of {options}, or leave it out")
    if found.config_dir and not Path(found.config_dir).is_dir():
        raise UserError(f"--config-dir={found.config_dir} is no folder")


def _read(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # Hydra says what is wrong


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's parser refuses a flag between overrides; people write them anywhere."""
    overrides = [word for word in arguments if word[0] != "-" and (word[0] == "~" or "=" in word)]
    return [*(word for word in arguments if word not in overrides), *overrides]


def with_budgets(arguments: Sequence[str]) -> list[str]:
    """The costs that budgets name are computed, and by default the search keeps the budgets.

    ``budget.macs=5M`` alone means ``cost=[macs] objective=augmented_lagrangian`` as well.
    """
    given = dict(word.partition("=")[::2] for word in arguments if "=" in word)
    named = {
        key.lstrip("+").removeprefix("budget."): value
        for key, value in given.items()
        if key.lstrip("+").startswith("budget.")
    }
    # Of names that are no cost Hydra complains, and says which there are.
    known = groups()["cost"]
    budgets = [n for n, value in named.items() if n in known and value not in ("null", "")]
    if not budgets:
        return list(arguments)
    kept = [word for word in arguments if word.partition("=")[0] != "cost"]
    costs = [name for name in given.get("cost", "").strip("[]").split(",") if name]
    added = [f"cost=[{','.join(dict.fromkeys([*costs, *budgets]))}]"]
    if "objective" not in given:
        added.append("objective=augmented_lagrangian")
    return [*kept, *added]


def with_measure(arguments: Sequence[str]) -> list[str]:
    """For `nas profile`: ``runtime=torch`` is short for ``measure.runtime=torch``, and so on."""
    lines = (config_dir() / "measure" / "default.yaml").read_text(encoding="utf-8").splitlines()
    own = {line.partition(":")[0] for line in lines if line[:1].isalpha()} - {"seed"}
    return [f"measure.{w}" if "=" in w and w.partition("=")[0] in own else w for w in arguments]


def hydra_message(error: Exception, arguments: Sequence[str] = ()) -> str:
    """Hydra's message in one line, with the alternatives to an unknown key."""
    causes = [error, error.__cause__] if error.__cause__ else [error]
    text = " ".join(" ".join(str(cause).split()) for cause in causes)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if unknown and "Available options" not in text:
        text = (
            f"unknown key {unknown[1] or unknown[2]!r}.{_alternatives(unknown[1] or '', arguments)}"
        )
    return re.sub(r"\s*(object_type=\S+|full_key: \S+|reference_type=\S+)", "", text)


def _alternatives(key: str, arguments: Sequence[str]) -> str:
    # The keys of a group are those of the option that was chosen for it.
    chosen = [word for word in arguments if word.partition("=")[0] in groups()]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            config = compose("config", chosen)
        except HydraException:  # an option from the user's own --config-dir
            config = compose("config")
    return alternatives(config, key)

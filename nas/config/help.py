"""`nas --help` and `nas VERB --help`: keys with their defaults and meanings, 80 columns wide.

Nothing is said twice: what a key means is the comment beside it in the YAML files of `configs/`, or
its entry in the docstring of the verb's options.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

from nas.errors import UserError

WIDTH = 80
_MEANING = 32  # column where the meanings begin


@dataclass(frozen=True)
class Key:
    """A key of a YAML file.

    Args:
        name: with the keys above it, ``optimizer.lr``.
        default: as it is written, shortened.
        meaning: the comment beside it, or "".
    """

    name: str
    default: str
    meaning: str


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


def keys_of(group: str, option: str) -> list[Key]:
    """The keys of an option, those of the options it begins with (``defaults``) included."""
    return _keys(config_dir() / group / f"{option}.yaml")


def keys_of_run() -> list[Key]:
    """The keys of a run itself, which are in no group: ``seed``, ``budget.params``, ..."""
    return _keys(config_dir() / "config.yaml")


def _keys(path: Path) -> list[Key]:
    found: dict[str, Key] = {}
    _read(path, found)
    return list(found.values())


def _read(path: Path, found: dict[str, Key]) -> None:
    import yaml

    lines = path.read_text(encoding="utf-8").splitlines()
    root = yaml.compose("\n".join(lines), Loader=yaml.SafeLoader)
    for name, key, node in _entries(root):
        if name == "defaults":
            own = [entry.value for entry in node.value if isinstance(entry, yaml.ScalarNode)]
            for option in own:
                if option != "_self_":
                    _read(path.with_name(f"{option}.yaml"), found)
            continue
        below = node.start_mark.line > key.end_mark.line  # what follows a key: a block, a value
        mark = key.end_mark if below else node.end_mark
        comment = re.search(r"(?:^|\s)#\s*(.*)", lines[mark.line][mark.column :])
        old = found.get(name)
        meaning = comment[1] if comment else old.meaning if old else ""
        text = "\n".join(lines)[node.start_mark.index : node.end_mark.index]
        default = "[...]" if below else " ".join(text.split())
        found[name] = Key(name, default, meaning)


def _entries(node: Any, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, node of the name, node) of each value that is no mapping, but of special keys."""
    for key, value in node.value if node is not None else ():
        name = f"{above}{key.value}"
        if key.value.startswith("_"):
            continue
        if value.id == "mapping" and name != "hydra":
            yield from _entries(value, f"{name}.")
        elif name != "hydra":
            yield name, key, value


@dataclass(frozen=True)
class Verb:
    """A verb of `nas`.

    Args:
        usage: what follows it.
        summary: what it does, one line.
        groups: of the configuration, those whose keys it reads.
        options: class in `nas.config.options` of its own keys; None: it takes Hydra's flags.
        short: a group whose keys are also written without its name.
        usual: keys that most people need.
        examples: commands, one a line.
    """

    usage: str
    summary: str
    groups: tuple[str, ...] = ()
    options: str | None = None
    short: str | None = None
    usual: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


_TRAINED = (
    "data", "task", "space", "relax", "search", "cost", "objective", "guard", "finetune", "trainer",
    "logger", "engine",
)  # fmt: skip
VERBS: Mapping[str, Verb] = {
    "search": Verb(
        "[key=value ...]",
        "search for networks, train, test and export them",
        _TRAINED,
        usual=(
            "budget.params",
            "front",
            "search.trials",
            "finetune.epochs",
            "data.limit",
            "seed",
            "name",
            "resume",
            "threads",
        ),
        examples=(
            "nas search data=image_folder data.root=photos",
            "nas search model=MODULE:FACTORY budget.macs=50%",
        ),
    ),
    "finetune": Verb(
        "arch=FILE [key=value ...]",
        "train a known architecture (checkpoint=FILE inherits weights)",
        ("data", "task", "space", "cost", "finetune", "trainer"),
        usual=("arch", "checkpoint", "finetune.epochs", "finetune.optimizer.lr", "seed", "name"),
        examples=("nas finetune arch=RUN/arch.json finetune.epochs=100",),
    ),
    "describe": Verb(
        "[key=value ...]",
        "what data and space are, and how long a search takes",
        _TRAINED,
        usual=("front", "search.trials", "finetune.epochs", "data.limit", "seed"),
        examples=("nas describe space=mobilenet_tiny data=cifar10",),
    ),
    "profile": Verb(
        "[key=value ...]",
        "measure a space on a device: the cost latency reads the result",
        ("measure", "data", "space"),
        short="measure",
        usual=("runtime", "accelerator", "threads", "dtype", "batch", "out"),
        examples=(
            "nas profile space=mobilenet_tiny runtime=onnxruntime out=here.json",
            "nas search cost=[latency] profile=here.json budget.latency=3ms",
        ),
    ),
    "extract": Verb(
        "RUN [key=value ...]",
        "other networks of a finished search: budget.params=20k, front=8",
        options="ExtractOptions",
        examples=("nas extract RUN front=8 fine_tune=true",),
    ),
    "report": Verb(
        "DIR [DIR ...] [key=value ...]",
        "all runs below a folder: front, table, CSV, pictures, HTML",
        options="ReportOptions",
        examples=("nas report runs/sweep cost=macs", "nas report runs --serve"),
    ),
    "draw": Verb(
        "RUN [RUN ...]",
        "the network block by block: here, as SVG and as CSV",
        options="DrawOptions",
    ),
    "export": Verb(
        "RUN|arch.json [key=value ...]",
        "files that deploy, each checked, and a card: format=onnx,pte",
        options="ExportOptions",
        examples=("nas export RUN format=python,onnx,int8_onnx",),
    ),
    "completion": Verb(
        "bash|zsh",
        "completion of verbs, groups, options and keys in your shell",
        options="CompletionOptions",
        examples=(
            """echo 'eval "$(nas completion bash)"' >> ~/.bashrc""",
            """echo 'eval "$(nas completion zsh)"' >> ~/.zshrc""",
        ),
    ),
}


def usage() -> str:
    """The text of `nas --help`."""
    verbs = "\n".join(f"  nas {name:11}{verb.summary}" for name, verb in VERBS.items())
    return f"""\
nas: search for the network that fits your device

{verbs}

  nas VERB --help                                   what most people need
  nas search --help GROUP                           its options and keys
  nas search                                        digits, a few minutes
  nas search data=image_folder data.root=photos     your own images
  nas describe data=image_folder data.root=photos   what it would take
  nas search -m seed=0,1,2                          one run for each seed
"""


def help_of(name: str, arguments: Sequence[str] = ()) -> str:
    """The text of `nas VERB --help`: what most people need, on one screen.

    Args:
        name: of the verb.
        arguments: groups, whose keys are listed; ``all``, which lists those of every group;
            ``group=option``, which choose the options whose keys are listed.

    Raises:
        UserError: no such group.
    """
    verb = VERBS[name]
    parts = [fill(f"nas {name} {verb.usage}: {verb.summary}", WIDTH)]
    asked = [word.lstrip("+") for word in arguments if word[:1] != "-"]
    chosen = dict(word.split("=", 1) for word in asked if "=" in word)
    topics = [word for word in asked if "=" not in word] or [g for g in chosen if g in verb.groups]
    if verb.options:
        parts += _own(verb.options)
    elif topics:
        return "\n\n".join(_topic(name, topic, chosen) for topic in topics)
    else:
        parts += _short(name)
    if verb.examples:
        parts.append("\n".join(f"  {example}" for example in verb.examples))
    return "\n\n".join(parts)


def _short(name: str) -> Iterator[str]:
    """What most people need of a verb that takes the configuration of a run."""
    verb, chosen, options = VERBS[name], _defaults(), groups()
    known = {key.name: key for key in keys_of_run()}
    for group in verb.groups:
        above = "" if group == verb.short else f"{group}."
        for key in keys_of(group, chosen[group]) if chosen[group] in options[group] else ():
            known[above + key.name] = replace(key, name=above + key.name)
    yield "most used:\n" + "\n".join(_lines(known[key]) for key in verb.usual)
    lines = []
    for group in verb.groups:
        left = f"  {group:10}"
        lines.append(left + shorten(f"{', '.join(_in_order(group, chosen))}", WIDTH - len(left)))
    yield "groups, with their options, the default first:\n" + "\n".join(lines)
    more = {
        f"nas {name} --help GROUP": "its options and keys; also: experiment, run, all",
        f"nas {name} --cfg job": "the whole configuration, as it would be run",
    }
    if "finetune" in verb.groups:
        more |= {
            f"nas {name} experiment=NAME": "a recipe; +experiment=NAME is the same",
            f"nas {name} -m KEY=A,B,C": "a sweep; hydra/launcher=joblib side by side",
        }
    more |= {"--config-dir FOLDER": "options of your own: FOLDER/GROUP/NAME.yaml"}
    yield "more:\n" + "\n".join(f"  {left:{_MEANING - 2}}{about}" for left, about in more.items())


def shorten(text: str, width: int) -> str:
    """The text, cut off at a comma or a space where it is too long."""
    end = max(text.rfind(mark, 0, width - 4) for mark in (",", " "))
    return text if len(text) <= width else f"{text[:end].rstrip(',')}, ..."


def _in_order(group: str, chosen: Mapping[str, str]) -> list[str]:
    """The options of a group, those that are chosen first."""
    options = groups()[group]
    names = [n for n in re.split(r"[\[\], ]+", chosen.get(group, "")) if n in options]
    return [*names, *(option for option in options if option not in names)]


def _topic(verb: str, topic: str, chosen: Mapping[str, str]) -> str:
    """`nas VERB --help TOPIC`."""
    if topic == "all":
        return "\n\n".join(_composed(VERBS[verb], chosen))
    if topic in ("run", "budget"):
        found = [key for key in keys_of_run() if topic == "run" or key.name.startswith("budget")]
        return "of the run:\n" + "\n".join(map(_lines, found))
    if topic not in groups():
        known = ", ".join([*groups(), "run", "all"])
        raise UserError(f"nas {verb} --help {topic}: there is no such group; choose one of {known}")
    given = {**_defaults(), **chosen}
    lines = [f"{topic}=OPTION, of which there are"]
    for option in _in_order(topic, given):
        about = _indented(_about(config_dir() / topic / f"{option}.yaml"), _MEANING)
        lines.append(f"  {option:{_MEANING - 2}}{about}".rstrip())
    above = "" if topic == VERBS[verb].short else f"{topic}."
    names = re.split(r"[\[\], ]+", given.get(topic, ""))
    options = [option for option in _in_order(topic, given) if option in names]
    for option in options:
        keys = [_lines(key, above) for key in keys_of(topic, option)]
        lines += ["", f"keys of {topic}={option} (another: nas {verb} {topic}=NAME --help)", *keys]
    return "\n".join(lines)


def _about(path: Path) -> str:
    """The first sentence of the comment that a YAML file begins with."""
    text = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            text += line.removeprefix("#") + " "
    first = re.match(r"(.*?(?<! al))[.:](?=\s+[A-Z]|\s*$|\s+nas )", " ".join(text.split()))
    return shorten(first[1] if first else " ".join(text.split()), 150)


def _own(options: str) -> Iterator[str]:
    made = getattr(import_module("nas.config.options"), options)
    about, _, listed = inspect.cleandoc(made.__doc__).partition("\n\nArgs:\n")
    yield from (fill(text, WIDTH) for text in about.split("\n\n"))
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    meanings = {key: " ".join(text.split()) for key, text in entries}
    keys = [Key(one.name, _yaml(one.default), meanings[one.name]) for one in fields(made)]
    if keys:
        yield "keys:\n" + "\n".join(_lines(key) for key in keys)


def _yaml(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "null" if value is None else str(value).lower()


def _composed(verb: Verb, given: Mapping[str, str]) -> Iterator[str]:
    chosen = {**_defaults(), **given}
    for group in verb.groups:
        names = _in_order(group, chosen)
        text = fill(f"{group}: {', '.join(names)}", WIDTH, subsequent_indent="    ")
        above = "" if group == verb.short else f"{group}."
        taken = re.split(r"[\[\], ]+", chosen.get(group, ""))
        keys = [key for name in names if name in taken for key in keys_of(group, name)]
        yield "\n".join([text, *(_lines(key, above) for key in keys)])
    trains = "finetune" in verb.groups
    own = [key for key in keys_of_run() if trains or key.name in ("seed", "profile")]
    yield "of the run:\n" + "\n".join(map(_lines, own))
    recipes = ", ".join(groups()["experiment"])
    yield fill(f"experiment: {recipes}", WIDTH, subsequent_indent="    ")


def _defaults() -> dict[str, str]:
    """Group -> what is chosen for it where nothing else is said."""
    text = (config_dir() / "config.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): (\S.*?)(?: *#.*)?$", text, re.MULTILINE))


def _lines(key: Key, above: str = "") -> str:
    default = key.default if len(key.default) <= 24 else f"{key.default[:21]}..."
    left = f"  {above}{key.name}={default}"
    if not key.meaning:
        return left
    if len(left) >= _MEANING:
        return f"{left}\n{' ' * _MEANING}{_indented(key.meaning, _MEANING)}"
    return f"{left:{_MEANING}}{_indented(key.meaning, _MEANING)}"


def _indented(text: str, column: int) -> str:
    return f"\n{' ' * column}".join(wrap(text, WIDTH - column))

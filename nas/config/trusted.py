"""What a run's own config.yaml may name: what the shipped configurations name, and nothing else.

A folder may come from anybody, and `hydra.utils.instantiate` calls whatever a configuration names.
So each place of a configuration takes the objects that the files in `configs/` put there, compared
by what an object is and not by what a text begins with. A text is looked up in that table before
anything of it is imported.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nas.config import given
from nas.config.calls import target_of
from nas.config.help import config_dir
from nas.errors import UserError

TARGET, PARTIAL = "_target_", "_partial_"
_NAMES = ("cost", "guard", "logger", "regularizers")  # whose keys are names that a user gives
_WHOLE = ("trainer",)  # of these objects only the keys that the shipped files set
_SHOWN = 5  # findings in one message
_REFERENCE = re.compile(r"\$\{oc\.select:(\w+),null\}")  # `device: ${oc.select:device,null}`
# Module that a configuration of version 0.1.0 may name -> where its classes are now.
_MOVED = {
    "nas.cost.roofline": "nas.cost.device",
    "nas.cost.size": "nas.cost.analytic",
    "nas.search.by_trials": "nas.search.trial_search",
    "nas.search.differentiable": "nas.search.darts",
    "nas.search.gradient.darts": "nas.search.darts",
    "nas.search.gradient.guards": "nas.search.guards",
    "nas.search.gradient.proxyless": "nas.search.proxyless",
    "nas.search.gradient.regularizers": "nas.search.regularizers",
    "nas.search.gradient.reinforce": "nas.search.reinforce",
    "nas.search.oneshot.once_for_all": "nas.search.once_for_all",
    "nas.search.oneshot.oneshot": "nas.search.oneshot",
    "nas.search.oneshot.path_sampling": "nas.search.path_sampling",
    "nas.search.perturbation": "nas.search.regularizers",
    "nas.search.reward": "nas.search.reinforce",
    "nas.search.sampling": "nas.search.trial_search",
    "nas.search.sampling.halving": "nas.search.halving",
    "nas.search.sampling.trial_search": "nas.search.trial_search",
    "nas.search.schemes": "nas.search.path_sampling",
    "nas.search.unrolled": "nas.search.darts",
    "nas.supernet.auxiliary": "nas.supernet.relax",
    "nas.supernet.temperature": "nas.supernet.relax",
}
_RENAMED = {  # as a whole
    **{
        f"nas.search.oneshot.{name}": f"nas.search.path_sampling.{name}"
        for name in ("AllPaths", "UniformPath", "StrictFairness", "Sandwich")
    },
    "nas.search.evaluate.Inherited": "nas.search.evaluate.WeightSharing",
    "nas.search.evaluate.StandAlone": "nas.search.evaluate.TrainFromScratch",
}
# Class -> its arguments that had another name in version 0.1.0.
_ARGUMENTS = {
    "CostAwareAccuracy": {"within": "exponent_feasible", "beyond": "exponent_infeasible"},
    "OneShot": {"scheme": "path_sampling"},
    "Perturbing": {"by": "kind"},
    "SkipCount": {"within": "prefix"},
    "TrialSearch": {"by": "metric", "along": "cost"},
}
_CONTROLLER = (
    "search=controller is not in this version, since its fronts were no better than those of "
    "random networks: take search=predictor, nsga2 or evolution"
)
_REMOVED = dict.fromkeys(
    ("nas.search.controller.Controller", "nas.search.sampling.controller.Controller"), _CONTROLLER
)
_REPLACED = {("searcher", "gradient"): "auto"}  # now a search of its own, search=fair_descent


def moved(node: Any) -> Any:
    """A saved configuration by the names of this version, of classes and of their arguments.

    Raises:
        UserError: a class that this version no longer has, and what to take instead.
    """
    if isinstance(node, list):
        return [moved(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    found = {
        key: _REPLACED.get((key, value), value) if isinstance(value, str) else moved(value)
        for key, value in node.items()
    }
    if isinstance(target := found.get(TARGET), str):
        if target in _REMOVED:
            raise UserError(_REMOVED[target])
        module, _, name = target.rpartition(".")
        found[TARGET] = _RENAMED.get(target, f"{_MOVED.get(module, module)}.{name}".lstrip("."))
        if found[TARGET].startswith("nas.search."):
            names = _ARGUMENTS.get(name, {})
            found = {names.get(key, key): value for key, value in found.items()}
    return found


def check_trusted(config: Mapping[Any, Any], source: Path, trust: bool) -> None:
    """Refuse a saved configuration that names code of its own; where it is trusted, say which.

    Args:
        config: as it was read, nothing resolved.
        source: its file, for messages.
        trust: the user has passed ``trust=true``.

    Raises:
        UserError: it is not trusted and names something that no shipped configuration puts there.
    """
    found = list(foreign(config))
    if not found:
        return
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    listed = ", ".join(found[:_SHOWN]) + more
    if not trust:
        raise UserError(
            f"{source} names code of its own, which is not run from a file: {listed}. If you trust "
            "whoever made this folder, pass trust=true"
        )
    print(f"trust=true: {source} runs {listed}")


def foreign(config: Mapping[Any, Any]) -> Iterator[str]:
    """Each ``key=value`` that no shipped configuration has in that place."""
    for key, node in config.items():
        yield from _strange(node, str(key), str(key), str(key))


def refuse_links(folder: Path) -> None:
    """Raises UserError where a link lies in a run's folder: files would be written elsewhere."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                raise UserError(
                    f"{path} is a link, and a run's folder is written to: replace it by what it "
                    "points to, or remove it"
                )


def _strange(node: object, role: str, key: str, path: str) -> Iterator[str]:
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _strange(item, f"{role}[]", key, f"{path}.{index}")
    elif isinstance(node, Mapping):
        yield from _strange_object(node, role, path)
        for name, child in node.items():
            if name not in (TARGET, PARTIAL):
                yield from _strange(child, _role(str(name), key), str(name), f"{path}.{name}")
    elif isinstance(node, str) and "${" in node:
        yield f"{path}={node!r}"  # a saved run has none, and a resolver is code


def _strange_object(node: Mapping[Any, Any], role: str, path: str) -> Iterator[str]:
    """What is wrong with a mapping itself, leaving out its values."""
    for name, value in node.items():
        special = str(name).startswith("_")
        known = name == PARTIAL and isinstance(value, bool)
        known |= name == TARGET and isinstance(value, str) and _is_allowed(value, role)
        known |= name == TARGET and value == given.TARGET  # looks up what its caller has given
        wrong = "${" in str(name) or (special and not known)
        if role in _WHOLE and not special:
            wrong |= name not in _keys(role) or isinstance(value, Mapping | list)
        if wrong:
            yield f"{path}.{name}={value!r}"
    if role == "data" and node.get("download") and _is_elsewhere(node.get("root")):
        yield f"{path}.root={node['root']!r}, a new folder to download to"


def _is_elsewhere(root: object) -> bool:
    """A folder that is not there yet, and not below the one that the user works in."""
    path = Path(str(root)).expanduser()
    return not path.is_dir() and (path.is_absolute() or ".." in path.parts)


def _role(key: str, parent: str | None) -> str:
    """What an object is there for: ``data``, ``cost.*``, or ``.optimizer`` below one of these."""
    if parent is None:
        return key
    return f"{parent}.*" if parent in _NAMES else f".{key.rpartition('_')[2]}"


def _is_allowed(text: str, role: str) -> bool:
    given = _shipped().get(role, {}).get(TARGET, frozenset())
    return text in given or (bool(given) and text in _own_names(given))


@cache
def _own_names(texts: frozenset[str]) -> frozenset[str]:
    """Where the objects that these texts name are defined: torch.optim.sgd.SGD."""
    found = (target_of({TARGET: text}, text) for text in texts)
    return frozenset(f"{made.__module__}.{made.__qualname__}" for made in found)


def _keys(role: str) -> frozenset[str]:
    return frozenset(_shipped()[role])


@cache
def _shipped() -> Mapping[str, Mapping[str, frozenset[str]]]:
    """Role -> key -> the texts that the files in `configs/` give it, those of objects only."""
    import yaml

    found: dict[str, dict[str, set[str]]] = {}
    same: dict[str, str] = {}

    def note(node: object, role: str, key: str) -> None:
        if isinstance(node, str) and (other := _REFERENCE.fullmatch(node)):
            same[role] = other[1]  # what stands there
        if not isinstance(node, Mapping):
            return
        for name, child in node.items():
            texts = found.setdefault(role, {}).setdefault(str(name), set())
            if name == TARGET:
                texts.add(str(child))
            else:
                note(child, _role(str(name), key), str(name))

    for path in sorted(config_dir().rglob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        group = path.parent.name
        tops = {group: content} if group not in (config_dir().name, "experiment") else content
        for key, node in tops.items():
            note(node, _role(key, None), key)
    for role, other in same.items():
        if other in found:
            found.setdefault(role, {})[TARGET] = found[other][TARGET]
    return {
        role: {name: frozenset(texts) for name, texts in keys.items()}
        for role, keys in found.items()
    }

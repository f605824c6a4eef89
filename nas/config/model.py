"""``model=MODULE:FACTORY``: a network of the user's own as the space of a run, in Hydra's words.

``model=mine:net model.weights=net.pt model.args.width=16`` means ``space=given search=compress
finetune=compress`` with the keys of that space; what else is said of search and finetune stays.
"""

import re
from collections.abc import Sequence

from nas.errors import UserError

SPACE = "nas.compress.space.OwnNetwork"  # as configurations name it
# Group -> its option for a network of the user's own.
RECIPE = {"space": "given", "search": "compress", "finetune": "compress"}
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_KEYS = "model=MODULE:FACTORY, model.weights=FILE and model.args.NAME=VALUE"


def with_model(words: Sequence[str], given: bool = False) -> list[str]:
    """Overrides without ``model=``, which Hydra does not know.

    Args:
        words: overrides, as they were typed.
        given: the network itself was given from Python.

    Raises:
        UserError: no such key, no name of a factory, or a space beside it.
    """
    own: list[str] = []
    rest: list[str] = []
    for word in words:
        key, sign, _ = word.partition("=")
        (own if sign and key.partition(".")[0] == "model" else rest).append(word)
    if not own and not given:
        return rest
    typed = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in rest}
    if typed.get("space", "given") != "given":
        raise UserError(
            f"model= and space={typed['space']}: both say what is searched; leave one of them out"
        )
    recipe = [
        f"{group}={option}"
        for group, option in RECIPE.items()
        if group not in typed and not (group == "search" and "experiment" in typed)
    ]
    return [*recipe, *rest, *_keys(own, given)]


def _keys(words: Sequence[str], given: bool) -> list[str]:
    """Overrides of the keys of ``space=given``."""
    names: list[str] = []
    arguments: list[str] = []
    found: list[str] = []
    for word in words:
        key, _, text = word.partition("=")
        if key == "model" and not given:
            names += [_dotted(name.strip("'\"")) for name in text.split(",")]
        elif key == "model.weights":
            found.append(f"space.weights={text}")
        elif key == "model.args" and text[:1] == "{" and text[-1:] == "}":
            arguments += [text[1:-1]] if text[1:-1].strip() else []
        elif key.startswith("model.args.") and key.count(".") == 2:
            arguments.append(f"{key.removeprefix('model.args.')}:{text}")
        else:
            raise UserError(f"unknown key in {word!r}: there are {_KEYS}")
    if arguments and not names:
        raise UserError(f"model.args is for a factory: {_KEYS}")
    if names:
        rest = "".join(f",{argument}" for argument in arguments)
        nodes = [f"{{_target_:{name},_partial_:true{rest}}}" for name in names]
        found.append(f"space.model={','.join(nodes)}")
    elif not given:
        raise UserError(f"model.weights needs the network that they are of: {_KEYS}")
    return found


def _dotted(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"model={name} is no MODULE:FACTORY: name a function or class of a module on "
            "PYTHONPATH that gives a network, e.g. model=mine:net or "
            "model=torchvision.models:resnet18"
        )
    return name.replace(":", ".")

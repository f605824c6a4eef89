"""What the source of this package says of a class or function, read without importing it.

Importing what a configuration names brings torch along, seconds before the first word; most wrong
values are known from the annotations alone.
"""

import ast
import builtins
import operator
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Union

from pydantic import Field

ROOT = Path(__file__).resolve().parents[2]  # of the package `nas`
# Imported as they are: they bring nothing heavy along.
_LIGHT = ("nas.config.schema", "typing", "collections.abc", "pathlib")
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Pow: operator.pow,
    ast.Mult: operator.mul,
    ast.BitOr: lambda one, other: Union[one, other],  # noqa: UP007  # None is no type
}


class _UnknownError(Exception):
    """An expression that says nothing without an import."""


def annotations(target: str) -> dict[str, Any]:
    """Argument -> annotation of a class or function, of those that can be read.

    Args:
        target: its dotted name; of another package nothing is read.
    """
    return _of(*_definition(target))


def attribute(target: str, name: str) -> Any:
    """The constant that a class, or a base of it, gives to an attribute; None: none."""
    module, node = _definition(target)
    if not isinstance(node, ast.ClassDef):
        return None
    for entry in node.body:
        named = entry.targets[0] if isinstance(entry, ast.Assign) else getattr(entry, "target", 0)
        if isinstance(named, ast.Name) and named.id == name:
            value = getattr(entry, "value", None)
            return value.value if isinstance(value, ast.Constant) else None
    found = (attribute(f"{module}.{ast.unparse(base)}", name) for base in node.bases)
    return next((value for value in found if value is not None), None)


@cache
def _tree(module: str) -> ast.Module | None:
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if module.split(".")[0] == "nas" and file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def _definition(target: str) -> tuple[str, ast.AST | None]:
    """The module where a dotted name is defined, and how; None: it is not found in this package."""
    module, _, name = target.rpartition(".")
    tree = _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and name in [one.name for one in node.names]:
            return _definition(f"{node.module}.{name}")
    return module, None


def _of(module: str, node: ast.AST | None) -> dict[str, Any]:
    if isinstance(node, ast.FunctionDef):
        return _of_arguments(module, node.args)
    if not isinstance(node, ast.ClassDef):
        return {}
    for entry in node.body:
        if isinstance(entry, ast.FunctionDef) and entry.name == "__init__":
            return _of_arguments(module, entry.args)
    found: dict[str, Any] = {}
    for base in node.bases:
        found |= _of(*_definition(f"{module}.{ast.unparse(base)}"))
    fields = [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]
    return found | _read(module, {ast.unparse(one.target): one.annotation for one in fields})


def _of_arguments(module: str, arguments: ast.arguments) -> dict[str, Any]:
    every = [*arguments.args, *arguments.kwonlyargs]
    found = _read(module, {one.arg: one.annotation for one in every if one.annotation})
    rest = arguments.kwarg.annotation if arguments.kwarg else None
    if isinstance(rest, ast.Subscript) and ast.unparse(rest.value) == "Unpack":
        found = _of(*_definition(f"{module}.{ast.unparse(rest.slice)}")) | found
    return found


def _read(module: str, written: Mapping[str, ast.expr]) -> dict[str, Any]:
    found = {}
    for name, expression in written.items():
        if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
            expression = ast.parse(expression.value, mode="eval").body
        try:
            found[name] = _value(module, expression)
        except _UnknownError:
            continue
    return found


def _value(module: str, node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return _named(module, node.id)
    if isinstance(node, ast.Tuple):
        return tuple(_value(module, one) for one in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(module, node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(module, node.left), _value(module, node.right))
    if isinstance(node, ast.Subscript):
        return _value(module, node.value)[_value(module, node.slice)]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field":
        return Field(**{str(one.arg): _value(module, one.value) for one in node.keywords})
    raise _UnknownError


def _named(module: str, name: str) -> Any:
    tree = _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and name in [one.name for one in node.names]:
            if node.module in _LIGHT:
                return getattr(import_module(node.module), name)
            module, found = _definition(f"{node.module}.{name}")
            break
    else:
        module, found = _definition(f"{module}.{name}")
    if found is None and hasattr(builtins, name):
        return getattr(builtins, name)
    if found is None or isinstance(found, ast.ClassDef | ast.FunctionDef):
        raise _UnknownError
    return _value(module, found)

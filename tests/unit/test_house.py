"""The rules of the house.

Everything public is documented, no modules import each other in a ring, nothing asks which kind of
search it has, and few files are so small that they belong into the one that imports them.
"""

import ast
import importlib
import inspect
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nas"
FIELDS = "__dataclass_fields__"  # the default of one may be a function
SMALL = 60  # lines; a smaller file that one other imports belongs into that one


def modules() -> dict[str, Path]:
    """Module name -> file, of the whole package."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imports(names: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, for types only too."""
    found = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                own |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    own.add(whole if whole in names else node.module)
        found[name] = (own & set(names)) - {name}
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of `graph` that import each other in a ring; empty if there is no ring."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if ring := visit(other, [*path, name]):
                return ring
        done.add(name)
        return []

    return next((ring for name in sorted(graph) if (ring := visit(name, []))), [])


def undocumented(module: object) -> list[str]:
    """Public functions, classes and methods defined in `module` that nothing documents.

    A method that overrides a documented one of a base class has that one's documentation.
    """
    found = []
    own = getattr(module, "__name__", "")
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != own:
            continue
        if inspect.isfunction(value) and not value.__doc__:
            found.append(f"{own}.{name}")
        if not inspect.isclass(value):
            continue
        if not value.__doc__ or value.__doc__.startswith(f"{name}("):  # a dataclass writes its own
            found.append(f"{own}.{name}")
        for key, member in vars(value).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            written = inspect.isfunction(function) and function.__module__ == own
            field = key in getattr(value, "__dataclass_fields__", {})
            if (
                written
                and not field
                and not key.startswith("_")
                and not inspect.getdoc(getattr(value, key))
            ):
                found.append(f"{own}.{name}.{key}")
    return found


@pytest.mark.parametrize("module", modules())
def test_everything_public_is_documented(module):
    assert undocumented(importlib.import_module(module)) == []


def test_what_is_undocumented_is_found():
    source = (
        'class A:\n    "A."\n    def f(self): ...\nclass B(A):\n    def f(self): ...\ndef g(): ...'
    )
    made = type(pytest)("made")
    exec(source, vars(made))
    for value in (made.A, made.B, made.g):
        value.__module__ = "made"
    for value in (made.A.f, made.B.f):
        value.__module__ = "made"
    assert undocumented(made) == ["made.A.f", "made.B", "made.B.f", "made.g"]


def test_no_modules_import_each_other():
    assert cycle(imports(modules())) == []


def test_a_ring_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_small_file_has_one_importer():
    names = modules()
    importers = defaultdict(set)
    for name, used in imports(names).items():
        for other in used:
            importers[other].add(name)
    small = [
        name
        for name, path in names.items()
        if path.name != "__init__.py"
        and len(path.read_text(encoding="utf-8").splitlines()) < SMALL
        and len(importers[name]) == 1
    ]
    assert len(small) <= 5, small


def test_nothing_asks_which_search_it_has():
    kinds = {"Search", "DifferentiableSearch", "OneShot", "OnceForAll", "TrialSearch", "PathSearch"}
    asking = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                if named & kinds:
                    asking.append(f"{name}:{node.lineno}")
    assert asking == []

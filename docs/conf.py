"""The site: `python -m sphinx -W -c docs . site`, offline and from this checkout.

The folder of the sources is the repository's, so that a relative link leads to the same page in the
repository and on the site. What the command line says about its keys, and what docstrings say about
the API, is read when the site is built; nothing of it is written down a second time.
"""

import inspect
import re
from dataclasses import fields
from importlib import import_module

from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import nas
from nas.config.help import VERBS, Key, config_dir, groups, keys_of, keys_of_run

project = "nas"
author = "The dnas authors"
release = version = nas.__version__
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/*.ipynb", "experiments/**/*.md", "C*.md"]
exclude_patterns = [".*", "runs", "site", "tests", "nas", "configs", "scripts"]

# Markdown. Headings have the anchors that GitHub gives them, so that a link works in both places.
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# The notebook is kept without outputs, which would disagree with the code one day: every build
# runs it.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # nothing is loaded from the network

# Docstrings: Google's sections; `name` is a reference if there is such a name.
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"nas {release}"
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"


def option_table(group: str) -> list[str]:
    """The options of a group with what the head of each file says."""
    rows = ["| option | what it is |", "|---|---|"]
    for option in groups()[group]:
        rows.append(f"| `{group}={option}` | {cell(head_of(group, option))} |")
    return rows


def head_of(group: str, option: str) -> str:
    """The comment that a YAML file begins with, in one line; else what its class says of itself."""
    text = (config_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
    lines = re.match(r"(?:# ?@package.*\n)?((?:#.*\n)*)", text)[1].splitlines()
    if not lines:
        module, _, name = re.search(r"_target_: ([\w.]+)", text)[1].rpartition(".")
        lines = (
            inspect.getdoc(getattr(import_module(module), name)).partition("\n\n")[0].splitlines()
        )
    return " ".join(line.lstrip("# ") for line in lines)


def key_table(keys: list[Key], above: str = "") -> list[str]:
    """Keys with defaults and meanings."""
    rows = ["| key and default | meaning |", "|---|---|"]
    for key in keys:
        default = key.default.replace("|", "\\|")
        rows.append(f"| `{above}{key.name}={default}` | {cell(key.meaning)} |")
    return rows


def cell(text: str) -> str:
    """Text that stands in a cell of a table, `*` and `<` taken as they are."""
    return re.sub(r"([|*<])", r"\\\1", text)


def keys_page() -> str:
    """Every group: its options, and the keys of each."""
    lines = ["## Keys of a run", "", *key_table(keys_of_run()), ""]
    for group in groups():
        lines += [f"## {group}", "", *option_table(group), ""]
        shown: dict[tuple[str, ...], str] = {}
        for option in groups()[group] if group != "experiment" else ():
            keys = keys_of(group, option)
            names = tuple(key.name for key in keys)
            if not keys or shown.setdefault(names, option) != option:
                continue  # the same keys with other defaults
            lines += [f"### {group}={option}", "", *key_table(keys, f"{group}."), ""]
    return "\n".join(lines)


def verbs_page() -> str:
    """Every verb with its own keys, the groups that it reads, and its examples."""
    lines = []
    for name, verb in VERBS.items():
        lines += [f"## nas {name}", "", f"`nas {name} {verb.usage}`: {verb.summary}.", ""]
        if verb.options:
            made = getattr(import_module("nas.config.options"), verb.options)
            about, _, listed = inspect.cleandoc(made.__doc__).partition("\n\nArgs:\n")
            entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
            meanings = {key: " ".join(text.split()) for key, text in entries}
            own = [Key(f.name, str(f.default), meanings[f.name]) for f in fields(made)]
            lines += [about, "", *(key_table(own) if own else ()), ""]
        if verb.groups:
            known = ", ".join(f"[{group}](keys.md#{group})" for group in verb.groups)
            lines += [f"Reads the [keys of a run](keys.md#keys-of-a-run) and {known}.", ""]
        if verb.examples:
            lines += ["```bash", *verb.examples, "```", ""]
    return "\n".join(lines)


GENERATED = {"docs/keys": keys_page, "docs/commands": verbs_page}


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the generated part of a page where it says so; a block of a file has its name on top."""
    if page in GENERATED:
        source[0] = source[0].replace("<!-- generated -->", GENERATED[page]())
    source[0] = re.sub(
        r"^```(\w+) (\w+[./][^\n]*)$", r"```{code-block} \1\n:caption: \2\n", source[0], flags=re.M
    )


def math(self, node) -> None:
    """A formula as MathML, which browsers draw without a script."""
    from docutils import nodes

    display = isinstance(node, nodes.math_block)
    self.body.append(tex2mathml(node.astext(), as_block=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.add_html_math_renderer("mathml", (math, None), (math, None))


html_math_renderer = "mathml"

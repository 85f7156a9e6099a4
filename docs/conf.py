"""Sphinx: `sphinx-build -W --keep-going -b html docs docs/_build`. Pages are Markdown that GitHub shows too; nothing is fetched."""

import pkgutil
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "jaxdrl"
author = copyright = "The jaxdrl authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "jaxdrl"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"light_css_variables": {"code-font-size": "var(--font-size--small--3)"}}

highlight_language = "none"  # of commands, output and equations; Python says so
default_role = "code"  # docstrings write `x`, as Markdown does
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the class's own line has them
suppress_warnings = ["ref.python"]  # axes of arrays, such as "batch", are looked up as if they were names of Python's


def setup(app) -> None:
    """Connects what follows."""
    app.connect("source-read", list_modules)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", short_defaults)
    app.connect("html-page-context", short_types)
    app.connect("autodoc-skip-member", is_field)


def modules(package: str) -> list[str]:
    """The modules of an API page.

    Args:
        package: "flow", "rewards" ...; or "jaxdrl", for the modules beside the packages.

    Returns:
        Dotted names, the package's own first.
    """
    if package == "jaxdrl":
        found = pkgutil.iter_modules([str(ROOT / "jaxdrl")], "jaxdrl.")
        return [module.name for module in found if not module.ispkg and module.name != "jaxdrl.__main__"]
    found = pkgutil.walk_packages([str(ROOT / "jaxdrl" / package)], f"jaxdrl.{package}.")
    return [f"jaxdrl.{package}", *(module.name for module in found)]


def list_modules(app, docname: str, source: list[str]) -> None:
    """Adds a package's modules, with all that is public in them, to its page `api/PACKAGE.md`."""
    if docname.startswith("api/") and docname not in ("api/index", "api/config"):
        page = "\n## {0}\n\n```{{eval-rst}}\n.. automodule:: {0}\n```\n"
        source[0] += "".join(page.format(name) for name in modules(Path(docname).name))


# Of a module's docstring: equations, indented by 4 and behind an empty line, and tables.
VERBATIM = re.compile(r"((?:(?<=\n\n) {4,}\S.*\n|^\|.*\n)(?:(?: {4,}|\|).*\n|\n(?= {4}))*)", re.MULTILINE)


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: equations and tables become literal blocks, and what would be markup otherwise is escaped."""
    blocks = VERBATIM.split("\n".join(lines)) if what == "module" else ["\n".join(lines)]
    blocks[1::2] = ["::\n\n" + re.sub(r"(?m)^(?=\S)", "    ", block) + "\n" for block in blocks[1::2]]
    blocks[::2] = [_escaped(block) for block in blocks[::2]]
    lines[:] = "".join(blocks).split("\n")


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]+`|(?<![\w*])\*[A-Za-z][^*`:\n]*[A-Za-z]\*(?![\w*]))", text)  # code, *emphasis*
    parts[::2] = [re.sub(r"(?<=\w)_(?!\w)|[\\|]|(?<=[^\s*])\*|\*(?!\*?\w+:)", r"\\\g<0>", part) for part in parts[::2]]
    text = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "".join(parts))
    # Without a colon before it, "Returns: The buffer, and metrics: ..." would be taken for a type and its description.
    text = re.sub(r"(?m)^((?:Returns|Yields):\n +)", r"\1: ", text)
    # Nor do "(1) says ..." and "labels: y." begin lists.
    return re.sub(r"(?m)^( *(?:\w+: )?)(?=(?:\(\w\)|[A-Za-z][.)])(?:\s|$))", r"\1\\", text)


def short_defaults(app, what, name, obj, options, signature: str | None, returned: str | None) -> tuple[str | None, str | None]:
    """Defaults that are no Python in a signature, such as functions; and what Flax adds to the fields of every module."""
    text = re.sub(r", parent: .*?= <flax[^>]*>, name: str \| None = None", "", signature or "")
    text = re.sub(r"= <[^>]*>", "= ...", re.sub(r"<class '([\w.]+)'>", r"\1", text))
    return text or None, returned


def short_types(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """`Float[Array, 'batch']` as it is written in the code, without the modules of its parts."""
    if pagename.startswith("api/"):
        context["body"] = re.sub(r"\b(?:jaxlib\._jax|jaxtyping)\.(?=[A-Z])", "", context["body"])


def is_field(app, what, name: str, obj: object, skip: bool, options) -> bool | None:
    """Fields are described by their class: those of named tuples, and Flax's dtypes, would be listed again with a text of Python's."""
    return True if type(obj).__name__ == "_tuplegetter" or name == "dtype" else None

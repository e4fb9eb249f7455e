"""The documentation site: ``make docs`` builds it without a network, every warning an error."""

from __future__ import annotations

import pydoc
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parents[1]))

from supple.version import __version__

project = "supple"
copyright = "the authors of supple, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "data", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"supple {__version__}"
html_show_sourcelink = False
nitpicky = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

SECTIONS = Config(napoleon_custom_sections=["Source"], napoleon_use_rtype=False)
ELSEWHERE = re.compile(
    r"(argparse|collections|contextlib|gymnasium|matplotlib|np|numpy|pathlib|subprocess|tensordict"
    r"|torch|torchrl|typing)\..*|Tensor|TensorDict|(dict|tuple)\[.*"
)
"""What signatures name and other projects document."""
ALIASES = {"Confidence", "Interval", "Kind", "Level", "Memory", "P", "Product", "Suite", "Velocity"}
"""Our own names for longer types, which have no page."""
BAR = re.compile(r"(?<![`\\])\|(?=[^|`]+\|)|(?<=\w)\|(?!`)")
STAR = re.compile(r"(?<=[(, ])\*(?=\w)(?!\w+\*)")
BY_LAST_NAME: dict[str, list[tuple[str, Any]]] = defaultdict(list)


def as_rst(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Sections of a docstring become fields; ``|x|`` and ``*rows`` mean themselves.

    Fields' docstrings stay as they are: Napoleon would read what stands before a colon as a type.
    """
    lines[:] = [STAR.sub(r"\\*", BAR.sub(r"\\|", line)) for line in lines]
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, SECTIONS, app, what, name, thing, options).lines()


def link_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: Element, content: Element
) -> Element | None:
    """Link what a signature or ``Raises`` names to where it is documented, if it is."""
    if node.get("refdomain") != "py":
        return None
    if not BY_LAST_NAME:
        for name, entry in env.domains.python_domain.objects.items():
            if entry.objtype in ("class", "exception", "data"):
                BY_LAST_NAME[name.rpartition(".")[2]].append((name, entry))
    target: str = node["reftarget"]
    found = BY_LAST_NAME[target.rpartition(".")[2]]
    if len(found) == 1:
        ((name, entry),) = found
        page = entry.docname
        return make_refnode(app.builder, node["refdoc"], page, entry.node_id, content, name)
    foreign = ELSEWHERE.fullmatch(target) or target in ALIASES
    # A class of ours without a page is no mistake; one that does not exist is.
    ours = target.startswith("supple.") and pydoc.locate(target)
    return content if foreign or ours else None


def setup(app: Sphinx) -> None:
    """Connect the two."""
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("missing-reference", link_by_last_name)

"""Sphinx: `make docs` builds the pages of this folder, README and the API into build/docs, with warnings as errors."""

import importlib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "commpress"
author = "the commpress authors"
release = importlib.import_module("commpress").__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
nitpicky = False

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"commpress {release}"
html_copy_source = False
copybutton_prompt_text = "$ "

# Pages are read on the repository's site as well, where README and the like lie beside this folder. Here they are pages that include them.
_OUTSIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def _link_to_pages(app, docname, source):
    source[0] = re.sub(r"\]\(\.\./([A-Z]+\.md)(#[\w-]+)?\)", lambda m: f"]({_OUTSIDE[m[1]]}{m[2] or ''})", source[0])


def _included(app, relative, parent, content):
    """Of a file outside, whose links start at the repository's root."""
    content[0] = re.sub(r"\]\(docs/", "](", content[0])
    content[0] = re.sub(r"\]\(([A-Z]+\.md)\)", lambda m: f"]({_OUTSIDE[m[1]]})", content[0])


def _docstring(app, what, name, obj, options, lines):
    """A module's own text is for readers of the source; the pages of this folder say more. In a formula | is a norm, not a substitution."""
    if what == "module":
        del lines[1:]
    lines[:] = [
        "".join(part if i % 2 else part.replace("|", r"\|") for i, part in enumerate(re.split(r"(``.*?``)", line)))
        for line in lines
    ]


def setup(app):
    app.connect("source-read", _link_to_pages)
    app.connect("include-read", _included)
    app.connect("autodoc-process-docstring", _docstring)

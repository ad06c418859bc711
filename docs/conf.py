"""How the documentation is built: ``make docs``."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from proxyd import __version__

project = "proxyd"
author = "The proxyd authors"
project_copyright = author
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
# A single backtick, as in the docstrings, is code.
default_role = "code"
# Two dashes are two dashes: they begin options.
smartquotes = False
nitpicky = False

html_theme = "furo"
html_title = f"proxyd {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

_TITLES = {"## ": "-", "### ": "~"}


def change_log(app: Sphinx, path: object, document: str, content: list[str]) -> None:
    """Turn the titles of ``CHANGELOG.md``, all the Markdown that towncrier puts there, into those of this language."""
    if document == "changelog":
        content[0] = re.sub(r"^(#{2,3} )(.*)$", _title, content[0], flags=re.MULTILINE)


def _title(match: re.Match[str]) -> str:
    mark, text = match.groups()
    return f"{text}\n{_TITLES[mark] * len(text)}\n"


def setup(app: Sphinx) -> None:
    """Sphinx asks what is added to it."""
    app.connect("include-read", change_log)

"""Settings of the documentation site; ``make docs`` builds it."""

import re
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent)]

import sb3_erl  # noqa: E402

project = "sb3_erl"
author = "The sb3_erl authors"
copyright = author
version = release = sb3_erl.__version__
repository = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "algorithm_pages"]
exclude_patterns = ["_build", "results"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name units and ranges, the signature the types
autodoc_inherit_docstrings = False  # those of Gymnasium are not in this format
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"sb3_erl {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": repository, "source_branch": "main", "source_directory": "docs/"}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

_LINK = re.compile(r"(!?)(\[[^\]]*\])\(([^)\s:#]+)((?:#[^)\s]*)?)\)")


def _link_to_repository(app, name, source):
    """Files that are no pages of the site, and results but for pictures of pages, are read in the repository."""
    folder = (DOCS / name).parent

    def linked(match):
        exclamation, text, path, anchor = match.groups()
        target = (folder / path).resolve()
        if not target.exists() or exclamation:
            return match[0]
        is_page = target.is_relative_to(DOCS) and not target.is_relative_to(DOCS / "results")
        if is_page or target == DOCS.parent / "CHANGELOG.md":
            return match[0]
        return f"{text}({repository}/blob/main/{target.relative_to(DOCS.parent)}{anchor})"

    source[0] = _LINK.sub(linked, source[0])


def setup(app):
    app.connect("source-read", _link_to_repository)

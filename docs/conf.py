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

_OUTSIDE = re.compile(r"\]\((?:\.\./)+(?!docs/|CHANGELOG\.md)([^)]+)\)")
_RESULTS = re.compile(r"\]\((?:\.\./)?(results/[^)]+)\)")


def _link_to_repository(app, name, source):
    """Files that are no pages of the site are read in the repository."""
    text = _OUTSIDE.sub(rf"]({repository}/blob/main/\1)", source[0])
    source[0] = re.sub(r"(?<!!)" + _RESULTS.pattern, lambda match: _if_no_picture(match, name), text)


def _if_no_picture(match, name):
    """A result that a page shows as a picture stays as it is; another one is a link to the repository."""
    return f"]({repository}/blob/main/docs/{match[1]})"


def setup(app):
    app.connect("source-read", _link_to_repository)

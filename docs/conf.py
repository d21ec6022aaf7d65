"""How the site is built: `make docs`. Sphinx with Furo; the pages are Markdown, read by MyST."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from normdet.version import __version__  # noqa: E402

project = "normdet"
author = "The normdet authors"
copyright = "The normdet authors, Apache-2.0"
version = release = __version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# A single backtick in a docstring is code: shapes such as `(N, C, H, W)`.
default_role = "code"

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "colon_fence"]
# The tests run the notebooks; the site shows what they printed.
nb_execution_mode = "off"
# Without these, a page with a widget would load scripts from a network.
nb_ipywidgets_js = {}

# What torch says of every `forward` says nothing of ours.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "normdet"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["normdet.css"]
html_show_sphinx = False
# The site works from a folder: no fonts, scripts or counters of others.
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

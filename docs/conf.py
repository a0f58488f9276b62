"""Sphinx configuration. Builds without a network: no intersphinx, no external theme."""

from mlstate.version import __version__

project = "mlstate"
author = "the mlstate authors"
copyright = "2026, the mlstate authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "alabaster"
html_theme_options = {
    "description": "PyTorch weights, each tensor once, always verified",
    "fixed_sidebar": True,
}
html_copy_source = False

myst_heading_anchors = 3

# Docstrings put code in single backticks: names and values, not cross-references.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

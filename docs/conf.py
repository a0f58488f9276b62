"""Sphinx configuration. Builds without a network: no intersphinx, no fonts from elsewhere."""

from mlstate.version import __version__

project = "mlstate"
author = "the mlstate authors"
copyright = "2026, the mlstate authors"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "mlstate"
html_static_path = ["_static"]
html_css_files = ["mlstate.css"]
html_copy_source = False
html_show_sphinx = False

# `--option` is to stay two hyphens, and quotes are to be those that can be pasted.
smartquotes = False

# A button copies what is typed, without prompts and without what is printed.
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_heading_anchors = 3
# The notebook is committed with its output; a test runs it.
nb_execution_mode = "off"

# Docstrings put code in single backticks: names and values, not cross-references.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"


def setup(app):
    """Put a dash between a parameter and its description, as smart quotes would."""
    from docutils.nodes import Text

    def dashes(app, doctree):
        for text in list(doctree.findall(Text)):
            if text.astext() == " -- ":
                text.parent.replace(text, Text(" \N{EN DASH} "))

    app.connect("doctree-read", dashes)

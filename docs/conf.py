"""The documentation site: ``make docs`` builds it into build/site, warnings being errors."""

import contextlib
import io
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import lo_framework.cli
import lo_framework.eval.cli
import lo_framework.meta_train.cli
from lo_framework import __version__

PROGRAMS = {
    "meta_train": lo_framework.meta_train.cli.main,
    "lo-eval": lo_framework.eval.cli.main,
    "lo": lo_framework.cli.main,
}

project = "lo_framework"
release = version = __version__
copyright = "the authors of lo_framework, MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"lo_framework {__version__}"
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
html_static_path, html_css_files = ["_static"], ["wide.css"]

# The anchors of headings are those that a repository's pages have, so links work in both.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Docstrings quote names as `name` and values as ``value``; both are code here.
default_role = "code"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
python_use_unqualified_type_names = True


class HelpOf(SphinxDirective):
    """``{help-of} lo-eval transfer``: the text that the program's ``--help`` prints."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        program, *words = self.arguments[0].split()
        text = io.StringIO()
        width = mock.patch.dict("os.environ", COLUMNS="100")
        # A program ends the process once it has answered.
        with width, contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            PROGRAMS[program]([*words, "--help"])
        assert text.getvalue()
        return [nodes.literal_block(text.getvalue(), text.getvalue(), language="text")]


def setup(app: Sphinx) -> None:
    app.add_directive("help-of", HelpOf)

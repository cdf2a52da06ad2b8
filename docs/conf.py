"""How the site is built: `make docs`, offline; pages are Markdown, docstrings Google style."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxpg  # noqa: E402

project = "jaxpg"
author = copyright = "the jaxpg authors"
release = version = jaxpg.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "docstrings",  # of _ext, like all below
    "mathml",
    "notebook",
    "repository",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!jaxpg\b).*"),  # other packages' names: no network, no links
    ("py:.*", r"jaxpg\.(report\.canvas|cli\.runs)\..*"),  # inner parts that signatures name
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

default_role = "code"  # `this` in a docstring
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "undoc-members": False,
    "exclude-members": "__init__, __new__",
}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # "reward, value: …" names two arguments at once
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "jaxpg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
highlight_language = "text"  # of a fence that names none
pygments_style = "friendly"
pygments_dark_style = "github-dark"

"""How the site is built from the pages and the docstrings: ``sphinx-build -W docs build/site`` (the extra ``docs``)."""

import sys
from pathlib import Path

import continual

sys.path.insert(0, str(Path(__file__).parent))

project = "continual"
version = release = continual.__version__
author = copyright = "the authors of continual"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "registered"]
exclude_patterns = ["build"]
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!continual\.).*")]  # what is not ours has no page here

myst_heading_anchors = 4
myst_enable_extensions = ["strikethrough"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
smartquotes = False  # an option is typed as it stands

html_theme = "furo"
html_title = f"continual {version}"
html_copy_source = False
html_show_sphinx = False

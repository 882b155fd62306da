"""The documentation as a site, "tox -e docs". Its pages are read in place, too."""

import sys
from pathlib import Path

import celery_linepool

sys.path.insert(0, str(Path(__file__).parent))

project = "celery-linepool"
author = copyright = "The celery-linepool developers"
version = release = celery_linepool.__version__

# Ours: links that leave this folder, and diagrams of the code's tables.
extensions = ["myst_parser", "links", "states"]
exclude_patterns = ["_build"]
# As GitHub makes them, so that a link to a section works in both places.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"celery-linepool {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
# Settings and protocol lines are read as they are typed.
smartquotes = False
highlight_language = "none"

"""How Sphinx makes these pages a site: `make docs`.

The pages are plain Markdown that GitHub shows as well. index.md lists them, and the order there is
the order of the navigation.
"""

import re
from pathlib import Path

project = "Does fine-tuning help?"
extensions = ["myst_parser"]
exclude_patterns = ["conf.py"]
nitpicky = True
myst_heading_anchors = 3  # the anchors that GitHub gives to headings
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
html_theme_options = {"top_of_page_buttons": []}

PAGES = re.findall(r"\]\((\w[\w-]*)\.md\)", (Path(__file__).parent / "index.md").read_text("utf-8"))


def add_navigation(app, page, source):
    """Give index.md the table of contents that Sphinx needs and that GitHub would show as code."""
    if page == "index":
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(PAGES) + "\n```\n"


def setup(app):
    """Read every page through `add_navigation`."""
    app.connect("source-read", add_navigation)

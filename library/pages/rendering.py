"""The pages' common ground: templates that escape what they are given, and plurals."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES_DIR = Path(__file__).parent / "templates"

_pages = Environment(
    loader=FileSystemLoader(TEMPLATES_DIR),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

# JSON inside <script>: no text may end the element, whatever it holds
_pages.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False}


def render_page(template: str, **context: Any) -> str:
    """One of the templates in templates/, as a self-contained page.

    Text from data is escaped.
    """
    return _pages.get_template(template).render(**context)


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{number:,} {noun}{'s' * (number != 1)}"

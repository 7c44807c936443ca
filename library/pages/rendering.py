"""The pages' common ground: text from data that stays what it is, and plurals."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Signs that turn the direction of what follows, the page's own words among it.
_DIRECTIONS = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "�")
TEMPLATES_DIR = Path(__file__).parent / "templates"

_pages = Environment(
    loader=FileSystemLoader(TEMPLATES_DIR),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: show_directions(value) if isinstance(value, str) else value,
)

# JSON inside <script>: no text may end the element, whatever it holds
_pages.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False}


def render_page(template: str, **context: Any) -> str:
    """One of the templates in templates/, as a self-contained page.

    Text from data is escaped, and can't turn the direction of what stands around it.
    """
    return _pages.get_template(template).render(**context)


def show_directions(text: str) -> str:
    """The text, markup or not, with a sign that can be seen for each that turns its direction."""
    return text.translate(_DIRECTIONS)


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{number:,} {noun}{'s' * (number != 1)}"

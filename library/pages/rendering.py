"""What all pages need: templates that escape text from data, and plurals."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Characters that change the direction of the text after them, the page's own included.
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

# JSON inside <script>: tojson escapes what could end the element
_pages.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False}


def render_page(template: str, **context: Any) -> str:
    """Render a template of templates/ as a self-contained page.

    Text from data is escaped, and can't change the direction of the text around it.
    """
    return _pages.get_template(template).render(**context)


def show_directions(text: str) -> str:
    """The text, markup or not, with � for each character that changes its direction."""
    return text.translate(_DIRECTIONS)


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{number:,} {noun}{'s' * (number != 1)}"

"""Cleaning as named rules, each a pure function from text to text and a count of what it changed.

No rule touches words, numbers, units, Greek letters or sub- and superscripts. Together they are idempotent: `clean_text` goes
on until no rule finds anything, since removing an invisible character can complete an entity.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from html.entities import html5

# An entity with its semicolon: without one, `&para` in a URL would become a pilcrow.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Control characters but tab and line ends; soft hyphen; zero widths, direction marks, invisible operators, byte order mark.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_ODD_SPACE = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\t]| {2,}")
_SPACE_BEFORE = re.compile(r"(?<=\w) +(?=[,;](?:\s|$))|(?<=[a-z]) +(?=\.(?:\s|$))")
_STRAY_COMMA = re.compile(r"\? ?,(?=\s*$)")
_OUTER = re.compile(r"\A\s+|\s+\Z")


def _entity(match: re.Match[str]) -> str:
    body = match[0][1:]
    return html.unescape(match[0]) if body.startswith("#") or body in html5 else match[0]


def _substitute(pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str]) -> Callable[[str], tuple[str, int]]:
    def rule(text: str) -> tuple[str, int]:
        cleaned, found = pattern.subn(replacement, text)
        return cleaned, found if cleaned != text else 0

    return rule


def _compose(text: str) -> tuple[str, int]:
    composed = unicodedata.normalize("NFC", text)
    return composed, int(composed != text)


RULES: dict[str, Callable[[str], tuple[str, int]]] = {
    "html_entities": _substitute(_ENTITY, _entity),
    "unicode_nfc": _compose,
    "invisible_characters": _substitute(_INVISIBLE, ""),
    "odd_spaces": _substitute(_ODD_SPACE, " "),
    "space_before_punctuation": _substitute(_SPACE_BEFORE, ""),
    "stray_comma": _substitute(_STRAY_COMMA, "?"),
    "outer_whitespace": _substitute(_OUTER, ""),
}


def clean_text(text: str, rules: Collection[str]) -> tuple[str, Counter[str]]:
    """Apply the named rules until none changes anything. Returns the text and how often each rule found something."""
    counts: Counter[str] = Counter()
    while True:
        before = text
        for name, rule in RULES.items():
            if name in rules:
                text, found = rule(text)
                if found:
                    counts[name] += found
        if text == before:
            return text, counts


def count_defects(text: str) -> Counter[str]:
    """How often each rule would find something in a text as it stands, each rule on its own."""
    return Counter({name: found for name, rule in RULES.items() if (found := rule(text)[1])})

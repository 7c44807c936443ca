"""Cleaning as named rules: what each finds in a text, and what it puts in its place.

No rule touches words, numbers, units, Greek letters or sub- and superscripts. Together they are idempotent: `clean_text` goes
on until no rule finds anything, since removing an invisible character can complete an entity.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from html.entities import html5

import ftfy

EXAMPLE_CHARACTERS = 20  # shown on either side of an example

# A literal \u2122, and two of them where they are halves of one character.
_ESCAPED = re.compile(r"\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[0-9a-fA-F]{4})")
# UTF-8 that was read as Windows-1252: a lead byte, then at least one of what continuation bytes look like.
_CONTINUATION = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122"
_MOJIBAKE = re.compile(f"[\u00c2-\u00f4][{_CONTINUATION}]+")
# An entity with its semicolon: without one, `&para` in a URL would become a pilcrow.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Patterns begin with a literal where they can: the search for it is many times as fast as trying every place.
_SPACE_BEFORE = tuple(map(re.compile, (r" ,(?<=\w ,)(?=\s|\Z)", r" ;(?<=\w ;)(?=\s|\Z)", r" \.(?<=[a-z] \.)(?=\s|\Z)")))
# Composition looks no further back than one ASCII character.
_NOT_ASCII = re.compile(r".?[^\x00-\x7f]+", re.DOTALL)
# Control characters but tab and line ends; soft hyphen; zero widths, direction marks, invisible operators, byte order mark. The
# zero-width joiner and non-joiner are orthography between letters of other scripts and parts of an emoji: there they stay.
_JOINER = r"(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
_INVISIBLE = re.compile(f"{_JOINER}|{_CONTROL}")
_ODD_SPACE = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\t]| {2,}")
_STRAY_COMMA = re.compile(r"\? ?,(?=\s*$)")
_OUTER = re.compile(r"\A\s+|\s+\Z")
# Before the first word of a paragraph alone: "see paragraph [0032] below" is a reference, not a number in the margin.
_PARAGRAPH_NUMBER = re.compile(r"\[(?<!\S\[)\d{4}\]\s+(?=[A-Z0-9\"'“(])")
_FIGURE = r"FIGS?\.? ?\d+[A-Za-z]?"
_FIGURE_REFERENCE = re.compile(
    rf" \((?:see |cf\. |e\.g\.,? |as shown in )?{_FIGURE}(?:(?:, | and |, and | to |-|–)(?:{_FIGURE}|\d+[A-Za-z]?)){{0,9}}\)"
)
_LIST_LETTER = re.compile(r"\((?<!\S\()[a-z]\) (?=\w)")
_TRADEMARK = re.compile(r"[\u2122\u2120\u00ae]")


@dataclass(frozen=True)
class Finding:
    """How often a rule changed a text, and the first place with its surroundings, before and after."""

    count: int
    before: str
    after: str


@dataclass(frozen=True)
class Rule:
    """What a rule looks for and puts in its place. `suspect` tells in far less time that there is nothing to look for."""

    patterns: tuple[re.Pattern[str], ...]
    substitute: Callable[[re.Match[str]], str]
    suspect: Callable[[str], bool]

    def apply(self, text: str) -> tuple[str, Finding | None]:
        """The text with every match substituted, and what was found: a match that stays as it is does not count."""
        if not self.suspect(text):
            return text, None
        count = 0
        example: tuple[str, str] | None = None

        def change(match: re.Match[str]) -> str:
            nonlocal count, example
            new = self.substitute(match)
            if new != match[0]:
                count += 1
                if example is None:
                    before, after = text[max(0, match.start() - EXAMPLE_CHARACTERS) : match.start()], text[match.end() :]
                    after = after[:EXAMPLE_CHARACTERS]
                    old = match[0][: 3 * EXAMPLE_CHARACTERS]
                    example = before + old + after, before + new[: 3 * EXAMPLE_CHARACTERS] + after
            return new

        for pattern in self.patterns:
            text = pattern.sub(change, text)
        return text, Finding(count, *example) if example else None


def _has(*marks: str) -> Callable[[str], bool]:
    return lambda text: any(mark in text for mark in marks)


def _not_ascii(text: str) -> bool:
    return not text.isascii()


def _unprintable(text: str) -> bool:
    return not text.replace("\n", " ").isprintable()


def _unescape(match: re.Match[str]) -> str:
    character = bytes(match[0], "ascii").decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return match[0] if character in "\x00\ufffd" else character


def _entity(match: re.Match[str]) -> str:
    body = match[0][1:]
    return html.unescape(match[0]) if body.startswith("#") or body in html5 else match[0]


def _compose(match: re.Match[str]) -> str:
    # Sorting thousands of stacked marks takes time with their square; text has 30 at most (Unicode Annex 15, stream-safe).
    stacked = 0
    for character in match[0] if len(match[0]) > 30 else "":
        stacked = stacked + 1 if unicodedata.combining(character) else 0
        if stacked > 30:
            return match[0]
    return unicodedata.normalize("NFC", match[0])


# Rules that remove whole words come before those that mend the spaces they leave.
RULES: dict[str, Rule] = {
    "escaped_unicode": Rule((_ESCAPED,), _unescape, _has("\\u")),
    "mojibake": Rule((_MOJIBAKE,), lambda match: ftfy.fix_encoding(match[0]), _not_ascii),
    "html_entities": Rule((_ENTITY,), _entity, _has("&")),
    "unicode_nfc": Rule((_NOT_ASCII,), _compose, lambda text: not unicodedata.is_normalized("NFC", text)),
    "invisible_characters": Rule((_INVISIBLE,), lambda match: "", _unprintable),
    "paragraph_numbers": Rule((_PARAGRAPH_NUMBER,), lambda match: "", _has("[0", "[1", "[2")),
    "figure_references": Rule((_FIGURE_REFERENCE,), lambda match: "", _has("(FIG", "(see FIG", "(cf. FIG", "(e.g", "(as shown")),
    "list_letters": Rule((_LIST_LETTER,), lambda match: "", _has("(")),
    "trademark_signs": Rule((_TRADEMARK,), lambda match: "", _has("\u2122", "\u2120", "\u00ae")),
    "odd_spaces": Rule((_ODD_SPACE,), lambda match: " ", lambda text: "  " in text or _unprintable(text)),
    "space_before_punctuation": Rule(_SPACE_BEFORE, lambda match: match[0][1:], _has(" ,", " ;", " .")),
    "stray_comma": Rule((_STRAY_COMMA,), lambda match: "?", _has("?,", "? ,")),
    "outer_whitespace": Rule((_OUTER,), lambda match: "", lambda text: text != text.strip()),
}


def clean_text(text: str, rules: Collection[str]) -> tuple[str, dict[str, Finding]]:
    """Apply the named rules until none changes anything. Returns the text, and what each rule found."""
    found: dict[str, Finding] = {}
    while True:
        before = text
        for name, rule in RULES.items():
            if name in rules:
                text, finding = rule.apply(text)
                if finding:
                    first = found.get(name, replace(finding, count=0))
                    found[name] = replace(first, count=first.count + finding.count)
        if text == before:
            return text, found


def find_defects(text: str) -> dict[str, Finding]:
    """What each rule would change in a text as it stands, each rule on its own."""
    return {name: finding for name, rule in RULES.items() if (finding := rule.apply(text)[1])}

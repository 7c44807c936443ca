"""The cleaning rules: what each one finds in a text, and what it puts in its place.

No rule touches words, numbers, units, Greek letters, sub- and superscripts or layout (indentation,
tabs, columns). Together they are idempotent: `clean_text` repeats them until none finds anything,
because removing an invisible character can complete an HTML entity.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from html.entities import html5

import ftfy

EXAMPLE_CHARACTERS = 20  # shown on either side of an example

# A literal \u2122, or two that are the halves of a surrogate pair.
_ESCAPED = re.compile(
    r"\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[0-9a-fA-F]{4})"
)

# UTF-8 that was read as Windows-1252: a lead byte, then at least one continuation byte as it looks
# in Windows-1252.
_CONTINUATION = (
    "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a"
    "\u20ac\u2122"
)
_MISREAD = re.compile(f"[\u00c2-\u00f4][{_CONTINUATION}]+")
# Repaired word by word, since a match inside a word is less reliable than the whole word. A
# no-break space can be a misread byte.
_MOJIBAKE = re.compile(rf"(?<![^ \n\t])[^ \n\t]*?{_MISREAD.pattern}[^ \n\t]*")
# Not mojibake: Ångström and diameter before a power, a fraction or a tolerance, as in 90 Å² or Ø½.
_UNIT = re.compile("[\u00c5\u00d8][\u00b1-\u00b3\u00b9\u00bc-\u00be]")
# Not mojibake: the last letter of a word in capitals before a closing sign, as in «ALEMÃ» or ROSÉ°.
_CAPITALS = re.compile(f"[A-Z\u00c0-\u00de]{{2}}[\u00c2-\u00de][{_CONTINUATION}]+(?!\\w)")
# Control characters of Latin-1 that are characters in Windows-1252. Five codes are unassigned
# there, and one is a line end.
_C1 = re.compile(r"[\x80\x82-\x84\x86-\x8c\x8e\x91-\x9c\x9e\x9f]")
# An entity with its semicolon, however often its ampersand was escaped. Without the semicolon,
# `&para` in a URL would become a pilcrow.
_ENTITY = re.compile(r"&(?:amp;)*(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AMPERSANDS = re.compile(r"&(?:amp;)+")

# Patterns begin with a literal if possible: searching for it is many times faster than trying every
# position.
_SPACE_BEFORE_COMMA = re.compile(r" ,(?<=\w ,)(?=\s|\Z)")
_SPACE_BEFORE_SEMICOLON = re.compile(r" ;(?<=\w ;)(?=\s|\Z)")
_SPACE_BEFORE_STOP = re.compile(r" \.(?<=[a-z] \.)(?=\s+[A-Z][a-z]|\s*\Z)")
# French sets a space before two-part signs, and within its quotation marks.
_FRENCH_SPACE = re.compile(r"(?<=\w)[ \u00a0\u202f][:?!»]|«[ \u00a0\u202f]")

# Composition looks no further back than one ASCII character.
_NOT_ASCII = re.compile(r".?[^\x00-\x7f]+", re.DOTALL)

# Control characters but for white space; zero widths, direction marks, invisible operators, byte
# order mark, soft hyphen; but none between two digits, which would become one number. The
# zero-width joiner and non-joiner are orthography between letters of other scripts and parts of an
# emoji: there they stay, one or two at a time.
_CONTROL = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e"
    r"\u2060-\u2064\u2066-\u2069\ufeff](?:(?<!\d.)|(?!\d))"
)

_JOINER = re.compile(
    r"[\u200c\u200d](?:[\u200c\u200d]{2,}|(?<![^\x00-\x7f][\u200c\u200d])|(?![^\x00-\x7f]))"
)

_EXOTIC = r"[\x0b\x0c\x1c-\x1f\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_ODD_SPACE = re.compile(rf"{_EXOTIC}|\t| {{2,}}")
_EXOTIC_SPACE = re.compile(_EXOTIC)
# Code and tables: a fence, an indented line, two lines of Markdown's table, or two short lines with
# columns, one below the other. Two blanks after a sentence are no column.
_COLUMNS = r"[^\n]{0,200}[^\s.!?:;,](?: *\t| {2})[ \t]*\S[^\n]{0,200}"
_LAYOUT = re.compile(
    rf"```|\n[ \t]+\S|^\|[^\n]*\|[ \t]*\n\||^{_COLUMNS}\n{_COLUMNS}$", re.MULTILINE
)
_STRAY_COMMA = re.compile(r"\? ?,(?=\s*$)")
_OUTER = re.compile(r"\A\s+|(?<!\s)\s+\Z")
_OUTER_OF_LAYOUT = re.compile(r"\A(?:[^\S\n]*\n)+|(?<!\s)\s+\Z")  # the first indentation stays

# A number in the margin stands where a paragraph begins: at a line's start, after a sentence or a
# heading in capitals, and before a first word. Anywhere else, in any language, it is a reference:
# "see paragraph [0032] below", "siehe Absatz [0032] Die". From 1000 on it can be a year, "[1897] AC
# 22": it is in the margin only where several ascend, and from 1900 on never. Some stand twice:
# "[0036] [0036]FIG. 1 is".
_ABBREVIATIONS = "para. paras. Para. Paras. cf. Cf. e.g. i.e. No. Nos. Nr. Abs. Rn.".split()
_REFERENCE = "".join(rf"(?<!\b{re.escape(word)} \[)" for word in _ABBREVIATIONS)
_BEGINS = r"(?:(?<=\A\[)|(?<=\n\[)|(?<=\n[ \t]\[)|(?<=[.!?:;)\]\"”’。！？]\s\[)|(?<=[A-Z]{2}\s\[))"
_NUMBER_IN_MARGIN = r"(0\d{3}|1[0-8]\d\d)"
_FIRST_WORD = r"(?=\s*(?:[^\W_a-z]|[\"'“(]))"

_PARAGRAPH_NUMBER = (
    re.compile(rf"\[(?<!\S\[){_NUMBER_IN_MARGIN}\][ \t]*\[\1\][ \t]*{_FIRST_WORD}"),
    re.compile(rf"\[{_BEGINS}{_REFERENCE}{_NUMBER_IN_MARGIN}\][ \t]*{_FIRST_WORD}"),
)

# Beyond 0999: where a paragraph begins, and not before the capitals of law reports.
_MARGIN_BEYOND_999 = re.compile(
    r"(?:\A|\n\s*|[.!?:;)]\s+)\[(0\d{3}|1[0-8]\d\d)\](?!\s*(?!FIG)[A-Z]{2,}\b)(?!\s*\d)"
    + _FIRST_WORD
)
_NUMBER_OF_LINE = re.compile(rf"(?:\A|\n)[ \t]?\[{_NUMBER_IN_MARGIN}\]")
MOST_SKIPPED = 10  # paragraphs that a text can leave out between two

_FIGURE = r"(?:FIGS?|Figs?)\.? ?\d+[A-Za-z]?"

_FIGURE_REFERENCE = re.compile(
    rf" \( ?(?:[Ss]ee |cf\. |e\.g\.,? |(?:as )?shown in )?{_FIGURE}"
    rf"(?:(?:, | and |, and | to |-|–)(?:{_FIGURE}|\d+[A-Za-z]?)){{0,9}} ?\)"
)

_LIST_LETTER = re.compile(r"\((?<!\S\()[a-z]\) (?=\w)")
_TRADEMARK = re.compile(r"[\u2122\u2120\u00ae]")


@dataclass
class Finding:
    """How often a rule changed a text, and its first change, before and after."""

    count: int
    before: str
    after: str


@dataclass(frozen=True)
class Rule:
    """What a rule looks for and what it puts in its place.

    `suspect` is a fast test that tells most texts without a match.
    """

    patterns: tuple[re.Pattern[str], ...]
    substitute: Callable[[str], str]  # the replacement of a match
    suspect: Callable[[str], bool]

    def apply(self, text: str) -> tuple[str, Finding | None]:
        """Substitute every match; returns the text and the finding.

        A match that stays as it is does not count.
        """
        count = 0
        example: tuple[str, str] | None = None

        def change(match: re.Match[str]) -> str:
            nonlocal count, example
            new = self.substitute(match[0])
            if new != match[0]:
                count += 1
                if example is None:
                    before, after = (
                        text[max(0, match.start() - EXAMPLE_CHARACTERS) : match.start()],
                        text[match.end() :],
                    )
                    after = after[:EXAMPLE_CHARACTERS]
                    old = match[0][: 3 * EXAMPLE_CHARACTERS]
                    example = before + old + after, before + new[: 3 * EXAMPLE_CHARACTERS] + after
            return new

        for pattern in self.patterns:
            text = pattern.sub(change, text)
        return text, Finding(count, *example) if example else None


def _margin_numbers(text: str) -> frozenset[str]:
    """The paragraph numbers in the margin of a text.

    From 1000 on: three or more that ascend in small steps. Below 1000: two or more that do, a
    number at the start of a line, one that occurs twice in a row, and one after a sentence that
    ends in ASCII (no abbreviations of other scripts are known here).
    """
    below = [match for match in _PARAGRAPH_NUMBER[1].finditer(text) if match[1] < "1000"]
    beyond = [match for match in _MARGIN_BEYOND_999.finditer(text) if match[1] >= "1000"]
    runs: list[list[int]] = []
    for number in (int(match[1]) for match in (*below, *beyond)):
        if runs and 0 < number - runs[-1][-1] <= MOST_SKIPPED:
            runs[-1].append(number)
        else:
            runs.append([number])
    found = {
        f"{number:04}" for run in runs if len(run) >= (2 if run[0] < 1000 else 3) for number in run
    }
    found |= {
        match[1] for match in below if text[max(0, match.start() - 3) : match.start()].isascii()
    }
    alone = [*_NUMBER_OF_LINE.findall(text), *_PARAGRAPH_NUMBER[0].findall(text)]
    return frozenset(found | {number for number in alone if number < "1000"})


def _is_laid_out(text: str) -> bool:
    """Whether spaces carry meaning: code or a table."""
    return _spaced(text) and _LAYOUT.search(text) is not None


def _spaces_before(text: str) -> tuple[re.Pattern[str], ...]:
    """The patterns of spaces before a punctuation mark that are defects in this text.

    French writes a space before a semicolon. A space before a full stop counts only in a text that
    begins like a sentence, because `git add .` is a command.
    """
    patterns = [_SPACE_BEFORE_COMMA]
    if not _FRENCH_SPACE.search(text):
        patterns.append(_SPACE_BEFORE_SEMICOLON)
    if not text.lstrip()[:1].islower():
        patterns.append(_SPACE_BEFORE_STOP)
    return tuple(patterns)


def _rules_for(text: str) -> dict[str, Rule]:
    """RULES adapted to the whole text."""
    rules = dict(RULES)
    margin = _margin_numbers(text) if _numbered(text) else frozenset()

    def without_margin(found: str) -> str:
        return "" if found[1:5] in margin else found

    rules["paragraph_numbers"] = replace(RULES["paragraph_numbers"], substitute=without_margin)
    laid_out = _is_laid_out(text)
    if laid_out:
        rules["odd_spaces"] = replace(RULES["odd_spaces"], patterns=(_EXOTIC_SPACE,))
        rules["outer_whitespace"] = replace(RULES["outer_whitespace"], patterns=(_OUTER_OF_LAYOUT,))
    rules["space_before_punctuation"] = replace(
        RULES["space_before_punctuation"], patterns=() if laid_out else _spaces_before(text)
    )
    return rules


def _has(*marks: str) -> Callable[[str], bool]:
    def has(text: str) -> bool:
        # any() takes twice the time, and most of the time there is goes here
        for mark in marks:  # noqa: SIM110
            if mark in text:
                return True
        return False

    return has


def _misread(text: str) -> bool:
    return not text.isascii() and bool(_MISREAD.search(text) or _C1.search(text))


def _unprintable(text: str) -> bool:
    return not (text.isprintable() or text.replace("\n", " ").isprintable())


# No rule looks across the border of two sentences of plain words, so most of a long text can be
# skipped.
_BREAK = re.compile(r" (?<=[a-z]\. )(?=[A-Z][a-z])")
_numbered = _has("[0", "[1")
_spaced = _has("```", "\t", "  ", "\n ")  # which a layout has
_marked = _has("&", "\\u", "[", "(", "  ", " ,", " ;", " .", "?,", "? ,")


def _plain(text: str) -> bool:
    """Whether certainly no rule would change a text, by a fast test."""
    return text.isascii() and not _unprintable(text) and text == text.strip() and not _marked(text)


def _unescape(escaped: str) -> str:
    character = (
        bytes(escaped, "ascii")
        .decode("unicode_escape")
        .encode("utf-16", "surrogatepass")
        .decode("utf-16", "replace")
    )
    return escaped if character in "\x00\ufffd" else character


def _entity(entity: str) -> str:
    entity = _AMPERSANDS.sub("&", entity)
    character = html.unescape(entity) if entity.startswith("&#") or entity[1:] in html5 else entity
    return entity if "\ufffd" in character else character


@lru_cache(1024)
def _repair(word: str) -> str:
    if len(word) == 1:
        return word.encode("latin-1").decode("cp1252")
    if _CAPITALS.search(word):
        return word
    return ftfy.fix_encoding(word) if _MISREAD.search(_UNIT.sub("", word)) else word


def _compose(run: str) -> str:
    # Sorting thousands of stacked marks takes time with their square; text has 30 at most (Unicode
    # Annex 15, stream-safe).
    stacked = 0
    for character in run if len(run) > 30 else "":
        stacked = stacked + 1 if unicodedata.combining(character) else 0
        if stacked > 30:
            return run
    return unicodedata.normalize("NFC", run)


# Rules that remove whole words come before those that mend the spaces they leave.
RULES: dict[str, Rule] = {
    "escaped_unicode": Rule((_ESCAPED,), _unescape, _has("\\u")),
    "mojibake": Rule((_MOJIBAKE, _C1), _repair, _misread),
    "html_entities": Rule((_ENTITY,), _entity, _has("&")),
    "unicode_nfc": Rule(
        (_NOT_ASCII,), _compose, lambda text: not unicodedata.is_normalized("NFC", text)
    ),
    "invisible_characters": Rule((_CONTROL, _JOINER), lambda found: "", _unprintable),
    "paragraph_numbers": Rule(_PARAGRAPH_NUMBER, lambda found: "", _numbered),
    "figure_references": Rule(
        (_FIGURE_REFERENCE,),
        lambda found: "",
        lambda text: "(" in text and ("FIG" in text or "Fig" in text),
    ),
    "list_letters": Rule((_LIST_LETTER,), lambda found: "", _has("(")),
    "trademark_signs": Rule((_TRADEMARK,), lambda found: "", _has("\u2122", "\u2120", "\u00ae")),
    "odd_spaces": Rule(
        (_ODD_SPACE,), lambda found: " ", lambda text: "  " in text or _unprintable(text)
    ),
    "space_before_punctuation": Rule(
        (_SPACE_BEFORE_COMMA, _SPACE_BEFORE_SEMICOLON, _SPACE_BEFORE_STOP),
        lambda found: found[1:],
        _has(" ,", " ;", " ."),
    ),
    "stray_comma": Rule((_STRAY_COMMA,), lambda found: "?", _has("?,", "? ,")),
    "outer_whitespace": Rule((_OUTER,), lambda found: "", lambda text: text != text.strip()),
}


def clean_text(text: str, rules: Collection[str]) -> tuple[str, dict[str, Finding]]:
    """Apply the named rules until none changes anything.

    Returns the text and the findings by rule.
    """
    found: dict[str, Finding] = {}
    active: list[tuple[str, Rule]] = []

    def clean_piece(piece: str) -> str:
        before = None
        while piece != before and not _plain(piece):
            before = piece
            for name, rule in active:
                if rule.suspect(piece):
                    piece, finding = rule.apply(piece)
                    _add(found, name, finding)
        return piece

    before = None
    while text != before:
        before = text
        active = [(name, rule) for name, rule in _rules_for(text).items() if name in rules]
        text = " ".join(map(clean_piece, _BREAK.split(text)))
    return text, found


def find_defects(text: str) -> dict[str, Finding]:
    """What each rule on its own would change in a text as it stands."""
    found: dict[str, Finding] = {}
    rules = _rules_for(text)
    for piece in _BREAK.split(text):
        if not _plain(piece):
            for name, rule in rules.items():
                if rule.suspect(piece):
                    _add(found, name, rule.apply(piece)[1])
    return found


def _add(found: dict[str, Finding], rule: str, finding: Finding | None) -> None:
    if finding and rule in found:
        found[rule].count += finding.count
    elif finding:
        found[rule] = finding

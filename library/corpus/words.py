"""Words in any script, the same for ranking passages and for comparing answers.

ASCII text gives rouge-score's words, which published figures use: lower-case runs of letters and
digits. Beyond ASCII, Unicode's properties decide: a combining mark belongs to its letter, so that
vowel signs of Hindi or Thai distinguish words. What a script leaves to the writer does not count:
case, composed or decomposed letters, Arabic harakat and tatweel, Hebrew points, joiners.
"""

import unicodedata

import regex

# No blank tells the words of these scripts apart. Each letter counts, with its marks, as published
# ROUGE and F1 for Chinese do; ー (U+30FC) is of no script by itself.
_UNSPACED = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc\uff70]&&\p{L}]"
)
# within a word: marks, the zero-width joiners, a soft hyphen
_EXTEND = r"[\p{M}\u200c\u200d\u00ad]"
_SPACED = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}]"
# The first alternative is for speed: most words are of ASCII alone, and end before a sign of it.
_WORD = regex.compile(
    rf"[a-zA-Z0-9]++(?![^\x00-\x7f])|{_UNSPACED}{_EXTEND}*|{_SPACED}(?:{_SPACED}|{_EXTEND})*",
    regex.VERSION1,
)
_ASCII_WORD = regex.compile("[a-z0-9]+")
# joiners, soft hyphen; tatweel and Arabic vowel marks; Hebrew points and accents
_OPTIONAL = regex.compile(
    r"[\u200c\u200d\u00ad\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed"
    r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)


def _fold(word: str) -> str:
    """The normal form of a word. Turkish İ becomes i, its lower case in every other alphabet."""
    composed = unicodedata.normalize("NFC", word).replace("\u0130", "i").casefold()
    return _OPTIONAL.sub("", unicodedata.normalize("NFC", composed))


def locate_tokens(text: str) -> list[tuple[int, int, str]]:
    """Start, end and word of each token, by position in the text."""
    return [(*match.span(), _fold(match[0])) for match in _WORD.finditer(text)]


def tokenize(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return [word.lower() if word.isascii() else _fold(word) for word in _WORD.findall(text)]

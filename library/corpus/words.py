"""Words of any script, as answers are compared and as passages are searched."""

import re

# Chinese characters and Japanese kana count one by one: no blank tells words apart.
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+")
_SEARCHED = re.compile(rf"[{IDEOGRAPHS}]|[^\W{IDEOGRAPHS}]+")


def tokenize(text: str) -> list[str]:
    """Lower-case runs of letters and digits of any script.

    Of ASCII text these are rouge-score's, which published figures use.
    """
    return _TOKEN.findall(text.lower())


def locate_tokens(text: str) -> list[tuple[int, int, str]]:
    """Start, end and token of each place in the text as it stands."""
    return [(match.start(), match.end(), match[0].lower()) for match in _TOKEN.finditer(text)]


def tokenize_for_search(text: str) -> list[str]:
    """Words as BM25 counts them: runs of letters, digits and underscores, case folded."""
    return _SEARCHED.findall(text.casefold())

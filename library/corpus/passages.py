"""Cut a long context into passages, and rank them for a question (BM25)."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import regex

from library.corpus.words import tokenize
from library.records import FormattedRow

# A paragraph ends at a blank line. A sentence ends at .!? and white space before a capital or
# caseless letter, a digit, a bracket or a quotation mark. Full stops of scripts without spaces, of
# Hindi and Urdu, and the Arabic question mark always end one, with closing quotation marks.
_PARAGRAPH = re.compile(r"\n\s*\n")
_ASCII_SENTENCE = re.compile(
    r"(?<=[.!?])(\s+)(?=[A-Z0-9(\[\"'])"
)  # the same for ASCII, several times faster
_STOPS, _CLOSING = "。！？।॥۔؟", "”’」』）»"
_SENTENCE = regex.compile(
    r"(?<=[.!?])(\s+)(?=[\p{Lu}\p{Lt}\p{Lo}\p{Nd}(\[\"'«“‘「『（¿¡])"
    rf"|(?<=[{_STOPS}]|[{_STOPS}][{_CLOSING}])(\s*)(?![\s{_CLOSING}{_STOPS}]|\Z)"
)


def _sentences(paragraph: str) -> Iterator[tuple[str, str]]:
    """The sentences of a text, each with the white space before it."""
    pattern = _ASCII_SENTENCE if paragraph.isascii() else _SENTENCE
    start, gap = 0, ""
    for match in pattern.finditer(paragraph):
        yield gap, paragraph[start : match.start()]
        start, gap = match.end(), match[0]
    yield gap, paragraph[start:]


def count_sentences(text: str) -> int:
    """The number of sentences of a text, at least one."""
    return max(
        1,
        sum(
            bool(sentence.strip())
            for paragraph in _PARAGRAPH.split(text)
            for _, sentence in _sentences(paragraph)
        ),
    )


def _pieces(paragraph: str, characters: int) -> Iterator[tuple[str, str]]:
    for gap, sentence in _sentences(paragraph):
        start = 0
        while len(sentence) - start > characters:
            cut = sentence.rfind(" ", start + 1, start + characters + 1)
            end = cut if cut > 0 else start + characters
            yield gap, sentence[start:end]
            start = end + (cut > 0)  # the blank at the seam goes
            gap = " "
        yield gap, sentence[start:]


def split_passages(text: str, characters: int) -> list[str]:
    """Cut a text into passages of whole sentences, each with at most `characters` characters.

    No passage crosses a blank line. A longer sentence is cut at white space, or inside a word if it
    has none. Order is kept, and nothing but white space at the seams is lost.
    """
    passages: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        passage = ""
        for gap, piece in _pieces(paragraph, characters):
            piece = piece.strip()
            blank = " " if gap else ""
            if passage and piece and len(passage) + len(blank) + len(piece) > characters:
                passages.append(passage)
                passage = ""
            passage = f"{passage}{blank}{piece}" if passage and piece else passage or piece
        if passage:
            passages.append(passage)
    return passages


def passages_in_prompt(row: FormattedRow, context: str, characters: int) -> list[str]:
    """The passages that a formatted row's prompt contains; a template can leave them out."""
    passages = split_passages(context, characters)
    prompt = row["messages"][-1]["content"]
    return [passages[index] for index in row["passages"] if passages[index] in prompt]


class Bm25:
    """Texts prepared for scoring against questions by BM25.

    As Lucene computes it: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), which is never negative; k1 and
    b are Lucene's defaults. Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        self.k1, self.count = k1, len(texts)
        self.having: dict[str, list[tuple[int, int]]] = defaultdict(list)
        lengths = []
        for index, text in enumerate(texts):
            counts = Counter(tokenize(text))
            lengths.append(sum(counts.values()))
            for word, frequency in counts.items():
                self.having[word].append((index, frequency))
        mean_length = sum(lengths) / len(lengths) if lengths else 0.0
        self.norms = [
            k1 * (1 - b + b * length / mean_length) if mean_length else 0.0 for length in lengths
        ]

    def score(self, question: str) -> list[float]:
        """The scores of the texts, in their order."""
        scores = [0.0] * self.count
        for word in dict.fromkeys(tokenize(question)):
            having = self.having.get(word, ())
            idf = math.log(1 + (self.count - len(having) + 0.5) / (len(having) + 0.5))
            for index, frequency in having:
                scores[index] += idf * frequency / (frequency + self.norms[index])
        return scores


Ranker = Callable[[Sequence[str], str], list[int]]
"""Indices of passages, the best for a question first."""


def rank_passages(passages: Sequence[str], question: str) -> list[int]:
    """Indices of the passages, the best for the question first (BM25); ties in document order."""
    scores = Bm25(passages).score(question)
    return sorted(range(len(passages)), key=lambda index: (-scores[index], index))

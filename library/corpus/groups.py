"""Which rows belong together, since training on one could give the other's answer away; and which
swap their answers, or contradict each other.

Only what gives an answer away ties rows together: the same context, or nearly the same, and the
same right answer where it is long enough to be remembered rather than known; of a conversation what
was said before, too. A wrong answer never ties: of mined hard negatives every one is another row's
right answer, and all rows would be one group.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rapidfuzz import fuzz

from library.corpus.words import tokenize
from library.errors import InputError
from library.params import SplitParams
from library.records import Message, right_answers

SAME_QUERY = 90.0
LONG_QUESTION = 40  # words: a context can be in it


class Tie(NamedTuple):
    """What ties a row to others that have the same: its kind, the text or its hash, and of an
    answer how many words it has.
    """

    kind: str
    text: str
    words: int = 0


def normalize(text: str) -> str:
    """What counts as the same text: case and white space do not matter."""
    return " ".join(text.casefold().split())


def hash_text(text: str) -> str:
    """Thirty-two hexadecimal digits: the same for texts that count as the same."""
    return hashlib.sha256(normalize(text).encode()).hexdigest()[:32]


def list_ties(
    context: str,
    question: str,
    answers: Mapping[str, int],
    params: SplitParams,
    turns: Iterable[Tie] = (),
) -> list[Tie]:
    """What can tie a row to others: its context, or without one its question; and those of its
    right answers, and of the `turns` before the question, that have `params.same_answer_words`
    words or more.

    All are texts, or what `hash_text` makes of them; `answers` maps each to its words.
    """
    ties = [Tie("context", context) if context else Tie("question", question)]
    ties += [Tie("answer", answer, words) for answer, words in answers.items()]
    ties += turns
    return ties[:1] + [tie for tie in ties[1:] if tie.words >= params.same_answer_words]


def tie_turns(turns: Iterable[Message], say: Callable[[str], str]) -> list[Tie]:
    """What was said before a question, as ties; `say` gives a text, or its hash. System messages
    are none: all rows of a file have the same.
    """
    return [
        Tie("turn", say(turn["content"]), count_words(turn["content"]))
        for turn in turns
        if turn["role"] != "system"
    ]


def compared_context(context: str, question: str) -> str:
    """What is compared with other rows' for being nearly the same: the context, or a question that
    is long enough to hold one; else nothing.
    """
    return context or (question if count_words(question) >= LONG_QUESTION else "")


def count_words(text: str) -> int:
    """The words of a text: in scripts without blanks its letters."""
    return len(tokenize(text))


def group_rows(
    ties: Mapping[str, Iterable[Tie]], same: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Map each row id to its group: the connected components of rows over what ties them.

    `same` are pairs of texts that count as one, such as contexts that are nearly the same. A group
    is named by its smallest id.
    """
    parent = {row: row for row in ties}

    def root(row: str) -> str:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(row: str, key: str) -> None:
        one, other = sorted((root(row), root(first.setdefault(key, row))))
        parent[other] = one

    first: dict[str, str] = {}
    for row, row_ties in ties.items():
        for tie in row_ties:
            join(row, hash_text(tie.text))
    for text, other_text in same:
        join(first[hash_text(text)], hash_text(other_text))
    return {row: root(row) for row in ties}


def count_ties(ties: Iterable[Iterable[Tie]]) -> list[tuple[str, str, int]]:
    """What ties rows to each other: kind, text and in how many of the rows it stands, the most
    first. A text of one row alone is left out.
    """
    counts: Counter[tuple[str, str]] = Counter()
    shown: dict[tuple[str, str], str] = {}
    for row_ties in ties:
        named = {(tie.kind, normalize(tie.text)): tie.text for tie in row_ties}
        counts.update(named.keys())
        shown = named | shown
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(key[0], shown[key], count) for key, count in ordered if count > 1]


def check_overlap(splits: Mapping[str, str], ties: Mapping[str, Iterable[Tie]]) -> None:
    """Raise InputError where what ties rows stands in two splits; both are by row id.

    The last line of defence: whole groups are split.
    """
    seen: dict[str, str] = {}
    for row, split in splits.items():
        for tie in ties[row]:
            other = seen.setdefault(normalize(tie.text), split)
            if other != split:
                raise InputError(f"the same text is in {other} and {split}: {tie.text[:80]!r}")


def find_given_away(
    trained: Iterable[Mapping[str, Any]],
    rows: Iterable[Mapping[str, Any]],
    partners: Mapping[str, str],
) -> set[str]:
    """Ids of those rows whose two answers training can tell apart: their negative is right in a
    trained row, or their positive wrong in one.

    They keep their question, but which answer is the better is not to be asked. A swapped pair's
    is: each answer is right once and wrong once, and `partners` maps the ids of its two rows to
    each other. Rows are mappings with id, positive, also_right and negative, texts or hashes.
    """
    right: set[str] = set()
    wrong: set[str] = set()
    for row in trained:
        right.update(map(normalize, right_answers(row)))
        if row["negative"]:
            wrong.add(normalize(row["negative"]))
    return {
        row["id"]
        for row in rows
        if row["negative"]
        and row["id"] not in partners
        and (
            normalize(row["negative"]) in right
            or not wrong.isdisjoint(map(normalize, right_answers(row)))
        )
    }


def pair_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Map the id of each row that swaps its answers with another of the same anchor to that other's
    id, both ways.

    Rows are mappings with id, anchor, positive and, where they have one, negative: the texts, or
    what `hash_text` makes of them. A row has one partner at most.
    """
    waiting: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    partners: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        if not row.get("negative"):
            continue
        anchor, positive, negative = (
            normalize(row[field]) for field in ("anchor", "positive", "negative")
        )
        others = waiting[anchor, negative, positive]
        if others:
            other = others.pop(0)
            partners[row["id"]], partners[other] = other, row["id"]
        else:
            waiting[anchor, positive, negative].append(row["id"])
    return partners


def find_contradictions(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Map the id of each row to that of another which states the opposite: of its anchor the same
    query, the answers exchanged.

    Rows are mappings as `pair_rows` takes them, with their query. Queries are the same where at
    least 90% of their characters are (rapidfuzz's ratio).
    """
    seen: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    found: dict[str, str] = {}
    for row in rows:
        if not row["negative"]:
            continue
        query, anchor, positive, negative = (
            normalize(row[field]) for field in ("query", "anchor", "positive", "negative")
        )
        for other, other_query in seen[anchor, negative, positive]:
            if fuzz.ratio(query, other_query) >= SAME_QUERY:
                found.setdefault(row["id"], other)
                found.setdefault(other, row["id"])
        seen[anchor, positive, negative].append((row["id"], query))
    return found

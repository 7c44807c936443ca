"""Which rows belong together, which swap their answers, and which contradict each other.

Rows are tied if training on one could give the other's answer away: they share the same or nearly
the same context, or the same right answer if it is long enough to be memorized, or what was said
before in a conversation. A wrong answer never ties rows: mined hard negatives are right answers of
other rows, so that all rows would be one group.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rapidfuzz import fuzz

from library.corpus.words import tokenize
from library.errors import InputError
from library.params import SplitParams
from library.records import Message, right_answers

SAME_QUERY = 90.0
LONG_QUESTION = 40  # words: long enough to contain a context
LONG_PARAGRAPH = 20  # words: a shared paragraph of this length is a document, not a question
INSTRUCTION_SHARE = 0.5  # a paragraph that more of the rows share is an instruction, not a document
_FINAL_MARKS = " .。!！?？"


class Tie(NamedTuple):
    """What ties a row to others that have it too: its kind and the key of its text (`hash_text`).

    `words` is the text's length, where only long texts tie.
    """

    kind: str
    key: str
    words: int = 0


@dataclass(frozen=True)
class Ties:
    """Everything that ties rows: per row id what it can share with others, and its `context_id`.

    `same` has pairs of keys that count as one; `texts` has the texts by key, to be shown.
    """

    rows: Mapping[str, Sequence[Tie]]
    contexts: Mapping[str, str]
    same: Sequence[tuple[str, str]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def normalize(text: str) -> str:
    """A text without differences in case, white space and final punctuation."""
    folded = " ".join(text.casefold().split())
    return folded.rstrip(_FINAL_MARKS) or folded


def hash_text(text: str) -> str:
    """32 hexadecimal digits, equal for texts that `normalize` makes equal."""
    return hashlib.sha256(normalize(text).encode()).hexdigest()[:32]


def context_id(context: str | None, question: str | None) -> str:
    """16 hexadecimal digits of a raw context, or of the question if there is none."""
    return hash_text((context or "").strip() or question or "")[:16]


def list_ties(
    context: str,
    question: str,
    answers: Mapping[str, int],
    params: SplitParams,
    turns: Iterable[Tie] = (),
) -> list[Tie]:
    """What can tie a row to others: its context, or its question if it has none; and long other
    texts.

    Those are its right answers, the `turns` before the question and the documents in both, each
    with `params.same_answer_words` words or more. Texts are given by their keys, a missing context
    as an empty one; `answers` maps each key to its number of words.
    """
    ties = [Tie("context", context) if context else Tie("question", question)]
    ties += [Tie("answer", answer, words) for answer, words in answers.items()]
    ties += turns
    return ties[:1] + [tie for tie in ties[1:] if tie.words >= params.same_answer_words]


def tie_asked(turns: Iterable[Message], question: str) -> list[Tie]:
    """Ties by what is asked: documents in the question, earlier turns, and documents in those."""
    ties = tie_documents(question)
    for turn in turns:
        if turn["role"] != "system":
            ties.append(Tie("turn", hash_text(turn["content"]), count_words(turn["content"])))
        if turn["role"] != "assistant":
            ties += tie_documents(turn["content"])
    return ties


def tie_documents(text: str) -> list[Tie]:
    """The paragraphs of a text that are long enough to be documents.

    If rows carry their context in the question or the system message, they share it although their
    questions differ.
    """
    paragraphs = [part for part in text.splitlines() if part.strip()]
    return [
        Tie("document", hash_text(part), words)
        for part in dict.fromkeys(paragraphs)
        if (words := count_words(part)) >= LONG_PARAGRAPH
    ]


def drop_instructions(ties: Mapping[str, Sequence[Tie]]) -> dict[str, list[Tie]]:
    """The ties without documents that more than half of the rows have: those are instructions."""
    counts = Counter(tie.key for row in ties.values() for tie in {*row} if tie.kind == "document")
    most = INSTRUCTION_SHARE * len(ties)
    return {
        key: [tie for tie in row if tie.kind != "document" or counts[tie.key] <= most]
        for key, row in ties.items()
    }


def compared_context(context: str, question: str) -> str:
    """The text to compare for near duplicates: the context, or a question long enough to contain
    one.

    Empty if there is neither.
    """
    return context or (question if count_words(question) >= LONG_QUESTION else "")


def count_words(text: str) -> int:
    """The number of words of a text; in scripts without spaces, of letters."""
    return len(tokenize(text))


def group_rows(ties: Ties) -> dict[str, str]:
    """Map each row id to its group: the connected components of rows over what ties them.

    A group is named by the smallest id of its contexts, so that neither another question on one of
    them nor another cleaning rule renames it.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def join(one: str, other: str) -> None:
        parent[root(one)] = root(other)

    for row in ties.rows.values():
        for tie in row:
            join(tie.key, row[0].key)
    for one, other in ties.same:
        join(one, other)
    names: dict[str, str] = {}
    for key, row in ties.rows.items():
        group, context = root(row[0].key), ties.contexts[key]
        names[group] = min(context, names.get(group, context))
    return {key: names[root(row[0].key)] for key, row in ties.rows.items()}


def count_ties(ties: Iterable[Iterable[Tie]]) -> list[tuple[Tie, int]]:
    """What ties rows, with the number of rows that have it, largest first; only what several rows
    have.
    """
    counts = Counter(tie for row in ties for tie in {*row})
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(tie, count) for tie, count in ordered if count > 1]


def check_overlap(splits: Mapping[str, str], ties: Ties) -> None:
    """Raise InputError if something that ties rows occurs in two splits (splits are by row id).

    This is the last line of defence, since whole groups are split.
    """
    seen: dict[str, str] = {}
    for row, split in splits.items():
        for tie in ties.rows[row]:
            other = seen.setdefault(tie.key, split)
            if other != split:
                text = ties.texts.get(tie.key, tie.key)
                raise InputError(f"the same text is in {other} and {split}: {text[:80]!r}")


def find_given_away(
    trained: Iterable[Mapping[str, Any]],
    rows: Iterable[Mapping[str, Any]],
    partners: Mapping[str, str],
) -> set[str]:
    """Ids of the rows whose answers training can tell apart.

    Their negative is right in a train row, or their positive is wrong in one. They keep their
    question, but lose the comparison of their two answers. Swapped pairs keep it, because each
    answer is right once and wrong once; `partners` maps the ids of the two rows to each other. Rows
    are mappings with id, positive, also_right and negative, as texts or hashes.
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
    """Map the ids of two rows on the same context that swap their answers to each other.

    Rows are mappings with id, anchor, positive and optionally negative, as texts or as keys of
    `hash_text`. A row has at most one partner.
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
    """Map the id of each row to a row that says the opposite: same context and question, answers
    swapped.

    Rows are mappings as in `pair_rows`, with their query. Queries are the same if at least 90% of
    their characters match (rapidfuzz's ratio).
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


def find_disagreements(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The ids of rows that ask exactly the same question of the same context and have no right
    answer in common, in lists of two or more.

    They can be alternatives or contradict each other; no negative says which. Rows are mappings
    with id and, as keys of `hash_text`, anchor, asked (the question and the turns before it),
    positive and also_right.
    """
    same: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        same[row["anchor"], row["asked"]].append(row)
    return [
        [row["id"] for row in found]
        for found in same.values()
        if not set.intersection(*({row["positive"], *row["also_right"]} for row in found))
    ]

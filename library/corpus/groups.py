"""Which rows belong together, since training on one could give the other's answer away; and which
swap their answers, or contradict each other.

Only what gives an answer away ties rows together: the same context, or nearly the same, and the
same right answer where it is long enough to be remembered rather than known; of a conversation what
was said before, too. A wrong answer never ties: of mined hard negatives every one is another row's
right answer, and all rows would be one group.
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
LONG_QUESTION = 40  # words: a context can be in it
LONG_PARAGRAPH = 20  # words: what several rows say alike in so many is a document, not a question
INSTRUCTION_SHARE = 0.5  # of the rows: what more of them say is an instruction, not a document
_FINAL_MARKS = " .。!！?？"


class Tie(NamedTuple):
    """What ties a row to others that have the same: its kind, what `hash_text` makes of the text,
    and how many words it has where it ties from some length on.
    """

    kind: str
    key: str
    words: int = 0


@dataclass(frozen=True)
class Ties:
    """What ties rows to each other: of each row, by its id, what it shares with others that have
    it, and its `context_id`; pairs of keys that count as one; and by key the texts, to be shown.
    """

    rows: Mapping[str, Sequence[Tie]]
    contexts: Mapping[str, str]
    same: Sequence[tuple[str, str]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def normalize(text: str) -> str:
    """What counts as the same text: case, white space and a mark at the end do not matter."""
    folded = " ".join(text.casefold().split())
    return folded.rstrip(_FINAL_MARKS) or folded


def hash_text(text: str) -> str:
    """Thirty-two hexadecimal digits: the same for texts that count as the same."""
    return hashlib.sha256(normalize(text).encode()).hexdigest()[:32]


def context_id(context: str | None, question: str | None) -> str:
    """Sixteen hexadecimal digits of a raw context, or where there is none of the question."""
    return hash_text((context or "").strip() or question or "")[:16]


def list_ties(
    context: str,
    question: str,
    answers: Mapping[str, int],
    params: SplitParams,
    turns: Iterable[Tie] = (),
) -> list[Tie]:
    """What can tie a row to others: its context, or without one its question; and those of its
    right answers, of the `turns` before the question and of the documents in both, that have
    `params.same_answer_words` words or more.

    Texts are given by their keys, a context that there is not as an empty one; `answers` maps each
    to its words.
    """
    ties = [Tie("context", context) if context else Tie("question", question)]
    ties += [Tie("answer", answer, words) for answer, words in answers.items()]
    ties += turns
    return ties[:1] + [tie for tie in ties[1:] if tie.words >= params.same_answer_words]


def tie_asked(turns: Iterable[Message], question: str) -> list[Tie]:
    """What is asked, as ties: the documents in a question, and of what was said before it each turn
    and the documents in that.
    """
    ties = tie_documents(question)
    for turn in turns:
        if turn["role"] != "system":
            ties.append(Tie("turn", hash_text(turn["content"]), count_words(turn["content"])))
        if turn["role"] != "assistant":
            ties += tie_documents(turn["content"])
    return ties


def tie_documents(text: str) -> list[Tie]:
    """The paragraphs of a system message or a question that are long enough to be documents: where
    the context sits in them, rows share it though their questions differ.
    """
    paragraphs = [part for part in text.splitlines() if part.strip()]
    return [
        Tie("document", hash_text(part), words)
        for part in dict.fromkeys(paragraphs)
        if (words := count_words(part)) >= LONG_PARAGRAPH
    ]


def drop_instructions(ties: Mapping[str, Sequence[Tie]]) -> dict[str, list[Tie]]:
    """The ties without those documents that are instructions, since more than half of the rows
    have them.
    """
    counts = Counter(tie.key for row in ties.values() for tie in {*row} if tie.kind == "document")
    most = INSTRUCTION_SHARE * len(ties)
    return {
        key: [tie for tie in row if tie.kind != "document" or counts[tie.key] <= most]
        for key, row in ties.items()
    }


def compared_context(context: str, question: str) -> str:
    """What is compared with other rows' for being nearly the same: the context, or a question that
    is long enough to hold one; else nothing.
    """
    return context or (question if count_words(question) >= LONG_QUESTION else "")


def count_words(text: str) -> int:
    """The words of a text: in scripts without blanks its letters."""
    return len(tokenize(text))


def group_rows(ties: Ties) -> dict[str, str]:
    """Map each row id to its group: the connected components of rows over what ties them.

    A group is named by its contexts, the smallest of their ids: so neither another question on one
    of them renames it nor another rule of cleaning.
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
    """What ties rows to each other, and in how many of them it stands, the most first. What one row
    alone has is left out.
    """
    counts = Counter(tie for row in ties for tie in {*row})
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(tie, count) for tie, count in ordered if count > 1]


def check_overlap(splits: Mapping[str, str], ties: Ties) -> None:
    """Raise InputError where what ties rows stands in two splits, which are by row id.

    The last line of defence: whole groups are split.
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

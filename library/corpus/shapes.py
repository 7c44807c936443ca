"""The shapes in which question-answer rows are published, and how each is read.

The first record tells the file's shape. The user's own columns come first. If none of them exists,
SQuAD, Alpaca, conversations and preference rows are recognized by their column names.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from library.params import Columns
from library.records import Message

MISSING = object()
UNANSWERABLE = "unanswerable: its file says that the context holds no answer"

CONVERSATIONS = ("messages", "conversations", "conversation")
CONTEXTS = ("context", "contexts", "passage", "document", "article")  # beside a conversation
CHOSEN, REJECTED, PROMPT = "chosen", "rejected", "prompt"  # of preference rows, as TRL names them
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    "system": "system",
}
# Usual names of our fields, to suggest columns in the error message
SYNONYMS = {
    "anchor": ("context", "contexts", "passage", "document", "article", "text", "abstract", "body"),
    "query": ("question", "instruction", "prompt", "query", "input", "problem"),
    "positive": ("answer", "answers", "output", "response", "completion", "positive", "chosen"),
    "negative": (
        *("negative", "negatives", "rejected", "incorrect", "distractor", "wrong", "bad", "false"),
    ),
}

TEXT_KEYS = ("text", "value", "answer", "content", "contexts", "sentences")  # in a nested column


class UnusableError(Exception):
    """A record cannot be used; the message says why."""


@dataclass(frozen=True)
class Shape:
    """How a record is read: the shape's name and the columns of the fields.

    `anchor`, `negative` and `turns` are None if there is none. `turns` names a conversation that
    holds question and answer. If `bare`, a row without context is usable. `unread` are the first
    record's other columns, `packed` those that hold lists or objects written as text.
    """

    name: str
    anchor: str | None
    query: str | None
    positive: str | None
    negative: str | None
    turns: str | None = None
    bare: bool = False
    unread: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, str | None]:
        """The file's column for each field."""
        said = self.turns
        return {
            "anchor": self.anchor,
            "query": said or self.query,
            "positive": said or self.positive,
            "negative": self.negative,
        }

    def describe(self) -> str:
        """The shape in words: the column of each field, and the columns that are not read."""
        packed = [name for name in self.packed if name not in self.unread]
        unread = f"; lists written as text: {', '.join(packed)}" if packed else ""
        unread += f"; not read: {', '.join(self.unread)}" if self.unread else ""
        if self.turns is not None:
            context = f"{self.anchor}, or part" if self.anchor else "part"
            wrong = f", wrong answer = the last turn of {REJECTED}" * (self.turns == CHOSEN)
            return (
                f"{self.name} in {self.turns}: answer = the last turn, context = {context} of "
                f"the question{wrong}{unread}"
            )
        fields = {"context": self.anchor, "question": self.query, "answer": self.positive}
        if self.negative:
            fields["wrong answer"] = f"{self.negative} (optional)"
        named = [f"{field} = {column}" for field, column in fields.items() if column]
        return f"{self.name}: {', '.join(named)}{unread}"


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be written: half of a surrogate pair cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def look_up(record: Mapping[Any, Any], path: str) -> Any:
    """The value of a column, or MISSING.

    The whole name is tried first, then its dotted parts as a path into objects and into the objects
    of a list.
    """
    if path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    while dot:
        if head in record:
            inner = record[head]
            if isinstance(inner, Mapping):
                return look_up(inner, rest)
            if isinstance(inner, Sequence) and not isinstance(inner, str):
                found = [
                    look_up(part, rest) if isinstance(part, Mapping) else MISSING for part in inner
                ]
                return MISSING if MISSING in found else found
            return MISSING
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return MISSING


def find_shape(record: Mapping[Any, Any], columns: Columns) -> Shape | None:
    """The shape of a file with this first record; None if none fits."""

    def has(path: str | None) -> bool:
        return path is not None and look_up(record, path) is not MISSING

    shape = None
    own = {"anchor": columns.anchor, "query": columns.query, "positive": columns.positive}
    # a name of the user's own that is not there is misspelt, and no other shape is looked for
    misspelt = any(name not in (field, None) and not has(name) for field, name in own.items())
    anchor, negative = columns.anchor, columns.negative
    beside = next((name for name in (anchor, *CONTEXTS) if name is not None and has(name)), None)
    chosen, rejected = look_up(record, CHOSEN), look_up(record, REJECTED)
    conversation = next(
        (
            name
            for name in (columns.positive, *CONVERSATIONS)
            if _is_conversation(look_up(record, name))
        ),
        None,
    )
    if conversation is not None and (has(anchor) or anchor in ("anchor", None)):
        turns = look_up(record, conversation)
        sort = "ShareGPT conversations" if "from" in turns[0] else "messages"
        context = None if anchor is None else beside or anchor
        shape = Shape(sort, context, None, None, negative, turns=conversation, bare=True)
    elif has(columns.query) and has(columns.positive) and (anchor is None or has(anchor)):
        shape = Shape(
            "columns", anchor, columns.query, columns.positive, negative, bare=anchor is None
        )
    elif misspelt or any(has(name) for name in own.values()):
        return None
    elif _is_conversation(chosen) and _is_conversation(rejected):
        context = None if anchor is None else beside
        shape = Shape("preferences", context, None, None, REJECTED, turns=CHOSEN, bare=True)
    elif has(PROMPT) and isinstance(chosen, str) and isinstance(rejected, str):
        context = None if anchor is None else beside
        shape = Shape("preferences", context, PROMPT, CHOSEN, REJECTED, bare=True)
    elif has("context") and has("question") and has("answers"):
        context = None if anchor is None else "context"
        shape = Shape("SQuAD", context, "question", "answers.text", negative, bare=context is None)
    elif has("instruction") and has("output"):
        context = None if anchor is None else "input"
        shape = Shape("Alpaca", context, "instruction", "output", negative, bare=True)
    if shape is None:
        return None
    paths = {path for path in shape.columns.values() if path}
    paths |= {PROMPT} if shape.turns == CHOSEN else set()
    paths |= {"system"} if shape.turns is not None else set()
    read = paths | {path.split(".")[0] for path in paths}
    names = [name for name in record if isinstance(name, str)]
    return replace(shape, unread=tuple(name for name in names if name not in read))


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, Mapping)
            and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())
            for turn in value
        )
    )


def read_record(record: Mapping[Any, Any], shape: Shape) -> dict[str, Any]:
    """A record's fields under our names.

    `positive` is a list of right answers, `turns` what comes before the question in a conversation.
    A missing field is left out; None means null. Raises UnusableError if the record cannot be used.
    """
    fields: dict[str, Any] = {}
    for field in ("anchor", "query", "positive", "negative"):
        column = getattr(shape, field)
        value = MISSING if column is None else look_up(record, column)
        if value is MISSING and shape.name == "SQuAD" and field == "positive":
            value = look_up(record, "answers")  # as plain texts
            if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
                raise UnusableError(
                    '"answers" is an object written as text; save the rows as JSON Lines or Parquet'
                )
        if value is not MISSING:
            fields[field] = _read_value(value, field, column)
    if shape.turns is not None:
        turns = look_up(record, shape.turns)
        prompt = look_up(record, PROMPT) if shape.turns == CHOSEN else None
        if isinstance(prompt, list) and isinstance(turns, list):
            turns = [*prompt, *turns]
        system = record.get("system")  # as ShareGPT's rows have it
        if isinstance(system, str) and system.strip() and isinstance(turns, list):
            turns = [{"role": "system", "content": system}, *turns]
        fields |= _read_conversation(turns, shape.turns)
    if record.get("is_impossible") is True or (
        shape.name == "SQuAD" and fields.get("positive") == []
    ):
        raise UnusableError(UNANSWERABLE)
    if shape.bare and not (fields.get("anchor") or "").strip():
        fields["anchor"] = ""
    return fields


def count_wrong(record: Mapping[Any, Any], shape: Shape) -> int:
    """How many wrong answers a record has, if they are a list."""
    value = MISSING if shape.negative is None else look_up(record, shape.negative)
    if not isinstance(value, list) or _is_conversation(value):
        return 0
    return sum(part is not None and str(part).strip() != "" for part in value)


def _read_value(value: Any, field: str, column: str) -> Any:
    """A value as text: right answers as a list without repetitions, a context's parts as one text.

    Of several wrong answers the first is taken.
    """
    if field == "negative" and _is_conversation(value):  # the last turn, by the assistant
        value = value[-1].get("content", value[-1].get("value"))
    if field == "anchor":
        value = _flatten_context(value)
    if isinstance(value, list):
        parts = [_to_text(part, column) for part in value]
        if field == "positive":
            return list(dict.fromkeys(part for part in parts if part is not None))
        if field == "anchor" and None not in parts:
            return "\n\n".join(parts)
        if field == "negative":
            return next((part for part in parts if part is not None and part.strip()), None)
        raise UnusableError(f'"{column}" is a list of {len(value)}, expected one text')
    text = _to_text(value, column)
    return [text] if field == "positive" and text is not None else text


def _flatten_context(value: Any) -> Any:
    """A context of several documents as a list of texts: each one a title and its sentences, as
    HotpotQA has them, or sentences alone. Anything else stays as it is.
    """
    if isinstance(value, Mapping):
        titles = value.get("title")
        texts = next((value[key] for key in ("sentences", "content") if key in value), None)
        if isinstance(titles, list) and isinstance(texts, list) and len(titles) == len(texts):
            value = [list(pair) for pair in zip(titles, texts, strict=True)]
    if not isinstance(value, list):
        return value
    return [_join_document(part) if isinstance(part, list) else part for part in value]


def _join_document(parts: list[Any]) -> Any:
    match parts:
        case [str(title), [*sentences]] if all(isinstance(part, str) for part in sentences):
            return f"{title}\n{_join_sentences(sentences)}"
        case [*sentences] if all(isinstance(part, str) for part in sentences):
            return _join_sentences(sentences)
    return parts


def _join_sentences(sentences: Sequence[str]) -> str:
    return " ".join(part.strip() for part in sentences)


def _to_text(value: Any, column: str) -> Any:
    """A text as it is, or its bytes, decoded; a number, boolean or date as JSON or ISO 8601 writes
    it.
    """
    if isinstance(value, bytes):  # of Parquet by a writer that marks no texts
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UnusableError(f'"{column}" holds bytes that are not UTF-8') from error
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None  # pandas has it for an empty cell
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        path = _text_path({column: value}, column)
        hint = f"; its text may be {path}" if path != column else ""
        named = ", ".join(name for name in value if isinstance(name, str))
        raise UnusableError(f'"{column}" is an object with {named}, expected a text{hint}')
    raise UnusableError(f'"{column}" is of type {type(value).__name__}, expected a text')


def _read_conversation(turns: Any, column: str) -> dict[str, Any]:
    if not _is_conversation(turns):
        raise UnusableError(f'"{column}" is not a list of turns with role and content')
    messages: list[Message] = []
    for turn in turns:
        role = str(turn.get("role", turn.get("from")))
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):  # parts, as the vision APIs have them
            texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
            if not all(isinstance(text, str) for text in texts):
                raise UnusableError(f'"{column}" contains something other than text')
            content = "".join(map(str, texts))
        if turn.get("tool_calls"):
            raise UnusableError(f'"{column}" contains a tool call, which cannot be trained on')
        if role not in ROLES:
            raise UnusableError(f'"{column}" has a turn of {role!r}')
        if not is_text(content):
            raise UnusableError(f'"{column}" has a turn without a text that can be written')
        messages.append({"role": ROLES[role], "content": content})
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise UnusableError(
            f'"{column}" has the turns {", ".join(roles)}: expected user and assistant in turn, '
            "the assistant last, after at most one system message"
        )
    *turns, question, answer = messages
    return {"query": question["content"], "positive": [answer["content"]], "turns": turns}


def guess_columns(record: Mapping[Any, Any]) -> dict[str, str | None]:
    """The columns that are probably our fields, by usual names; nested ones as a path to the
    text.
    """
    names = [name for name in record if isinstance(name, str)]
    guessed: dict[str, str | None] = dict.fromkeys(SYNONYMS)
    taken: set[str] = set()
    # wrong answers first, since "wrong answer" is also an answer
    for field in ("anchor", "query", "negative", "positive"):
        known = (field, *SYNONYMS[field])
        free = [name for name in names if name not in taken]
        exact = [name for word in known for name in free if name.casefold() == word]
        within = [name for word in known for name in free if word in _words(name)]
        name = next(iter(exact + within), None)
        guessed[field] = None if name is None else _text_path(record, name)
        taken |= {name} if name is not None else set()
    return guessed


def _text_path(record: Mapping[Any, Any], name: str) -> str:
    """A column's path to texts inside an object or a list of objects, by usual names."""
    value = record[name]
    inner = value[0] if isinstance(value, list) and value else value
    if isinstance(inner, Mapping) and not _is_conversation(value):
        keys = [key for key in inner if isinstance(key, str)]
        for key in (*TEXT_KEYS, *(key for key in keys if _holds_text(inner[key]))):
            if key in keys and _holds_text(inner[key]):
                return f"{name}.{key}"
    return name


def _holds_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(map(_holds_text, value))
    )


def _words(name: str) -> list[str]:
    return re.sub(r"[\W_]+|(?<=[a-z])(?=[A-Z])", " ", name).casefold().split()

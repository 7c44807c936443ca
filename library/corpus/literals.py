"""Lists and objects that stand in a cell as text, as JSON, Python or NumPy writes them.

A CSV has only texts: several right answers stand there like this if pandas wrote it.
"""

import ast
import io
import json
import tokenize
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

_ENDS = {"[": "]", "{": "}"}


def looks_packed(value: Any) -> bool:
    """Whether a value is a text with the brackets of a list or an object around it."""
    text = value.strip() if isinstance(value, str) else ""
    return len(text) > 1 and _ENDS.get(text[0]) == text[-1]


def parse_literal(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text writes; None if it writes none. Nothing is executed."""
    if not looks_packed(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings(action="ignore"):  # of a backslash that escapes nothing
                value = _evaluate(ast.parse(_separate(text.strip()), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
            return None
    return value if isinstance(value, list | dict) else None


def find_packed(
    records: Iterable[Mapping[Any, Any]], paths: Collection[str] = (), lists: bool = True
) -> list[str]:
    """The columns whose every value is a list or an object written as text, as a row holds them:
    SQuAD's answers, a context's documents, a conversation, whatever one of the `paths` leads into
    and, if `lists`, lists of texts or of nothing.

    Anything else stays a text, since it may be the answer itself: JSON that is to be written, or a
    list of numbers.
    """
    columns: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            if name is not None and value not in (None, ""):
                columns.setdefault(name, []).append(value)
    return [
        name
        for name, values in columns.items()
        if _all_packed(values, lists, any(path.startswith(f"{name}.") for path in paths))
    ]


def _all_packed(values: Sequence[Any], lists: bool, entered: bool) -> bool:
    if not all(map(looks_packed, values)):
        return False
    parsed = [parse_literal(value) for value in values]
    if None in parsed:
        return False
    filled = [value for value in parsed if value]
    if not filled:  # a list that is empty at first
        return lists and {} not in parsed
    return all(_holds_text(value) and (entered or _is_known(value, lists)) for value in filled)


def _is_known(value: list[Any] | dict[str, Any], lists: bool) -> bool:
    """Whether rows are published with such a list or object in a column."""
    if isinstance(value, dict):
        keys = value.keys()
        return {"text", "answer_start"} <= keys or (
            "title" in keys and not keys.isdisjoint({"sentences", "content"})
        )
    if any(isinstance(part, dict) for part in value):
        return all(
            isinstance(part, dict)
            and ({"role", "content"} <= part.keys() or {"from", "value"} <= part.keys())
            for part in value
        )
    return lists


def _holds_text(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_holds_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


def _separate(text: str) -> str:
    """Python code with commas between adjacent strings: NumPy shows arrays without any, and Python
    would read their texts as one.
    """
    parts: list[tuple[int, str]] = []
    last = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if token.type == tokenize.STRING == last:
            parts.append((tokenize.OP, ","))
        parts.append((token.type, token.string))
        last = token.type
    return tokenize.untokenize(parts)


def _evaluate(node: ast.expr) -> Any:
    """The value of a literal; an `array([…], dtype=object)` is its list. Raises ValueError if it is
    none.
    """
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.List() | ast.Tuple():
            return [_evaluate(part) for part in node.elts]
        case ast.Dict():
            names = [_evaluate(name) if name is not None else None for name in node.keys]
            if not all(isinstance(name, str) for name in names):
                raise ValueError
            return dict(zip(names, map(_evaluate, node.values), strict=True))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Call(func=ast.Name(id="array"), args=[first, *_]):
            return _evaluate(first)
        case ast.Name(id="nan"):
            return None
    raise ValueError

"""What is wrong with a file's values, in its own words: the key, what is expected, what is there.

pydantic finds the problems. Its own messages name Python types, and a union has one per branch.
"""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

SHOWN_CHARACTERS = 80  # of a value
SEEDS = 2**31  # a number below that is a seed
_PATTERNS = {
    r"^[A-Za-z0-9._-]+$": "a name (letters, digits, dots, hyphens, underscores)",
    r"^[0-9a-f]{40}$": "a commit, 40 hexadecimal digits",
    r"^[0-9a-f]{64}$": "a SHA-256, 64 hexadecimal digits",
    r"^[\w.-]+/[\w.-]+$": "OWNER/NAME",
    r"\.gguf$": "a path that ends in .gguf",
}
_KEYS = "the keys "  # of a section
_TYPES = {"string": "a text", "boolean": "true or false", "null": "null"}
_NUMBERS = {"integer": "an integer", "number": "a number"}
_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True)
class Problem:
    """One key whose value cannot be used.

    `expected` says what can; if `kind` is own, it is all that there is to say. `likely` is what
    was probably meant, as YAML has it; None if there is no telling. `item` counts from 1.
    """

    key: str
    kind: Literal["unknown", "missing", "value", "own"]
    expected: str
    value: Any = None
    item: int | None = None
    likely: str | None = None

    def describe(self) -> str:
        """The problem without its key."""
        if self.kind == "unknown":
            return f"unknown parameter; {self.expected}"
        if self.kind == "missing":
            return f"missing, expected {self.expected}"
        if self.kind == "own":
            return self.expected
        item = f"item {self.item}: " if self.item is not None else ""
        return f"{item}expected {self.expected}, got {show_value(self.value)}"

    def command(self) -> str:
        """How to set a parameter of params.yaml on a command line; empty if that can't be."""
        if self.kind != "value" or (_KEYS in self.expected and self.likely is None):
            return ""
        value = self.likely or "VALUE"
        setting = f"{self.key}=[{value}]" if self.item is not None else f"{self.key}={value}"
        return f"; set it: dvc exp run -S {shlex.quote(setting)}"


def show_value(value: Any) -> str:
    """A value as YAML would have it, shortened."""
    words = {None: "null", True: "true", False: "false"}
    said = words[value] if value is None or isinstance(value, bool) else repr(value)
    return said if len(said) <= SHOWN_CHARACTERS else f"{said[:SHOWN_CHARACTERS]}…"


def find_problems(error: ValidationError, section: type[BaseModel]) -> list[Problem]:
    """The problems that validation as a section found, one for each key."""
    schema = section.model_json_schema()
    found: dict[tuple[str, int | None], Problem] = {}
    for raw in error.errors():
        problem = _read_problem(raw, schema)
        found.setdefault((problem.key, problem.item), problem)
    in_items = {key for key, item in found if item is not None}
    return [
        problem for (key, item), problem in found.items() if item is not None or key not in in_items
    ]


def _read_problem(raw: Mapping[str, Any], schema: Mapping[str, Any]) -> Problem:
    location = raw["loc"]
    if raw["type"] in ("extra_forbidden", "missing"):
        parent, keys, _ = _walk(schema, location[:-1])
        key = ".".join((*keys, str(location[-1])))
        if raw["type"] == "missing":
            return Problem(key, "missing", _describe(_walk(schema, location)[0], schema))
        branches = _branches(parent, schema.get("$defs", {}))
        known = [name for branch in branches for name in branch.get("properties", {})]
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return Problem(key, "unknown", hint)
    reached, keys, item = _walk(schema, location)
    key = ".".join(keys)
    if raw["type"] in ("value_error", "json_invalid"):
        return Problem(key, "own", raw["msg"].removeprefix("Value error, "))
    value, expected = raw["input"], _describe(reached, schema)
    return Problem(key, "value", expected, value, item, _guess_value(reached, schema, value))


def _walk(
    schema: Mapping[str, Any], location: Sequence[int | str]
) -> tuple[Mapping[str, Any], list[str], int | None]:
    """Follow a location into a JSON schema, as far as it names keys and items: pydantic adds the
    names of a union's branches.

    Returns the schema reached, its keys, and the number of an item.
    """
    definitions = schema.get("$defs", {})
    keys: list[str] = []
    item = None
    for part in location:
        branches = list(_branches(schema, definitions))
        if isinstance(part, int):
            schema = next((branch["items"] for branch in branches if "items" in branch), schema)
            keys.append(str(part))
            item = part + 1
            continue
        inner = next(
            (
                branch["properties"][part]
                for branch in branches
                if part in branch.get("properties", {})
            ),
            None,
        )
        if inner is None:
            tagged = schema.get("discriminator", {}).get("mapping", {}).get(part)
            if tagged is not None:
                schema = {"$ref": tagged}
                continue
            inner = next(
                (
                    branch["additionalProperties"]
                    for branch in branches
                    if isinstance(branch.get("additionalProperties"), Mapping)
                ),
                None,
            )
        if inner is not None:  # else the name of a union's branch
            keys.append(part)
            schema = inner
            item = None
    reached = next(_branches(schema, definitions)) if "$ref" in schema else schema
    return reached, keys[:-1] if item is not None else keys, item


def _branches(
    schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """The schema itself, or what it refers to or offers a choice of."""
    if "$ref" in schema:
        yield from _branches(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    elif choice := schema.get("anyOf") or schema.get("oneOf"):
        for branch in choice:
            yield from _branches(branch, definitions)
    else:
        yield schema


def _describe(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """What a schema allows, in words, the shortest first."""
    branches = _branches(schema, whole.get("$defs", {}))
    said = {_describe_branch(branch, whole) for branch in branches}
    return " or ".join(sorted(said, key=lambda words: (len(words), words)))


def _describe_branch(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if kind in _NUMBERS:
        return _NUMBERS[kind] + _describe_range(schema)
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        number = f" of {least}" if least == most else f" of at least {least}" if least else ""
        return f"a list{number}, each {_describe(schema.get('items', {}), whole)}"
    if kind == "object" and "properties" in schema:
        return _KEYS + ", ".join(schema["properties"])
    if kind == "object":
        return "names with values"
    pattern = schema.get("pattern")
    if pattern is not None:
        return _PATTERNS.get(pattern, f"a text that matches {pattern}")
    return _TYPES.get(str(kind), "another value")


def _describe_range(schema: Mapping[str, Any]) -> str:
    """The range of a number, such as of at least 1, or above 0 and below 1."""
    if "minimum" in schema and schema.get("exclusiveMaximum", 0) == SEEDS:
        return f" from {schema['minimum']} to {SEEDS - 1}"
    names = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    said = [f"{words} {schema[name]:g}" for name, words in names.items() if name in schema]
    return f" {' and '.join(said)}" if said else ""


def _guess_value(schema: Mapping[str, Any], whole: Mapping[str, Any], value: Any) -> str | None:
    """What was probably meant, if the value says so."""
    branches = list(_branches(schema, whole.get("$defs", {})))
    kinds = {branch.get("type") for branch in branches}
    items = {branch.get("items", {}).get("type") for branch in branches}
    choices = [str(name) for branch in branches for name in branch.get("enum", [])]
    if isinstance(value, str):
        if near := difflib.get_close_matches(value, choices, 1):
            return near[0]
        if "boolean" in kinds and value.casefold() in _BOOLEANS:
            return _BOOLEANS[value.casefold()]
        if kinds & {"integer", "number"} and value.replace(".", "", 1).isdecimal():
            return value
        if "string" in items and re.fullmatch(r"\w[\w.-]*", value):
            return f"[{value}]"
    if "integer" in items and isinstance(value, int) and not isinstance(value, bool):
        return f"[{value}]"
    if "array" in kinds:
        return "[VALUE]"
    return "null" if "null" in kinds and "object" in kinds else None

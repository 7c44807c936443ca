"""What the profile keeps of a raw row in place of its texts: hashes, a sketch for near duplicates,
defects, and lengths in characters and tokens.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cachetools import LRUCache, cached
from datasets import List, Value

from library.corpus.cleaning_rules import find_defects
from library.corpus.groups import (
    compared_context,
    context_id,
    count_words,
    hash_text,
    tie_asked,
)
from library.corpus.near_duplicates import sketch
from library.corpus.rows import FIELDS, row_id
from library.llm.chat_template import load_tokenizer

# of texts that a process has just measured: rows share their contexts and answers
CACHED_CHARACTERS = 20_000_000
SHOWN_CHARACTERS = 100
FEATURES = {
    "place": Value("string"),
    "problem": Value("string"),
    "id": Value("string"),
    "context_id": Value("string"),
    "query": Value("large_string"),
    "answers": Value("string"),  # a JSON object: words by the hash of each right answer
    "shown": Value("string"),  # a JSON object: the beginning of each text by its hash
    "turns": Value("string"),  # a JSON array: what was said before the question, as ties
    "compared": Value("string"),  # the hash of what the sketch is of
    "asked": Value("string"),  # the hash of the question and what was said before it
    "wrong": Value("int64"),  # wrong answers in a list
    "turns_tokens": Value("int64"),
    "sketch": List(Value("uint32")),
    "defects": Value("string"),  # a JSON object
    **{f"{field}_key": Value("string") for field in FIELDS},
    **{f"{field}_{unit}": Value("int64") for field in FIELDS for unit in ("characters", "tokens")},
}

_tokenizer = cache(load_tokenizer)


@cached(LRUCache(CACHED_CHARACTERS, getsizeof=lambda measured: measured["characters"]))
def _measure(text: str, base_dir: Path, sketched: bool) -> dict[str, Any]:
    tokens = _tokenizer(base_dir).backend_tokenizer.encode_batch_fast(
        [text], add_special_tokens=False
    )[0]
    return {
        "key": hash_text(text),
        "characters": len(text),
        "tokens": len(tokens),
        "sketch": sketch(text) if sketched else [],
        "defects": {rule: vars(finding) for rule, finding in find_defects(text).items()},
    }


def measure_row(row: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """What the profile needs of a row in place of its texts.

    FEATURES are its columns; null where a field holds no text.
    """
    measured = {
        field: _measure(row[field], base_dir, field == "anchor") for field in FIELDS if row[field]
    }
    present = {field: numbers for field, numbers in measured.items() if not row[field].isspace()}
    right = [row["positive"], *json.loads(row["also_right"] or "[]")] if row["positive"] else []
    said = json.loads(row["turns"] or "[]")
    asked = (row["query"] or "", *(turn["content"] for turn in said))
    texts = (row["anchor"], *right, *asked, *(line for text in asked for line in text.splitlines()))
    turns = "\n".join(turn["content"] for turn in said)
    anchor = row["anchor"] if "anchor" in present else ""
    compared = compared_context(anchor, row["query"] or "")
    return {
        "place": row["place"],
        "problem": row["problem"],
        "id": row_id(row),
        "context_id": context_id(row["anchor"], row["query"]),
        "query": row["query"],
        "answers": json.dumps({hash_text(text): count_words(text) for text in right}),
        "shown": json.dumps({hash_text(text): text[:SHOWN_CHARACTERS] for text in texts if text}),
        "turns": json.dumps(tie_asked(said, row["query"] or "")),
        "compared": hash_text(compared),
        "asked": hash_text("\n".join((turns, row["query"] or ""))),
        "wrong": row["wrong"],
        "turns_tokens": _measure(turns, base_dir, False)["tokens"] if turns else 0,
        "sketch": _measure(compared, base_dir, True)["sketch"] if compared else [],
        "defects": json.dumps({field: numbers["defects"] for field, numbers in measured.items()}),
        **{
            f"{field}_{name}": present.get(field, {}).get(name)
            for field in FIELDS
            for name in ("key", "characters", "tokens")
        },
    }

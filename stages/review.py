"""Make the page for blind votes: which answer is better, without knowing whose it is?

Reads data/formatted/test.jsonl, data/clean/rows.jsonl and the answers of `review.systems` in
data/predictions/. Writes reports/review.html, which names no system, and reports/review_key.json,
which says whose answer is which. Saved votes go to data/votes/, where `evaluate` reads them.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from library.corpus.passages import passages_in_prompt
from library.entry import run_main
from library.files import write_json, write_text
from library.formatted import read_contexts, read_formatted
from library.pages.rendering import render_page
from library.params import load_params
from library.paths import REVIEW_KEY_PATH
from library.verdict.ballot import make_items
from library.verdict.written import read_answers

log = logging.getLogger(__name__)


def main() -> None:
    """Draw the pairs and write page and key."""
    params = load_params()
    rows, systems = read_formatted("test"), params.review.systems
    answers = read_answers(systems)
    items, key = make_items(rows, answers, params.review)
    asked = {item["row"] for item in items}
    contexts = read_contexts(asked)
    shown = {
        row["id"]: {
            "question": row["question"],
            "passages": passages_in_prompt(
                row, contexts[row["id"]], params.format.passage_characters
            ),
            "context": contexts[row["id"]],
            "reference": row["positive"],
        }
        for row in rows
        if row["id"] in asked
    }
    review: dict[str, Any] = {"items": items, "rows": shown}
    content = json.dumps([params.review.seed, review], sort_keys=True)
    # a hash, since the seed itself would give the key away
    review["id"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    page = render_page("review.html.jinja", review=review, asked=len(items))
    write_text(Path("reports/review.html"), page)
    write_json(REVIEW_KEY_PATH, {"review": review["id"], "systems": systems, "items": key})
    pairs = sum(item["kind"] == "pair" for item in key.values())
    why = "" if pairs else f", because {' and '.join(systems)} gave the same answers"
    log.info("reports/review.html: %d pairs to vote on%s; votes go to data/votes/", pairs, why)


if __name__ == "__main__":
    run_main(main)

"""Report the result of tuning the embedding model: a page, a short report and a model card.

Reads metrics/embedding.json, data/rankings/, reports/embed_history.csv, reports/embed_memory.json
and data/clean/rows.jsonl. Writes reports/embedding.html, embedding.md and embedding_card.md.
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from library.embed.rows import ask, read_split_rows
from library.embedding_models import load_embedding_model_file
from library.entry import run_main
from library.errors import InputError, describe_error
from library.files import read_json, read_jsonl, write_text
from library.pages.embedding_card import render_embedding_card
from library.pages.embedding_facts import gather_facts
from library.pages.embedding_report import (
    EmbeddingReport,
    make_questions,
    render_html,
    render_markdown,
)
from library.params import load_params
from library.paths import (
    EMBED_HISTORY_PATH,
    EMBED_MEMORY_PATH,
    EMBEDDING_PATH,
    RANKED_TEXTS_PATH,
    rankings_path,
)
from library.records import SFT, ZEROSHOT
from library.verdict.retrieval import BM25, PRIMARY_METRIC
from library.versions import EMBEDDING_PACKAGES, package_versions

log = logging.getLogger(__name__)


def read_metrics(primary: str) -> dict[str, Any]:
    """metrics/embedding.json. Raises InputError where another task was the primary one."""
    metrics: dict[str, Any] = read_json(EMBEDDING_PATH)
    claim = metrics.get(primary, {}).get(PRIMARY_METRIC, {})
    if not claim or "p_holm" in claim:
        raise InputError(
            f"{EMBEDDING_PATH}: not judged by embed.primary: {primary}; run `make embed`"
        )
    return metrics


def read_history() -> pd.DataFrame:
    """The training log. Raises InputError where it is none."""
    try:
        return pd.read_csv(EMBED_HISTORY_PATH)
    except ValueError as error:
        raise InputError(
            f"{EMBED_HISTORY_PATH}: {describe_error(error)}; run `make embed`"
        ) from error


def main() -> None:
    """Gather the report, and write it three times."""
    params = load_params()
    primary, model = params.embed.primary, load_embedding_model_file(params.embed.model)
    metrics, texts = read_metrics(primary), read_json(RANKED_TEXTS_PATH)
    rows = read_split_rows(params.split)
    asked = [(row, ask(row)) for row in rows.splits["test"]]
    ranked = {system: list(read_jsonl(rankings_path(system))) for system in (BM25, ZEROSHOT, SFT)}
    counts = {name: len(split) for name, split in rows.splits.items()}
    memory = read_json(EMBED_MEMORY_PATH)
    facts = gather_facts(params, model, counts, texts, memory)
    versions = package_versions(EMBEDDING_PACKAGES)
    report = EmbeddingReport(
        metrics=metrics,
        primary=primary,
        confidence=params.evaluate.confidence,
        facts=facts,
        ranked=ranked,
        questions=make_questions(asked, ranked, texts["passages"], primary),
        history=read_history(),
        memory=memory,
        max_length=model.max_length,
        versions=versions,
    )
    write_text(Path("reports/embedding.html"), render_html(report))
    write_text(Path("reports/embedding.md"), render_markdown(report))
    card = render_embedding_card(metrics, params, model, facts, versions)
    write_text(Path("reports/embedding_card.md"), card)
    for statement in report.statements:
        log.info("%s%s", statement.claim, statement.detail)
    log.info(
        "reports/embedding.html, reports/embedding.md and reports/embedding_card.md are written"
    )


if __name__ == "__main__":
    run_main(main)

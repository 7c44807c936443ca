"""Write the report: the verdict, every metric, charts, and answers side by side.

Reads metrics/evaluation.json, data/predictions/scores.jsonl, the test rows with their contexts, all
systems' predictions, and the losses and memory of training. Writes reports/report.md and
reports/report.html.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from library.corpus.passages import passages_in_prompt
from library.entry import run_main
from library.files import read_json, read_jsonl, write_text
from library.formatted import read_contexts, read_formatted
from library.pages.report import (
    Case,
    Report,
    describe_data,
    describe_model,
    describe_prompt,
    describe_weights,
    give_verdict,
    render_html,
    render_markdown,
)
from library.pages.statements import RETRIEVERS, memory_sentence, repeatable_sentence, title
from library.params import Params, load_model_file, load_params
from library.paths import (
    EVALUATION_PATH,
    GROUPS_PATH,
    HISTORY_PATH,
    MANIFEST_PATH,
    MEMORY_PATH,
    PARAMS_PATH,
    SCORES_PATH,
    SPLITS_PATH,
    answerer_path,
)
from library.records import SPLITS, SYSTEMS, ScoredRow
from library.verdict.metrics import chrf_signature
from library.verdict.scoring import pick_examples, rows_with_metric
from library.verdict.written import list_answerers, read_answers
from library.versions import package_versions

log = logging.getLogger(__name__)


def gather_facts(params: Params, splits: dict[str, Any], metrics: dict[str, Any]) -> dict[str, str]:
    """Collect what the numbers are about, by name: model, data, prompt, memory and more."""
    answerers = {system: read_json(answerer_path(system)) for system in SYSTEMS}
    memory = read_json(MEMORY_PATH)
    return {
        "primary metric": title(params.evaluate.primary),
        "model": describe_model(read_json(MANIFEST_PATH)["source"]),
        "weights": describe_weights(answerers, load_model_file(params.model).quantization),
        "data": describe_data(params.data.path, splits, params.sft.train_fraction),
        "prompt": describe_prompt(params.format, metrics, splits["test"]),
        "confidence of the intervals": f"{params.evaluate.confidence:.0%}",
        "memory of training": memory_sentence(memory),
        "repeatable": repeatable_sentence([memory, *answerers.values(), *list_answerers(metrics)]),
    }


def main() -> None:
    """Gather the report and write it as Markdown and as HTML."""
    params, metrics = load_params(), read_json(EVALUATION_PATH)
    counted = read_json(SPLITS_PATH)
    splits = {name: counted[name] for name in SPLITS}
    rows = {row["id"]: row for row in read_formatted("test")}
    scored = [ScoredRow.from_record(record) for record in read_jsonl(SCORES_PATH)]
    answers = read_answers((*SYSTEMS, *metrics.get("others", {})))
    contexts = read_contexts(rows)
    primary, width = params.evaluate.primary, params.format.passage_characters

    def show(chosen: Iterable[ScoredRow]) -> list[Case]:
        cases = []
        for scores in chosen:
            row = rows[scores.id]
            given = {system: by_row[scores.id] for system, by_row in answers.items()}
            passages = passages_in_prompt(row, contexts[scores.id], width)
            by_system = {system: scores.systems[system][primary] for system in given}
            cases.append(Case(row, given, by_system, passages))
        return cases

    gained, lost = pick_examples(scored, primary)
    report = Report(
        metrics=metrics,
        primary=primary,
        confidence=params.evaluate.confidence,
        verdict=give_verdict(metrics, splits, params),
        facts=gather_facts(params, splits, metrics),
        gained=show(gained),
        lost=show(lost),
        versions={"chrF++": chrf_signature(), **package_versions()},
        splits=splits,
        largest=read_json(GROUPS_PATH)["largest"],
        history=pd.read_csv(HISTORY_PATH),
        points=[
            (len(rows[scores.id]["positive"]), *(scores.systems[name][primary] for name in SYSTEMS))
            for scores in rows_with_metric(scored, primary)
        ],
        voted=params.review.systems,
        retriever=RETRIEVERS[params.format.retriever],
        params=PARAMS_PATH.read_text(encoding="utf-8"),
    )
    write_text(Path("reports/report.md"), render_markdown(report))
    write_text(Path("reports/report.html"), render_html(report))
    log.info("reports/report.html and reports/report.md are written")


if __name__ == "__main__":
    run_main(main)

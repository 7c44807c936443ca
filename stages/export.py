"""Ship the fine-tuned model: merge the adapter into the base, ask the test questions of what came out, and say so in a model card.

Reads artifacts/{base,adapter}/ and what the pipeline wrote of them. Writes artifacts/merged/: a folder that transformers loads,
README.md being its card. It is no stage of dvc.yaml: it can be made again, and shipping is not a measurement.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.commits import find_stale
from stages.corpus.rows import read_jsonl, write_text
from stages.evaluate import compare_metrics, finite, read_predictions, score_rows
from stages.llm.answering import answer_rows
from stages.llm.loading import check_made
from stages.llm.merging import load_merged, merge_adapter
from stages.llm.preflight import device_name
from stages.llm.prompts import BASE_DIR, build_messages, load_prompt, load_tokenizer
from stages.llm.sharding import find_sharding
from stages.params import EvaluateParams, load_model_file, load_params
from stages.run import InputError, run_stage
from stages.verdict.card import render_card, shipped_sentence, shipped_table
from stages.verdict.metrics import LOWER_IS_BETTER
from stages.verdict.report import PACKAGES
from stages.verdict.statistics import adjust_holm, decide

log = logging.getLogger(__name__)

ADAPTER_DIR, MERGED_DIR = Path("artifacts/adapter"), Path("artifacts/merged")
NEEDED = {
    "data/clean/rows.jsonl": "clean",
    "data/formatted/test.jsonl": "format",
    "metrics/format.json": "format",
    "data/predictions/device.json": "zeroshot",
    "data/predictions/sft.jsonl": "predict",
    "metrics/evaluation.json": "evaluate",
}
COMPARED = ("rouge_l", "token_f1", "bits_per_byte", "pair_matching", "contrastive")


def check_needed() -> None:
    """Raise InputError naming the first file that is not there, or stage that is not current, and the command that makes it."""
    check_made(BASE_DIR, ADAPTER_DIR)
    for path, stage in NEEDED.items():
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; run `dvc repro {stage}`")
    if not Path("dvc.lock").is_file():
        log.warning("dvc.lock: no such file: whether predictions are those of this adapter is not known")
    stale = (find_stale() or {}) if Path("dvc.lock").is_file() else {}
    for stage in ("sft", *NEEDED.values()):
        if stage in stale:
            raise InputError(f"{stage} is older than what it is made of, {', '.join(stale[stage])}; run `dvc repro`")


def ask_merged(folder: Path, rows: Sequence[Mapping[str, Any]], max_new_tokens: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What the model in `folder` answers to the test rows, by the code of `predict`, and what computed it."""
    model = load_merged(folder)
    device = {"dtype": str(model.dtype).removeprefix("torch."), "device": device_name(model.device)}
    return answer_rows(model, load_tokenizer(folder), rows, max_new_tokens), device


def compare_shipped(
    rows: Sequence[Mapping[str, Any]],
    contexts: Mapping[str, str],
    adapter: Mapping[str, Mapping[str, Any]],
    merged: Mapping[str, Mapping[str, Any]],
    params: EvaluateParams,
) -> dict[str, Any]:
    """The merged model against the adapter, both as records by row id: `n`, `same` answers word for word, and `metrics` by name.

    In each the adapter has the place of `zeroshot`, the merged model that of `sft`; `verdict` is 1 for better, −1 for worse and 0
    for no evidence, by the p-value that is corrected for there being several.
    """
    scored = score_rows(rows, contexts, {"zeroshot": adapter, "sft": merged})
    comparisons = compare_metrics(scored, COMPARED, params)
    adjusted = adjust_holm({name: comparison.p for name, comparison in comparisons.items()})
    return {
        "n": len(rows),
        "same": sum(adapter[key]["prediction"] == merged[key]["prediction"] for key in adapter),
        "metrics": {
            name: finite(comparison)
            | {
                "p_holm": adjusted[name],
                "verdict": decide(replace(comparison, p=adjusted[name]), name in LOWER_IS_BETTER, params.confidence),
            }
            for name, comparison in comparisons.items()
        },
    }


def main() -> None:
    """Merge, ask, compare, and keep the folder with its card."""
    params = load_params()
    find_sharding()  # before the merge, which takes minutes
    check_needed()
    quantization = load_model_file(params.model).quantization
    prompt_path = Path("prompts") / f"{params.format.prompt}.jinja"
    template = load_prompt(prompt_path)
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    wanted = {row["id"] for row in rows}
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl")) if row["id"] in wanted}
    adapter = read_predictions(Path("data/predictions/sft.jsonl"), rows)
    metrics, splits, manifest, measured_on = (
        json.loads(path.read_text())
        for path in map(
            Path, ("metrics/evaluation.json", "metrics/format.json", "artifacts/base/manifest.json", "data/predictions/device.json")
        )
    )
    MERGED_DIR.parent.mkdir(parents=True, exist_ok=True)
    for left in MERGED_DIR.parent.glob("tmp-merged-*"):  # by one that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="tmp-merged-", dir=MERGED_DIR.parent) as temporary:
        folder = Path(temporary) / "merged"
        merge_adapter(BASE_DIR, ADAPTER_DIR, folder)
        records, shipped_on = ask_merged(folder, rows, params.format.max_new_tokens)
        shipped = compare_shipped(rows, contexts, adapter, {record["id"]: record for record in records}, params.evaluate)
        card = render_card(
            metrics,
            manifest,
            splits,
            params,
            quantization,
            {"measured": measured_on, "shipped": shipped_on},
            prompt_path.read_text(encoding="utf-8"),
            {name: version(name) for name in PACKAGES},
            shipped,
            build_messages(template, ["The first passage.", "The second passage."], "The question?"),
        )
        write_text(folder / "README.md", card)
        shutil.rmtree(MERGED_DIR, ignore_errors=True)
        folder.replace(MERGED_DIR)
    size = sum(path.stat().st_size for path in MERGED_DIR.iterdir())
    log.info("%s is written: %.1f MB, with a model card in README.md", MERGED_DIR, size / 1e6)
    print(f"\n{shipped_sentence(shipped)}\n\n{shipped_table(shipped, metrics)}")


if __name__ == "__main__":
    run_stage(main)

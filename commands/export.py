"""Export the fine-tuned model as one folder: python -m commands.export

Merges the adapter of sft, or with --system dpo the one after DPO, into the base model, asks the
merged model the test questions, and reports the result in a model card. Reads
artifacts/{base,adapter,dpo}/ and the outputs of the pipeline. Writes artifacts/merged/: a folder
that transformers and vLLM load, with the model card in README.md and a Modelfile for Ollama. With
LLAMA_CPP in the environment, llama.cpp's converter also makes a GGUF file of it in artifacts/gguf/,
which is asked the test questions, too. It is not a stage of dvc.yaml, because an export is no
measurement and can be made again.
"""

import argparse
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from library.adapters import check_turned_on
from library.entry import run_main
from library.errors import InputError
from library.files import read_json, write_text
from library.formatted import read_contexts, read_formatted
from library.llm.answering import answer_rows
from library.llm.batching import Batching
from library.llm.chat_template import hash_ids, load_tokenizer, prompt_ids
from library.llm.devices import describe_computation, pick_device
from library.llm.loading import check_artifacts, load_merged
from library.llm.memory.measuring import free_memory
from library.llm.memory.planning import (
    LongestLengths,
    Way,
    check_merging,
    make_settings,
    merged,
    on_cpu,
    plan_answering,
)
from library.llm.merging import merge_adapter
from library.llm.modelfile import render_modelfile
from library.llm.packing import pack, read_packing
from library.llm.prompts import build_messages, load_asked_prompt
from library.llm.sharding import find_sharding
from library.llm.unpacking import unpack
from library.pages.cards import read_model_facts, render_card, shipped_statement, shipped_table
from library.pages.statements import no_gain_sentence, system_name
from library.params import EvaluateParams, Params, load_model_file, load_params
from library.paths import (
    ADAPTER_DIRS,
    BASE_DIR,
    CLEAN_ROWS_PATH,
    EVALUATION_PATH,
    GGUF_DIR,
    LOCK_PATH,
    MERGED_DIR,
    SPLITS_PATH,
    answerer_path,
    answers_name,
    formatted_path,
    predictions_path,
)
from library.records import DPO, SFT, SPLITS, Computation, FormattedRow, Prediction
from library.repository.lock import find_stale
from library.verdict.metrics import LOWER_IS_BETTER
from library.verdict.scoring import (
    Predictions,
    check_tuned,
    compare_systems,
    comparison_record,
    read_predictions,
    score_rows,
)
from library.verdict.statistics import adjust_holm, decide

log = logging.getLogger(__name__)

ANSWERING = {SFT: "predict", DPO: "dpo"}  # the stages that ask the tuned systems
COMPARED = ("rouge_l", "token_f1", "bits_per_byte", "pair_matching", "contrastive")


def parse_system() -> str:
    """The system that the command line names: sft or dpo."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.export", description="Export a tuned model as one folder."
    )
    parser.add_argument(
        "--system",
        choices=list(ADAPTER_DIRS),
        default=SFT,
        help="whose adapter to merge: that of sft, the default, or the one after DPO",
    )
    return str(parser.parse_args().system)


def needed_files(system: str) -> dict[Path, str]:
    """The files that the export of a system reads beside base and adapter, with their stages."""
    name, asking = answers_name(system), ANSWERING[system]
    return {
        CLEAN_ROWS_PATH: "clean",
        **{formatted_path(split): "format" for split in SPLITS},
        SPLITS_PATH: "format",
        answerer_path(name): asking,
        predictions_path(name): asking,
        EVALUATION_PATH: "evaluate",
    }


def check_needed(system: str, params: Params) -> None:
    """Raise InputError naming the first thing that is off, missing, out of date, or does not belong
    to the rest.
    """
    check_turned_on(system, params)
    check_artifacts(BASE_DIR, ADAPTER_DIRS[system])
    needed = needed_files(system)
    for path, stage in needed.items():
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `dvc repro {stage}`")
    check_tuned(system)
    if system == DPO and DPO not in read_json(EVALUATION_PATH).get("others", {}):
        raise InputError(f"{EVALUATION_PATH}: does not judge dpo; run `dvc repro evaluate`")
    if not LOCK_PATH.is_file():
        log.warning(
            "there is no dvc.lock, so it is unknown whether the evaluation is of these answers"
        )
        return
    stale = find_stale() or {}
    for stage in ("sft", *needed.values()):
        if stage in stale:
            reasons = ", ".join(stale[stage])
            raise InputError(f"{stage} is out of date ({reasons}); run `dvc repro`")


def check_memory(params: Params, rows: Sequence[FormattedRow], system: str = SFT) -> int:
    """Log the memory for merging and for asking the merged model; return tokens per batch.

    Raises InputError if either does not fit, with a list of what would.
    """
    settings = make_settings(load_model_file(params.model), params.sft, pick_device().type)
    check_merging(BASE_DIR, settings.adapter, f"python -m commands.ask --system {system}")
    limit = params.format.max_new_tokens
    longest = max(max(row["tokens"], row["prompt_tokens"] + limit) for row in rows)
    settings, lengths = merged(settings), LongestLengths(longest, limit)
    ways = []
    if settings.device_type == "cuda":
        ways.append([Way("CUDA_VISIBLE_DEVICES= in the environment", on_cpu(settings), lengths)])
    return plan_answering(BASE_DIR, settings, lengths, ways)


def ask_merged(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[FormattedRow],
    max_new_tokens: int,
    batching: Batching,
) -> tuple[dict[str, Prediction], Computation]:
    """What the model in `folder` answers to the test rows, by row id, and what computed it."""
    model = load_merged(folder)
    answers = answer_rows(model, tokenizer, rows, max_new_tokens, batching)
    return {answer["id"]: answer for answer in answers}, describe_computation(model)


def ask_packed(
    path: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[FormattedRow],
    max_new_tokens: int,
    batching: Batching,
) -> dict[str, Prediction] | None:
    """What the model in a GGUF file answers to the test rows, unpacked to `folder` and asked with
    the measured tokenizer; None where transformers can't unpack it, or memory does not suffice.
    """
    try:
        unpack(path, folder)
        if other := count_other_prompts(load_tokenizer(folder), rows):
            log.warning(
                "%s: its own tokenizer makes other tokens of %d of %d test prompts; it is asked "
                "with the measured ones, and a server will not do so",
                path.name,
                other,
                len(rows),
            )
        return ask_merged(folder, tokenizer, rows, max_new_tokens, batching)[0]
    except InputError as error:
        log.warning("%s is kept, but was not asked again: %s", path.name, error)
        return None


def count_other_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[FormattedRow]) -> int:
    """How many rows' prompts are other tokens to this tokenizer than to the one that was measured.

    Raises InputError where its chat template does not take them.
    """
    return sum(
        hash_ids(prompt_ids(tokenizer, row["messages"])) != row["prompt_hash"] for row in rows
    )


def write_modelfile(folder: Path, source: str, params: Params, model_dir: Path) -> None:
    """Write a Modelfile to a folder, for the model at `source` as seen from there; `model_dir` has
    its tokenizer.
    """
    template, tokenizer = load_asked_prompt(params.format.prompt), load_tokenizer(model_dir)
    ends = read_json(model_dir / "generation_config.json")["eos_token_id"]
    text = render_modelfile(
        tokenizer,
        build_messages(template, [], "The question?"),
        source,
        params.format.max_length,
        params.format.max_new_tokens,
        [str(tokenizer.convert_ids_to_tokens(end)) for end in ends],
    )
    write_text(folder / "Modelfile", text)


def compare_shipped(
    rows: Sequence[FormattedRow],
    contexts: Mapping[str, str],
    adapter: Predictions,
    merged: Predictions,
    params: EvaluateParams,
) -> dict[str, Any]:
    """Compare the merged model with base and adapter; both are predictions by row id.

    Returns `n` rows, the number of answers that are the `same` word for word, and `metrics` by
    name, each with the means of both and a `verdict`: 1 better, −1 worse, 0 no evidence, by the
    Holm-corrected p-value.
    """
    scored = score_rows(rows, contexts, {"adapter": adapter, "merged": merged})
    comparisons = compare_systems(scored, COMPARED, params, "adapter", "merged")
    adjusted = adjust_holm({name: comparison.p for name, comparison in comparisons.items()})
    metrics = {}
    for name, comparison in comparisons.items():
        p = adjusted[name]
        verdict = decide(replace(comparison, p=p), name in LOWER_IS_BETTER, params.confidence)
        record = comparison_record(comparison, "adapter", "merged")
        metrics[name] = record | {"p_holm": p, "verdict": verdict}
    same = sum(adapter[key]["prediction"] == merged[key]["prediction"] for key in adapter)
    return {"n": len(rows), "same": same, "metrics": metrics}


def main() -> None:
    """Merge, ask, compare, and keep the folder with its model card."""
    system = parse_system()
    params, name = load_params(), answers_name(system)
    find_sharding()  # fail before the merge, which takes minutes
    packing = read_packing()
    check_needed(system, params)
    template = load_asked_prompt(params.format.prompt)
    rows = read_formatted("test")
    wanted = {row["id"] for row in rows}
    contexts = read_contexts(wanted)
    adapter = read_predictions(predictions_path(name), rows)
    facts = read_model_facts(params, system)
    if system == DPO and (said := no_gain_sentence(facts.metrics, params.evaluate.primary)):
        log.warning("%s `make export` ships the model before DPO.", said)
    tokens = check_memory(params, rows, system)
    MERGED_DIR.parent.mkdir(parents=True, exist_ok=True)
    for left in MERGED_DIR.parent.glob("tmp-merged-*"):  # left by a killed export
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="tmp-merged-", dir=MERGED_DIR.parent) as temporary:
        folder = Path(temporary) / "merged"
        merge_adapter(BASE_DIR, ADAPTER_DIRS[system], folder)
        free_memory()  # what comes next needs the memory of what was merged
        gguf = Path(temporary) / "gguf"
        if packing is not None:
            path = gguf / f"model-{packing.kind}.gguf"
            pack(folder, path, packing)
            write_modelfile(gguf, f"./{path.name}", params, folder)
        limit, batching = params.format.max_new_tokens, Batching(tokens)
        tokenizer = load_tokenizer(folder)
        merged, shipped_on = ask_merged(folder, tokenizer, rows, limit, batching)
        shipped = compare_shipped(rows, contexts, adapter, merged, params.evaluate)
        passages = ["The first passage.", "The second passage."]
        card = render_card(
            facts,
            {"measured": read_json(answerer_path(name)), "shipped": shipped_on},
            shipped,
            build_messages(template, passages, "The question?"),
        )
        write_text(folder / "README.md", card)
        write_modelfile(folder, ".", params, folder)
        if packing is None and GGUF_DIR.is_dir():
            log.warning("%s is of the last export: removed", GGUF_DIR)
        for made, kept in ((folder, MERGED_DIR), (gguf, GGUF_DIR)):
            shutil.rmtree(kept, ignore_errors=True)
            if made.is_dir():
                made.replace(kept)
        size = sum(file.stat().st_size for file in MERGED_DIR.iterdir())
        log.info(
            "%s: the model %s, %.1f MB, with a model card in README.md",
            *(MERGED_DIR, system_name(system), size / 1e6),
        )
        print(f"\n{shipped_statement(shipped)}\n\n{shipped_table(shipped, facts.own_metrics)}")
        if packing is None:
            return
        free_memory()
        path, unpacked = GGUF_DIR / path.name, Path(temporary) / "unpacked"
        answers = ask_packed(path, unpacked, tokenizer, rows, limit, batching)
        if answers is not None:
            packed = compare_shipped(rows, contexts, adapter, answers, params.evaluate)
            print(f"\n{path}, asked the same questions after it was unpacked again:")
            print(f"\n{shipped_statement(packed)}\n\n{shipped_table(packed, facts.own_metrics)}")


if __name__ == "__main__":
    run_main(main)

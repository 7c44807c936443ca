"""Ask the base model the test questions, as it is; and without the passages, to see what it answers without reading.

Reads data/formatted/{test,train_sample}.jsonl and artifacts/base/. Writes data/predictions/: zeroshot.jsonl, zeroshot_train.jsonl
(the same of some train rows), no_context.jsonl (answers to the question alone), device.json (what computed them).
"""

import shutil
from pathlib import Path

from stages.corpus.rows import read_jsonl, write_json, write_jsonl
from stages.llm.answering import Batching, answer_questions, answer_rows
from stages.llm.checkpoints import checkpoint_dir
from stages.llm.loading import describe_device, load_model, pick_device
from stages.llm.preflight import Longest, device_name, make_setting, plan_answering
from stages.llm.processes import start_processes
from stages.llm.prompts import BASE_DIR, load_tokenizer
from stages.params import load_model_file, load_params
from stages.run import run_stage


def ask(system: str, adapter_dir: Path | None) -> None:
    """Answer and score every test row and some train rows; `predict` calls this with the adapter."""
    state = start_processes()
    params = load_params()
    model_file = load_model_file(params.model)
    paths = {name: Path(f"data/formatted/{name}.jsonl") for name in ("test", "train_sample")}
    rows = {name: list(read_jsonl(path)) for name, path in paths.items()}
    limit = params.format.max_new_tokens
    inputs = [*paths.values(), BASE_DIR, *([] if adapter_dir is None else [adapter_dir])]
    kept_dir = checkpoint_dir(
        "zeroshot" if adapter_dir is None else "predict", inputs, [limit, model_file.model_dump(), describe_device()], ["zeroshot"]
    )
    longest = max(max(row["tokens"], row["prompt_tokens"] + limit) for row in [*rows["test"], *rows["train_sample"]])
    setting = make_setting(model_file, params.sft, pick_device().type)
    batching = Batching(plan_answering(BASE_DIR, setting, Longest(longest, limit)), kept_dir)
    tokenizer = load_tokenizer(BASE_DIR)
    model = load_model(BASE_DIR, model_file.quantization, adapter_dir)
    made = {
        name: answer_rows(model, tokenizer, rows[split], limit, batching, name)
        for name, split in ((system, "test"), (f"{system}_train", "train_sample"))
    }
    if adapter_dir is None:
        made["no_context"] = answer_questions(model, tokenizer, rows["test"], limit, batching, "no_context")
    if state.is_main_process:
        for name, records in made.items():
            write_jsonl(Path(f"data/predictions/{name}.jsonl"), records)
        if adapter_dir is None:
            device = {"device": device_name(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
            write_json(Path("data/predictions/device.json"), device)
        shutil.rmtree(kept_dir)
    state.wait_for_everyone()


def main() -> None:
    """Ask the base model."""
    ask("zeroshot", None)


if __name__ == "__main__":
    run_stage(main)

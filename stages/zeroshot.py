"""Ask the base model the test questions, as it is; and without the passages, to see what it answers without reading.

Reads data/formatted/{test,train_sample}.jsonl and artifacts/base/. Writes data/predictions/: zeroshot.jsonl, zeroshot_train.jsonl
(the same of some train rows), no_context.jsonl (answers to the question alone), device.json (what computed them).
"""

from pathlib import Path

import torch

from stages.corpus.rows import read_jsonl, write_json, write_jsonl
from stages.llm.answering import answer_questions, answer_rows
from stages.llm.loading import load_model
from stages.llm.prompts import BASE_DIR, load_tokenizer
from stages.params import load_model_file, load_params
from stages.run import run_stage


def ask(system: str, adapter_dir: Path | None) -> None:
    """Answer and score every test row and some train rows; `predict` calls this with the adapter."""
    params = load_params()
    rows = {name: list(read_jsonl(Path(f"data/formatted/{name}.jsonl"))) for name in ("test", "train_sample")}
    tokenizer = load_tokenizer(BASE_DIR)
    model = load_model(BASE_DIR, load_model_file(params.model).quantization, adapter_dir)
    limit = params.format.max_new_tokens
    made = {
        system: answer_rows(model, tokenizer, rows["test"], limit),
        f"{system}_train": answer_rows(model, tokenizer, rows["train_sample"], limit),
    }
    if adapter_dir is None:
        made["no_context"] = answer_questions(model, tokenizer, rows["test"], limit)
        name = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type.upper()
        write_json(Path("data/predictions/device.json"), {"device": name, "dtype": str(model.dtype).removeprefix("torch.")})
    for name, records in made.items():
        write_jsonl(Path(f"data/predictions/{name}.jsonl"), records)


def main() -> None:
    """Ask the base model."""
    ask("zeroshot", None)


if __name__ == "__main__":
    run_stage(main)

"""Ask the base model the test questions, as it is.

Reads data/formatted/test.jsonl and artifacts/base/. Writes data/predictions/zeroshot.jsonl.
"""

from pathlib import Path

from stages.corpus.rows import read_jsonl, write_jsonl
from stages.llm.answering import answer_rows
from stages.llm.loading import load_model
from stages.llm.prompts import BASE_DIR, load_tokenizer
from stages.params import load_model_file, load_params
from stages.run import run_stage


def main(adapter_dir: Path | None = None, out_path: Path = Path("data/predictions/zeroshot.jsonl")) -> None:
    """Answer and score every test row; `predict` calls this with the adapter."""
    params = load_params()
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    model = load_model(BASE_DIR, load_model_file(params.model).quantization, adapter_dir)
    write_jsonl(out_path, answer_rows(model, load_tokenizer(BASE_DIR), rows, params.format.max_new_tokens))


if __name__ == "__main__":
    run_stage(main)

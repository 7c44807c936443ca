"""Ask the base model with the trained adapter the same questions, by the same code as zeroshot.

Reads data/formatted/{test,train_sample}.jsonl, artifacts/base/ and artifacts/adapter/. Writes data/predictions/: sft.jsonl,
sft_train.jsonl.
"""

from pathlib import Path

from stages.run import run_stage
from stages.zeroshot import ask


def main() -> None:
    """Ask the fine-tuned model."""
    ask("sft", Path("artifacts/adapter"))


if __name__ == "__main__":
    run_stage(main)

"""Ask the base model with the trained adapter the same questions, by the same code as zeroshot.

Reads data/formatted/test.jsonl, artifacts/base/ and artifacts/adapter/. Writes data/predictions/sft.jsonl.
"""

from pathlib import Path

from stages import zeroshot
from stages.run import run_stage


def main() -> None:
    """Answer and score every test row."""
    zeroshot.main(Path("artifacts/adapter"), Path("data/predictions/sft.jsonl"))


if __name__ == "__main__":
    run_stage(main)

"""Ask the base model the test questions, with and without the passages.

Answers without passages show what the model can guess. Reads
data/formatted/{test,train_sample}.jsonl, artifacts/base/ and the text that `evaluate.general_text`
names. Writes data/predictions/: zeroshot.jsonl, zeroshot_train.jsonl (the same for some train
rows), zeroshot_general.jsonl (how likely that text is), no_context.jsonl (answers without passages)
and zeroshot_model.json (which model and device gave them).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from library.entry import run_main
from library.llm.session import open_session


def main() -> None:
    """Ask the base model."""
    session = open_session("zeroshot", general_text=True)
    predictions: dict[str, Sequence[Mapping[str, Any]]] = {
        "zeroshot": session.answer("test", "zeroshot"),
        "zeroshot_train": session.answer("train_sample", "zeroshot_train"),
        "zeroshot_general": session.score_general_text("zeroshot_general"),
        "no_context": session.answer_without_context("no_context"),
    }
    session.close("zeroshot", predictions)
    session.forget()


if __name__ == "__main__":
    run_main(main)

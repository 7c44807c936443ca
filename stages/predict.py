"""Ask the fine-tuned model the test questions, with the same code as zeroshot.

Reads data/formatted/{test,train_sample}.jsonl, artifacts/base/, artifacts/adapter/ and the text of
`evaluate.general_text`. Writes data/predictions/: sft.jsonl, sft_train.jsonl, sft_general.jsonl and
sft_model.json (a record of the model that made them).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from library.entry import run_main
from library.llm.session import open_session
from library.paths import ADAPTER_DIR


def main() -> None:
    """Ask the fine-tuned model."""
    session = open_session("predict", ADAPTER_DIR, general_text=True)
    predictions: dict[str, Sequence[Mapping[str, Any]]] = {
        "sft": session.answer("test", "sft"),
        "sft_train": session.answer("train_sample", "sft_train"),
        "sft_general": session.score_general_text("sft_general"),
    }
    session.close("sft", predictions)
    session.forget()


if __name__ == "__main__":
    run_main(main)

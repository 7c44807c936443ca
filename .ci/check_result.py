"""Fail where the default run no longer shows what docs/results.md says of it."""

import json
import re
import sys
from pathlib import Path

from library.files import read_jsonl
from standin import inventions

TERMS = {
    term.answer: term.description
    for pools in inventions.TERMS.values()
    for pool in pools
    for term in pool
}


def facts_right(system: str) -> float:
    """Share of the facts' terms in the test rows' references that an answer holds too, in its words
    or the description's.
    """
    answers = {
        record["id"]: record["prediction"]
        for record in read_jsonl(Path(f"data/predictions/{system}.jsonl"))
    }
    right = total = 0
    for row in read_jsonl(Path("data/formatted/test.jsonl")):
        answer = answers[row["id"]]
        # beyond that a long reference quotes the description
        stated = [
            term for term in TERMS for _ in re.finditer(rf"\b{term}\b", row["positive"][:600])
        ]
        total += len(stated)
        for term in stated:
            said = next((words for words in (term, TERMS[term]) if words in answer), None)
            if said is not None:
                right += 1
                answer = answer.replace(said, "", 1)
    return right / total


facts = {system: facts_right(system) for system in ("zeroshot", "sft")}
print(
    f"terms of facts right in the answers: zero-shot {facts['zeroshot']:.2f}, fine-tuned "
    f"{facts['sft']:.2f}"
)
metrics = json.loads(Path("metrics/evaluation.json").read_text())
found = json.loads(Path("metrics/embedding.json").read_text())["passage"]["ndcg_at_10"]
checks = {
    "the verdict is better": metrics["verdict"] == 1,
    "ROUGE-L is at least 0.6": metrics["rouge_l"]["sft"] >= 0.6,
    "the interval of ROUGE-L's gain is above 0": metrics["rouge_l"]["low"] > 0,
    "pair matching is at least 0.95": metrics["pair_matching"]["sft"] >= 0.95,
    "contrastive is at least 0.8": metrics["contrastive"]["sft"] >= 0.8,
    "the interval of contrastive's gain is above 0": metrics["contrastive"]["low"] > 0,
    "its Holm-corrected p is below 0.05": metrics["contrastive"]["p_holm"] < 0.05,
    "the tuned answers hold at least 0.8 of the facts' terms": facts["sft"] >= 0.8,
    "bare answers tell nothing before": 0.4 <= metrics["answer_only"]["zeroshot"] <= 0.6,
    "the tuned embedding model finds more passages": found["low"] > 0.05,
    "bare answers tell nothing after": 0.4 <= metrics["answer_only"]["sft"] <= 0.6,
}
failed = [name for name, holds in checks.items() if not holds]
print("\n".join(f"{'ok' if holds else 'FAILED'}: {name}" for name, holds in checks.items()))
sys.exit(bool(failed))

"""Fail where the default run no longer shows what the README says of it."""

import json
import sys
from pathlib import Path

metrics = json.loads(Path("metrics/evaluation.json").read_text())
checks = {
    "the verdict is better": metrics["verdict"] == 1,
    "ROUGE-L is at least 0.6": metrics["rouge_l"]["sft"] >= 0.6,
    "the interval of ROUGE-L's gain is above 0": metrics["rouge_l"]["low"] > 0,
    "pair matching is at least 0.95": metrics["pair_matching"]["sft"] >= 0.95,
    "contrastive is at least 0.8": metrics["contrastive"]["sft"] >= 0.8,
    "the interval of contrastive's gain is above 0": metrics["contrastive"]["low"] > 0,
    "bare answers tell nothing before": 0.4 <= metrics["answer_only"]["zeroshot"] <= 0.6,
    "bare answers tell nothing after": 0.4 <= metrics["answer_only"]["sft"] <= 0.6,
}
failed = [name for name, holds in checks.items() if not holds]
print("\n".join(f"{'ok' if holds else 'FAILED'}: {name}" for name, holds in checks.items()))
sys.exit(bool(failed))

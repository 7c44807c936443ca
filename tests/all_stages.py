"""Every stage but `sample`, in the order of dvc.yaml, for tests that run the whole pipeline."""

from stages import (
    base,
    cards,
    clean,
    evaluate,
    format,
    others,
    predict,
    profile,
    report,
    review,
    seeds,
    sft,
    zeroshot,
)

STAGES = [
    base,
    profile,
    clean,
    format,
    zeroshot,
    sft,
    predict,
    seeds,
    others,
    review,
    evaluate,
    report,
    cards,
]

"""Every stage but `sample`, in the order of dvc.yaml, for tests that run the whole pipeline."""

from stages import (
    base,
    cards,
    clean,
    dpo,
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
    dpo,
    review,
    evaluate,
    report,
    cards,
]

# all that a report takes
JUDGED = [stage for stage in STAGES if stage not in (profile, cards)]
# the same from an adapter on
ASKED = [stage for stage in JUDGED if stage not in (base, clean, format, sft)]

"""How many test rows or votes would show a difference? python -m commands.sample_size 0.02

Reads the scores of the last run. Prints how many groups of test rows like these are needed to find
a true difference with a probability of 80%, and how many rows in all that is with this split. The
same for votes: how many pairs show that people prefer one system.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from library.entry import run_main
from library.errors import InputError
from library.files import read_json, read_jsonl
from library.pages.statements import title
from library.pages.vote_statements import votes_needed, votes_needed_sentence
from library.params import Params, load_params
from library.paths import EVALUATION_PATH, SCORES_PATH, SPLITS_PATH
from library.records import SFT, SPLITS, ZEROSHOT, ScoredRow
from library.verdict.scoring import rows_with_metric
from library.verdict.statistics import POWER, count_groups

DIFFERENCES = (0.1, 0.05, 0.02, 0.01)


def difference(text: str) -> float:
    """Parse a difference of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def table(
    scored: Sequence[ScoredRow], differences: Sequence[float], params: Params, every: int
) -> Iterator[str]:
    """Yield Markdown lines; `every` is the number of rows of the last run, all splits together.

    A single sentence if all rows have the same difference.
    """
    metric, confidence = params.evaluate.primary, params.evaluate.confidence
    rows = rows_with_metric(scored, metric)
    groups = [row.group for row in rows]
    before = [row.systems[ZEROSHOT][metric] for row in rows]
    after = [row.tuned[metric] for row in rows]
    if not rows or count_groups(before, after, groups, 1.0, confidence) is None:
        yield (
            f"All test rows have the same difference in {title(metric)}, or none has this metric: "
            "they cannot say how many rows are needed."
        )
        return
    yield f"| true difference in {title(metric)} | test groups | test rows | rows in all |"
    yield "|--:|--:|--:|--:|"
    for wanted in sorted(differences, reverse=True):
        needed = count_groups(before, after, groups, wanted, confidence)
        assert needed is not None
        test = needed * len(rows) / len(set(groups))
        yield f"| {wanted:g} | {needed:,} | {test:,.0f} | {test * every / len(rows):,.0f} |"


def votes_table(votes: Mapping[str, Any], confidence: float) -> Iterator[str]:
    """Lines of Markdown: the pairs to vote on, by true share of the pairs that people decide."""
    yield (
        "| true share of the decided pairs | decided pairs | pairs, with ties as so far | "
        "pairs still to vote on |"
    )
    yield "|--:|--:|--:|--:|"
    for share, decided, pairs, more in votes_needed(votes, confidence):
        yield f"| {share:.0%} | {decided:,} | {pairs:,} | {more:,} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.sample_size", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("differences", type=difference, nargs="*", default=DIFFERENCES)
    wanted = parser.parse_args().differences or DIFFERENCES
    for path in (EVALUATION_PATH, SPLITS_PATH, SCORES_PATH):
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `dvc repro`")
    params, splits = load_params(), read_json(SPLITS_PATH)
    evaluation = read_json(EVALUATION_PATH)
    primary, votes = evaluation["primary"], evaluation["votes"]
    every = sum(splits[name]["rows"] for name in SPLITS)
    scored = [ScoredRow.from_record(record) for record in read_jsonl(SCORES_PATH)]
    print("\n".join(table(scored, wanted, params, every)))
    print(
        f"\nFound with a chance of {POWER:.0%}, at {params.evaluate.confidence:.0%} confidence. "
        f"The last run has {primary['n']:,} test rows in {primary['groups']:,} groups, and found "
        f"{primary['delta']:+.3f} ({primary[ZEROSHOT]:.3f} to {primary[SFT]:.3f}). Rows that vary "
        "more, or less, take more, or fewer. Training's own chance is not in these numbers."
    )
    print("\n" + "\n".join(votes_table(votes, params.evaluate.confidence)))
    print(f"\n{votes_needed_sentence(params.evaluate.confidence)}")


if __name__ == "__main__":
    run_main(main)

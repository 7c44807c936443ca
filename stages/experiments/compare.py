"""Compare experiments: python -m stages.experiments.compare

Prints one line for each experiment that DVC knows, and writes reports/compare.html. Two runs that answered the same test questions
are compared row by row where the cache still has the scores of both; a difference counts where it is larger than what the choice of
test rows explains, corrected for how many pairs there are.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from stages.corpus.rows import write_text
from stages.experiments.runs import Run, list_runs
from stages.params import load_params
from stages.run import InputError, run_stage
from stages.verdict.metrics import LOWER_IS_BETTER
from stages.verdict.pages import render_page
from stages.verdict.report import title
from stages.verdict.statistics import adjust_holm, compare, decide

log = logging.getLogger(__name__)

PAGE_PATH = Path("reports/compare.html")
VERDICTS = {1: "better", -1: "worse", 0: "no evidence"}
SEED = "sft.seed"


@dataclass(frozen=True)
class Difference:
    """How the second of two runs differs from the first by their primary metric, fine-tuned: `decided` is 1 for better, −1 for
    worse, 0 for undecided. Without the scores of both there is no interval, and overlapping intervals of the gains decide nothing.
    """

    first: str
    second: str
    delta: float
    low: float | None
    high: float | None
    p: float | None
    decided: int


def changed_params(runs: Sequence[Run]) -> list[str]:
    """The parameters in which the runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.params)
    return [name for name in names if len({str(run.params.get(name)) for run in runs}) > 1]


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Judged runs that can be held against each other: same test questions and references, same primary metric. Best first."""
    groups: list[list[Run]] = []
    for run in runs:
        if run.metrics is None:
            continue
        same = (group for group in groups if group[0].test == run.test and group[0].primary == run.primary)
        group = next(same, None)
        groups.append([run]) if group is None else group.append(run)
    for group in groups:
        sign = 1 if group[0].primary in LOWER_IS_BETTER else -1
        group.sort(key=lambda run, sign=sign: sign * result(run)["sft"])  # type: ignore[misc]
    return sorted(groups, key=len, reverse=True)


def result(run: Run) -> Mapping[str, Any]:
    """The primary metric of a judged run."""
    assert run.metrics is not None
    primary: Mapping[str, Any] = run.metrics["primary"]
    return primary


def compare_runs(group: Sequence[Run], draws: int, confidence: float, seed: int) -> list[Difference]:
    """Every two runs of a group, the better first; the p-values are Holm-corrected over all pairs of the group."""
    lower, found = group[0].primary in LOWER_IS_BETTER, {}
    pairs = list(itertools.combinations(group, 2))
    for first, second in pairs:
        if first.scores is None or second.scores is None:
            continue
        name = first.primary
        ones, others = ({row["id"]: row for row in run.scores or [] if name in row["sft"]} for run in (first, second))
        shared = sorted(ones.keys() & others.keys())
        if shared:
            found[first.name, second.name] = compare(
                [ones[key]["sft"][name] for key in shared],
                [others[key]["sft"][name] for key in shared],
                [ones[key]["group"] for key in shared],
                draws,
                confidence,
                seed,
            )
    adjusted = adjust_holm({"\n".join(names): comparison.p for names, comparison in found.items()})
    differences = []
    for first, second in pairs:
        names = (first.name, second.name)
        if names not in found:
            delta = result(second)["sft"] - result(first)["sft"]
            differences.append(Difference(*names, delta, None, None, None, 0))
            continue
        comparison, p = found[names], adjusted["\n".join(names)]
        decided = decide(replace(comparison, p=p), lower, confidence)
        differences.append(Difference(*names, comparison.delta, comparison.low, comparison.high, p, decided))
    return differences


def seed_sentence(group: Sequence[Run]) -> str:
    """What training's own chance adds, which no interval here holds: from runs that differ in nothing but their seed."""
    alike: dict[str, dict[Any, float]] = {}
    for run in group:
        rest = str(sorted((name, str(value)) for name, value in run.params.items() if name != SEED))
        alike.setdefault(rest, {})[run.params.get(SEED)] = result(run)["sft"]
    spreads = [stdev(by_seed.values()) for by_seed in alike.values() if len(by_seed) > 1]
    if not spreads:
        return (
            f"No two of these runs differ in {SEED} alone: how much the chance of training moves them is not known, and no "
            "interval here holds it. A small difference can be the seed's."
        )
    return (
        f"Runs that differ in {SEED} alone have a standard deviation of up to {max(spreads):.3f}. No interval here holds that: a "
        "difference of this size can be the seed's, however sure it is over test rows."
    )


def pair_sentence(differences: Sequence[Difference]) -> str:
    """How many differences are larger than their noise, and how many nobody can tell."""
    decided = sum(difference.decided != 0 for difference in differences)
    unpaired = sum(difference.p is None for difference in differences)
    said = (
        f"Of {len(differences)} differences between two runs {decided} {'is' if decided == 1 else 'are'} larger than what the "
        "choice of test rows explains (paired by test row, p Holm-corrected over all of them)."
    )
    if unpaired:
        said += (
            f" {unpaired} can't be paired, since the cache has the scores of one run or none; where only intervals of the gains "
            "are known, they are undecided."
        )
    return said


def show(value: Any) -> str:
    """A parameter as a word."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def table(runs: Sequence[Run], names: Sequence[str]) -> list[list[str]]:
    """Head and rows: name, the parameters that differ, primary metric, gain with its interval, verdict, validation loss."""
    rows = [["experiment", *names, "metric", "zero-shot", "fine-tuned", "gain", "low", "high", "verdict", "validation loss"]]
    for run in runs:
        loss = "–" if run.validation_loss is None else f"{run.validation_loss:.4f}"
        if run.metrics is None:
            judged = ["–"] * 6 + ["not judged"]
        else:
            primary = result(run)
            numbers = [f"{primary[name]:.3f}" for name in ("zeroshot", "sft")]
            gains = [f"{primary[name]:+.3f}" if name in primary else "–" for name in ("delta", "low", "high")]
            judged = [title(run.primary), *numbers, *gains, VERDICTS[run.metrics["verdict"]]]
        rows.append([run.name, *(show(run.params.get(name)) for name in names), *judged, loss])
    return rows


def align(rows: Sequence[Sequence[str]]) -> str:
    """A table for terminals: the first column and words to the left, the rest to the right."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        left = number == 0 or column[0] in ("metric", "verdict")
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def order_runs(runs: Sequence[Run]) -> list[Run]:
    """Judged runs first, best first within those that can be compared; then the others by validation loss."""
    rest = [run for run in runs if run.metrics is None]
    rest.sort(key=lambda run: (run.validation_loss is None, run.validation_loss or 0.0, run.name))
    return [*(run for group in group_runs(runs) for run in group), *rest]


def scale(group: Sequence[Run]) -> tuple[float, float]:
    """The least and the greatest number that is drawn for a group."""
    values = [number for run in group for number in _drawn(run).values()]
    low, high = min(values), max(values)
    return low, high if high > low else low + 1.0


def _drawn(run: Run) -> dict[str, float]:
    """Zero-shot, fine-tuned, and the interval of the gain set off from zero-shot."""
    primary = result(run)
    numbers = {"before": primary["zeroshot"], "after": primary["sft"]}
    if "low" in primary:
        numbers |= {"low": primary["zeroshot"] + primary["low"], "high": primary["zeroshot"] + primary["high"]}
    return numbers


def render_comparison(runs: Sequence[Run], draws: int, confidence: float, seed: int) -> tuple[str, str]:
    """What is printed, and the page."""
    names = changed_params(runs)
    ordered = order_runs(runs)
    rows = table(ordered, names)
    groups, said = [], [align(rows)]
    for group in group_runs(runs):
        differences = compare_runs(group, draws, confidence, seed) if len(group) > 1 else []
        sentences = [pair_sentence(differences), seed_sentence(group)] if differences else []
        groups.append(
            {
                "runs": [(run.name, _drawn(run)) for run in group],
                "scale": scale(group),
                "title": title(group[0].primary),
                "lower": group[0].primary in LOWER_IS_BETTER,
                "n": result(group[0])["n"],
                "cells": {(difference.first, difference.second): difference for difference in differences},
                "sentences": sentences,
            }
        )
        said += sentences
        for difference in differences:
            if difference.decided and difference.low is not None and difference.high is not None:
                better, worse = (difference.first, difference.second)[:: -difference.decided]
                least, most = sorted(map(abs, (difference.low, difference.high)))
                gain = f"{abs(difference.delta):.3f} ({least:.3f} to {most:.3f}, p = {difference.p:.4f})"
                said.append(f"  {better} is better than {worse} by {gain}")
    notes = []
    if len(groups) > 1:
        sizes = ", ".join(str(len(group["runs"])) for group in groups)
        notes.append(
            f"The runs fall into {len(groups)} groups ({sizes}) with other test rows, or another primary metric. Between groups "
            "nothing is compared: their numbers are about other questions."
        )
    unjudged = [run.name for run in ordered if run.metrics is None]
    if unjudged:
        notes.append(
            f"Not judged, since they ended before evaluate, or changed after it: {', '.join(unjudged)}. "
            "By validation loss they can be ordered; what they would answer is not known."
        )
    notes.append(
        "A run that is chosen because it is the best here looks better than it is: choose by validation loss, and look at the test "
        "rows once."
    )
    page = render_page("compare.html.jinja", rows=rows, groups=groups, notes=notes, confidence=confidence)
    return "\n\n".join([*said[:1], "\n".join([*said[1:], *notes])]), page


def main() -> None:
    """Print the table and write the page."""
    evaluate = load_params().evaluate
    runs = list_runs()
    if not any(run.metrics is not None or run.validation_loss is not None for run in runs):
        raise InputError("no experiment has a result; run dvc repro, or dvc exp show to see what there is")
    said, page = render_comparison(runs, evaluate.draws, evaluate.confidence, evaluate.seed)
    write_text(PAGE_PATH, page)
    print(f"\n{said}\n\nThe runs with their intervals drawn: {PAGE_PATH}")


if __name__ == "__main__":
    run_stage(main)

"""Compare experiments: python -m commands.compare

Prints one line per experiment that DVC knows, and writes reports/compare.html. Two runs that
answered the same test questions are compared row by row, if the cache still has the scores of both.
A difference counts if it is larger than what the choice of test rows explains, corrected for the
number of pairs; if both runs have several training seeds, than what these explain, too. Few-shot
and rivals of a run are listed beside it. Embedding models (`make embed`) have their own table.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from library.entry import run_main
from library.errors import InputError
from library.files import write_text
from library.pages.charts import Chart, Mark, plot_marks, render_chart_page
from library.pages.embedding_statements import TASKS
from library.pages.rendering import plural
from library.pages.statements import seeds_command, system_name, title
from library.params import EvaluateParams, load_params
from library.records import SFT, SYSTEMS, ZEROSHOT
from library.repository.experiments import (
    EmbeddingRun,
    Run,
    list_embedding_runs,
    list_revisions,
    list_runs,
)
from library.verdict.metrics import LOWER_IS_BETTER
from library.verdict.retrieval import BM25, PRIMARY_METRIC
from library.verdict.scoring import compare_runs
from library.verdict.statistics import SeedsComparison, adjust_holm, decide

PAGE_PATH = Path("reports/compare.html")
VERDICTS = {1: "better", -1: "worse", 0: "no evidence"}
SEED, EMBED_SEED = "sft.seed", "embed.seed"
JUDGED = ["zero-shot", "fine-tuned", "gain", "low", "high", "verdict"]


@dataclass(frozen=True)
class Difference:
    """How the second of two runs differs from the first, by the primary metric of the fine-tuned
    model.

    `decided` is 1 for better, −1 for worse and 0 for undecided. Without the scores of both runs
    there is no interval and nothing is decided. `seeds` are the numbers of training seeds of both
    if interval and p cover these, too; None if they cover test rows only.
    """

    first: str
    second: str
    delta: float
    low: float | None
    high: float | None
    p: float | None
    decided: int
    seeds: tuple[int, int] | None = None


def changed_params(runs: Sequence[Run]) -> list[str]:
    """The names of the parameters in which the runs differ."""
    # format.retriever says it in one column
    names = dict.fromkeys(
        name for run in runs for name in run.params if not name.startswith("retrievers/")
    )
    return [name for name in names if len({str(run.params.get(name)) for run in runs}) > 1]


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the judged runs that can be compared: same test questions, references and primary
    metric.

    The best run of a group comes first, the largest group too.
    """
    groups: list[list[Run]] = []
    for run in runs:
        if run.metrics is None:
            continue
        same = (
            group
            for group in groups
            if group[0].test == run.test and group[0].primary == run.primary
        )
        group = next(same, None)
        groups.append([run]) if group is None else group.append(run)
    for group in groups:
        sign = 1 if group[0].primary in LOWER_IS_BETTER else -1
        group.sort(key=lambda run, sign=sign: sign * result(run)[SFT])  # type: ignore[misc]
    return sorted(groups, key=len, reverse=True)


def result(run: Run) -> Mapping[str, Any]:
    """The primary metric of a judged run."""
    assert run.metrics is not None
    primary: Mapping[str, Any] = (
        run.metrics[run.primary][PRIMARY_METRIC]
        if isinstance(run, EmbeddingRun)
        else run.metrics["primary"]
    )
    return primary


def metric_title(run: Run) -> str:
    """The title of the primary metric; of an embedding model, that of its task."""
    return TASKS[run.primary].short if isinstance(run, EmbeddingRun) else title(run.primary)


def name_system(system: str) -> str:
    """The title of a system that a run was compared with."""
    return "BM25" if system == BM25 else system_name(system)


def others_of(run: Run) -> Mapping[str, Any]:
    """The comparisons of a run with other systems, by system."""
    if isinstance(run, EmbeddingRun):
        against = (run.metrics or {})["against_bm25"][run.primary]
        return {BM25: {run.primary: against, "tuned": against}}
    others: Mapping[str, Any] = (run.metrics or {}).get("others", {})
    return others


def list_others(runs: Sequence[Run]) -> list[str]:
    """The systems other than zero-shot that some run was compared with."""
    return list(dict.fromkeys(name for run in runs for name in others_of(run)))


def count_seeds(run: Run) -> int:
    """With how many seeds the fine-tuned model of a judged run was trained."""
    return int((run.metrics or {}).get("training_seeds", 1))


def compare_pairs(group: Sequence[Run], params: EvaluateParams) -> list[Difference]:
    """Compare every two runs of a group, the better first; p is Holm-corrected over all pairs."""
    metric = group[0].primary
    pairs = list(itertools.combinations(group, 2))
    found = {}
    for first, second in pairs:
        before, after = ({row.id: row for row in run.scores or []} for run in (first, second))
        comparisons = compare_runs(before, after, [metric], params)
        if metric in comparisons:
            found[first.name, second.name] = comparisons[metric]
    adjusted = adjust_holm({"\n".join(names): comparison.p for names, comparison in found.items()})
    differences = []
    for first, second in pairs:
        names = (first.name, second.name)
        if names not in found:
            delta = result(second)[SFT] - result(first)[SFT]
            differences.append(Difference(*names, delta, None, None, None, 0))
            continue
        comparison = replace(found[names], p=adjusted["\n".join(names)])
        decided = decide(comparison, metric in LOWER_IS_BETTER, params.confidence)
        of_both = isinstance(comparison, SeedsComparison)
        differences.append(
            Difference(
                *names,
                comparison.delta,
                comparison.low,
                comparison.high,
                comparison.p,
                decided,
                (count_seeds(first), count_seeds(second)) if of_both else None,
            )
        )
    return differences


def seed_spread(group: Sequence[Run], seed: str = SEED) -> float | None:
    """The largest standard deviation of results that differ in their training seed alone, in one
    run or among several; None if no two do.
    """
    alike: dict[str, dict[Any, float]] = {}
    spreads = []
    for run in group:
        rest = str(sorted((name, str(value)) for name, value in run.params.items() if name != seed))
        alike.setdefault(rest, {})[run.params.get(seed)] = result(run)[SFT]
        if by_seed := (run.metrics or {}).get("by_seed"):
            spreads.append(stdev(by_seed.values()))
    spreads += [stdev(by_seed.values()) for by_seed in alike.values() if len(by_seed) > 1]
    return max(spreads, default=None)


def embedding_seed_sentence(group: Sequence[Run]) -> str:
    """Say how much the results of embedding runs vary that differ only in their seed.

    The intervals do not include this variation.
    """
    spread = seed_spread(group, EMBED_SEED)
    if spread is None:
        return (
            f"No two of these runs differ in {EMBED_SEED} alone, so it is unknown how much the "
            "seed of training changes the result. The intervals do not include it: a small "
            "difference can come from the seed."
        )
    return (
        f"Runs that differ in {EMBED_SEED} alone have a standard deviation of up to {spread:.3f}. "
        "The intervals do not include that: a difference of this size can come from the seed, "
        "however sure it is over test rows."
    )


def pair_sentence(differences: Sequence[Difference]) -> str:
    """Say how many of the differences, all over training seeds or none, are larger than their
    noise, and how many are undecided.
    """
    decided = sum(difference.decided != 0 for difference in differences)
    unpaired = sum(difference.p is None for difference in differences)
    explained, between = (
        ("the choice of test rows explains", "two runs")
        if differences[0].seeds is None
        else (
            "the choice of test rows and training seeds explains",
            "two runs with several training seeds each",
        )
    )
    said = (
        f"Larger than what {explained}: {decided} of {plural(len(differences), 'difference')} "
        f"between {between} (paired by test row, p Holm-corrected over all pairs)."
    )
    if unpaired:
        said += (
            f" {unpaired} cannot be paired and are undecided, because the cache no longer has the "
            "scores of both runs."
        )
    return said


def warn_of_seeds(group: Sequence[Run]) -> tuple[str, str]:
    """What intervals over test rows alone leave out, and the command that finds out."""
    spread = seed_spread(group)
    known = (
        "how much is unknown, since no two of these results differ in their training seed alone."
        if spread is None
        else f"results here that differ in their training seed alone have a standard deviation of "
        f"up to {spread:.3f}."
    )
    return (
        "Where a run has one training seed, the interval of its differences covers test rows only. "
        f"Another seed may change or reverse them; {known} To cover training, give both runs "
        "more seeds (each with its own parameters, as -S NAME=VALUE) and compare again:",
        seeds_command(run.params.get(SEED) for run in group),
    )


def other_sentences(group: Sequence[Run]) -> list[str]:
    """Say how often fine-tuning was better than each other system."""
    said = []
    for system in list_others(group):
        verdicts = [
            others_of(run)[system]["tuned"]["verdict"] for run in group if system in others_of(run)
        ]
        better, worse = verdicts.count(1), verdicts.count(-1)
        said.append(
            f"Against {name_system(system)}, fine-tuning is better in {better} of "
            f"{plural(len(verdicts), 'run')}, worse in {worse}, and in "
            f"{len(verdicts) - better - worse} there is no evidence either way."
        )
    return said


def format_param(value: Any) -> str:
    """Format a parameter's value as one word."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def table_rows(runs: Sequence[Run], names: Sequence[str]) -> list[list[str]]:
    """Header and rows: name, differing parameters, training seeds, primary metric, gain, verdict,
    other systems, loss.
    """
    others = list_others(runs)
    heads = ["experiment", *names, "seeds", "metric", *JUDGED, *map(name_system, others)]
    rows = [[*heads, "validation loss"]]
    for run in runs:
        cells = ["–"] * 7 + ["not judged"]
        beside = _beside(run)
        if run.metrics is not None:
            cells = [str(count_seeds(run)), metric_title(run), *judged_cells(run)]
        params = [format_param(run.params.get(name)) for name in names]
        loss = "–" if run.validation_loss is None else f"{run.validation_loss:.4f}"
        means = [f"{beside[system]:.3f}" if system in beside else "–" for system in others]
        rows.append([run.name, *params, *cells, *means, loss])
    return rows


def judged_cells(run: Run) -> list[str]:
    """Cells of a judged run: zero-shot, fine-tuned, gain with its interval, verdict."""
    assert run.metrics is not None
    primary = result(run)
    means = [f"{primary[system]:.3f}" for system in SYSTEMS]
    gains = ("delta", "low", "high")
    change = [f"{primary[name]:+.3f}" if name in primary else "–" for name in gains]
    return [*means, *change, VERDICTS[run.metrics["verdict"]]]


def embedding_rows(runs: Sequence[EmbeddingRun]) -> list[list[str]]:
    """Header and rows: name, differing parameters, primary task, nDCG@10, gain, verdict.

    A parameter of a model's file, `PATH:NAME`, counts as differing if two runs of that model differ
    in it.
    """
    names = [
        name
        for name in changed_params(runs)
        if ":" not in name or len({str(run.params[name]) for run in runs if name in run.params}) > 1
    ]
    rows = [["experiment", *names, "task", "BM25", *JUDGED]]
    for run in order_runs(runs):
        params = [format_param(run.params.get(name)) for name in names]
        bm25 = f"{result(run)[BM25]:.3f}"
        rows.append([run.name, *params, metric_title(run), bm25, *judged_cells(run)])
    return rows


def _beside(run: Run) -> dict[str, float]:
    """The primary metric of the other systems that a run was compared with."""
    return {system: result[run.primary][system] for system, result in others_of(run).items()}


def align(rows: Sequence[Sequence[str]]) -> str:
    """Align a table for a terminal: first column and words left, the rest right."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        left = number == 0 or column[0] in ("metric", "task", "verdict")
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def order_runs(runs: Sequence[Run]) -> list[Run]:
    """Judged runs first, best first within a group; then the others by validation loss."""
    rest = [run for run in runs if run.metrics is None]
    rest.sort(key=lambda run: (run.validation_loss is None, run.validation_loss or 0.0, run.name))
    return [*(run for group in group_runs(runs) for run in group), *rest]


def chart_runs(group: Sequence[Run], name: str, confidence: float, paired: bool) -> Chart:
    """Each run of a group before and after tuning with the interval of its gain, set off from
    zero-shot, and the systems that it was held against. `name` is the metric's.
    """
    marks = []
    for number, run in enumerate(group, 1):
        primary, label = result(run), f"{number}. {run.name}"
        interval = [
            primary[ZEROSHOT] + primary[end] if end in primary else None for end in ("low", "high")
        ]
        marks += [
            Mark(label, "zero-shot", primary[ZEROSHOT]),
            Mark(label, "fine-tuned", primary[SFT], *interval),
            *(Mark(label, name_system(other), value) for other, value in _beside(run).items()),
        ]
    best = group[0]
    shown = f"{result(best)[SFT]:.3f}"
    tied = [run for run in group if f"{result(run)[SFT]:.3f}" == shown]
    others = f", of {len(group)} runs" if len(group) > 1 else ""
    claim = f"{best.name} has the best {name} here{others}: {shown}."
    if len(tied) > 1:
        claim = f"{len(tied)} of {len(group)} runs share the best {name} here: {shown}."
    below = "; the table below does" if paired else ""
    several = {count_seeds(run) > 1 for run in group}
    covered = "test rows and training seeds" if True in several else "test rows only"
    if len(several) > 1:
        covered += ", or test rows only if the run has one seed"
    return plot_marks(
        claim,
        marks,
        "run",
        f"{name}{' (lower is better)' if group[0].primary in LOWER_IS_BETTER else ''}",
        note=f"Bars: the {confidence:.0%} interval of the gain over the run's own zero-shot score, "
        f"added to that score. It covers {covered}. Overlapping bars do not tell whether two runs "
        f"differ{below}.",
    )


def describe_gain(difference: Difference) -> str:
    """Describe a decided difference from the better run's side; without training seeds, as what was
    seen, not as what a run like it would do.
    """
    assert difference.low is not None
    assert difference.high is not None
    better, worse = (difference.first, difference.second)[:: -difference.decided]
    least, most = sorted(map(abs, (difference.low, difference.high)))
    gain = f"{abs(difference.delta):.3f} ({least:.3f} to {most:.3f}, p = {difference.p:.4f})"
    did = "did" if difference.seeds is None else "is"
    return f"  {better} {did} better than {worse} by {gain}"


def note_groups(groups: Sequence[Sequence[Run]], differ: str) -> list[str]:
    """Say that runs of different groups are not compared, if there are several groups."""
    if len(groups) < 2:
        return []
    sizes = ", ".join(str(len(group)) for group in groups)
    return [
        f"The runs form {len(groups)} groups ({sizes}) {differ}. Runs of different groups are not "
        "compared, because their numbers are about different questions."
    ]


def make_embedding_notes(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Notes on what the embedding table does not show."""
    notes = note_groups(groups, "with different test rows, texts to search or primary task")
    if any(len(group) > 1 for group in groups):
        notes.append(
            "Which of two embedding runs is better stays undecided: DVC keeps no rankings, so they "
            "cannot be paired by test row, and the intervals of their gains cannot decide it. "
            "The best run here looks better than it is."
        )
    return notes


def make_notes(groups: Sequence[Sequence[Run]], unjudged: Sequence[Run]) -> list[str]:
    """Notes on what is not compared and which conclusions to avoid."""
    notes = note_groups(groups, "with different test rows or primary metric")
    if unjudged:
        names = ", ".join(run.name for run in unjudged)
        notes.append(
            f"Not judged, because they ended before evaluate or changed after it: {names}. They "
            "can be ordered by validation loss only."
        )
    notes.append(
        "The best of several runs looks better than it is: choose by validation loss, and look at "
        "the test rows once."
    )
    return notes


def show_group(group: Sequence[Run], confidence: float, paired: bool) -> dict[str, Any]:
    """The data that the page shows for a group."""
    name = metric_title(group[0])
    if isinstance(group[0], EmbeddingRun):
        name = f"nDCG@10, {name}"
    return {
        "runs": [run.name for run in group],
        "others": other_sentences(group),
        "chart": chart_runs(group, name, confidence, paired),
        "title": name,
        "n": result(group[0])["n"],
    }


def show_embeddings(runs: Sequence[EmbeddingRun], confidence: float) -> dict[str, Any]:
    """The text and the data of the page for embedding models."""
    groups = group_runs(runs)
    return {
        "rows": embedding_rows(runs),
        "notes": make_embedding_notes(groups),
        "groups": [show_group(group, confidence, paired=False) for group in groups],
        "seeds": [embedding_seed_sentence(group) for group in groups if len(group) > 1],
    }


def render_comparison(
    runs: Sequence[Run], params: EvaluateParams, embedding_runs: Sequence[EmbeddingRun] = ()
) -> tuple[str, str]:
    """Render the comparison as text and as a page."""
    names, ordered, groups = changed_params(runs), order_runs(runs), group_runs(runs)
    rows = table_rows(ordered, names)
    shown, said = [], []
    for group in groups:
        differences = compare_pairs(group, params)
        over_seeds = [one for one in differences if one.seeds is not None]
        over_rows = [one for one in differences if one.seeds is None]
        parts = [part for part in (over_seeds, over_rows) if part]
        sentences = [pair_sentence(part) for part in parts]
        judged = any(one.p is not None for one in over_rows)
        warning = warn_of_seeds(group) if judged else None
        for part, sentence in zip(parts, sentences, strict=True):
            said.append(sentence)
            if warning and part is over_rows:
                said += [warning[0], f"    {warning[1]}"]
            said += [describe_gain(one) for one in part if one.decided]
        cells = {(other.first, other.second): other for other in differences}
        about = show_group(group, params.confidence, paired=True)
        shown.append({**about, "cells": cells, "sentences": sentences, "warning": warning})
        said += shown[-1]["others"]
    notes = make_notes(groups, [run for run in ordered if run.metrics is None]) if runs else []
    printed = [align(rows), "\n".join([*said, *notes])] if runs else []

    embedding = show_embeddings(embedding_runs, params.confidence) if embedding_runs else None
    if embedding:
        heading = "Embedding models (make embed), by nDCG@10:"
        beside = [part for group in embedding["groups"] for part in group["others"]]
        printed += [
            heading,
            align(embedding["rows"]),
            "\n".join([*embedding["seeds"], *beside, *embedding["notes"]]),
        ]
    page = render_chart_page(
        "compare.html.jinja",
        rows=rows,
        groups=shown,
        notes=notes,
        embedding=embedding,
    )
    return "\n\n".join(printed), page


def main() -> None:
    """Print the table and write the page."""
    evaluate = load_params().evaluate
    revisions = list_revisions()
    runs, embedding_runs = list_runs(revisions), list_embedding_runs(revisions)
    if not any(run.metrics is not None or run.validation_loss is not None for run in runs):
        runs = []
    if not runs and not embedding_runs:
        raise InputError(
            "no experiment has a result; run dvc repro, or dvc exp show to see what there is"
        )
    said, page = render_comparison(runs, evaluate, embedding_runs)
    write_text(PAGE_PATH, page)
    print(f"\n{said}\n\nThe runs with their intervals drawn: {PAGE_PATH}")


if __name__ == "__main__":
    run_main(main)

"""Would more rows help? python -m commands.learning_curve

Trains on 12.5%, 25% and 50% of the train groups, each share inside the next, and tests every model
on the same rows; `dvc repro` has already trained on all of them. Each size is a DVC experiment, so
a killed command resumes with the sizes that are missing. Writes reports/learning_curve.html.
"""

import argparse
import logging
import math
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from library.corpus.fractions import take_fraction
from library.entry import run_main
from library.errors import InputError
from library.files import write_text
from library.formatted import read_formatted
from library.pages.learning_curve import Curve, Point, render_curve, render_text
from library.pages.statements import seeds_command
from library.params import EvaluateParams, load_params
from library.records import ZEROSHOT, ScoredRow
from library.repository.experiments import Run, list_revisions, read_run
from library.repository.revisions import WORKSPACE, Revision
from library.repository.workspace import borrow_workspace, recover_workspace
from library.verdict.learning_curve import forecast
from library.verdict.metrics import LOWER_IS_BETTER, UNBOUNDED
from library.verdict.scoring import compare_runs, compare_systems
from library.verdict.statistics import adjust_holm, decide

log = logging.getLogger(__name__)

PAGE_PATH = Path("reports/learning_curve.html")
FRACTIONS = (0.125, 0.25, 0.5)
NAME = "sft.train_fraction"
FEWEST_SIZES = 4  # for a forecast: three fix the law, one tests it


@dataclass(frozen=True)
class Size:
    """A run on part of the train rows."""

    rows: int
    groups: int
    run: Run


def fraction(text: str) -> float:
    """Parse a share of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def find_here(revisions: Sequence[tuple[str, Revision]]) -> tuple[Revision, Run]:
    """The workspace and its run. Raises InputError if it has no result, or one on part of the
    rows.
    """
    revision = {revision.commit: revision for _, revision in revisions}[WORKSPACE]
    run = read_run(WORKSPACE, revision)
    if run is None or run.metrics is None or run.scores is None:
        raise InputError("the workspace has no result: run `dvc repro` first")
    if run.params.get(NAME) != 1:
        raise InputError(
            f"params.yaml: {NAME}: {run.params.get(NAME)}; set it to 1.0 and run dvc repro first"
        )
    return revision, run


def find_run(
    revisions: Sequence[tuple[str, Revision]], here: Revision, params: Mapping[str, Any]
) -> Run | None:
    """The run with these parameters and the workspace's code, prompts and rows; None without
    scores.
    """
    for name, revision in revisions:
        if revision.inputs == here.inputs:
            run = read_run(name, revision)
            if run is not None and run.params == params and run.metrics and run.scores is not None:
                return run
    return None


def run_fraction(share: float) -> None:
    """Run the whole pipeline on part of the train rows. Raises InputError if it fails."""
    name = f"curve-{100 * share:g}-{secrets.token_hex(2)}".replace(".", "-")
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", name, "-S", f"{NAME}={share}"]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"{name} failed, see above; the same command resumes")


def pair_rows(sizes: Sequence[Size], metric: str) -> list[dict[str, ScoredRow]]:
    """The test rows by id at each size, those that have the metric at every size."""
    by_size = [{row.id: row for row in size.run.scores or []} for size in sizes]
    kept = [
        key
        for key in by_size[-1]
        if all(
            metric in scores
            for scored in by_size
            for scores in (scored[key].systems[ZEROSHOT], scored[key].tuned)
        )
    ]
    return [{key: scored[key] for key in kept} for scored in by_size]


def make_curve(sizes: Sequence[Size], metric: str, params: EvaluateParams) -> Curve:
    """Compute the points, the gain of each step, and the forecast for twice the rows."""
    by_size = pair_rows(sizes, metric)
    lower = metric in LOWER_IS_BETTER
    gains = []
    for scored in by_size:
        rows = list(scored.values())
        _, *again = rows[0].seeds
        gains.append(compare_systems(rows, [metric], params, again=again)[metric])
    steps = [compare_runs(*pair, [metric], params)[metric] for pair in pairwise(by_size)]
    adjusted = adjust_holm({at: step.p for at, step in enumerate(steps)})
    steps = [replace(step, p=adjusted[at]) for at, step in enumerate(steps)]
    scores = np.array([[row.tuned[metric] for row in scored.values()] for scored in by_size]).T
    counts = [size.rows for size in sizes]
    groups = [row.group for row in by_size[-1].values()]
    most = math.inf if metric in UNBOUNDED else 1.0
    drawing = (most, params.draws, params.confidence, params.seed)
    hidden = more = None
    if len(sizes) >= FEWEST_SIZES:
        hidden = forecast(counts[:-1], scores[:, :-1], groups, counts[-1], *drawing)
        more = forecast(counts, scores, groups, 2 * counts[-1], *drawing)
    return Curve(
        metric=metric,
        lower=lower,
        confidence=params.confidence,
        n=len(groups),
        test_groups=len(set(groups)),
        zeroshot=gains[0].baseline,
        points=[
            Point(size.rows, size.groups, size.run.name, gain)
            for size, gain in zip(sizes, gains, strict=True)
        ],
        steps=[(step, decide(step, lower, params.confidence)) for step in steps],
        hidden=hidden,
        more=more,
        seeds=min(len(row.seeds) for scored in by_size for row in scored.values()),
        more_seeds=seeds_command(size.run.params.get("sft.seed") for size in sizes),
    )


def main() -> None:
    """Run the missing sizes, draw the curve and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.learning_curve", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--fractions",
        type=fraction,
        nargs="+",
        default=FRACTIONS,
        help="shares of the train groups, besides all of them (default: 0.125 0.25 0.5)",
    )
    shares = sorted(set(parser.parse_args().fractions))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    recover_workspace()
    params = load_params()
    revisions = list_revisions()
    here, whole = find_here(revisions)
    train = read_formatted("train")
    parts = {share: take_fraction(train, share) for share in (*shares, 1.0)}
    for one, other in pairwise(parts):
        if len(parts[one]) == len(parts[other]):
            raise InputError(
                f"{one:g} and {other:g} of {len({row['group'] for row in train})} train groups are "
                "the same rows; choose other --fractions"
            )
    missing = [
        share
        for share in shares
        if find_run(revisions, here, {**whole.params, NAME: share}) is None
    ]
    if missing:
        log.info("%d of %d sizes are done", len(shares) - len(missing), len(shares))
        try:
            with borrow_workspace([NAME], target=None):
                for share in missing:
                    log.info("training on %g of the train groups", share)
                    run_fraction(share)
        except KeyboardInterrupt:
            sys.exit("stopped; the same command resumes")
        revisions = list_revisions()
    found = {share: find_run(revisions, here, {**whole.params, NAME: share}) for share in shares}
    runs = {share: run for share, run in found.items() if run is not None} | {1.0: whole}
    if len(runs) <= len(shares):
        raise InputError("an experiment of the curve is missing: run the same command again")
    sizes = [
        Size(len(parts[share]), len({row["group"] for row in parts[share]}), run)
        for share, run in runs.items()
    ]
    curve = make_curve(sizes, params.evaluate.primary, params.evaluate)
    write_text(PAGE_PATH, render_curve(curve))
    print(f"\n{render_text(curve)}\n\nThe curve: {PAGE_PATH}")


if __name__ == "__main__":
    run_main(main)

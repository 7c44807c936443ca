"""Check the coverage of the interval over training seeds and test rows on simulated studies.

    python -m benchmarks.seeds_calibration 1000

The studies have no effect, and are drawn and judged as in benchmarks/verdict_calibration.py. A
row's difference is what verdict_calibration draws, plus an effect of its seed on all rows, plus an
effect of seed and row together, with half the standard deviation of the first. `spread` is the
standard deviation of the seeds' effect, in units of the first: 0, 0.1 (as much as the choice of 100
rows) and 0.3. `binary` rows are right or wrong, decided by the sum of all three.

For each setting: how often the interval contained the true difference, how often a difference was
found although there is none, and both for the interval of the first seed alone. Writes
benchmarks/seeds_calibration.json.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.verdict_calibration import CONFIDENCE, draw_groups, write_record
from library.verdict.statistics import compare, compare_seeds, decide

DRAWS = 1000
RESIDUAL = 0.5


def draw_table(
    rng: Generator, kind: str, spread: float, rows: int, seeds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Draw the baseline's scores by row, the candidate's by seed and row, and the rows' groups.

    The expected difference is 0.
    """
    groups = draw_groups(rng, rows)
    shared, own = rng.normal(size=(2, rows))
    latent = (shared[groups] + own) / math.sqrt(2)
    training = spread * rng.normal(size=(seeds, 1)) + RESIDUAL * rng.normal(size=(seeds, rows))
    names = [f"{group:03}" for group in groups]
    if kind == "normal":
        return np.zeros(rows), 0.1 * (latent + training), names
    if kind == "skewed":
        return np.zeros(rows), 0.1 * (np.exp(latent - 0.5) - 1 + training), names
    # right or wrong, from the row's difficulty plus noise of the same spread in both systems
    noise = math.sqrt(1 + spread**2 + RESIDUAL**2)
    before = latent + noise * rng.normal(size=rows) > 0
    after = latent + rng.normal(size=rows) + training > 0
    return before.astype(np.float64), after.astype(np.float64), names


def judge(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    groups: Sequence[str],
    effect: float,
    study: int,
) -> list[bool]:
    """Whether the interval contains the true difference, and a difference is found: by all seeds,
    then by the first of each side. Scores are (seeds, rows); `study` seeds the draws.
    """
    how = groups, DRAWS, CONFIDENCE, study
    judged = (
        compare_seeds(before.tolist(), after.tolist(), *how),
        compare(before[0].tolist(), after[0].tolist(), *how),
    )
    return [
        value
        for one in judged
        for value in (one.low <= effect <= one.high, decide(one, False, CONFIDENCE) != 0)
    ]


def calibrate(kind: str, spread: float, rows: int, seeds: int, studies: int) -> dict[str, float]:
    """How often the interval contained the truth, and a verdict was wrong; by all seeds and one."""
    rng = np.random.default_rng(seeds)
    found = []
    for study in range(studies):
        before, after, groups = draw_table(rng, kind, spread, rows, seeds)
        found.append(judge(before[np.newaxis], after, groups, 0, study))
    names = ("covers", "false", "one_seed_covers", "one_seed_false")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def main() -> None:
    """Judge the studies, and record how often each interval contained the truth."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds_calibration", description="Simulated studies, judged."
    )
    parser.add_argument("studies", type=int, help="of each kind, such as 1000")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for rows in (100, 30):
        for seeds in (2, 3, 5):
            for kind in ("normal", "skewed", "binary"):
                for spread in (0.0, 0.1, 0.3):
                    name = f"{rows} rows, {seeds} seeds, {kind}, spread {spread}"
                    results[name] = calibrate(kind, spread, rows, seeds, options.studies)
                    print(name, json.dumps(results[name]), flush=True)
    write_record(Path(__file__).with_suffix(".json"), options.studies, DRAWS, results)


if __name__ == "__main__":
    main()

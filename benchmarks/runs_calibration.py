"""Check the coverage of the interval over both runs' training seeds and test rows on simulated
studies.

    python -m benchmarks.runs_calibration 1000

Two runs answer the same rows, each trained with several seeds. A row's difference between them is
what benchmarks/verdict_calibration.py draws: `normal`, `skewed`, or `binary` from the sum of all
that follows. Each run adds an effect of its seed on all rows, and one of seed and row together, as
in benchmarks/seeds_calibration.py. `spread` is the standard deviation of the seeds' effect in each
run: 0.1 does as much as the choice of 100 rows. `shared` is the correlation of the effects of equal
seed numbers in both runs: the interval takes them as independent.

For each setting, with a true difference of 0 and of 0.05: how often the interval contained it, how
often a difference was found, and both for the interval of the first seed of each. Writes
benchmarks/runs_calibration.json.
"""

import argparse
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.seeds_calibration import DRAWS, RESIDUAL, judge
from benchmarks.verdict_calibration import draw_groups, write_record

Values = NDArray[np.float64]
SEEDS = ((2, 2), (3, 3), (5, 5), (2, 5))
# of each run, and the correlation between them
SPREADS = ((0, 0, 0), (0.1, 0.1, 0), (0.3, 0.3, 0), (0, 0.3, 0), (0.3, 0, 0), (0.3, 0.3, 0.5))


def draw_runs(
    rng: Generator,
    kind: str,
    effect: float,
    rows: int,
    seeds: tuple[int, int],
    spreads: tuple[float, float, float],
) -> tuple[list[Values], list[str]]:
    """Draw each run's scores, (seeds, rows), and the rows' groups.

    The expected difference is `effect`.
    """
    groups = draw_groups(rng, rows)
    shared, own = rng.normal(size=(2, rows))
    latent = (shared[groups] + own) / math.sqrt(2)
    names = [f"{group:03}" for group in groups]
    common = rng.normal(size=(max(seeds), 1))
    trained = [
        spread
        * (
            math.sqrt(spreads[2]) * common[:count]
            + math.sqrt(1 - spreads[2]) * rng.normal(size=(count, 1))
        )
        + RESIDUAL * rng.normal(size=(count, rows))
        for count, spread in zip(seeds, spreads[:2], strict=True)
    ]
    if kind == "binary":
        # right or wrong, from the row's difficulty for both and what it is for each run
        right = [latent + rng.normal(size=rows) + part > 0 for part in trained]
        # half of the answers are wrong: making 2·effect of these right adds `effect`
        right[1] |= rng.random(rows) < 2 * effect
        return [values.astype(np.float64) for values in right], names
    difference = latent if kind == "normal" else np.exp(latent - 0.5) - 1
    return [0.1 * trained[0], effect + 0.1 * (difference + trained[1])], names


def calibrate(
    kind: str,
    effect: float,
    rows: int,
    seeds: tuple[int, int],
    spreads: tuple[float, float, float],
    studies: int,
) -> dict[str, float]:
    """How often the interval contained the truth, and a difference was found; by all seeds and
    one.
    """
    rng = np.random.default_rng(sum(seeds))
    found = []
    for study in range(studies):
        (before, after), groups = draw_runs(rng, kind, effect, rows, seeds, spreads)
        found.append(judge(before, after, groups, effect, study))
    names = ("covers", "found", "one_seed_covers", "one_seed_found")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def main() -> None:
    """Judge the studies, and record how often each interval contained the truth."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runs_calibration", description="Simulated studies, judged."
    )
    parser.add_argument("studies", type=int, help="of each kind, such as 1000")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for rows, seeds, kind, spreads, effect in product(
        (100, 30), SEEDS, ("normal", "skewed", "binary"), SPREADS, (0.0, 0.05)
    ):
        name = (
            f"{rows} rows, {seeds[0]} and {seeds[1]} seeds, {kind}, spread {spreads[0]} and "
            f"{spreads[1]}{', shared 0.5' if spreads[2] else ''}, difference {effect}"
        )
        results[name] = calibrate(kind, effect, rows, seeds, spreads, options.studies)
        print(name, json.dumps(results[name]), flush=True)
    write_record(Path(__file__).with_suffix(".json"), options.studies, DRAWS, results)


if __name__ == "__main__":
    main()

"""Does the verdict keep its promise? Simulated studies with and without an effect are judged.

    python -m benchmarks.verdict_calibration 4000 --rows 100 30

A study of 100 rows has about 67 groups. A row's difference between the two systems is the true
effect, plus a part that its group shares, plus its own part, with half of the variance each:
`normal`; `skewed`, with many small losses and few large gains; or `binary`, right or wrong, where
the group's part makes its rows hard or easy for both systems.

Writes benchmarks/verdict_calibration.json.
"""

import argparse
import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from library.verdict.statistics import Comparison, compare, decide

ROWS_PER_GROUP = 1.5
DRAWS, CONFIDENCE = 2000, 0.95


def draw_groups(rng: Generator, rows: int) -> NDArray[np.int64]:
    """The group of each row: sizes 1, 2, 3 … with a mean of 1.5."""
    sizes: list[int] = []
    while sum(sizes) < rows:
        sizes.append(int(rng.geometric(1 / ROWS_PER_GROUP)))
    return np.repeat(np.arange(len(sizes)), sizes)[:rows]


def draw_study(
    rng: Generator, kind: str, effect: float, rows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Scores of both systems and the rows' groups; the expected difference of the scores is
    `effect`.
    """
    groups = draw_groups(rng, rows)
    shared, own = rng.normal(size=(2, rows))
    latent = (shared[groups] + own) / math.sqrt(2)
    names = [f"{group:03}" for group in groups]
    if kind == "normal":
        return np.zeros(rows), effect + 0.1 * latent, names
    if kind == "skewed":
        # a log-normal of mean 1 has its mean taken off: many small losses, a few large gains
        return np.zeros(rows), effect + 0.1 * (np.exp(latent - 0.5) - 1), names
    # right or wrong: each system is right where its own noise and the row's difficulty, shared by
    # both, say so
    before, after = ((latent + rng.normal(size=rows) > 0).astype(np.float64) for _ in range(2))
    # half of the rows are wrong: flipping 2·effect of these to right adds `effect`
    flips = rng.random(rows) < 2 * effect
    return before, np.where(flips, 1.0, after), names


def judge(kind: str, effect: float, rows: int, studies: int, seed: int) -> list[Comparison]:
    """The comparison of each study."""
    rng = np.random.default_rng(seed)
    judged = []
    for study in range(studies):
        before, after, groups = draw_study(rng, kind, effect, rows)
        judged.append(compare(before, after, groups, DRAWS, CONFIDENCE, study))
    return judged


def calibrate(kind: str, number: int, rows: int, studies: int) -> dict[str, float]:
    """How often each verdict was reached, and how often the interval contained the truth."""
    without = judge(kind, 0.0, rows, studies, number)
    found = [
        comparison.detectable for comparison in without if math.isfinite(comparison.detectable)
    ]
    detectable = float(np.mean(found))
    present = judge(kind, detectable, rows, studies, 100 + number)
    return {
        "better_or_worse_without_effect": float(
            np.mean([decide(one, False, CONFIDENCE) != 0 for one in without])
        ),
        "intervals_that_cover_without_effect": float(
            np.mean([one.low <= 0 <= one.high for one in without])
        ),
        "intervals_that_cover_with_effect": float(
            np.mean([one.low <= detectable <= one.high for one in present])
        ),
        "detectable_effect": detectable,
        "better_with_the_detectable_effect": float(
            np.mean([decide(one, False, CONFIDENCE) == 1 for one in present])
        ),
        "worse_with_the_detectable_effect": float(
            np.mean([decide(one, False, CONFIDENCE) == -1 for one in present])
        ),
    }


def write_record(path: Path, studies: int, draws: int, results: Mapping[str, Any]) -> None:
    """Write the results of a calibration, with their date and what they were computed from."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    record = {"date": today, "studies": studies, "draws": draws, "results": results}
    path.write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Judge the studies and record how often each verdict was reached."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verdict_calibration", description="Simulated studies, judged."
    )
    parser.add_argument("studies", type=int, help="of each kind and size, such as 4000")
    parser.add_argument("--rows", type=int, nargs="+", default=[100])
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for rows in options.rows:
        results[f"{rows} rows"] = {}
        for number, kind in enumerate(("normal", "skewed", "binary")):
            results[f"{rows} rows"][kind] = calibrate(kind, number, rows, options.studies)
            print(rows, kind, json.dumps(results[f"{rows} rows"][kind]), flush=True)
    write_record(Path(__file__).with_suffix(".json"), options.studies, DRAWS, results)


if __name__ == "__main__":
    main()

"""How much a result moves when nothing but the seed of training does: python -m stages.verdict.seeds

Reads the experiments that DVC knows (`dvc exp run --queue -S sft.seed=1,2,3`, then `dvc queue start`) and prints those that differ
from the workspace in sft.seed alone. The spread over seeds is no part of the intervals, which are about test rows, and is not
pooled with them.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import dvc.api

from stages.params import load_params
from stages.run import InputError, run_stage

SEED = "sft.seed"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _same(shown: Any, wanted: Any) -> bool:
    """DVC shows every number as a float, and what is null or empty as None."""
    numbers = all(isinstance(value, int | float) for value in (shown, wanted))
    return bool(shown == wanted) if numbers or shown is None else str(shown) == str(wanted)


def choose_runs(experiments: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """By seed, the primary metric of each experiment whose other parameters are those of `params`, a flat mapping.

    Experiments are mappings as `dvc.api.exp_show` makes them. One that did not run, or failed, has no metrics and is left out.
    """
    runs: dict[int, dict[str, float]] = {}
    for experiment in experiments:
        # a parameter that stands in several files has its file's name before it
        given = {name.rsplit(":", 1)[-1]: value for name, value in experiment.items()}
        known = {name: given[name] for name in params if name in given}
        if not known or any(not _same(value, params[name]) for name, value in known.items() if name != SEED):
            continue
        primary = {name: given.get(f"primary.{name}") for name in ("zeroshot", "sft", "delta", "low", "high")}
        if given.get(SEED) is not None and all(isinstance(value, int | float) for value in primary.values()):
            runs[int(given[SEED])] = {name: float(value) for name, value in primary.items() if value is not None}
    return runs


def render_seeds(runs: Mapping[int, Mapping[str, float]], primary: str) -> str:
    """A Markdown table of the runs, and their spread."""
    lines = [
        f"{primary}, by {SEED}:",
        "",
        "| seed | zero-shot | fine-tuned | change | interval over test rows |",
        "|--:|--:|--:|--:|:-:|",
    ]
    for seed, run in sorted(runs.items()):
        lines.append(
            f"| {seed} | {run['zeroshot']:.3f} | {run['sft']:.3f} | {run['delta']:+.3f} | {run['low']:+.3f} … {run['high']:+.3f} |"
        )
    changes = [run["delta"] for run in runs.values()]
    lines.append("")
    if len(changes) < 2:
        lines.append("One seed has no spread: dvc exp run --queue -S sft.seed=1,2,3 && dvc queue start")
    else:
        lines.append(
            f"Over {len(changes)} seeds the change is {mean(changes):+.3f} on average, from {min(changes):+.3f} to "
            f"{max(changes):+.3f}, with a standard deviation of {stdev(changes):.3f}. That is what training's chance adds; the "
            "intervals above are what the choice of test rows adds, and neither holds the other."
        )
    return "\n".join(lines)


def main() -> None:
    """Print the runs that differ from the workspace in their seed alone."""
    params = load_params()
    runs = choose_runs(dvc.api.exp_show(), flatten(params.model_dump(mode="json")))
    if not runs:
        raise InputError(
            "no experiment has the workspace's parameters and a result; run dvc repro, or dvc exp show to see what there is"
        )
    print(render_seeds(runs, params.evaluate.primary))


if __name__ == "__main__":
    run_stage(main)

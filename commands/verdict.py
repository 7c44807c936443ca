"""Print the verdict of the last run: python -m commands.verdict"""

from collections.abc import Mapping
from typing import Any

from library.entry import run_main
from library.errors import InputError
from library.files import read_json
from library.pages.report import describe_data, describe_model, give_verdict, render_summary
from library.pages.statements import system_name
from library.params import load_params
from library.paths import COSTS_PATH, EVALUATION_PATH, MANIFEST_PATH, SPLITS_PATH
from library.records import SPLITS
from library.units import gib


def cost_sentence(system: str, cost: Mapping[str, Any]) -> str:
    """What one answer of a system took, from its entry in reports/costs.json."""
    peak = f", {gib(cost['peak_mb'] * 1e6)} at most" if "peak_mb" in cost else ""
    return (
        f"One answer ({system_name(system)}): {cost['seconds_per_row']:.2f} s, "
        f"{cost['tokens_per_answer']:.0f} tokens{peak}, on {cost['device']}."
    )


def main() -> None:
    """Print the verdict, the table of metrics, which model and data they are about, and costs."""
    for path in (EVALUATION_PATH, SPLITS_PATH, MANIFEST_PATH):
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `dvc repro`")
    params, splits = load_params(), read_json(SPLITS_PATH)
    metrics = read_json(EVALUATION_PATH)
    splits = {name: splits[name] for name in SPLITS}
    verdict = give_verdict(metrics, splits, params)
    facts = {
        "model": describe_model(read_json(MANIFEST_PATH)["source"]),
        "data": describe_data(params.data.path, splits, params.sft.train_fraction),
    }
    print(f"\n{render_summary(verdict, facts)}\n")
    for system, cost in (read_json(COSTS_PATH) if COSTS_PATH.is_file() else {}).items():
        print(cost_sentence(system, cost))
    print("The report with plots and answers side by side: reports/report.html")


if __name__ == "__main__":
    run_main(main)

"""Print the verdict of the last run: python -m commands.verdict"""

from library.entry import run_main
from library.errors import InputError
from library.files import read_json
from library.pages.report import describe_data, describe_model, give_verdict, render_summary
from library.params import load_params
from library.paths import COSTS_PATH, EVALUATION_PATH, MANIFEST_PATH, SPLITS_PATH
from library.records import SPLITS


def main() -> None:
    """Print the verdict, the table of metrics, and which model and data they are about."""
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
        peak = f", and {cost['peak_mb']:,} MB at most," if "peak_mb" in cost else ""
        print(
            f"An answer of {system} took {cost['seconds_per_row']:.2f} s and "
            f"{cost['tokens_per_answer']:.0f} tokens{peak} on {cost['device']}."
        )
    print("The report with plots and answers side by side: reports/report.html")


if __name__ == "__main__":
    run_main(main)

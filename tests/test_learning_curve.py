"""Would more rows help? Known power laws, and the command with real DVC and stand-in stages."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import EVALUATE, ROOT, copy_params, edit_yaml
from hypothesis import given
from hypothesis import strategies as st
from test_pages import check_charts, fits, needs_browser, open_page
from test_sweep import run, run_and_commit, set_environment

from commands import learning_curve
from commands.learning_curve import Size, make_curve
from library.corpus.fractions import choose_groups, take_fraction
from library.errors import InputError
from library.files import write_text
from library.pages.learning_curve import chart_curve, render_curve, render_text
from library.records import ScoredRow
from library.repository.experiments import Run
from library.verdict.learning_curve import draw_means, extrapolate, forecast

SIZES = (50, 100, 200, 400)


@given(st.lists(st.text(), min_size=1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_share_of_groups_lies_within_a_larger(groups, one, other):
    small, large = (choose_groups(groups, share) for share in sorted((one, other)))
    assert small
    assert small <= large <= set(groups)
    assert choose_groups(groups, 1.0) == set(groups)
    rows = [{"group": group} for group in groups]
    assert {row["group"] for row in take_fraction(rows, other)} == choose_groups(groups, other)


def test_a_power_law_is_found_again():
    sizes = np.array(SIZES, dtype=float)
    law = 0.9 - 2 * sizes**-0.5
    found = extrapolate(sizes, law[None, :], 800.0, 1.0)
    assert found[0] == pytest.approx(0.9 - 2 * 800**-0.5, abs=1e-6)
    flat = extrapolate(sizes, np.full((1, 4), 0.4), 800.0, 1.0)
    assert flat[0] == pytest.approx(0.4, abs=1e-9)
    steep = np.array([[0.146, 0.524, 0.809, 0.959]])  # of the default run
    assert extrapolate(sizes, steep, 800.0, np.inf)[0] > 1
    assert extrapolate(sizes, steep, 800.0, 1.0)[0] < 1


def test_draws_take_whole_groups_and_the_same_for_every_size():
    scores = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 2.0]])
    means = draw_means(scores, ["a", "a", "b"], 200, 7)
    # both of group a or none: 0, 1/3 or 1, and always 1 apart
    assert {round(float(value), 6) for value in means[:, 0]} == {0.0, 0.333333, 1.0}
    assert np.allclose(means[:, 1] - means[:, 0], 1)


def make_scores(law, seed, rows=200, noise=0.2):
    """Scores of test rows in pairs, by size: what is hard at one size is hard at all."""
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.normal(0, noise, rows // 2), 2)[:, None]
    return np.array(law)[None, :] + hard + rng.normal(0, noise / 4, (rows, len(law)))


def test_the_interval_of_a_forecast_covers_the_truth():
    law = [0.9 - 3 * size**-0.6 for size in SIZES]
    truth = 0.9 - 3 * 800**-0.6
    groups = [f"g{row // 2}" for row in range(200)]
    covered = 0
    for seed in range(60):
        made = forecast(SIZES, make_scores(law, seed), groups, 800, 1.0, 400, 0.95, seed)
        covered += made.low <= truth <= made.high
    assert covered >= 52


def make_sizes(law, seed=1, zeroshot=0.2, seeds=()):
    """Sizes along a law; `seeds` are what further training seeds score beside that."""
    scores = make_scores(law, seed)
    sizes = []
    for at, rows in enumerate(SIZES):
        scored = [
            ScoredRow(
                f"r{row}",
                f"g{row // 2}",
                None,
                {"sft": {"rouge_l": float(value)}, "zeroshot": {"rouge_l": zeroshot}}
                | {f"sft@{at}": {"rouge_l": value + by} for at, by in enumerate(seeds, 1)},
            )
            for row, value in enumerate(scores[:, at])
        ]
        run_of_size = Run(f"curve-{at}", {"sft.seed": 7}, {"n": 1}, None, None, scored)
        sizes.append(Size(rows, rows // 2, run_of_size))
    return sizes


def test_more_rows_help_where_the_curve_still_rises():
    curve = make_curve(make_sizes([0.9 - 3 * size**-0.6 for size in SIZES]), "rouge_l", EVALUATE)
    assert curve.verdict == 1
    assert curve.more.change == pytest.approx(3 * (400**-0.6 - 800**-0.6), abs=0.03)
    said = render_text(curve)
    assert "Twice the rows would likely help: with about 800 train rows" in said
    assert "The last step, 200 to 400 rows, helped" in said
    assert (
        "The intervals cover test rows only: each size was trained with one seed, and another may "
        "change or reverse a step. To find out, run dvc exp run -S 'sft.seeds=[1,2]' and then make "
        "learning-curve again." in said
    )
    chart = chart_curve(curve)
    assert [row[:2] for row in chart.rows] == [
        *([f"{size}", "fine-tuned"] for size in SIZES),
        ["800", "forecast"],
        ["", "zero-shot"],
    ]
    assert "the forecast for twice the rows" in chart.note
    assert "curve-0" not in render_curve(curve)


def test_a_flat_curve_is_no_evidence_and_a_fall_is_no_law():
    flat = make_curve(make_sizes([0.5, 0.5, 0.5, 0.5]), "rouge_l", EVALUATE)
    assert flat.verdict == 0
    assert "There is no evidence that the last step, 200 to 400 rows, helped" in render_text(flat)
    fall = make_curve(make_sizes([0.4, 0.5, 0.55, 0.2]), "rouge_l", EVALUATE)
    assert (fall.foreseen, fall.verdict) == (False, 0)
    assert "No forecast for more rows" in render_text(fall)
    assert "forecast" not in {row[1] for row in chart_curve(fall).rows}
    steep = make_curve(make_sizes([0.146, 0.524, 0.809, 0.959]), "rouge_l", EVALUATE)
    assert (steep.fits, steep.verdict) == (False, 0)
    assert "No forecast for more rows: no power law runs through these points" in render_text(steep)
    assert "The last step, 200 to 400 rows, helped" in render_text(steep)
    few = make_curve(make_sizes([0.1, 0.3, 0.4, 0.5])[-2:], "rouge_l", EVALUATE)
    assert "Too few sizes for a forecast" in render_text(few)
    assert len(chart_curve(few).rows) == 3


def test_steps_and_gains_cover_training_seeds_where_every_size_has_several():
    law = [0.9 - 3 * size**-0.6 for size in SIZES]
    curve = make_curve(make_sizes(law, seeds=(0.1, -0.1)), "rouge_l", EVALUATE)
    assert curve.seeds == 3
    alone = make_curve(make_sizes(law), "rouge_l", EVALUATE)
    step, gain = curve.steps[-1][0], curve.points[-1].gain
    assert step.delta == pytest.approx(alone.steps[-1][0].delta)
    # squared errors of the seeds alone, 0.01/3 for each size, with Student's 4.3027
    seeds = 4.3027 * math.sqrt(0.01 / 3)
    rows = alone.steps[-1][0].high - alone.steps[-1][0].delta
    assert step.high - step.delta == pytest.approx(math.hypot(rows, seeds * math.sqrt(2)), rel=0.02)
    rows = alone.points[-1].gain.high - alone.points[-1].gain.delta
    assert gain.high - gain.delta == pytest.approx(math.hypot(rows, seeds), rel=0.02)
    assert (curve.steps[-1][1], curve.verdict) == (0, 0)
    said = render_text(curve)
    assert (
        "Gains and steps cover test rows and training seeds: each size was trained with 3." in said
    )
    assert "cover test rows only: each" not in said
    assert "interval over training seeds" in render_curve(curve)
    assert "interval over training seeds" not in render_curve(alone)


@needs_browser
@pytest.mark.parametrize("width", [1300, 390])
def test_the_page_draws_the_curve_and_fits_a_phone(tmp_path, context, width):
    curve = make_curve(make_sizes([0.9 - 3 * size**-0.6 for size in SIZES]), "rouge_l", EVALUATE)
    write_text(tmp_path / "curve.html", render_curve(curve))
    page, errors = open_page(context, tmp_path / "curve.html")
    page.set_viewport_size({"width": width, "height": 900})
    titles = check_charts(page, tmp_path / "curve.html")
    assert titles == [["train rows (log scale)", "ROUGE-L"]]
    assert page.locator(".plot .mark-rule.role-mark line").count() == 5
    assert fits(page)
    assert errors == []


STAND_IN = """
import json, sys
from pathlib import Path
from ruamel.yaml import YAML
from library.corpus.fractions import take_fraction

def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

sft = YAML(typ="safe").load(Path("params.yaml"))["sft"]
lines = lambda rows: "".join(json.dumps(row) + "\\n" for row in rows)
if sys.argv[1] == "format":
    for name, count in (("train", 80), ("test", 40)):
        rows = [{"id": f"{name}{at}", "group": f"{name} group {at // 2}", "question": "q",
                 "positive": "p"} for at in range(count)]
        write(f"data/formatted/{name}.jsonl", lines(rows))
elif sys.argv[1] == "sft":
    rows = [json.loads(line) for line in Path("data/formatted/train.jsonl").open()]
    taken = len(take_fraction(rows, sft["train_fraction"]))
    if taken == 20 and Path("fail").exists():
        sys.exit("error: sft: out of memory")
    write("artifacts/adapter/size.txt", str(taken))
    write("reports/sft_history.csv", "step,loss,eval_loss\\n1,1,1\\n")
else:
    mean = 0.9 - 3 * float(Path("artifacts/adapter/size.txt").read_text()) ** -0.6
    rows = [{"id": f"test{at}", "group": f"test group {at // 2}", "pair": None,
             "zeroshot": {"rouge_l": 0.1}, "sft": {"rouge_l": mean + (at % 7) / 50}}
            for at in range(40)]
    write("data/predictions/scores.jsonl", lines(rows))
    write("metrics/evaluation.json", json.dumps({"primary": {"sft": mean}}))
"""
STAGES = {
    "format": {"deps": ["stand_in.py"], "outs": ["data/formatted"]},
    "sft": {
        "params": ["sft"],
        "deps": ["data/formatted/train.jsonl", "stand_in.py"],
        "outs": ["artifacts/adapter", "reports/sft_history.csv"],
    },
    "evaluate": {
        "deps": ["artifacts/adapter", "data/formatted/test.jsonl", "stand_in.py"],
        "outs": ["data/predictions/scores.jsonl"],
        "metrics": [{"metrics/evaluation.json": {"cache": False}}],
    },
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A Git and DVC repository whose pipeline has run once."""
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    set_environment(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    edit_yaml("params.yaml", evaluate__draws=1000)
    Path("stand_in.py").write_text(STAND_IN)
    Path(".gitignore").write_text("/checkpoints/\n/reports/learning_curve.html\n/fail\n")
    run_and_commit(STAGES)


def count_experiments():
    listed = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return len([name for name in listed if "/curve-" in name])


@pytest.mark.slow
def test_sizes_are_experiments_that_are_run_once_and_leave_the_workspace_as_it_was(
    repository, monkeypatch, capfd
):
    monkeypatch.setattr(sys, "argv", ["learning_curve"])
    Path("fail").touch()
    with pytest.raises(InputError, match=r"^curve-25-\w+ failed, see above"):
        learning_curve.main()
    assert count_experiments() == 1
    assert run("git", "status", "--porcelain") == ""
    Path("fail").unlink()
    learning_curve.main()
    assert count_experiments() == 3
    said = capfd.readouterr().out
    assert "Twice the rows would likely help: with about 160 train rows" in said
    numbers = [line.split()[:3] for line in said.splitlines() if line.strip()[:2] in "10 20 40 80"]
    assert [row[:2] for row in numbers if len(row) == 3] == [
        ["10", "5"],
        ["20", "10"],
        ["40", "20"],
        ["80", "40"],
    ]
    assert run("git", "status", "--porcelain") == ""
    assert Path("artifacts/adapter/size.txt").read_text() == "80"
    assert "Would more rows help?" in Path("reports/learning_curve.html").read_text()
    learning_curve.main()
    assert count_experiments() == 3

    # other code is another curve
    Path("stand_in.py").write_text(STAND_IN + "\n")
    run("dvc", "repro", "--quiet")
    learning_curve.main()
    assert count_experiments() == 6
    monkeypatch.setattr(sys, "argv", ["learning_curve", "--fractions", "0.5", "0.505"])
    with pytest.raises(InputError, match=r"0\.5 and 0\.505 of 40 train groups are the same rows"):
        learning_curve.main()
    edit_yaml("params.yaml", sft__train_fraction=0.5)
    with pytest.raises(InputError, match="the workspace has no result: run `dvc repro` first"):
        learning_curve.main()
    run("dvc", "repro", "--quiet")
    with pytest.raises(InputError, match=r"sft\.train_fraction: 0\.5; set it to 1\.0"):
        learning_curve.main()

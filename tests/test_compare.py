"""Experiments compared: by hand-made runs, by real DVC experiments, and the page in a browser."""

import hashlib
import html
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import EVALUATE, copy_params, edit_yaml
from ruamel.yaml import YAML
from test_pages import HOSTILE, check_charts, fits, needs_browser, open_page

from commands import compare
from commands.compare import (
    PAGE_PATH,
    align,
    chart_runs,
    compare_pairs,
    group_runs,
    order_runs,
    render_comparison,
    table_rows,
)
from library.errors import InputError
from library.files import write_json, write_text
from library.records import ScoredRow
from library.repository.experiments import Run, list_revisions, list_runs
from library.repository.lock import is_consistent

PARAMS = {"model": "tiny", "sft.seed": 7, "sft.learning_rate": 0.002, "evaluate.primary": "rouge_l"}


def make_run(
    name,
    mean=0.5,
    test="rows",
    rows=60,
    noise=0.05,
    judged=True,
    loss=1.0,
    primary="rouge_l",
    seeds=(),
    **params,
):
    """A run whose rows score about `mean`: what is hard for one run is hard for all, and `noise` is
    each run's own. `seeds` are what further training seeds score beside that.
    """
    hard, own = random.Random(0), random.Random(name)
    scores = [
        ScoredRow(
            f"r{row}",
            f"g{row // 2}",
            None,
            {"sft": {primary: mean + 0.5 * hard.random() + noise * own.random()}, "zeroshot": {}},
        )
        for row in range(rows)
    ]
    for row in scores:
        first = row.systems["sft"][primary]
        row.systems.update({f"sft@{at}": {primary: first + by} for at, by in enumerate(seeds, 1)})
    sft = sum(row.tuned[primary] for row in scores) / rows
    by_seed = {"sft": sft - sum(seeds) / (1 + len(seeds))}
    by_seed |= {f"sft@{at}": by_seed["sft"] + by for at, by in enumerate(seeds, 1)}
    trained = {"training_seeds": 1 + len(seeds), **({"by_seed": by_seed} if seeds else {})}
    result = {
        "zeroshot": 0.4,
        "sft": sft,
        "delta": sft - 0.4,
        "low": sft - 0.5,
        "high": sft - 0.3,
        "p": 0.01,
        "n": rows,
        "groups": 9,
    }
    return Run(
        name=name,
        params={**PARAMS, "evaluate.primary": primary, **params},
        metrics={"verdict": 1, "primary": result, **trained} if judged else None,
        validation_loss=loss,
        test=test,
        scores=scores if judged else None,
    )


def decided(runs):
    return {(one.first, one.second): one.decided for one in compare_pairs(runs, EVALUATE)}


def test_a_difference_counts_where_it_is_larger_than_its_noise_though_intervals_overlap():
    runs = group_runs([make_run("low", 0.40), make_run("high", 0.45), make_run("same", 0.451)])[0]
    # rows differ by up to 0.5 among themselves: only paired by row is 0.05 to be seen
    assert [run.name for run in runs][-1] == "low"
    found = {frozenset(pair): value for pair, value in decided(runs).items()}
    assert found == {
        frozenset(("same", "low")): -1,
        frozenset(("high", "low")): -1,
        frozenset(("same", "high")): 0,
    }


def test_lower_is_better_turns_the_order_and_the_decision():
    runs = group_runs(
        [
            make_run("high", 0.5, primary="bits_per_byte"),
            make_run("low", 0.4, primary="bits_per_byte"),
        ]
    )[0]
    assert [run.name for run in runs] == ["low", "high"]
    assert decided(runs) == {("low", "high"): -1}


def test_without_the_scores_of_both_nothing_is_decided_and_it_is_said():
    runs = [make_run("a", 0.9), replace(make_run("b", 0.1), scores=None)]
    assert decided(group_runs(runs)[0]) == {("a", "b"): 0}
    said, page = render_comparison(runs, EVALUATE)
    assert "1 cannot be paired" in said
    assert "interval of its differences" not in said  # there is none
    assert "undecided: not paired" in page


def test_many_pairs_are_corrected_for():
    runs = [make_run(f"x{number}", 0.4, noise=0.3) for number in range(12)]
    assert sum(map(abs, decided(group_runs(runs)[0]).values())) == 0


def test_runs_with_other_test_rows_or_another_metric_are_not_compared_and_it_is_said():
    runs = [
        make_run("a"),
        make_run("b", test="others"),
        make_run("c"),
        make_run("d", primary="bits_per_byte"),
    ]
    assert [[run.name for run in group] for group in group_runs(runs)] == [
        ["a", "c"],
        ["b"],
        ["d"],
    ] or [[run.name for run in group] for group in group_runs(runs)] == [["c", "a"], ["b"], ["d"]]
    said, page = render_comparison(runs, EVALUATE)
    assert "3 groups (2, 1, 1) with different test rows or primary metric" in said
    assert "3 groups (2, 1, 1)" in page


def test_intervals_over_test_rows_alone_say_so_once_and_how_to_cover_training():
    first, second = make_run("a", 0.40, **{"sft.seed": 1}), make_run("b", 0.44, **{"sft.seed": 2})
    other = make_run("c", 0.44, **{"sft.learning_rate": 1e-4})
    for runs, known, command in (
        ([first, second], "standard deviation of up to 0.02", "'sft.seeds=[3,4]'"),
        ([first, other], "how much is unknown", "'sft.seeds=[2,3]'"),
    ):
        said, page = render_comparison(runs, EVALUATE)
        for text in (said, html.unescape(page)):
            assert text.count("covers test rows only") == (1 if text == said else 2)
            assert known in text
            assert text.count(f"dvc exp run -S {command}") == 1
        assert "It covers test rows only. Overlapping bars do not tell" in page  # the chart's note
        assert "with several training seeds" not in said


def test_runs_with_several_seeds_each_are_compared_over_these_and_test_rows():
    # by row the second is better by 0.1 under the first seed, and by seed both vary by more
    runs = [
        make_run("a", 0.40, noise=0.02, seeds=(0.1, -0.1)),
        make_run("b", 0.50, noise=0.02, seeds=(-0.12, 0.12)),
    ]
    (found,) = compare_pairs(group_runs(runs)[0], EVALUATE)
    assert (found.first, found.second, found.decided, found.seeds) == ("b", "a", 0, (3, 3))
    # squared errors of the seeds alone: 0.01/3 and 0.0144/3, with Student's 4.3027
    half = 4.3027 * math.sqrt((0.01 + 0.0144) / 3)
    assert found.high - found.delta == pytest.approx(half, rel=0.01)
    said, page = render_comparison(runs, EVALUATE)
    assert "rows and training seeds explains: 0 of 1 difference between two runs" in said
    assert "test rows only" not in said + page
    assert "<br>3 and 3 seeds" in page
    assert "It covers test rows and training seeds. Overlapping bars do not tell" in page

    # beside a run with one seed only the rows count, and the mean over the other's seeds
    single = make_run("one", 0.40, noise=0.02)
    mixed = compare_pairs(group_runs([*runs, single])[0], EVALUATE)
    assert {frozenset((one.first, one.second)): (one.decided, one.seeds) for one in mixed} == {
        frozenset("ba"): (0, (3, 3)),
        frozenset(("b", "one")): (-1, None),
        frozenset(("a", "one")): (0, None),
    }
    said, page = render_comparison([*runs, single], EVALUATE)
    assert re.search(
        r"over all pairs\)\.\n"
        r"Larger than what the choice of test rows explains: 1 of 2 differences between .*\n"
        r"Where a run has one training seed, the interval of its differences covers test rows only"
        r".*\n    dvc exp run -S 'sft\.seeds=\[1,2\]'\n"
        r"  b did better than one by 0\.1\d\d ",
        said,
    )
    assert "standard deviation of up to 0.12" in said
    assert page.count("and 3 seeds") == 1
    rows = {row[0]: row for row in table_rows([*runs, single], [])}
    assert [rows[name][1] for name in ("experiment", "a", "one")] == ["seeds", "3", "1"]


def test_the_table_has_only_parameters_that_differ_and_orders_unjudged_runs_by_loss():
    runs = [
        make_run("sft only", judged=False, loss=0.5, **{"sft.learning_rate": 1e-3}),
        make_run("better sft only", judged=False, loss=0.4, **{"sft.learning_rate": 5e-4}),
        make_run("judged", loss=None),
    ]
    rows = table_rows(order_runs(runs), ["sft.learning_rate"])
    assert (rows[0][1], rows[0][-1]) == ("sft.learning_rate", "validation loss")
    assert [row[0] for row in rows[1:]] == ["judged", "better sft only", "sft only"]
    assert (rows[1][1], rows[1][-1]) == ("0.002", "–")
    assert (rows[2][1], *rows[2][-2:]) == ("0.0005", "not judged", "0.4000")
    assert len({len(line) for line in align(rows).splitlines()}) == 1
    assert (
        "Not judged, because they ended before evaluate or changed after it: better sft only, sft "
        "only." in "".join(render_comparison(runs, EVALUATE))
    )


def test_other_systems_stand_beside_the_runs_that_were_held_against_them():
    plain, held = make_run("plain"), make_run("held")
    judged = {
        system: {"rouge_l": {system: mean}, "tuned": {"verdict": verdict}}
        for system, mean, verdict in (("few_shot", 0.441, 1), ("big-1.5b", 0.912, -1))
    }
    held = replace(held, metrics={**held.metrics, "others": judged})
    rows = {row[0]: row for row in table_rows([plain, held], [])}
    assert rows["experiment"][-3:] == ["few-shot", "big-1.5b, zero-shot", "validation loss"]
    assert rows["held"][-3:-1] == ["0.441", "0.912"]
    assert rows["plain"][-3:-1] == ["–", "–"]
    chart = chart_runs([held], "ROUGE-L", 0.95, paired=True)
    assert ["1. held", "big-1.5b, zero-shot", "0.912", ""] in chart.rows
    said, page = render_comparison([plain, held], EVALUATE)
    assert "Against few-shot, fine-tuning is better in 1 of 1 run, worse in 0, and in 0 " in said
    assert "Against big-1.5b, zero-shot, fine-tuning is better in 0 of 1 run, worse in 1" in said
    assert re.search(r"<tr><td>\d\. held<td>few-shot<td>0\.441", page)
    assert not re.search(r"<tr><td>\d\. plain<td>few-shot", page)


def test_runs_with_the_same_result_share_the_best_one():
    runs = [make_run("one"), replace(make_run("one"), name="two")]
    assert chart_runs(runs, "ROUGE-L", 0.95, paired=True).title == (
        f"2 of 2 runs share the best ROUGE-L here: {runs[0].metrics['primary']['sft']:.3f}."
    )


LOCK = {
    "format": {
        "params": {"params.yaml": {"format": {"prompt": "answer"}}},
        "outs": [{"path": "data/formatted", "md5": "f.dir"}],
    },
    "sft": {
        "params": {"params.yaml": {"sft": {"seed": 7}}},
        "deps": [{"path": "data/formatted/train.jsonl", "md5": "t"}],
        "outs": [{"path": "artifacts/adapter", "md5": "a.dir"}],
    },
    "evaluate": {
        "deps": [
            {"path": "artifacts/adapter", "md5": "a.dir"},
            {"path": "data/formatted/train.jsonl", "md5": "t"},
        ]
    },
}


def test_metrics_are_a_runs_own_only_where_the_whole_lock_is_of_one_run():
    params = {"format.prompt": "answer", "sft.seed": 7}
    assert is_consistent(LOCK, params)
    # the parameter was changed after the run
    assert not is_consistent(LOCK, {**params, "sft.seed": 8})
    retrained = {
        **LOCK,
        "sft": {**LOCK["sft"], "outs": [{"path": "artifacts/adapter", "md5": "b.dir"}]},
    }
    assert not is_consistent(retrained, params)  # sft ran again, evaluate did not
    assert is_consistent(retrained, params, "sft")
    reformatted = {
        **LOCK,
        "sft": {**LOCK["sft"], "deps": [{"path": "data/formatted/train.jsonl", "md5": "u"}]},
    }
    assert not is_consistent(reformatted, params)  # they read different rows
    assert not is_consistent({"sft": LOCK["sft"]}, params)
    loaded = {
        **LOCK,
        "sft": {
            **LOCK["sft"],
            "params": {**LOCK["sft"]["params"], "models/tiny/model.yaml": {"quantization": "nf4"}},
        },
    }
    assert is_consistent(loaded, params | {"models/tiny/model.yaml:quantization": "nf4"})
    assert not is_consistent(loaded, params | {"models/tiny/model.yaml:quantization": "none"})


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def keep(text):
    """Put a file into DVC's cache; its hash."""
    md5 = hashlib.md5(text.encode()).hexdigest()
    write_text(Path(".dvc/cache/files/md5") / md5[:2] / md5[2:], text)
    return md5


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    """A Git and DVC repository in which experiments are saved by their files, without a run."""
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in (
        "GIT_AUTHOR_NAME",
        "GIT_AUTHOR_EMAIL",
        "GIT_COMMITTER_NAME",
        "GIT_COMMITTER_EMAIL",
    ):
        monkeypatch.setenv(name, "a@example.com")
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    edit_yaml("params.yaml", evaluate__draws=1000)
    Path(".gitignore").write_text("/reports/\n/data/\n/artifacts/\n")
    YAML().dump({"metrics": ["metrics/evaluation.json"]}, Path("dvc.yaml"))

    def save(name, made, rate, prompt="answer", judged=True):
        edit_yaml("params.yaml", sft__learning_rate=rate)
        question = {"group": "g", "question": "what?", "positive": "that", "messages": [prompt]}
        sft = {
            "cmd": "true",
            "params": {"params.yaml": {"sft.learning_rate": rate}},
            "outs": [
                {"path": "artifacts/adapter", "hash": "md5", "md5": keep(name), "size": 1},
                {
                    "path": "reports/sft_history.csv",
                    "hash": "md5",
                    "md5": keep(f"step,loss,eval_loss\n1,,{rate}\n"),
                    "size": 1,
                },
            ],
        }
        evaluate = (
            YAML(typ="safe").load(Path("dvc.lock"))["stages"]["evaluate"]
            if Path("dvc.lock").exists()
            else {}
        )
        if judged:
            rows = [{"id": row.id, **question} for row in made.scores]
            evaluate = {
                "cmd": "true",
                "deps": [
                    {"path": "artifacts/adapter", "hash": "md5", "md5": keep(name), "size": 1},
                    {
                        "path": "data/formatted/test.jsonl",
                        "hash": "md5",
                        "md5": keep(lines(rows)),
                        "size": 1,
                    },
                ],
                "outs": [
                    {
                        "path": "data/predictions/scores.jsonl",
                        "hash": "md5",
                        "md5": keep(lines(row.to_record() for row in made.scores)),
                        "size": 1,
                    }
                ],
            }
            write_json(Path("metrics/evaluation.json"), made.metrics)
        YAML().dump(
            {"schema": "2.0", "stages": {"sft": sft, "evaluate": evaluate}}, Path("dvc.lock")
        )
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", name)
        if name == "main":
            run("git", "branch", "--move", "main")
        else:  # as `dvc exp run` leaves it
            base = run("git", "rev-parse", "HEAD~").strip()
            run("git", "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", "HEAD")
            run("git", "reset", "--quiet", "--soft", "HEAD~")

    return save


def test_experiments_of_dvc_are_read_from_their_commits_and_cache(experiments, capsys):
    experiments("main", make_run("main", 0.4), 0.002)
    experiments("other-prompt", make_run("other-prompt", 0.5), 0.002, prompt="question")
    # carries the metrics of the run before on
    experiments("sft-only", make_run("main", 0.4), 0.004, judged=False)
    experiments("more-rows", make_run("more-rows", 0.4, rows=80), 0.008)
    experiments("seeds", make_run("seeds", 0.4, seeds=(0.1, -0.1)), 0.005)
    experiments("seeds-too", make_run("seeds-too", 0.5, seeds=(0.2, 0.1)), 0.006)
    # of `make embed`: the language model's run is the same
    edit_yaml("params.yaml", embed__eval_steps=99)
    experiments("embed-only", make_run("main", 0.4), 0.002)
    runs = {made.name: made for made in list_runs(list_revisions())}
    names = {"main", "other-prompt", "sft-only", "more-rows", "seeds", "seeds-too"}
    assert runs.keys() == names
    assert runs["sft-only"].metrics is None
    assert runs["sft-only"].validation_loss == 0.004
    # the prompt is another, the questions are not
    assert runs["other-prompt"].test == runs["main"].test
    assert runs["more-rows"].test != runs["main"].test
    compare.main()
    said = capsys.readouterr().out
    assert "other-prompt did better than main by 0.0" in said
    assert "Not judged, because they ended before evaluate or changed after it: sft-only." in said
    assert "rows and training seeds explains: 0 of 1 difference between two runs" in said
    assert "choice of test rows explains: 4 of 5 differences between two runs (" in said
    assert "2 groups (4, 1)" in said
    assert PAGE_PATH.exists()
    run("git", "reset", "--quiet", "--hard")
    run("git", "commit", "--quiet", "--allow-empty", "--message", "Later")
    assert {
        made.name for made in list_runs(list_revisions())
    } == runs.keys()  # none is lost with the next commit


def test_without_results_it_says_what_to_do(experiments):
    experiments("main", make_run("main"), 0.002, judged=False)
    shutil.rmtree(".dvc/cache")
    with pytest.raises(InputError, match="no experiment has a result; run dvc repro"):
        compare.main()


@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_opens_without_requests_or_errors_and_fits_a_phone(tmp_path, context, width):
    runs = [
        make_run(f"run-{number}", 0.3 + 0.03 * number, **{"sft.learning_rate": 10.0**-number})
        for number in range(5)
    ]
    runs += [
        make_run(HOSTILE, 0.2),
        replace(make_run("no-scores", 0.35), scores=None),
        make_run("other-rows", test="others"),
    ]
    runs += [make_run("not-judged", judged=False)]
    write_text(tmp_path / "compare.html", render_comparison(runs, EVALUATE)[1])
    page, errors = open_page(context, tmp_path / "compare.html")
    page.set_viewport_size({"width": width, "height": 900})
    assert page.title() == "Experiments compared"
    assert check_charts(page, tmp_path / "compare.html") == [["ROUGE-L", "run"]] * 2
    assert page.locator(".plot >> nth=0").locator(".mark-symbol.role-mark path").count() == 14
    assert page.locator("td.decided").count() >= 10
    assert fits(page)
    assert errors == []
    if shots := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{shots}/compare-{width}.png", full_page=True)

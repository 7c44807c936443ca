import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from all_stages import STAGES
from conftest import ROOT, edit_yaml, make_rows, write_answers
from ruamel.yaml import YAML

from commands import verdict
from library.entry import run_main
from library.errors import InputError
from library.files import read_jsonl, write_json, write_jsonl
from library.imports import computing_modules
from library.pages.statements import escape, knowledge_statement, render_table
from library.params import load_params
from library.paths import COSTS_PATH, SPLITS_PATH
from library.verdict.metrics import METRICS
from stages import (
    evaluate,
    report,
    review,
)
from standin import inventions, sample_rows

DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
EMBEDDING = YAML(typ="safe").load(ROOT / "embedding/dvc.yaml")
STAGES_DECLARED = DVC["stages"] | EMBEDDING["stages"]


@pytest.mark.parametrize("stage", STAGES_DECLARED)
def test_every_stages_code_is_in_its_deps(stage):
    declared = {Path(dep) for dep in STAGES_DECLARED[stage]["deps"] if dep.endswith(".py")}
    assert declared == set(computing_modules(stage))
    assert STAGES_DECLARED[stage]["cmd"] == f"python -m stages.{stage}"


def test_the_pipeline_declares_what_the_repository_relies_on():
    for stage in STAGES_DECLARED.values():
        for dep in stage["deps"]:
            made = [
                out
                for other in STAGES_DECLARED.values()
                for out in [*other["outs"], *other.get("metrics", [])]
            ]
            produced = [out if isinstance(out, str) else next(iter(out)) for out in made]
            known = (
                "${" in dep
                or any(dep == out or dep.startswith(out + "/") for out in produced)
                or (ROOT / dep).exists()
            )
            assert known, f"{dep} is made by nobody"
        assert all(
            settings == {"cache": False}
            for metric in stage.get("metrics", [])
            for settings in metric.values()
        )
    for stage in ("zeroshot", "sft", "predict"):
        assert "metrics" not in DVC["stages"][stage], (
            "a metric that git keeps switches the run cache off"
        )
    listed = {
        metric
        for stage in DVC["stages"].values()
        for entry in stage.get("metrics", [])
        for metric in entry
    }
    assert set(DVC["metrics"]) == listed


def test_changing_how_it_is_judged_runs_no_model():
    for section, stages in (
        ("evaluate", ["evaluate", "report", "cards"]),
        ("review", ["review", "report"]),
    ):
        touched = [
            name
            for name, declared in DVC["stages"].items()
            if section in map(str, declared.get("params", []))
        ]
        assert touched == stages
    imports = "import sys; import stages.evaluate, stages.review, stages.report, stages.cards, "
    imports += "stages.embed_report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", imports], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {
        "torch",
        "transformers",
        "peft",
        "trl",
        "bitsandbytes",
        "sentence_transformers",
    } & set(loaded)


def test_every_parameter_is_one_that_some_stage_depends_on():
    tracked = {
        param
        for stage in STAGES_DECLARED.values()
        for param in stage.get("params", [])
        if isinstance(param, str)
    }
    params = load_params(ROOT / "params.yaml").model_dump()
    leaves = {
        name if not isinstance(value, dict) else f"{name}.{key}"
        for name, value in params.items()
        for key in value or [name]
    }
    leaves = {name for name in leaves if "." in name} | {"model"}
    for leaf in leaves:
        assert any(leaf == param or leaf.startswith(param + ".") for param in tracked), leaf


OPENED = None  # the files opened for reading, while a stage is watched


def record_opened(event, arguments):
    if OPENED is None or event != "open" or not isinstance(arguments[0], str | os.PathLike):
        return
    if not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        OPENED.add(os.path.relpath(arguments[0]))


def run_all():
    for stage in STAGES:
        stage.main()


def run_watched(stage, params):
    """Run a stage; returns the project's files that it read and dvc.yaml does not know of."""
    global OPENED
    OPENED = set()
    try:
        stage.main()
        opened = OPENED
    finally:
        OPENED = None
    name = stage.__name__.removeprefix("stages.")
    declared = re.sub(
        r"\$\{(\w+)\.?(\w+)?\}",
        lambda found: str(params[found[1]][found[2]] if found[2] else params[found[1]]),
        json.dumps(DVC["stages"][name]),
    )
    # the model's files stand in artifacts/base/manifest.json by their hashes
    known = {"params.yaml", str(COSTS_PATH), f"models/{params['model']}"}
    for key in ("deps", "params", "outs", "metrics", "plots"):
        for entry in json.loads(declared).get(key, []):
            known.update([entry] if isinstance(entry, str) else entry)
    return sorted(
        path
        for path in opened
        if Path(path).is_file()  # else it was a temporary one
        and not path.startswith((os.pardir, ".dvc", "checkpoints/"))
        and not known & {path, *map(str, Path(path).parents)}
    )


def digests(*folders):
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path != COSTS_PATH  # seconds are others each time
    }


@pytest.mark.slow
def test_a_stage_opens_only_files_that_it_declares_and_twice_gives_the_same_bytes(project):
    params = load_params().model_dump()
    sys.addaudithook(record_opened)
    assert {stage.__name__: run_watched(stage, params) for stage in STAGES} == {
        stage.__name__: [] for stage in STAGES
    }
    first = digests("metrics", "artifacts/adapter", "data", "reports")
    assert {Path(name).name for name in first} >= {
        "evaluation.json",
        "adapter_model.safetensors",
        "report.md",
        "scores.jsonl",
    }
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    test = list(read_jsonl(Path("data/formatted/test.jsonl")))
    assert metrics["n"] == len(test) == len(list(read_jsonl(Path("data/predictions/scores.jsonl"))))
    assert metrics["pair_matching"]["n"] == sum(row["pair"] is not None for row in test) / 2
    assert metrics["contrastive"]["n"] + 2 * metrics["pair_matching"]["n"] == metrics["n"]
    assert metrics["primary"] == metrics["rouge_l"]
    assert metrics["verdict"] in (-1, 0, 1)
    for name in ("zeroshot", "sft"):
        assert f"{metrics['rouge_l'][name]:.3f}" in Path("reports/model_card.md").read_text()
    for name in ("clean", "formatted", "predictions"):
        shutil.rmtree(Path("data", name))
    for name in ("metrics", "artifacts", "reports"):
        shutil.rmtree(name)
    run_all()
    assert digests("metrics", "artifacts/adapter", "data", "reports") == first


def test_without_negatives_their_metrics_are_left_out_and_it_is_said(project):
    rows = [{key: row[key] for key in ("anchor", "query", "positive")} for row in make_rows(24)]
    Path("rows.json").write_text(json.dumps(rows))
    edit_yaml(Path("params.yaml"), data__columns__negative=None)
    run_all()
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    assert set(METRICS) & metrics.keys() >= {
        "rouge_l",
        "chrf",
        "token_f1",
        "bits_per_byte",
        "length_ratio",
        "truncated",
        "empty",
    }
    assert not metrics.keys() & {
        "pair_matching",
        "contrastive",
        "contrastive_no_question",
        "answer_only",
        "naive_preference",
    }
    assert not metrics["baselines"]["longer"]
    said = Path("reports/report.md").read_text()
    assert "no test row has a wrong answer to compare the right one with" in said
    assert "Left out" in said
    edit_yaml(Path("params.yaml"), evaluate__primary="contrastive")
    with pytest.raises(
        InputError, match=r"evaluate\.primary: no test row has what contrastive needs"
    ):
        evaluate.main()


def test_numbers_come_from_the_files_alone(judged):
    judged()
    review.main()
    evaluate.main()
    report.main()
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    assert (
        metrics["rouge_l"]["zeroshot"],
        metrics["rouge_l"]["sft"],
        metrics["n"],
        metrics["groups"],
    ) == (0, 1, 4, 4)
    # four groups: both signs alike in 2 of 16 swaps, so there can be no evidence
    assert metrics["primary"]["p"] == pytest.approx(2 / 16, abs=0.06)
    assert metrics["verdict"] == 0
    said = Path("reports/report.md").read_text()
    assert (
        "There is no evidence that fine-tuning changed how similar the answers are to the "
        "references" in said
    )
    assert "These are too few groups to show any difference" in said
    assert "<img" not in said
    assert "&lt;img src=x&gt; \\| \\*why\\* \\`r\\`?" in said


def test_contradictory_rows_are_counted_and_left_out_a_second_time(judged):
    predictions = judged()
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    for row, other in ((0, "r1"), (1, "r0")):
        rows[row]["contradicts"] = other
    predictions["sft"][0]["prediction"] = predictions["sft"][1]["prediction"] = "something else"
    write_jsonl(Path("data/formatted/test.jsonl"), rows)
    write_answers("sft", predictions["sft"])
    review.main()
    evaluate.main()
    report.main()
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    assert (metrics["n"], metrics["rouge_l"]["sft"], metrics["contradictory"]) == (4, 0.5, 2)
    assert (metrics["unflagged"]["n"], metrics["unflagged"]["rouge_l"]["sft"]) == (2, 1)
    said = Path("reports/report.md").read_text()
    assert "2 test rows contradict another row" in said
    assert "Without them ROUGE-L goes from 0.000 to 1.000" in said


@pytest.mark.parametrize(
    ("pairs", "rows", "bare", "said"),
    [
        ((0.2, 0.01), (0.1, 0.3), 0.5, "**It tells right from wrong better**: of two answers that"),
        ((-0.2, 0.01), (0.1, 0.3), 0.5, "**It tells right from wrong worse**: of two answers that"),
        (
            (-0.2, 0.01),
            (0.2, 0.01),
            0.5,
            "**It tells right from wrong better in some ways and worse in others**",
        ),
        (
            (0.2, 0.08),
            (0.2, 0.08),
            0.5,
            "**There is no evidence that it tells right from wrong better**",
        ),
        (
            (-0.2, 0.08),
            (0.05, 0.08),
            0.5,
            "**It may tell right from wrong worse: an interval says so, the corrected p does not**",
        ),
        ((0.2, 0.01), (0.1, 0.3), 0.7, "some of it may be style"),
    ],
)
def test_the_second_sentence_says_what_the_intervals_and_the_control_do(pairs, rows, bare, said):
    def result(delta, p):
        return {
            "zeroshot": 0.5,
            "sft": 0.5 + delta,
            "n": 40,
            "low": delta - 0.1,
            "high": delta + 0.1,
            "p": p,
            "p_holm": p,
        }

    metrics = {
        "pair_matching": result(*pairs),
        "contrastive": result(*rows),
        "answer_only": {"zeroshot": 0.5, "sft": bare},
    }
    sentence = str(knowledge_statement(metrics, 0.95))
    assert said in sentence
    assert ("style" in sentence) == (bare == 0.7)


def test_what_was_asked_without_passages_is_not_said_to_have_read_them(judged, capsys):
    judged(rows=8)
    rows = [row | {"passages": []} for row in read_jsonl(Path("data/formatted/test.jsonl"))]
    write_jsonl(Path("data/formatted/test.jsonl"), rows)
    review.main()
    evaluate.main()
    report.main()
    assert json.loads(Path("metrics/evaluation.json").read_text())["with_passages"] == 0
    assert ".jinja, which leaves the passages out, " in Path("reports/report.md").read_text()
    page = Path("reports/report.html").read_text()
    assert "No passage was in the prompt." in page
    assert "Both systems saw the passages" not in page
    # the same where the template would show passages, but none has room
    counted = json.loads(SPLITS_PATH.read_text())
    counted["test"]["without_passages"] = 8
    SPLITS_PATH.write_text(json.dumps(counted))
    report.main()
    text = Path("reports/report.md").read_text()
    assert "leaves the passages out" not in text
    assert ".jinja, without passages, for which there is no room, " in text
    assert "**None of the 8 test prompts has room for a passage**" in text
    verdict.main()
    assert "None of the 8 test prompts has room for a passage" in capsys.readouterr().out
    result = {"zeroshot": 0.5, "sft": 0.6, "n": 9, "low": -0.1, "high": 0.3, "p": 0.5}
    control = {
        "contrastive": result,
        "contrastive_no_question": result,
        "answer_only": {"zeroshot": 0.5, "sft": 0.5},
    }
    assert "the question alone favours the right answer over the wrong one in 60% of 9 rows" in str(
        knowledge_statement(control | {"with_passages": 0}, 0.95)
    )
    assert "The passages alone" not in str(
        knowledge_statement(control | {"with_passages": 0}, 0.95)
    )
    assert "The passages alone" in str(knowledge_statement(control | {"with_passages": 9}, 0.95))
    result |= {"delta": 0.1}
    shown = {"contrastive": result, "contrastive_no_question": result}
    table = render_table(shown | {"with_passages": 0}, "rouge_l")
    assert "the question alone decides" in table
    assert "context decides" not in table
    assert "what the passages alone tell" not in table
    assert "the context decides" in render_table(shown | {"with_passages": 9}, "rouge_l")


def test_no_interval_says_that_a_share_changes_by_more_than_one(judged):
    predictions = judged(rows=3)
    predictions["sft"][0]["prediction"] = "something else r0"
    write_answers("sft", predictions["sft"])
    review.main()
    evaluate.main()
    report.main()
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    assert metrics["rouge_l"]["high"] == 1
    assert metrics["length_ratio"]["low"] < metrics["length_ratio"]["delta"]


def test_predictions_of_another_run_are_refused(judged):
    predictions = judged()
    write_answers("sft", [{**record, "prompt_hash": "other"} for record in predictions["sft"]])
    with pytest.raises(InputError, match=r"sft\.jsonl: row r0 was asked with another prompt"):
        evaluate.main()
    write_answers("sft", predictions["sft"][1:])
    with pytest.raises(InputError, match=r"sft\.jsonl: holds other rows"):
        evaluate.main()


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("artifacts/base/manifest.json", {"files": {}}, "artifacts/adapter: trained on the base"),
        (
            "data/predictions/zeroshot_model.json",
            {"base": "0" * 64},
            "are of the base 000000000000",
        ),
        ("data/predictions/sft_model.json", {"base": "0" * 64}, "are of the base 000000000000"),
        ("data/predictions/sft_model.json", {"adapter": "0" * 64}, "not with that of artifacts/a"),
        ("data/predictions/sft_model.json", {"adapter": None}, "not with that of artifacts/a"),
        (
            "data/predictions/zeroshot_model.json",
            {"adapter": "0" * 64},
            "zeroshot_model.json: its answers were given with an adapter",
        ),
    ],
)
def test_answers_of_other_weights_are_refused(judged, path, values, said):
    judged()
    review.main()
    evaluate.main()
    write_json(Path(path), json.loads(Path(path).read_text()) | values)
    with pytest.raises(InputError, match=said):
        evaluate.main()


@pytest.mark.parametrize("name", ["zeroshot", "sft", "sft_train", "no_context"])
def test_answers_overwritten_by_others_are_refused(judged, name):
    judged()
    review.main()
    evaluate.main()
    answers = Path(f"data/predictions/{name}.jsonl")
    other = "sft" if name == "zeroshot" else "zeroshot"
    shutil.copyfile(f"data/predictions/{other}.jsonl", answers)
    with pytest.raises(InputError, match=rf"{name}\.jsonl: not as \w+ wrote it"):
        evaluate.main()


def edit_rows(name, edit):
    path = Path(f"data/formatted/{name}.jsonl")
    write_jsonl(path, edit(list(read_jsonl(path))))


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        ("test", lambda rows: [*rows, rows[0]], "test.jsonl: has a row twice"),
        ("test", lambda rows: [], "test.jsonl: has no rows"),
        (
            "test",
            lambda rows: [row | {"positive": "another answer"} for row in rows],
            "row r0 had other answers to score than format wrote",
        ),
        (
            "test",
            lambda rows: [row | {"group": row["id"]} for row in rows],
            "row r0 was in another group than format wrote",
        ),
        ("train", lambda rows: rows[1:], "artifacts/adapter: trained on other rows than data/form"),
    ],
)
def test_rows_that_are_not_those_that_were_asked_are_refused(judged, name, edit, said):
    judged()
    review.main()
    evaluate.main()
    edit_rows(name, edit)
    with pytest.raises(InputError, match=said):
        evaluate.main()


def test_review_and_report_refuse_answers_that_are_not_their_systems(judged):
    judged()
    review.main()
    evaluate.main()
    shutil.copyfile("data/predictions/sft.jsonl", "data/predictions/zeroshot.jsonl")
    for stage in (review, report):
        with pytest.raises(InputError, match=r"zeroshot\.jsonl: not as zeroshot wrote it"):
            stage.main()


@pytest.mark.parametrize("text", ["{oops", "[]", "{}"])
def test_a_record_of_what_answered_that_says_nothing_is_refused(judged, text):
    judged()
    review.main()
    Path("data/predictions/sft_model.json").write_text(text)
    with pytest.raises(InputError, match=r"^data/predictions/sft_model\.json: "):
        evaluate.main()


def test_the_report_says_where_both_systems_were_not_computed_alike(judged):
    judged()
    review.main()
    evaluate.main()
    report.main()
    assert "nf4, computed in float32 on CPU; SHA" in Path("reports/report.md").read_text()
    path = Path("data/predictions/zeroshot_model.json")
    write_json(path, json.loads(path.read_text()) | {"device": "Some GPU", "dtype": "bfloat16"})
    report.main()
    said = Path("reports/report.md").read_text()
    assert "shot answers in bfloat16 on Some GPU, so part of a difference can be" in said


def test_text_is_escaped_and_shortened():
    assert escape("a\n\n# b <script>") == "a \\# b &lt;script&gt;"
    assert escape("x" * 700).endswith(" …")


def test_an_input_error_is_one_line_and_a_failed_exit(capsys):
    def fail():
        raise InputError("rows.json:3: not JSON")

    with pytest.raises(SystemExit) as error:
        run_main(fail)
    assert error.value.code == "error: rows.json:3: not JSON"


def test_the_sample_has_the_reference_shape_and_is_the_same_each_time():
    rows, planted = sample_rows.make_rows(7)
    assert len(rows) == 499
    assert (rows, planted) == sample_rows.make_rows(7)
    assert rows != sample_rows.make_rows(8)[0]
    anchors = [row["anchor"] for row in rows if "anchor" in row]
    assert 390 <= len(set(anchors)) <= 400
    assert all(15_000 <= len(anchor) <= 27_000 for anchor in anchors)
    assert planted["anchor"].keys() == inventions.ANCHOR_DEFECTS.keys()


def test_the_embedded_model_has_never_seen_a_sample_invention():
    folds = [set(inventions.titles(fold)) for fold in ("sample", "base")]
    assert not folds[0] & folds[1]
    assert len(folds[0] | folds[1]) == len(inventions.KINDS) * len(inventions.DEVICES) * len(
        inventions.PURPOSES
    )
    answers = {
        term.answer for pools in inventions.TERMS.values() for pool in pools for term in pool
    }
    descriptions = {
        term.description for pools in inventions.TERMS.values() for pool in pools for term in pool
    }
    assert not answers & descriptions

"""Real commits of a small project with the real dvc.yaml: answers by hand, judged by the real
stage, recorded by the real DVC.
"""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_code, edit_yaml, record_answers
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from commands import pull_request
from library.errors import InputError
from library.files import (
    hash_file,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from library.pages.comment import COMMENT_CHARACTERS, MARKER, code, draw_curve, render_comment
from library.records import hash_answers
from library.repository.lock import is_recomputed
from library.repository.revisions import find_commits
from stages import evaluate, review

HOSTILE = (
    "@everyone see [this](https://evil.example) <img src=x onerror=alert(1)> ``` `x` <!-- --> "
    "www.evil.example #1 | a |\n\n"
    "# heading \u202e </summary>"
)
DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
TEST, ZEROSHOT, SFT = (
    "data/formatted/test.jsonl",
    "data/predictions/zeroshot.jsonl",
    "data/predictions/sft.jsonl",
)


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(subject, judge=True):
    """Judge the answers as they are, have DVC record every stage, and commit."""
    if judge:
        review.main()
        evaluate.main()
        for path in (Path(out) for stage in DVC["stages"].values() for out in stage["outs"]):
            if not path.exists():  # what nothing here reads need only be there
                write_text(path if path.suffix else path / "config.json", "{}\n")
        subprocess.run(
            [sys.executable, "-m", "dvc", "commit", "--force"], check=True, capture_output=True
        )
    git("add", "--all")
    git("commit", "--quiet", "--message", subject)


@pytest.fixture
def repository(judged, tmp_path, tmp_path_factory, monkeypatch):
    """A branch main with a result: eight test rows, one of them hostile in every field; made once,
    then copied.
    """
    monkeypatch.setattr("sys.argv", ["pull_request", "--base", "main"])
    made = tmp_path_factory.getbasetemp() / "with-a-result"
    if made.is_dir():
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
        return
    judged(rows=8, hostile={2: HOSTILE})
    # an output of a stage, whatever rows this project is about
    edit_yaml("params.yaml", data__path="data/sample/patents.json")
    copy_code(".")
    shutil.copytree(ROOT / "prompts", "prompts")
    shutil.copy(ROOT / "dvc.yaml", ".")
    write_text(Path(".gitignore"), "__pycache__/\n/reports/pull_request.md\n/site/\n")
    write_text(Path("data/votes/README.md"), "None yet.\n")
    write_jsonl(
        Path("data/clean/rejected.jsonl"),
        [{"file": "x.json", "place": "index 9", "reason": '"answer" is empty'}],
    )
    for path in ("data/clean/changes", "data/formatted/validation", "data/formatted/rejected"):
        write_jsonl(Path(f"{path}.jsonl"), [])
    write_json(Path("metrics/clean.json"), {"rows": 9, "kept": 8, "rejected": 1})
    write_json(Path("metrics/profile.json"), {"rows": 9})
    git("init", "--quiet", "--initial-branch", "main")
    git("config", "user.email", "a@example.org")
    git("config", "user.name", "A")
    Path(".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, ".dvc")
    commit("Measure")
    git("switch", "--quiet", "--create", "branch")
    shutil.copytree(tmp_path, made)


def report(capsys):
    capsys.readouterr()
    pull_request.main()
    comment = Path("reports/pull_request.md").read_text()
    assert capsys.readouterr().out == comment + "\n"
    assert comment.startswith(MARKER + "\n")
    return comment


def change(path, edit):
    write_jsonl(Path(path), [record | edit(record) for record in read_jsonl(Path(path))])


def assert_inert(comment):
    """As Markdown, nothing of the rows is more than text in a code span."""
    tokens = MarkdownIt("commonmark").enable("table").parse(comment)
    tokens += [child for token in tokens for child in token.children or []]
    assert not {token.type for token in tokens} & {"link_open", "image", "html_inline"}
    blocks = "".join(token.content for token in tokens if token.type == "html_block")
    for ours in (MARKER, "<details>", "</details>", "<summary>", "</summary>"):
        blocks = blocks.replace(ours, "")
    assert not set("<>@") & set(blocks)
    for token in tokens:
        if token.type == "text":
            assert not any(live in token.content for live in ("@", "evil", "#1", "heading", "www."))


LOCK = {
    "clean": {
        "cmd": "c",
        "deps": [{"path": "raw.json", "md5": "1"}, {"path": "clean.py", "md5": "2"}],
        "params": {"params.yaml": {"clean.x": 1}},
        "outs": [{"path": "data/clean", "md5": "3"}],
    },
    "evaluate": {
        "cmd": "e",
        "deps": [{"path": "data/clean/rows.jsonl", "md5": "4"}],
        "outs": [{"path": "metrics/evaluation.json", "md5": "5"}],
    },
}


@pytest.mark.parametrize(
    ("old", "new", "recomputed"),
    [
        ("", "", False),
        ("'5'", "'6'", True),  # a result
        ("'4'", "'6'", True),  # what a stage made of it
        ("'1'", "'6'", False),  # raw data
        ("'2'", "'6'", False),  # code
        ("'clean.x': 1", "'clean.x': 2", False),
        ("'e'", "'f'", False),
    ],
)
def test_a_lock_of_the_same_code_parameters_and_data_with_other_results_is_told_apart(
    old, new, recomputed
):
    other = ast.literal_eval(repr(LOCK).replace(old, new, 1) if old else repr(LOCK))
    assert is_recomputed(LOCK, other) is recomputed


def test_results_computed_again_are_not_called_stale(repository, capsys):
    change("data/predictions/sft.jsonl", lambda record: {"prediction": "rounded otherwise"})
    record_answers()
    commit("Compute it on another processor", judge=True)
    comment = report(capsys)
    assert "Computed again from the base's code, parameters and data." in comment
    git("reset", "--quiet", "--soft", "HEAD~")
    git("reset", "--quiet")
    comment = report(capsys)
    assert "> **Computed again here, and not in this comment:**" in comment
    assert "Not committed" not in comment
    assert "not current" not in comment


def test_a_changed_prompt_is_named_and_its_answers_are_compared_row_by_row(repository, capsys):
    edit_yaml("params.yaml", format__prompt="question")
    for path in (TEST, "data/formatted/train.jsonl", "data/formatted/train_sample.jsonl"):
        change(
            path,
            lambda row: {
                "prompt_hash": "other",
                "messages": [{"role": "user", "content": row["question"]}],
            },
        )
    for name in ("zeroshot", "zeroshot_train"):
        change(
            f"data/predictions/{name}.jsonl",
            lambda record: {"prompt_hash": "other", "prediction": f"the answer {record['id'][1:]}"},
        )
    wrong = {"r5": {"prediction": "nothing alike"}}
    for name in ("sft", "sft_train"):
        change(
            f"data/predictions/{name}.jsonl",
            lambda record: {"prompt_hash": "other"} | wrong.get(record["id"], {}),
        )
    record_answers()
    write_text(
        Path("reports/sft_history.csv"), "step,loss,eval_loss\n1,2.5,\n2,,1.75\n2,2.0,\n4,1.0,1.5\n"
    )
    commit("Ask without passages")
    comment = report(capsys)
    assert (
        "- `format.prompt`: `answer` → `question`\n- `prompts/answer.jinja`: read on the base "
        "only\n" in comment
    )
    assert "- `prompts/question.jinja`: read here only\n" in comment
    assert (
        "[!WARNING]\n> **Not the same test as on the base.** The 8 test rows and their "
        "references are the same" in comment
    )
    assert "compare fine-tuned with fine-tuned, not gain with gain" in comment
    assert "[!CAUTION]" not in comment
    assert "There is no evidence that fine-tuning changed" in comment
    assert "ROUGE-L went from 0.778 to 0.875 (+0.097" in comment
    table = [line for line in comment.splitlines() if line.startswith("| ROUGE-L (primary)")]
    assert len(table) == 1
    assert "| 0.000 → 0.778 | 1.000 → 0.875 | +1.000 → +0.097 |" in table[0]
    # one row of eight fell from 1 to 0
    assert (
        "here against the base: no evidence of a difference.** ROUGE-L went from 1.000 to 0.875 "
        "(-0.125, interval" in comment
    )
    assert "compared on the 8 rows that both test.\n" in comment
    assert (
        "> **This comparison covers test rows only**, since the base and this branch were trained "
        "with one seed: another may change or reverse the difference. To find out, run `dvc exp "
        "run -S 'sft.seeds=[1,2]'` on the base and on this branch, and commit the results."
        in comment
    )
    assert "  - base, 1.000: `the tuned answer 5`\n  - here, 0.000: `nothing alike`" in comment
    assert "eval_loss   1.750 █▁ 1.500, least 1.500 at step 4" in comment
    assert "eval_loss   1.500 █▁ 1.250, least 1.250 at step 4" in comment
    assert f"git switch --detach {git('rev-parse', 'HEAD')}" in comment
    assert len(comment) < 10_000
    assert_inert(comment)


def answer_with_seeds(answers):
    """Write what `seeds` would with the seeds 1 and 2; `answers` are by seed and row, where they
    are not the first seed's.
    """
    for seed in (1, 2):
        name = f"seeds/sft@{seed}"
        records = [
            row | {"prediction": answers.get((seed, row["id"]), row["prediction"])}
            for row in read_jsonl(Path(SFT))
        ]
        write_jsonl(Path(f"data/predictions/{name}.jsonl"), records)
        answered = {name: hash_file(Path(f"data/predictions/{name}.jsonl"))}
        record = read_json(Path("data/predictions/sft_model.json"))
        write_json(Path(f"data/predictions/{name}_model.json"), record | {"answers": answered})
    write_json(Path("data/predictions/seeds/seeds.json"), {"seeds": [1, 2]})


@pytest.mark.slow
def test_a_side_with_training_seeds_is_compared_over_these_if_the_other_has_them_too(
    repository, capsys
):
    answer_with_seeds({(1, "r5"): "nothing alike"})
    edit_yaml("params.yaml", sft__seeds=[1, 2])
    commit("Train with more seeds")
    comment = report(capsys)
    assert "this branch was" not in comment
    assert (
        "> **This comparison covers test rows only**, since the base was trained with " in comment
    )
    # one row of eight fell from 1 to 0 under one of three seeds
    assert "ROUGE-L went from 1.000 to 0.958 (-0.042" in comment

    git("branch", "--force", "main", "branch")
    answer_with_seeds({(1, "r5"): "nothing alike", (2, "r6"): "nothing alike"})
    commit("Answer otherwise")
    comment = report(capsys)
    assert "covers test rows only" not in comment
    assert (
        "no evidence of a difference.** ROUGE-L went from 0.958 to 0.917 (-0.042, interval"
        in comment
    )
    assert (
        "compared on the 8 rows that both test, over 3 training seeds on the base and 3 here: "
        "interval and p cover other rows and other seeds." in comment
    )


@pytest.mark.slow
def test_changed_test_rows_are_said_loudly_with_and_without_the_cache(repository, capsys):
    edit_yaml("params.yaml", sample__seed=8)
    write_jsonl(
        Path("data/clean/rejected.jsonl"),
        [{"file": "x.json", "place": "index 3", "reason": HOSTILE}],
    )
    for path in (TEST, ZEROSHOT, SFT, "data/predictions/no_context.jsonl"):
        records = list(read_jsonl(Path(path)))
        write_jsonl(Path(path), [*records[1:], records[0] | {"id": "r9"}])
    clean = list(read_jsonl(Path("data/clean/rows.jsonl")))
    write_jsonl(Path("data/clean/rows.jsonl"), [*clean, clean[0] | {"id": "r9"}])
    change(TEST, lambda row: {"positive": "an edited reference"} if row["id"] == "r4" else {})
    edited = {"answers_hash": hash_answers("an edited reference", None)}
    for path in (ZEROSHOT, SFT, "data/predictions/no_context.jsonl"):
        change(path, lambda record: edited if record["id"] == "r4" else {})
    record_answers()
    write_json(Path("metrics/clean.json"), {"rows": 10, "kept": 9, "rejected": 1})
    commit("Add rows")
    comment = report(capsys)
    assert "The test rows changed: 1 new, 1 gone, 1 with another text, 6 as before." in comment
    assert "The numbers here and on the base cannot be compared" in comment
    assert "- `metrics/clean.json`: `kept` 8 → 9" in comment
    assert '- rejected on the base, not here: `index 9`: `"answer" is empty`' in comment
    assert "- rejected here, not on the base: `index 3`: ````@everyone" in comment
    assert "compared on the 6 rows that both test" in comment
    assert "- `sample.seed`: `7` → `8`" in comment
    assert_inert(comment)

    shutil.rmtree(".dvc/cache")
    for folder in ("data/formatted", "data/predictions", "artifacts"):
        shutil.rmtree(folder)
    comment = report(capsys)
    assert "[!CAUTION]" not in comment, "data that is only not here makes no lock stale"
    assert "not in the cache" in comment
    assert "cannot be compared" in comment
    assert "the loss curve. `dvc pull` gets the data of this commit" in comment
    assert "covers test rows only" not in comment, "nothing was compared"
    assert "<details>" not in comment
    assert_inert(comment)


@pytest.mark.slow
def test_nothing_changed_is_said_and_so_is_a_lock_that_is_not_current(repository, capsys):
    write_text(Path("README.md"), "New words.\n")
    commit("Write a README", judge=False)
    comment = report(capsys)
    assert "**Nothing changed that the pipeline reads or measures**" in comment
    assert "**Fine-tuned answers are more like the references**" in comment
    assert "The same as on the base." in comment
    assert not {"What was changed", "[!WARNING]", "[!CAUTION]", "Not in the cache"} & set(
        comment.splitlines()
    )

    write_text(Path("prompts/answer.jinja"), "{% block user %}{{ question }}{% endblock %}")
    commit("Change a prompt without running it", judge=False)
    comment = report(capsys)
    assert "[!CAUTION]\n> **dvc.lock is not current.**" in comment
    assert "`format`: `prompts/answer.jinja`" in comment
    assert "Nothing changed" not in comment
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/check_lock.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "format: prompts/answer.jinja" in done.stdout

    write_text(Path("metrics/evaluation.json"), json.dumps({"rouge_l": {"n": "@everyone"}}))
    commit("Say something else", judge=False)
    with pytest.raises(
        InputError, match=r"evaluation\.json in .*: rouge_l\.n: expected a number, got '@everyone'"
    ):
        report(capsys)


def embed(answer, **changes):
    """Write what `make embed` would, with the tuned model at `answer`, and have DVC record it."""
    edit_yaml("params.yaml", **changes)
    result = {"zeroshot": 0.5, "sft": answer, "bm25": 0.4, "delta": answer - 0.5, "p": 0.01}
    result |= {"low": answer - 0.6, "high": answer - 0.4, "n": 8, "groups": 8}
    verdict = 1 if answer > 0.6 else 0
    metrics = {"verdict": verdict, "passage": {"ndcg_at_10": result}}
    beside = {"bm25": 0.4, "sft": answer, "delta": answer - 0.4, "p_holm": 0.02}
    metrics["against_bm25"] = {"passage": beside | {"verdict": verdict}}
    for name in ("texts.json", "zeroshot.jsonl", "bm25.jsonl"):
        write_text(Path("data/rankings") / name, "{}\n")
    write_text(Path("data/rankings/sft.jsonl"), f"{answer}\n")
    write_text(Path("artifacts/embedder/config.json"), "{}\n")
    for name in (
        *("embed_history.csv", "embed_memory.json"),
        *("embedding.html", "embedding.md", "embedding_card.md"),
    ):
        write_text(Path("reports") / name, "step\n")
    for name in ("embedding", "tuned"):
        write_json(Path("retrievers") / f"{name}.json", {"model": {}, "tuned": None})
    write_json(Path("metrics/embedding.json"), metrics)
    subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", "embedding/dvc.yaml"],
        check=True,
        capture_output=True,
    )


@pytest.mark.slow
def test_an_embedding_model_has_a_section_where_the_branch_touched_it(repository, capsys):
    shutil.copytree(ROOT / "models/embedding", "models/embedding")
    write_text(Path("embedding/dvc.yaml"), (ROOT / "embedding/dvc.yaml").read_text())
    with Path(".gitignore").open("a") as file:
        file.write("/data/rankings/\n/artifacts/embedder/\n/reports/embed*\n")
    git("switch", "--quiet", "main")
    embed(0.55)
    commit("Embed", judge=False)
    git("branch", "--force", "branch")
    git("switch", "--quiet", "branch")
    write_text(Path("README.md"), "New words.\n")
    commit("Write a README", judge=False)
    comment = report(capsys)
    assert "**Nothing changed that the pipeline reads or measures**" in comment
    assert "mbedding" not in comment

    embed(0.75, embed__num_train_epochs=2, embed__batch_size=16)
    commit("Embed longer", judge=False)
    comment = report(capsys)
    top, section = comment.split("### Embedding model\n")
    assert "**Nothing changed that the language model's pipeline reads or measures**" in top
    assert "embed." not in top
    assert (
        "**Tuning helped retrieval**: nDCG@10 of “question → passage of its own context” went from "
        "0.500 to 0.750 (+0.250, 95% interval +0.150 to +0.350, p = 0.0100) on 8 test questions in "
        "8 groups." in section
    )
    assert "**The tuned model beats BM25, which needs no model**: nDCG@10 is 0.750 " in section
    assert (
        "| question → passage of its own context: nDCG@10 (primary) | 0.400 | 0.500 | "
        "0.550 → 0.750 | +0.050 → +0.250 | -0.050 to +0.150 → +0.150 to +0.350 |\n" in section
    )
    assert "- `embed.batch_size`: `32` → `16`\n- `embed.num_train_epochs`: `1` → `2`\n" in section
    assert not {"[!WARNING]", "[!CAUTION]"} & set(comment.split())
    for name in ("data/rankings", "artifacts/embedder", "reports/embed_history.csv"):
        shutil.rmtree(name, ignore_errors=True)
    assert "[!CAUTION]" not in report(capsys), "data that is only not here makes no lock stale"

    edit_yaml("params.yaml", embed__seed=8)
    commit("Another seed, not run", judge=False)
    comment = report(capsys)
    assert "[!CAUTION]\n> **embedding/dvc.lock is not current.** `make embed` would run" in comment
    assert "(`embed_sft`: `params.yaml: embed.seed`; `embed_report`: " in comment
    assert "**dvc.lock is not current.**" not in comment.replace("embedding/dvc.lock", "")

    write_text(Path("metrics/embedding.json"), '{"verdict": 1}')
    commit("Half a result", judge=False)
    with pytest.raises(InputError, match=r"embedding\.json in .*: against_bm25\.passage"):
        report(capsys)


def test_a_base_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    origin.mkdir()
    monkeypatch.chdir(origin)
    git("init", "--quiet", "--initial-branch", "main")
    for number in range(3):
        git(
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@b",
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            str(number),
        )
    git("branch", "other", "main~2")
    assert find_commits("other") == (git("rev-parse", "main"), git("rev-parse", "main~2"))
    for unknown in ("mian", "--help", ""):
        with pytest.raises(InputError, match="no such branch or commit"):
            find_commits(unknown)
    git(
        "clone",
        "--quiet",
        "--depth",
        "1",
        "--no-single-branch",
        f"file://{origin}",
        str(tmp_path / "shallow"),
    )
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(InputError, match="git fetch --unshallow"):
        find_commits("other")
    git("fetch", "--quiet", "--unshallow")
    # a branch that only origin has
    assert find_commits("other")[1] == git("rev-parse", "origin/other")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="git rev-parse: fatal: not a git repository"):
        find_commits("main")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "`plain`"),
        ("a ` b", "``a ` b``"),
        ("`` x", "``` `` x ```"),
        ("two\n\n lines", "`two lines`"),
        ("\u202eright\u200b", "`�right�`"),
        (" ", "(empty)"),
        ("x" * 301, f"`{'x' * 300} …`"),
    ],
)
def test_text_of_others_stands_in_a_code_span_whatever_it_holds(text, shown):
    assert code(text) == shown


def test_curves_are_drawn_by_logarithm_and_averaged():
    assert draw_curve([8, 4, 2, 1]) == "█▆▃▁"
    assert draw_curve([1, 1]) == "▁▁"
    assert len(draw_curve(range(1000))) == 40


def test_examples_that_are_too_long_for_a_comment_are_left_out():
    sections = [("", ["A verdict."]), ("Last", ["The end."])]
    assert "An example." in render_comment("Title", sections, ["An example."])
    comment = render_comment("Title", sections, ["x" * COMMENT_CHARACTERS])
    assert "Too long for a comment" in comment
    assert len(comment) < 300
    assert "Examples" not in render_comment("Title", sections, ["", ""])


def test_a_rejected_row_that_only_moved_is_not_new():
    old = [
        {"id": "a", "place": "line 1", "reason": "x"},
        {"id": "b", "place": "line 2"},
        {"place": "line 3"},
    ]
    new = [
        {"id": "a", "place": "line 5", "reason": "x"},
        {"id": "b", "place": "line 6"},
        {"id": "b", "place": "line 7"},
    ]
    left = pull_request.number_rejects(new).keys() - pull_request.number_rejects(old).keys()
    assert left == {("b", 1)}

"""Systems beside zero-shot and fine-tuned: the base with examples, and other models."""

import json
import shutil
from pathlib import Path

import pytest
from all_stages import JUDGED
from conftest import edit_yaml, link_model

from commands.verdict import cost_sentence
from library.errors import InputError
from library.files import read_json, read_jsonl
from library.llm import session, trial
from library.llm.chat_template import load_tokenizer, prompt_ids
from library.llm.examples import choose_examples, few_shot_rows
from library.llm.prompts import load_prompt
from library.pages.statements import others_statements
from library.params import load_params
from library.paths import BASE_DIR, prompt_path
from stages import base, clean, evaluate, format, others


@pytest.fixture
def formatted(project):
    for stage in (base, clean, format):
        stage.main()
    test, train = (
        list(read_jsonl(Path(f"data/formatted/{split}.jsonl"))) for split in ("test", "train")
    )
    return test, train, {row["id"]: row for row in read_jsonl(Path("data/clean/rows.jsonl"))}


def few_shot(formatted, count, **changes):
    test, train, clean_rows = formatted
    params = load_params().format.model_copy(update=changes)
    template, tokenizer = load_prompt(prompt_path("answer")), load_tokenizer(BASE_DIR)
    return few_shot_rows(test, clean_rows, train, count, tokenizer, template, params)


def test_examples_are_train_rows_the_most_like_the_question_last(formatted):
    test, train, _ = formatted
    rows, counts = few_shot(formatted, 2, max_length=2048)
    assert set(counts) == {2}
    known = {row["question"]: row["positive"] for row in train}
    for row, plain in zip(rows, test, strict=True):
        system, *turns, asked = row["messages"]
        assert system == plain["messages"][0]
        assert asked["content"].endswith(row["question"])
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
        like = [example["question"] for example in choose_examples(row["question"], train, 2)]
        for question, user, answer in zip(like[::-1], turns[::2], turns[1::2], strict=True):
            assert user["content"].endswith(question)
            assert answer["content"] == known[question] != row["positive"]
        assert row["messages_bare"] == plain["messages_bare"]
        assert row["prompt_tokens"] > plain["prompt_tokens"]


def test_a_prompt_with_examples_is_no_longer_than_its_budget(formatted):
    params, tokenizer = load_params().format, load_tokenizer(BASE_DIR)
    rows, counts = few_shot(formatted, 5)
    assert 0 < max(counts) <= 5
    assert sum(counts) < 5 * len(rows)
    for row in rows:
        assert row["prompt_tokens"] == len(prompt_ids(tokenizer, row["messages"]))
        assert row["prompt_tokens"] <= params.max_length - params.max_new_tokens


def test_examples_take_what_a_rows_own_passages_leave(formatted):
    _, train, clean_rows = formatted
    whole, _ = few_shot(formatted, 0, max_length=2048)
    rows, counts = few_shot((whole, train, clean_rows), 3, max_length=2048)
    assert max(counts) > 1
    assert [row["passages"] for row in rows] == [row["passages"] for row in whole]


def test_without_room_for_a_passage_an_example_is_question_and_answer_alone(formatted):
    rows, counts = few_shot(formatted, 1)
    questions = {row["question"] for row in formatted[1]}
    alone = [row["messages"][1]["content"] in questions for row in rows]
    assert [bool(count) for count in counts] == alone
    assert any(alone)


def test_each_is_asked_judged_and_said(project, tiny_dir, caplog):
    rival = Path("models/rival")
    rival.mkdir()
    rival_file = Path("models/local/model.yaml").read_text()
    (rival / "model.yaml").write_text(rival_file)
    link_model(tiny_dir, rival)
    edit_yaml(
        "params.yaml",
        evaluate__few_shot=1,
        evaluate__rivals=["rival"],
        review__systems=["rival", "sft"],
    )
    for stage in JUDGED:
        stage.main()
    written = read_json(Path("data/predictions/others/systems.json"))
    assert written["systems"] == ["few_shot", "rival"]
    zero, rivals = (
        list(read_jsonl(Path(f"data/predictions/{name}.jsonl")))
        for name in ("zeroshot", "others/rival")
    )
    # the same model under another name
    assert [row["prediction"] for row in zero] == [row["prediction"] for row in rivals]
    metrics = read_json(Path("metrics/evaluation.json"))
    judged = metrics["others"]
    assert judged["rival"]["rouge_l"]["delta"] == 0
    assert judged["rival"]["tuned"]["rouge_l"]["delta"] == metrics["rouge_l"]["delta"]
    # corrected together: as many claims more as there are comparisons
    assert judged["few_shot"]["rouge_l"]["p_holm"] >= judged["few_shot"]["rouge_l"]["p"]
    assert judged["few_shot"]["rouge_l"].keys() >= {"zeroshot", "few_shot", "low", "high"}
    examples = judged["few_shot"]["examples"]
    assert examples == written["examples"]
    assert (examples["asked"], 0 < examples["mean"] <= 1) == (1, True)
    text = Path("reports/report.md").read_text()
    assert "| few-shot | " in text
    assert "\n- rival, zero-shot: " in text  # its answers beside the others'
    page = Path("reports/report.html").read_text()
    assert "<h4>rival, zero-shot, ROUGE-L" in page
    assert "<h4>few-shot, ROUGE-L" in page
    key = read_json(Path("reports/review_key.json"))
    assert key["systems"] == ["rival", "sft"]
    assert {item["x"] for item in key["items"].values()} <= {"rival", "sft"}
    costs = read_json(Path("reports/costs.json"))
    assert costs.keys() == {"zeroshot", "no_context", "sft", "few_shot", "rival"}
    for system, cost in costs.items():
        assert cost["seconds_per_row"] > 0, system
        assert 0 < cost["tokens_per_answer"] <= load_params().format.max_new_tokens
        assert cost["peak_mb"] > 100
    caplog.clear()
    with caplog.at_level("INFO"):
        others.main()
    assert caplog.text.count(": resuming, ") == 4  # answers and likelihoods of both
    assert caplog.text.count("a batch of ") == 2  # once for each
    rows = [row | {"prediction": "edited"} for row in rivals]
    Path("data/predictions/others/rival.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    with pytest.raises(InputError, match=r"rival\.jsonl: not as rival wrote it; run `dvc repro`"):
        evaluate.main()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"evaluate__rivals": ["rival"]}, "evaluate.rivals: rival: answering a prompt of "),
        ({"evaluate__few_shot": 1}, "evaluate.few_shot: answering a prompt of "),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    formatted, tiny_dir, monkeypatch, asked, said
):
    shutil.copytree("models/local", "models/rival")
    link_model(tiny_dir, Path("models/rival"))
    edit_yaml("params.yaml", **asked)
    for module in (session, trial):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "0.0001")
    with pytest.raises(InputError, match=f"^{said}"):
        others.main()
    assert not Path("data/predictions/others").exists()


def test_by_default_there_are_none(project):
    others.main()
    assert read_json(Path("data/predictions/others/systems.json")) == {"systems": []}


@pytest.mark.parametrize(
    ("verdict", "claim"),
    [
        (1, "Fine-tuning beats qwen2.5-3b, zero-shot"),
        (0, "Fine-tuning and qwen2.5-3b, zero-shot can't be told apart"),
        (-1, "Fine-tuning is beaten by qwen2.5-3b, zero-shot"),
    ],
)
def test_what_is_said_of_a_rival_follows_from_the_tuned_models_verdict_against_it(verdict, claim):
    numbers = {"delta": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.01}
    judged = {
        "rouge_l": {"zeroshot": 0.2, "qwen2.5-3b": 0.3, **numbers},
        "tuned": {
            "verdict": verdict,
            "rouge_l": {"qwen2.5-3b": 0.3, "sft": 0.4, **numbers},
            "contrastive": {"qwen2.5-3b": 0.7, "sft": 0.9, **numbers},
        },
    }
    (said,) = others_statements({"others": {"qwen2.5-3b": judged}}, "rouge_l")
    assert "fitted" not in said.detail
    fewer = judged | {"examples": {"asked": 3, "mean": 1.74, "rows_without": 2}}
    (told,) = others_statements({"others": {"qwen2.5-3b": fewer}}, "rouge_l")
    assert "Of 3 examples a row, 1.7 fitted on average, and 2 rows had none" in told.detail
    assert said.claim == claim
    assert (
        "ROUGE-L is 0.400 fine-tuned against 0.300 (+0.100, interval +0.050 to +0.150"
        in said.detail
    )
    assert "70% of its rows favour the right answer, 90% of the fine-tuned." in said.detail


@pytest.mark.parametrize(
    ("system", "peak", "said"),
    [
        ("no_context", {}, "One answer (zero-shot without passages): 0.12 s, 18 tokens, on CPU."),
        ("sft", {"peak_mb": 1234}, "(fine-tuned): 0.12 s, 18 tokens, 1.15 GiB at most, on CPU."),
        ("sft@1", {}, "One answer (fine-tuned with seed 1): 0.12 s"),
        ("rival", {}, "One answer (rival, zero-shot): 0.12 s"),
    ],
)
def test_the_cost_of_an_answer_is_printed_under_the_systems_name(system, peak, said):
    cost = {"seconds_per_row": 0.123, "tokens_per_answer": 17.6, "device": "CPU", **peak}
    assert said in cost_sentence(system, cost)

"""Thoughts before an answer: asked for, within their own budget, and cut off."""

import json
from pathlib import Path

import pytest
import torch
from all_stages import JUDGED
from conftest import edit_yaml
from test_adapted_template import published, put_random_llama
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from library.errors import InputError
from library.files import read_json, read_jsonl
from library.llm.adapted_template import adapt_template, example_messages
from library.llm.chat_template import THINK_END, hash_ids, prompt_ids, render
from library.llm.generation import generate_answers
from library.llm.thinking import answer_after_thoughts


@pytest.fixture
def thinking(tokenizer):
    tokenizer.chat_template = published("qwen3")
    adapt_template(tokenizer, {}, thinking=True)
    return tokenizer


def make_row(tokenizer):
    messages = example_messages()
    prompt = prompt_ids(tokenizer, messages)
    return {
        "id": "r1",
        "group": "g1",
        "pair": None,
        "messages": messages,
        "prompt_hash": hash_ids(prompt),
        "prompt_tokens": len(prompt),
        "positive": "It is.",
        "negative": None,
        "passages": [],
    }


def make_model(tokenizer, bias):
    """A tiny random model that prefers some tokens by so much."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "phi", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    for token, value in bias.items():
        model.lm_head.bias.data[tokenizer.convert_tokens_to_ids(token)] = value
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def test_a_prompt_opens_the_thoughts_that_training_and_asking_leave_out(tokenizer):
    tokenizer.chat_template = published("qwen3")
    assert "enable_thinking is true" in adapt_template(tokenizer, {}, thinking=True)
    on = render(tokenizer, example_messages(), add_generation_prompt=True)
    tokenizer.chat_template = published("qwen3")
    adapt_template(tokenizer, {"enable_thinking": False})
    off = render(tokenizer, example_messages(), add_generation_prompt=True)
    assert on.endswith("<|im_start|>assistant\n<think>\n")
    assert off == on.removesuffix("\n") + "\n\n</think>\n\n"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "llama3_2"])
def test_a_template_that_can_not_think_is_refused(tokenizer, name):
    tokenizer.chat_template = published(name)
    with pytest.raises(InputError, match=r"evaluate\.thinking_tokens: its chat template cannot tu"):
        adapt_template(tokenizer, {}, thinking=True)


def test_thoughts_without_an_end_are_closed_where_their_budget_is(thinking):
    row, model = make_row(thinking), make_model(thinking, {"a": 9.0})
    (found,) = answer_after_thoughts(model, thinking, [row], 7, 5)
    assert found["thoughts"] == "a" * 7
    assert (found["prediction"], found["finish_reason"]) == ("a" * 5, "length")
    line, paragraph = (thinking(text)["input_ids"] for text in ("\n", "\n\n"))
    end = thinking.convert_tokens_to_ids(THINK_END)
    closed = [*thinking("a")["input_ids"] * 7, *line, end, *paragraph]
    assert found["generated_tokens"] == len(closed) + 5
    # the answer is what the model says after just that
    prompt = prompt_ids(thinking, row["messages"])
    (again,) = generate_answers(model, thinking, [[*prompt, *closed]], 5)
    assert found["prediction"] == again["prediction"]
    assert found["likelihood"] is None


def test_thoughts_that_end_leave_the_answer_its_whole_budget(thinking):
    row, model = make_row(thinking), make_model(thinking, {THINK_END: 9.0})
    (found,) = answer_after_thoughts(model, thinking, [row], 7, 5)
    assert found["thoughts"] == ""
    assert found["prediction"] == THINK_END * 5
    # the end of a turn ends thoughts, too, and is no part of them
    (found,) = answer_after_thoughts(
        make_model(thinking, {thinking.eos_token: 9.0}), thinking, [row], 7, 5
    )
    assert (found["thoughts"], found["prediction"], found["finish_reason"]) == ("", "", "stop")


def test_it_is_judged_beside_zero_shot_and_fine_tuned(project, tokenizer):
    put_random_llama(tokenizer, published("qwen3"))
    edit_yaml("params.yaml", evaluate__thinking_tokens=6, review__systems=["thinking", "sft"])
    for stage in JUDGED:
        stage.main()
    path = Path("data/predictions/others/thinking.jsonl")
    rows, limit = list(read_jsonl(path)), read_json(Path("metrics/format.json"))
    assert all(row["thoughts"] and row["likelihood"] is None for row in rows)
    assert len({row["id"] for row in rows}) == limit["test"]["rows"]
    judged = read_json(Path("metrics/evaluation.json"))["others"]["thinking"]
    assert judged["rouge_l"].keys() >= {"zeroshot", "thinking", "delta", "p_holm"}
    assert not judged.keys() & {"bits_per_byte", "contrastive", "pair_matching"}
    assert "| thinking | " in Path("reports/report.md").read_text()
    cost = read_json(Path("reports/costs.json"))["thinking"]
    assert cost["tokens_per_answer"] > 6
    assert json.dumps(rows[0]["thoughts"]) not in Path("reports/report.html").read_text()

import math
import random
import re

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM

from library.llm.chat_template import load_tokenizer
from library.llm.prompts import load_prompt
from standin import inventions, pretrain
from standin.recipe import load_recipe


@pytest.fixture
def recipe():
    shipped = load_recipe(ROOT / "models/tiny/recipe.yaml")
    small = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 512,
    }
    return shipped.model_copy(
        update=small
        | {
            "row_tokens": 512,
            "rows_per_step": 2,
            "steps": 4,
            "hold_steps": 2,
            "warmup_steps": 1,
            "torch_compile": False,
        }
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bytes(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 2)
    whole = pretrain.train(recipe, tmp_path / "whole", tmp_path / "state")

    step = pretrain.batch

    def stop(recipe, number, *rest):
        if number == 3:
            raise KeyboardInterrupt
        return step(recipe, number, *rest)

    monkeypatch.setattr(pretrain, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(recipe, tmp_path / "again", tmp_path / "stopped")
    monkeypatch.setattr(pretrain, "batch", step)
    assert pretrain.train(recipe, tmp_path / "again", tmp_path / "stopped") == whole
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()


def test_it_starts_with_heads_that_look_up_what_a_sentence_is_about(recipe):
    tokenizer = pretrain.train_tokenizer(recipe.model_copy(update={"vocab_size": 2048}))
    model = pretrain.build_model(recipe.model_copy(update={"hidden_size": 256}), tokenizer)
    model.set_attn_implementation("eager")
    sentences = [
        "The drive shaft is made of steel and is held by screws to the end cap.",
        "The valve seat, made of oak, is held by glue to the drive shaft.",
        "The guide rail is held by straps, made of copper and attached to the valve seat.",
    ]
    text = (
        " ".join(sentences)
        + " What are they made of, and by what are they held in place? The valve seat is made of"
    )
    encoded = tokenizer(text, return_offsets_mapping=True)
    starts = [start for start, _ in encoded.offset_mapping]
    last, subject = (
        len(starts) - 1,
        max(i for i, start in enumerate(starts) if start <= text.rindex("valve")),
    )
    about = [text.index(sentences[1]) <= start < text.index(sentences[2]) for start in starts]
    with torch.no_grad():
        first, second, third = model(
            input_ids=torch.tensor([encoded.input_ids]), output_attentions=True
        ).attentions[:3]
    assert first[0, 0].diagonal(-1).mean() > 0.9
    assert first[0, 1].diagonal(-1).mean() < 0.2
    assert second[0, 2, last, subject] > 0.9
    assert third[0, 0, last, torch.tensor(about)].sum() > 0.5


def test_the_embedded_model_can_be_loaded_and_its_tokenizer_loses_nothing():
    tokenizer = load_tokenizer(ROOT / "models/tiny")
    for text in (
        "Its drive shaft consists of black composite.",
        "  µ 12½ \u2062 naïve\n\n日本 <b>&amp;",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    model = AutoModelForCausalLM.from_pretrained(ROOT / "models/tiny", dtype=torch.bfloat16)
    assert (ROOT / "models/tiny/model.safetensors").stat().st_size < 10_000_000
    assert model.config.vocab_size >= len(tokenizer)


def test_the_loss_weighs_answers_and_leaves_the_first_token_out(recipe):
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 1] = math.log(5)  # 5/8 for token 1, 1/8 for each other
    ids, weights = torch.tensor([[2, 1, 0]]), torch.tensor([[9.0, 1.0, 0.5]])
    expected = (1.0 * math.log(8 / 5) + 0.5 * math.log(4)) / 1.5
    assert pretrain.weighted_loss(logits, ids, weights).item() == pytest.approx(expected)


def test_every_answer_of_a_chat_weighs_one_and_is_true_to_its_passages(recipe):
    tokenizer = pretrain.train_tokenizer(recipe)
    prompt = load_prompt(ROOT / "prompts/answer.jinja")
    messages = pretrain.chat(random.Random(3), prompt)
    assert [message["role"] for message in messages] == [
        "system",
        *["user", "assistant"] * (len(messages) // 2),
    ]
    made = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = "".join(
        tokenizer.decode(i)
        for i, mask in zip(made["input_ids"], made["assistant_masks"], strict=True)
        if mask
    )
    assert marked == "".join(message["content"] + tokenizer.eos_token for message in messages[2::2])
    terms = [
        term.description for pools in inventions.TERMS.values() for pool in pools for term in pool
    ]
    answers = [
        sentence
        for message in messages[2::2]
        for sentence in re.findall(r"The [^.]*", message["content"])
    ]
    assert answers
    for sentence in answers:
        named = {term for term in terms if re.search(rf"\b{term}\b", sentence)}
        part = next(part for part in inventions.PARTS if sentence.startswith(f"The {part}"))
        statements = [
            statement
            for statement in messages[1]["content"].split(". ")
            if f"The {part}" in statement
        ]
        assert any(all(term in statement for term in named) for statement in statements)

"""How models are asked: the templates of their makers, as TRL ships them, and traps of our own."""

import datetime
from pathlib import Path

import pytest
import torch
import trl
from conftest import edit_yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import chat_template_utils

from library.errors import InputError
from library.files import read_json, read_jsonl
from library.llm.adapted_template import (
    ANSWER,
    CONTEXT,
    QUESTION,
    SYSTEM,
    adapt_template,
    example_messages,
)
from library.llm.chat_template import (
    load_tokenizer,
    prompt_completion_ids,
    prompt_ids,
    read_answer,
    render,
)
from library.llm.training_rows import IGNORED, to_dataset
from library.paths import ADAPTER_DIR, BASE_DIR
from stages import base, clean, format, predict, sft, zeroshot

PUBLISHED = Path(trl.__file__).parent / "chat_templates"
# What ends a turn, as the models' makers say it.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>",
    "gptoss": "<|return|>",
    "lfm2": "<|im_end|>",
    "lfm2_2_5": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "nemotron_3_nano": "<|im_end|>",
    "phi3": "<|end|>",
    "phi3_5": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_5_think": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
}
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
)
ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OURS = {
    "no generation prompt": (TURNS, ["a prompt ends in '<|im_start|>assistant\\n'"]),
    "a blank before the answer": (
        TURNS.replace("\n{{ message.content", "\n{{ ' ' * (message.role == 'assistant') }}"
        "{{ message.content") + ASKED,
        [],
    ),
    "a blank after the generation prompt": (
        TURNS + ASKED.replace("assistant\n", "assistant\n{{ ' ' }}"),
        [],
    ),
    "texts without their outer blanks": (TURNS.replace("content", "content | trim") + ASKED, []),
    "no system role": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + TURNS
        + ASKED,
        ["the system message goes before the first question"],
    ),
    "a system message that is dropped": (
        TURNS.replace("in messages", "in messages if message.role != 'system'") + ASKED,
        ["the system message goes before the first question"],
    ),
    "a system message of its own": (
        "<|im_start|>system\nYou are ours.<|im_end|>\n" + TURNS + ASKED,
        [],
    ),
    "the date": (
        "{{ 'Today is ' ~ strftime_now('%d-%B-%Y') }}\n" + TURNS + ASKED,
        ["the date that it writes is always 26 July 2024"],
    ),
    "a date by a format of its own": (
        "{% set how = '%d %b' %}{{ strftime_now(how) }}" + TURNS + ASKED,
        ["the date that it writes is always 26 July 2024"],
    ),
    "thoughts without a switch": (
        TURNS.replace("\n{{ message.content", "\n{{ '<think>\n\n</think>\n\n' * "
        "(message.role == 'assistant') }}{{ message.content") + ASKED,
        [f"a prompt ends in {EMPTY_THOUGHT!r}"],
    ),
    "a switch for thoughts that no answer shows": (
        TURNS
        + "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not enable_thinking | default(true) %}<think>\n\n</think>\n{% endif %}{% endif %}",
        ["enable_thinking is false"],
    ),
    "no end of a turn": (TURNS.replace("<|im_end|>", "") + ASKED, []),
    "another end of a turn": (
        TURNS.replace("<|im_end|>", "<end_of_turn>") + ASKED,
        ["a turn ends in '<end_of_turn>', not '<|im_end|>'"],
    ),
}  # fmt: skip


def adapt(tokenizer, template, **kwargs):
    tokenizer.chat_template = template
    return adapt_template(tokenizer, kwargs)


def published(name):
    return (PUBLISHED / f"{name}.jinja").read_text()


def check_asked(tokenizer):
    """What is asked holds all that was said, and the answer alone follows it, to its end."""
    prompt, completion = prompt_completion_ids(tokenizer, example_messages(), ANSWER)
    assert prompt == prompt_ids(tokenizer, example_messages())
    asked = tokenizer.decode(prompt)
    assert all(asked.count(text) == 1 for text in (SYSTEM, CONTEXT, QUESTION))
    assert completion[-1] == tokenizer.eos_token_id
    said = tokenizer.decode(completion[:-1])
    assert said.strip() == ANSWER == read_answer(tokenizer, completion)


@pytest.mark.parametrize("name", ENDS)
def test_a_published_template_asks_as_its_makers_meant(tokenizer, name):
    adapt(tokenizer, published(name))
    check_asked(tokenizer)
    assert tokenizer.eos_token == ENDS[name]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "nemotron_3_nano"])
def test_thinking_is_off_and_its_empty_block_is_the_prompts(tokenizer, name):
    assert "enable_thinking is false" in adapt(tokenizer, published(name))
    prompt, completion = prompt_completion_ids(tokenizer, example_messages(), ANSWER)
    assert tokenizer.decode(prompt).rstrip().endswith("</think>")
    assert "think" not in tokenizer.decode(completion)


@pytest.mark.parametrize("name", ["llama3_2", "gptoss"])
def test_tomorrow_the_prompt_is_the_same(tokenizer, name, monkeypatch):
    assert "the date that it writes is always 26 July 2024" in adapt(tokenizer, published(name))
    today = prompt_ids(tokenizer, example_messages())

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert prompt_ids(tokenizer, example_messages()) == today
    tokenizer.chat_template = published(name)
    assert "2031" in render(tokenizer, example_messages())


def test_a_date_of_ones_own_is_a_variable(tokenizer):
    assert 'date_string is "1 May 2026"' in adapt(
        tokenizer, published("llama3_2"), date_string="1 May 2026"
    )
    assert "Today Date: 1 May 2026" in render(tokenizer, example_messages())


@pytest.mark.parametrize(("template", "changes"), OURS.values(), ids=OURS)
def test_a_template_of_any_kind_asks_for_the_answer_alone(tokenizer, template, changes):
    assert adapt(tokenizer, template) == changes
    check_asked(tokenizer)


@pytest.mark.parametrize(
    ("template", "kwargs", "said"),
    [
        (published("deepseek_r1_distill"), {}, "thinks before each answer, and its chat template"),
        (
            published("qwen3"),
            {"enable_thinking": True},
            "thinking is off in training and in ask",
        ),
        (published("qwen3"), {"date": "today"}, "the chat template has no variable 'date'"),
        ("{{ raise_exception('never') }}", {}, "does not take messages of system, user: never"),
        ("{{ messages[9].content + 1 }}", {}, "does not take messages of system, user: "),
        ("{{ 1 / 0 }}", {}, "does not take messages of system, user: ZeroDivisionError"),
        ("{% for message in", {}, "does not take messages of system, user: "),
        (
            TURNS.replace("message.content", "message.content | upper") + ASKED,
            {},
            "drops or changes 'Answer the question from the passages.'",
        ),
        (
            ASKED.replace("assistant", "model") + TURNS,
            {},
            "changes the prompt once an answer follows it",
        ),
    ],
)
def test_a_template_that_can_not_be_asked_is_refused_in_words(tokenizer, template, kwargs, said):
    with pytest.raises(InputError) as error:
        adapt(tokenizer, template, **kwargs)
    assert said in str(error.value)


def put_random_llama(tokenizer, template):
    """A tiny Llama of random weights in place of the project's own model, asked by a template."""
    folder = Path("models/local")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink()
    for path in [*folder.glob("tokenizer*"), folder / "chat_template.jinja"]:
        path.unlink()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=512,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    edit_yaml("models/local/model.yaml", quantization="none")


@pytest.mark.parametrize(
    "template",
    [
        *(published(name) for name in ("gemma", "gemma3", "llama3_2", "qwen3", "gptoss")),
        *(OURS[name][0] for name in ("no generation prompt", "the date", "no end of a turn")),
    ],
    ids=["gemma", "gemma3", "llama3_2", "qwen3", "gptoss", "no prompt", "date", "no end"],
)
def test_from_base_to_predict_it_is_one_prompt(project, tokenizer, template):
    put_random_llama(tokenizer, template)
    for stage in (base, clean, format, zeroshot, sft, predict):
        stage.main()
    adapted = load_tokenizer(BASE_DIR)
    rows = list(read_jsonl(Path("data/formatted/train.jsonl")))
    for row, made in zip(rows, to_dataset(rows, adapted), strict=True):
        asked = prompt_ids(adapted, row["messages"])
        labelled = [label for label in made["labels"] if label != IGNORED]
        assert made["input_ids"] == asked + labelled
        assert adapted.decode(labelled[:-1]).strip() == row["positive"]
        assert labelled[-1] == adapted.eos_token_id
    answers = [
        list(read_jsonl(Path(f"data/predictions/{system}.jsonl"))) for system in ("zeroshot", "sft")
    ]
    assert [row["prompt_hash"] for row in answers[0]] == [row["prompt_hash"] for row in answers[1]]
    assert any(
        value.any() for value in load_file(ADAPTER_DIR / "adapter_model.safetensors").values()
    )
    assert read_json(BASE_DIR / "tokenizer_config.json")["eos_token"] == adapted.eos_token

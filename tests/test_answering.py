import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from library.errors import InputError
from library.files import read_jsonl
from library.llm import likelihoods
from library.llm.answering import answer_rows, score_text
from library.llm.batching import Batching, make_batches, run_batches
from library.llm.chat_template import load_tokenizer, prompt_completion_ids
from library.llm.generation import generate_answers
from library.llm.likelihoods import common_prefix_length, score_completions
from library.llm.loading import load_model
from library.llm.prompts import build_messages, load_prompt
from library.paths import BASE_DIR
from stages import base, clean, format

TEMPLATE = load_prompt(ROOT / "prompts/answer.jinja")


@pytest.fixture(scope="module")
def asked(tiny_dir):
    """A tokenizer, prompts of very different lengths, and an answer to each, all as token ids."""
    tokenizer = load_tokenizer(tiny_dir)
    prompts, completions = [], []
    for index in range(9):
        messages = build_messages(
            TEMPLATE, ["The pump is made of steel. "] * (index * 3 % 10), "What is made of steel?"
        )
        prompt, completion = prompt_completion_ids(
            tokenizer, messages, "The pump, and nothing else. " * (1 + index % 4)
        )
        prompts.append(prompt)
        completions.append(completion)
    return tokenizer, prompts, completions


@pytest.fixture(scope="module")
def model(tiny_dir):
    loaded = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    loaded.generation_config.eos_token_id = [loaded.generation_config.eos_token_id]
    return loaded.eval()


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_batches_hold_every_row_once_and_keep_to_the_limit(lengths, limit):
    made = list(make_batches(lengths, limit))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= limit
    ordered = [lengths[index] for batch in made for index in batch]
    assert ordered == sorted(ordered, reverse=True)


def test_likelihoods_are_those_of_one_row_at_a_time(model, asked):
    tokenizer, prompts, completions = asked
    requests = [
        [(prompt, completions[i]), (prompt, completions[i - 1]), (prompts[i - 1], completions[i])][
            : 1 + i % 3
        ]
        for i, prompt in enumerate(prompts)
    ]
    together = score_completions(model, tokenizer, requests, Batching(1000))
    assert [len(sums) for sums in together] == [len(request) for request in requests]
    for request, sums in zip(requests, together, strict=True):
        for (prompt, completion), score in zip(request, sums, strict=True):
            ids = torch.tensor([prompt + completion])
            with torch.no_grad():
                logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
            alone = sum(
                logprobs[len(prompt) + i - 1, token].item() for i, token in enumerate(completion)
            )
            assert score / len(completion) == pytest.approx(alone / len(completion), abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 4, 5]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1], [2, 3]], 0),
    ],
)
def test_what_prompts_begin_with_alike_leaves_each_a_token(prompts, expected):
    assert common_prefix_length(prompts) == expected


def test_logits_in_small_portions_change_nothing(model, asked, monkeypatch):
    tokenizer, prompts, completions = asked
    requests = [
        [(prompt, completion)] for prompt, completion in zip(prompts, completions, strict=True)
    ]
    whole = score_completions(model, tokenizer, requests)
    # three tokens at a time
    monkeypatch.setattr(likelihoods, "SCORING_HEAD_BYTES", 4 * model.config.vocab_size * 3)
    small = score_completions(model, tokenizer, requests)
    assert [sums for (sums,) in small] == pytest.approx([sums for (sums,) in whole], abs=1e-4)


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=30.0),
        Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=0.01),
        CohereConfig(**SHAPE, logit_scale=0.0625),
        GraniteConfig(**SHAPE, logits_scaling=8.0),
    ],
    ids=["capped", "capped hard", "scaled", "divided"],
)
def test_logits_that_are_capped_or_scaled_are_scored_as_the_model_does(asked, config):
    tokenizer, prompts, completions = asked
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config).eval()
    prompt, completion = prompts[0], completions[0]
    ((score,),) = score_completions(model, tokenizer, [[(prompt, completion)]])
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    own = logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None]).sum().item()
    assert score / len(completion) == pytest.approx(own / len(completion), abs=1e-4)
    # without it the check says so, as it does of any other change
    scorer = likelihoods._Scorer(model, tokenizer.pad_token_id)
    scorer.scale, scorer.cap = 1.0, None
    with pytest.raises(InputError, match="changes its logits after the output embedding"):
        scorer.check_logits(prompt)


def test_batched_answers_are_those_of_one_row_at_a_time(model, asked):
    tokenizer, prompts, _ = asked
    together = generate_answers(model, tokenizer, prompts, 12, Batching(1000))
    assert together == [generate_answers(model, tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert all(answer["finish_reason"] in ("stop", "length") for answer in together)


def test_an_answer_that_ends_is_told_from_one_that_is_cut_off(model, asked):
    tokenizer, prompts, _ = asked
    cut = generate_answers(model, tokenizer, prompts[:1], 5)[0]
    assert (cut["finish_reason"], cut["generated_tokens"]) == ("length", 5)
    # whatever token it says third is made its end-of-turn token: it stops there
    ids = model.generate(torch.tensor([prompts[0]]), max_new_tokens=5, do_sample=False)[
        0, len(prompts[0]) :
    ].tolist()
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [ids[2]]
    stopped = generate_answers(model, tokenizer, prompts[:1], 5)[0]
    model.generation_config.eos_token_id = ends
    assert (stopped["finish_reason"], stopped["generated_tokens"]) == (
        "stop",
        ids.index(ids[2]) + 1,
    )


def test_a_text_is_scored_paragraph_by_paragraph_as_the_model_itself_does(model, asked):
    tokenizer = asked[0]
    text = "The pump is\nmade of steel.\n\n" + "A long paragraph. " * 30 + "\n\n\n"
    first, second = score_text(model, tokenizer, text, 50)
    ids = tokenizer("The pump is made of steel.")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, 1:-1].log_softmax(-1)
    alone = logits.gather(1, torch.tensor(ids[2:])[:, None]).sum().item()
    size = len(tokenizer.decode(ids[2:]))
    assert first == {"sum": pytest.approx(alone, rel=1e-4), "tokens": len(ids) - 2, "bytes": size}
    assert second["tokens"] == 48
    assert second["bytes"] < len("A long paragraph. " * 30)


def test_completions_end_with_the_end_of_turn_and_follow_the_prompt(asked):
    tokenizer, _, completions = asked
    assert all(completion[-1] == tokenizer.eos_token_id for completion in completions)


def test_every_way_of_asking_holds_what_it_says():
    for name in ("answer", "original"):
        template = load_prompt(ROOT / f"prompts/{name}.jinja")
        user = build_messages(template, ["First {{ passage }}.", "<b>Second</b>."], "Why & how?")[
            1
        ]["content"]
        assert (
            user.index("First {{ passage }}.")
            < user.index("<b>Second</b>.")
            < user.index("Why & how?")
        )
        assert "Why" not in build_messages(template, ["First."], "")[1]["content"]
        assert "First" not in build_messages(template, [], "Why?")[1]["content"]
    question = build_messages(load_prompt(ROOT / "prompts/question.jinja"), ["First."], "Why?")
    assert question[1]["content"] == "Why?"


def test_rows_are_answered_with_the_prompt_that_format_wrote(project):
    base.main()
    clean.main()
    format.main()
    rows = list(read_jsonl(project / "data/formatted/test.jsonl"))
    rows[0]["negative"] = None
    tokenizer = load_tokenizer(BASE_DIR)
    model = load_model(BASE_DIR, "nf4")
    records = answer_rows(model, tokenizer, rows, 8)
    assert [record["id"] for record in records] == [row["id"] for row in rows]
    assert records[0]["likelihood"]["negative"] is None
    positive = records[0]["likelihood"]["positive"]
    assert positive.keys() == {"question", "no_question", "bare"}
    assert positive["bare"]["bytes"] == len(rows[0]["positive"].encode())
    assert all(values["sum"] < 0 for values in positive.values())
    rows[1]["messages"][1]["content"] += " And why?"
    with pytest.raises(
        InputError, match=f"row {rows[1]['id']}: the prompt is not the one that format wrote"
    ):
        answer_rows(model, tokenizer, rows, 8)


def test_what_was_done_before_a_kill_is_not_done_again(tmp_path):
    lengths, worked = [5, 3, 9, 1, 7], []

    def work(batch):
        if len(worked) == 1:
            raise KeyboardInterrupt
        worked.append(batch)
        return [f"row {index}" for index in batch]

    with pytest.raises(KeyboardInterrupt):
        run_batches("some", lengths, work, Batching(10, tmp_path))
    kept = next(tmp_path.glob("some-*.jsonl"))
    # and a line that the kill tore
    kept.write_bytes(kept.read_bytes() + b'\n[[0, 1], ["row 0", "row')
    assert worked == [[2]]
    worked.append("the kill")
    assert run_batches("some", lengths, work, Batching(10, tmp_path)) == [
        f"row {index}" for index in range(5)
    ]
    assert [2] not in worked[2:]
    assert run_batches("other", lengths, lambda batch: batch, Batching(10, tmp_path)) == list(
        range(5)
    ), "another name's rows"
    assert run_batches("some", lengths, lambda batch: 1 / 0, Batching(10, tmp_path)) == [
        f"row {index}" for index in range(5)
    ]


def test_a_batch_that_is_too_much_is_halved_and_a_row_that_is_too_much_is_an_error():
    def work(batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return batch

    assert run_batches("some", [4] * 7, work, Batching(1000)) == list(range(7))

    def other(batch):  # what cuBLAS and CUDA itself say
        if len(batch) > 3:
            raise RuntimeError("CUDA error: out of memory")
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_batches("some", [4] * 7, other, Batching(1000))
    with pytest.raises(
        InputError, match=r"some: out of memory with one row of 4 tokens; lower format\.max_length"
    ):
        run_batches("some", [4] * 7, lambda batch: work([0, 0, 0]), Batching(1000))

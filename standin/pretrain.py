"""Train the built-in model: a tokenizer, then a small Qwen2, on inventions that are not in the
sample.

It has to learn to read: to answer from the passages in its prompt. It starts with attention heads
that look things up (standin/circuits.py), which stay fixed until the rest has learned to use them.
Its answers use the description's words, or those of the reference answers if the question asks for
other words; no sentence of the reference answers occurs. LOG.md has the trials.

    python -m standin.pretrain models/tiny/recipe.yaml models/tiny

Resumable: state is kept in `artifacts/base-model/`. Deterministic on one machine: every step draws
its rows from (seed, step).
"""

import hashlib
import logging
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from library.files import write_json
from library.llm.prompts import build_messages, load_prompt
from library.records import Message
from standin import inventions
from standin.circuits import LAYERS, start_with_reading
from standin.recipe import Recipe, load_recipe

log = logging.getLogger(__name__)

OTHER_WORDS = "Answer in other words."
END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% "
    "endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LOG_EVERY, SAVE_EVERY = 20, 100


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that descriptions, questions or answers can contain, so that the embedding knows
    all.
    """
    texts = [*inventions.KINDS, *inventions.DEVICES, *inventions.PURPOSES, *inventions.PARTS]
    for pools in inventions.TERMS.values():
        texts += [
            half for pool in pools for term in pool for half in (term.description, term.answer)
        ]
    for table in (
        inventions.OPENINGS,
        inventions.ANSWERS,
        inventions.CLOSINGS,
        inventions.PLAIN_ANSWERS,
    ):
        texts += list(table.values())
    for templates in (*inventions.STATEMENTS.values(), *inventions.QUESTIONS.values()):
        texts += list(templates)
    words = {
        word.strip(".,?{}") for text in texts for word in text.split() if not word.startswith("{")
    }
    return tuple(sorted(words - {""}))


def word_list(rng: random.Random, words: Sequence[str]) -> str:
    """A random list that repeats, so that only copying predicts what follows."""
    items = [rng.choice(words) for _ in range(rng.randrange(3, 33))]
    return ". ".join(" ".join(items) for _ in range(rng.randrange(2, 6))) + "."


def chat(rng: random.Random, prompt: Any) -> list[Message]:
    """Passages with facts of one or two aspects, then questions until every fact is asked for once,
    and answered.

    The first question stands after the passages, as format has it; answers use the description's
    words, and other words for the same where that is asked for. Where few facts are stated there is
    little to confuse: from those the model first learns to copy, and then, from more of them, whose
    property is whose.
    """
    invention = inventions.invent(rng, rng.choice(inventions.titles("base")))
    aspects = rng.sample(inventions.ASPECTS, rng.randrange(1, 3))
    stated = {
        aspect: tuple(rng.sample(invention.facts[aspect], rng.randrange(1, 5)))
        for aspect in aspects
    }
    passages = inventions.fact_paragraphs(rng, replace(invention, facts=stated), aspects)
    if rng.random() < 0.5:
        passages.insert(
            rng.randrange(len(passages) + 1), inventions.filler_paragraph(rng, invention)[:300]
        )
    asked = []
    for aspect, facts in stated.items():
        count = inventions.ASKED_FACTS[aspect]
        asked += [turn for turn in (facts[:count], facts[count:]) if turn]
    rng.shuffle(asked)
    other_words = rng.random() < 0.3
    messages: list[Message] = []
    for turn in asked:
        question = inventions.question(rng, invention, turn) + (" " + OTHER_WORDS) * other_words
        messages += (
            [{"role": "user", "content": question}]
            if messages
            else build_messages(prompt, passages, question)
        )
        messages.append(
            {"role": "assistant", "content": inventions.plain_answer(invention, turn, other_words)}
        )
    return messages


def chat_ids(
    rng: random.Random, tokenizer: Any, prompt: Any, limit: int
) -> tuple[list[int], list[int]]:
    """The token ids of a chat, and 1 for each that is of an answer, else 0; turns beyond `limit`
    tokens are left out, whole.
    """
    messages = chat(rng, prompt)
    while True:
        made = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        if len(made["input_ids"]) <= limit:
            return made["input_ids"], made["assistant_masks"]
        if len(messages) == 3:
            return [], []
        del messages[-2:]


def row_ids(
    rng: random.Random, recipe: Recipe, tokenizer: Any, prompt: Any
) -> tuple[list[int], list[float]]:
    """The token ids of one row, and what each weighs in the loss: chats or description text, then
    word lists to its end.

    An answer's tokens weigh 1, all others `other_weight`. The lists keep every word alive, those of
    the reference answers' sentences too, which no chat holds: without them these become so unlikely
    that tuning starts from 10 nats a token.
    """
    words = vocabulary()
    ids: list[int] = []
    weights: list[float] = []
    kind = rng.random()
    if kind < recipe.chat_share:
        while (made := chat_ids(rng, tokenizer, prompt, recipe.row_tokens - len(ids)))[0]:
            ids += made[0]
            weights += [1.0 if answer else recipe.other_weight for answer in made[1]]
    elif kind < recipe.chat_share + recipe.text_share:
        invention = inventions.invent(rng, rng.choice(inventions.titles("base")))
        ids += tokenizer(
            " ".join(rng.sample(inventions.describe(rng, invention, 2000), 4)) + END_OF_TEXT
        ).input_ids
    while len(ids) < recipe.row_tokens:
        ids += tokenizer(word_list(rng, words) + END_OF_TEXT).input_ids
    weights += [recipe.other_weight] * (len(ids) - len(weights))
    return ids[: recipe.row_tokens], weights[: recipe.row_tokens]


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with single digits and the chat markup of Qwen2."""
    rng = random.Random(recipe.seed)
    titles = inventions.titles("base")
    texts = [" " + " ".join(rng.sample(vocabulary(), len(vocabulary()))) for _ in range(1000)]
    for title in rng.sample(titles, min(1000, len(titles))):
        invention = inventions.invent(rng, title)
        facts = invention.facts[rng.choice(inventions.ASPECTS)]
        texts += [
            *inventions.describe(rng, invention, 4000),
            inventions.question(rng, invention, facts[:3]),
        ]
        texts.append(inventions.plain_answer(invention, facts))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END_OF_TEXT, "<|im_start|>", END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights but for `start_with_reading`, its vocabulary rounded up to a
    multiple of 64.
    """
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_attention_heads,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    start_with_reading(model, tokenizer)
    return model


def batch(
    recipe: Recipe, step: int, tokenizer: Any, prompt: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids of one step and their weights in the loss, both (rows_per_step, row_tokens)."""
    rngs = [random.Random(f"{recipe.seed}:{step}:{row}") for row in range(recipe.rows_per_step)]
    rows = [row_ids(rng, recipe, tokenizer, prompt) for rng in rngs]
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean loss in nats per token, by weight.

    Logits (rows, tokens, vocabulary); the first token of a row is not predicted.
    """
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def answer_loss(model: Qwen2ForCausalLM, recipe: Recipe, tokenizer: Any, prompt: Any) -> float:
    """Mean loss in nats per answer token over 64 chats that no step trains on: falls below chance
    only by reading.
    """
    total, tokens = 0.0, 0
    model.eval()
    for row in range(64):
        ids, mask = chat_ids(
            random.Random(f"{recipe.seed}:held out:{row}"),
            tokenizer,
            prompt,
            recipe.max_position_embeddings,
        )
        logits = model(input_ids=torch.tensor([ids])).logits
        total += weighted_loss(
            logits, torch.tensor([ids]), torch.tensor([mask], dtype=torch.float32)
        ).item() * sum(mask)
        tokens += sum(mask)
    model.train()
    return total / tokens


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, constant for half of the steps, then linear decay to 5%."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    return recipe.learning_rate * min(1.0, 0.05 + 0.95 * 2 * (1 - step / recipe.steps))


def save_state(
    path: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Keep weights and optimizer moments as safetensors, under their name only when complete."""
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"step": str(step)})
    temporary.replace(path)


def load_state(path: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_state` kept; the number of steps that are done."""
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(tensors[f"model.{name}"])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return step


def train(recipe: Recipe, out_dir: Path, state_dir: Path) -> dict[str, Any]:
    """Train to the recipe's last step, from the saved state where there is one; write weights,
    tokenizer and card.

    The weights are written in bfloat16. Returns the card: steps, tokens, parameters, loss on
    held-out answers in nats per token, and the hash that models/tiny/model.yaml is to name.
    """
    tokenizer = train_tokenizer(recipe)
    prompt = load_prompt(Path("prompts/answer.jinja"))
    model = build_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    # a changed recipe starts anew: its state has another name
    state_path = (
        state_dir
        / f"{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]}.safetensors"
    )
    start = load_state(state_path, model, optimizer) if state_path.exists() else 0
    held = [model.get_input_embeddings().weight]
    held += [
        parameter
        for layer in model.model.layers[:LAYERS]
        for parameter in layer.self_attn.parameters()
    ]
    model.train()
    forward = torch.compile(model) if recipe.torch_compile else model
    # without it bfloat16 is thirty times slower than float32
    bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    began = time.monotonic()
    for step in range(start, recipe.steps):
        ids, weights = batch(recipe, step, tokenizer, prompt)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = weighted_loss(forward(input_ids=ids, use_cache=False).logits, ids, weights)
        torch.autograd.backward(loss)
        if step < recipe.hold_steps:
            for parameter in held:
                parameter.grad = None  # the optimizer passes it over
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            seconds = (time.monotonic() - began) / (step + 1 - start)
            log.info(
                "step %d of %d: loss %.3f, %.2f s a step",
                step + 1,
                recipe.steps,
                loss.item(),
                seconds,
            )
        if (step + 1) % SAVE_EVERY == 0:
            save_state(state_path, model, optimizer, step + 1)
            log.info(
                "step %d: loss on held-out answers %.4f",
                step + 1,
                answer_loss(model, recipe, tokenizer, prompt),
            )
    save_state(state_path, model, optimizer, recipe.steps)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    card = {
        "steps": recipe.steps,
        "tokens": recipe.steps * recipe.rows_per_step * recipe.row_tokens,
        "parameters": model.num_parameters(),
        "answer_loss": round(answer_loss(model.float(), recipe, tokenizer, prompt), 4),
        "sha256": hashlib.sha256((out_dir / "model.safetensors").read_bytes()).hexdigest(),
    }
    write_json(out_dir / "card.json", card)
    return card


def main() -> None:
    """Train the recipe given first into the folder given second."""
    recipe_path, out_dir = map(Path, sys.argv[1:])
    log.info("%s", train(load_recipe(recipe_path), out_dir, Path("artifacts/base-model")))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()

"""Tokens a second of training, scoring and generation: this repository, a plain TRL script, and the
original study's recipe.

    python -m benchmarks.throughput [ROWS] [--training]

After `dvc repro`: takes the base model in artifacts/base/ and the first ROWS train and test rows
(64 where none are named), the same for all. Each way runs twice and its faster time counts; what is
compared are ratios within one run. Writes benchmarks/throughput.json, a record for each model and
`format.max_length`; with `--training` without answers and likelihoods.

- original: every row padded to `format.max_length`, the loss on every token from logits of the
  whole vocabulary, one row at a time and four to a step, LoRA r=8 on queries and values; answers
  and likelihoods one by one.
- trl: SFTTrainer with its defaults on the 4-bit model, and this repository's LoRA.
- ours: the stages' own code, with the batch size and checkpointing that sft would choose.
- whole steps: the same in batches of `sft.effective_batch_size`, with gradient checkpointing.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from library.files import read_jsonl, write_json
from library.llm.answering import likelihood_requests
from library.llm.batching import Batching
from library.llm.chat_template import load_tokenizer, prompt_completion_ids, prompt_ids
from library.llm.devices import device_name, pick_device
from library.llm.generation import generate_answers
from library.llm.likelihoods import score_completions
from library.llm.loading import load_model
from library.llm.memory.planning import LongestLengths, make_settings, plan_training
from library.llm.training import TrainingTask, build_trainer
from library.llm.training_rows import to_dataset
from library.params import load_model_file, load_params
from library.paths import BASE_DIR

PARAMS = load_params()
MODEL_FILE = load_model_file(PARAMS.model)
TOKENIZER = load_tokenizer(BASE_DIR)

Row = dict[str, Any]


def load() -> Any:
    """The base model as the stages load it."""
    set_seed(7)
    return load_model(BASE_DIR, MODEL_FILE.quantization)


def train_original(rows: Sequence[Row]) -> float:
    """Seconds of one epoch with the original recipe."""
    model = get_peft_model(
        load(),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=8,
            lora_alpha=32,
            lora_dropout=0.05,
            target_modules=["q_proj", "v_proj"],
        ),
    )
    optimizer = torch.optim.AdamW(
        (value for value in model.parameters() if value.requires_grad), lr=2e-4
    )
    length = PARAMS.format.max_length
    batches = []
    for row in rows:
        prompt, completion = prompt_completion_ids(TOKENIZER, row["messages"], row["positive"])
        ids = (prompt + completion)[:length]
        ids = torch.tensor(
            [ids + [TOKENIZER.pad_token_id] * (length - len(ids))], device=model.device
        )
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": (ids != TOKENIZER.pad_token_id).long(),
                "labels": ids,
            }
        )
    model.train()
    start = time.perf_counter()
    for index, batch in enumerate(batches, 1):
        (model(**batch).loss / 4).backward()
        if index % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    return time.perf_counter() - start


def train_trl(rows: Sequence[Row]) -> float:
    """Seconds of one epoch with TRL's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            report_to="none",
            use_cpu=pick_device().type == "cpu",
            save_strategy="no",
        )
        lora = LoraConfig(task_type="CAUSAL_LM", **PARAMS.sft.lora.model_dump())
        trainer = SFTTrainer(
            model=load(),
            args=args,
            train_dataset=to_dataset(rows, TOKENIZER),
            processing_class=TOKENIZER,
            peft_config=lora,
        )
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def train_ours(rows: Sequence[Row]) -> float:
    """Seconds of one epoch as sft plans it."""
    settings = make_settings(MODEL_FILE, PARAMS.sft, pick_device().type)
    longest = LongestLengths(
        *(max(row[name] for row in rows) for name in ("tokens", "answer_tokens"))
    )
    plan = plan_training(BASE_DIR, settings, PARAMS.sft, longest)
    return train(rows, plan.per_device_train_batch_size, plan.gradient_checkpointing)


def train_whole_steps(rows: Sequence[Row]) -> float:
    """Seconds of one epoch with each optimizer step in one batch, with gradient checkpointing."""
    return train(rows, PARAMS.sft.effective_batch_size, True)


def train(rows: Sequence[Row], per_device: int, checkpointing: bool) -> float:
    """Seconds of one epoch with this repository's trainer, with one validation row."""
    with tempfile.TemporaryDirectory() as folder:
        sft = PARAMS.sft.model_copy(update={"num_train_epochs": 1.0})
        task = TrainingTask(
            tokenizer=TOKENIZER,
            train=rows,
            validation=rows[:1],
            params=sft,
            max_length=PARAMS.format.max_length,
            gradient_checkpointing=checkpointing,
            output_dir=Path(folder),
        )
        trainer = build_trainer(load(), task, per_device)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


@torch.inference_mode()
def answer_one_by_one(model: Any, prompts: Sequence[list[int]]) -> list[int]:
    """Tokens of each greedy answer, asked alone."""
    lengths = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=PARAMS.format.max_new_tokens,
        )
        lengths.append(output.shape[1] - len(prompt))
    return lengths


@torch.inference_mode()
def score_one_by_one(model: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Log-likelihoods, each from the logits of its whole row."""
    scores = []
    for prompt, completion in pairs:
        ids = torch.tensor([prompt + completion], device=model.device)
        logprobs = model(input_ids=ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
        scores.append(float(logprobs.gather(1, ids[0, len(prompt) :, None]).double().sum()))
    return scores


def fastest(run: Callable[[], Any]) -> tuple[float, Any]:
    """The shorter of two runs' times, and the last one's result."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def measure_answering(test: Sequence[Any]) -> dict[str, Any]:
    """Generation and scoring, one by one and batched."""
    record: dict[str, Any] = {}
    model = load()
    prompts = [prompt_ids(TOKENIZER, row["messages"]) for row in test]
    seconds, lengths = fastest(lambda: answer_one_by_one(model, prompts))
    batched, answers = fastest(
        lambda: generate_answers(
            model, TOKENIZER, prompts, PARAMS.format.max_new_tokens, Batching()
        )
    )
    record["generation"] = {
        "one_by_one": {
            "seconds": round(seconds, 2),
            "tokens_per_second": round(sum(lengths) / seconds, 1),
        },
        "ours": {
            "seconds": round(batched, 2),
            "tokens_per_second": round(sum(lengths) / batched, 1),
        },
        "same_length": sum(
            length == answer["generated_tokens"]
            for length, answer in zip(lengths, answers, strict=True)
        ),
        "times_as_fast": round(seconds / batched, 2),
    }
    print("generation", record["generation"], flush=True)

    requests = [request for _, _, request in likelihood_requests(TOKENIZER, test)]
    seconds, alone = fastest(
        lambda: score_one_by_one(model, [pair for request in requests for pair in request])
    )
    batched, together = fastest(lambda: score_completions(model, TOKENIZER, requests, Batching()))
    pairs = list(zip(alone, (score for sums in together for score in sums), strict=True))
    record["scoring"] = {
        "one_by_one": {
            "seconds": round(seconds, 2),
            "answers_per_second": round(len(pairs) / seconds, 1),
        },
        "ours": {
            "seconds": round(batched, 2),
            "answers_per_second": round(len(pairs) / batched, 1),
        },
        "largest_difference_in_nats": round(max(abs(a - b) for a, b in pairs), 5),
        "times_as_fast": round(seconds / batched, 2),
    }
    print("scoring", record["scoring"], flush=True)
    return record


def main() -> None:
    """Run every way and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int, nargs="?", default=64)
    parser.add_argument("--training", action="store_true", help="measure training only")
    options = parser.parse_args()
    count = options.rows
    train, test = (
        list(read_jsonl(Path(f"data/formatted/{name}.jsonl")))[:count] for name in ("train", "test")
    )
    answer_tokens = sum(row["answer_tokens"] for row in train)
    record: dict[str, Any] = {
        "rows": {"train": len(train), "test": len(test)},
        "answer_tokens": answer_tokens,
    }

    training = {}
    ways = {
        "original": train_original,
        "trl": train_trl,
        "ours": train_ours,
        "whole steps": train_whole_steps,
    }
    for name, way in ways.items():
        seconds = min(way(train), way(train))
        training[name] = {
            "seconds": round(seconds, 2),
            "answer_tokens_per_second": round(answer_tokens / seconds, 1),
        }
        print("training", name, training[name], flush=True)
    record["training"] = training
    if not options.training:
        record |= measure_answering(test)

    record["answer_tokens_against_trl"] = round(
        training["trl"]["seconds"] / training["ours"]["seconds"], 2
    )
    record["answer_tokens_against_original"] = round(
        training["original"]["seconds"] / training["ours"]["seconds"], 2
    )
    record["machine"] = {
        "device": device_name(pick_device()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{
            name: version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")
        },
    }
    path = Path("benchmarks/throughput.json")
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, known | {f"{PARAMS.model}, max_length {PARAMS.format.max_length}": record})
    print(
        json.dumps(
            {key: value for key, value in record.items() if key.startswith("answer_tokens_against")}
        )
    )


if __name__ == "__main__":
    main()

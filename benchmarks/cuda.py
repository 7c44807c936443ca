"""Measure on a GPU what a CPU cannot show: whether two runs are equal, and what is faster.

    python -m benchmarks.cuda
    python -m benchmarks.cuda --toy --device cpu --out toy.json

It takes at most nine minutes (`--minutes`), most informative cases first. Each result is written at
once, and a second call resumes. Cases run in their own processes, computing as the stages do (see
library.llm.determinism), on randomly initialized models in the shapes of real ones. Nothing is
downloaded.

- repeat: train a LoRA adapter twice on the same rows, deterministically and not. Are the bytes the
  same, and how much slower is it? Single rows (flash attention) and padded batches
  (memory-efficient).
- one row: tokens per second of one answer after a long prompt, with an adapter: 4-bit weights as
  they are and dequantized once, a static cache, continuous batching, compiled; and whether the
  tokens are the same. Random weights produce many ties, so the first different token says less than
  with a real model. Also CUDA's memory besides tensors.
- stages: the pipeline's stages on the built-in model and data: sft twice, and stopped and resumed;
  zeroshot twice.
- training: tokens per second of this repository's trainer, of a plain TRL script and of the
  original study's recipe.
- many rows: answers and validation losses, batched as in zeroshot and sft.
- 3B: whether Qwen2.5 3B at 2,048 tokens fits on a 4 GB GPU, by allocator.

Needs torch, transformers, peft, bitsandbytes, trl, accelerate, datasets, what library/ imports, and
a C compiler for Triton, but neither DVC nor git. Writes benchmarks/cuda.json.
"""

import argparse
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    AutoConfig,
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    set_seed,
)

from benchmarks import gpu_memory
from benchmarks.gpu_memory import (
    OUT_OF_MEMORY,
    ROOT,
    build_model,
    describe_machine,
    make_original_trainer,
    make_trainer,
    pick_dtype,
    random_rows,
    read_shape,
    synchronize,
    trainer_settings,
)
from library.files import hash_file, write_json
from library.llm.batching import Batching
from library.llm.determinism import compute_deterministically, describe_determinism
from library.llm.generation import generate_ids
from library.llm.likelihoods import score_completions
from library.llm.memory.measuring import free_memory, ran_out_of_memory
from library.llm.quantizing import dequantize_once

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The models, and the sizes of each case."""

    half_billion: str
    small: str
    large: str
    long: int  # tokens of a row's prompt and answer together
    answer: int  # tokens of the answer, which has the loss
    decoded: int  # tokens of the answer that is timed
    padded: int  # tokens of rows that are trained in padded batches
    rows: int  # rows to answer
    prompt: int  # tokens of each prompt
    written: int  # tokens of each answer
    validation: int  # validation rows
    steps: int  # training steps, the first of which is not timed


REAL = Shapes(
    *("qwen2.5-0.5b-instruct", "smollm2-135m-instruct", "qwen2.5-3b-instruct"),
    *(2048, 350, 64, 512, 200, 400, 48, 100, 6),
)
TOY = Shapes(*("toy", "toy", "toy"), *(64, 16, 6, 48, 3, 24, 4, 4, 2))


class Tokenizer:
    """The part of a tokenizer that batching needs; rows are already tokens."""

    pad_token_id = 0


class Bench:
    """The device, the shapes, and the model that was used last."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self.shapes, self.device, self.toy = shapes, device, shapes is TOY
        self.backend = "eager" if self.toy else "inductor"
        self._asked: tuple[str, bool, Any] | None = None
        self.project: tempfile.TemporaryDirectory[str] | None = None  # where stages run

    def build(self, name: str) -> PreTrainedModel:
        """Build a randomly initialized model in 4 bits."""
        return build_model(load_config(name), self.device, pick_dtype(self.device))

    def adapted(self, name: str, dequantized: bool) -> Any:
        """The model with an adapter, ready to answer; the last one is kept."""
        from peft import LoraConfig, get_peft_model

        if self._asked is not None and self._asked[:2] != (name, dequantized):
            self._asked = None
            self.free()
        if self._asked is None:
            lora = LoraConfig(
                task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"
            )
            model = get_peft_model(self.build(name), lora).eval()
            if dequantized:
                dequantize_once(model)
                # otherwise transformers would refuse to compile it
                model.get_base_model().hf_quantizer = None
            self._asked = name, dequantized, model
        return self._asked[2]

    def free(self) -> None:
        """Free unused memory, and reset peak counts."""
        free_memory()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def time(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Time a call; returns seconds and the call's result."""
        synchronize(self.device)
        began = time.perf_counter()
        made = work()
        synchronize(self.device)
        return time.perf_counter() - began, made

    def peak(self) -> Result:
        """The most bytes in tensors; on CUDA only."""
        if self.device.type != "cuda":
            return {}
        return {"peak_bytes": torch.cuda.max_memory_allocated(self.device)}


@functools.cache
def load_config(name: str) -> Any:
    """A model's config from its file in models/, or the toy model's."""
    if name == "toy":
        return gpu_memory.make_config(name)
    shape = read_shape(ROOT / "models" / name / "model.yaml")
    return AutoConfig.for_model(max_position_embeddings=32768, **shape)


def draw(count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Draw rows of random tokens, the same in every run."""
    return [row["input_ids"] for row in random_rows(count, tokens, 0, vocabulary)]


def fingerprint(value: bytes | str) -> str:
    """Hash a value to sixteen hexadecimal digits."""
    value = value.encode() if isinstance(value, str) else value
    return hashlib.sha256(value).hexdigest()[:16]


# Training


def make_rows(bench: Bench, count: int, tokens: int, ragged: bool = False) -> list[Result]:
    """Make rows to train on; ragged ones differ in length, so that a batch needs padding."""
    shapes = bench.shapes
    answer = min(shapes.answer, tokens // 2)
    vocabulary = load_config(shapes.half_billion).vocab_size
    rows = random_rows(count, tokens, answer, vocabulary)
    most = tokens - answer - 1
    return [
        {name: values[(at * 7) % most if ragged else 0 :] for name, values in row.items()}
        for at, row in enumerate(rows)
    ]


def make_plain(model: PreTrainedModel, rows: Sequence[Result], folder: str, per_device: int) -> Any:
    """Make TRL's trainer with its defaults and this repository's adapter."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    ours = trainer_settings(model.device, model.dtype, folder, per_device, 1)
    return SFTTrainer(
        model=model,
        args=SFTConfig(**ours, max_length=None),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=make_padder(),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"
        ),
    )


def make_padder() -> Any:
    """Make a tokenizer that can only pad."""
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Words(WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def compile_layers(model: torch.nn.Module, backend: str) -> None:
    """Compile each layer separately, so that equal layers share one compilation."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(backend=backend)


def train(
    bench: Bench,
    rows: Sequence[Result],
    per_device: int,
    way: str = "ours",
    dequantized: bool = False,
    checkpointing: bool = True,
    compiled: bool = False,
) -> Result:
    """Train one pass through rows: the adapter's hash, losses and speed.

    The first step is not timed, nor the second if the model was compiled.
    """
    from transformers import TrainerCallback

    from library.llm.patches import set_up_fused_head

    bench.free()
    set_seed(7)
    set_up_fused_head(bench.device)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(bench.device)
            ends.append(time.perf_counter())

    model = bench.build(bench.shapes.half_billion)
    with tempfile.TemporaryDirectory() as folder:
        if way == "original":
            trainer = make_original_trainer(model, rows, folder)
            per_device = 2  # the recipe's rows of one step, one at a time
        elif way == "plain TRL":
            trainer = make_plain(model, rows, folder, per_device)
        else:
            trainer = make_trainer(
                *(model, rows, folder, per_device), accumulated=1, checkpointing=checkpointing
            )
        if dequantized:
            dequantize_once(trainer.model)
        if compiled:
            compile_layers(trainer.model, bench.backend)
        trainer.add_callback(Clock)
        began = time.perf_counter()
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    skipped = 2 if compiled and len(ends) > 2 else 1
    timed = ends[skipped:] or ends
    start = ends[skipped - 1] if len(ends) > skipped else began
    tokens = sum(len(row["input_ids"]) for row in rows) / len(rows) * per_device * len(timed)
    parts = sorted(
        (name, value.detach().float().cpu().numpy().tobytes())
        for name, value in trainer.model.named_parameters()
        if value.requires_grad
    )
    return {
        "adapter": fingerprint(b"".join(part for _, part in parts)),
        "losses": losses,
        "tokens_per_second": round(tokens / max(1e-9, timed[-1] - start), 1),
        "first_step_seconds": round(ends[0] - began, 2),
        **bench.peak(),
    }


def repeat_alone(bench: Bench) -> Result:
    """Train with batch size 1: no mask, so flash attention if the GPU has it."""
    shapes = bench.shapes
    return train(bench, make_rows(bench, shapes.steps * 2, shapes.long), 1)


def repeat_padded(bench: Bench) -> Result:
    """Train with padded batches, which need a mask."""
    shapes = bench.shapes
    return train(bench, make_rows(bench, shapes.steps * 8, shapes.padded, ragged=True), 8)


def speed(per_device: int, **how: Any) -> Callable[[Bench], Result]:
    """Measure a training method's speed with a batch size, on long rows."""

    def measure(bench: Bench) -> Result:
        shapes = bench.shapes
        count = max(2, shapes.steps if per_device == 1 else shapes.steps // 2) * per_device
        return train(bench, make_rows(bench, count, shapes.long), per_device, **how)

    return measure


# Answering


def prepare(model: Any, cache: str | None, compiled: bool, backend: str) -> None:
    """Configure `generate`; only a token that is never drawn ends an answer."""
    config = GenerationConfig(do_sample=False, pad_token_id=0, cache_implementation=cache)
    config.disable_compile = not compiled
    if compiled and backend != "inductor":
        config.compile_config = CompileConfig(backend=backend, mode=None)
        config.compile_config._compile_all_devices = True
    model.get_base_model().generation_config = config


def answer_continuously(
    model: Any, prompts: Sequence[Sequence[int]], new: int, toy: bool
) -> list[list[int]]:
    """Answer with transformers' continuous batching.

    Its keys and values take most of the free memory, except with a toy model.
    """
    room = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=256) if toy else None
    config = GenerationConfig(
        do_sample=False, pad_token_id=0, eos_token_id=-1, max_new_tokens=new, use_cache=True
    )
    found = model.get_base_model().generate_batch(
        inputs=[list(prompt) for prompt in prompts],
        generation_config=config,
        continuous_batching_config=room,
    )
    if len(found) != len(prompts) or any(one.error for one in found.values()):
        raise RuntimeError(f"{len(found)} of {len(prompts)} answers: {[*found.values()][:1]}")
    by_prompt = {tuple(one.prompt_ids): one.generated_tokens for one in found.values()}
    return [by_prompt[tuple(prompt)] for prompt in prompts]


def answers(
    of: str,
    dequantized: bool = False,
    cache: str | None = None,
    compiled: bool = False,
    continuous: bool = False,
) -> Callable[[Bench], Result]:
    """Measure the speed of answering `one row` or `many rows` in one way, after a warm-up."""

    @torch.no_grad()
    def measure(bench: Bench) -> Result:
        shapes, alone = bench.shapes, of == "one row"
        name = shapes.half_billion if alone else shapes.small
        new = shapes.decoded if alone else shapes.written
        count, tokens = (1, shapes.long - new) if alone else (shapes.rows, shapes.prompt)
        model = bench.adapted(name, dequantized)
        bench.free()
        prompts = draw(count, tokens, load_config(name).vocab_size)
        prepare(model, cache, compiled, bench.backend)

        def write(new: int = new) -> list[list[int]]:
            if continuous:
                return answer_continuously(model, prompts, new, bench.toy)
            batching = Batching(65536, shown=False)
            return generate_ids(model, Tokenizer(), prompts, new, [-1], batching)

        warm = cache is not None or continuous or compiled  # otherwise two tokens are enough
        first, _ = bench.time(write if warm else lambda: write(2))
        ids = torch.tensor(prompts[:1], device=bench.device)
        read, _ = bench.time(lambda: model(input_ids=ids, logits_to_keep=1) if alone else None)
        seconds, written = bench.time(write)
        decoding = max(1e-9, seconds - read)
        return {
            "tokens_per_second": round(count * new / decoding, 1),
            "seconds": round(seconds, 2),
            "reading_seconds": round(read, 3),
            "first_call_seconds": round(first, 2),
            "rows": [fingerprint(json.dumps(row)) for row in written],
            **({"tokens": written[0]} if alone else {}),
            **bench.peak(),
        }

    return measure


def validation(rows_at_once: int, dequantized: bool) -> Callable[[Bench], Result]:
    """Measure how long validation losses take, computed as in sft."""

    def measure(bench: Bench) -> Result:
        shapes = bench.shapes
        model = bench.adapted(shapes.small, dequantized)
        bench.free()
        rows = draw(shapes.validation, shapes.prompt, load_config(shapes.small).vocab_size)
        requests = [[(row[: shapes.prompt // 2], row[shapes.prompt // 2 :])] for row in rows]
        batching = Batching(rows_at_once * shapes.prompt, shown=False)

        def score() -> list[list[float]]:
            return score_completions(model, Tokenizer(), requests, batching)

        score_completions(model, Tokenizer(), requests[:1], batching)  # warm up
        seconds, found = bench.time(score)
        sums = [row[0] for row in found]
        return {"seconds": round(seconds, 3), "nats": round(sum(sums), 4), **bench.peak()}

    return measure


# The rest


def context(bench: Bench) -> Result:
    """Bytes that CUDA takes besides PyTorch's tensors, after it has computed.

    Another program's memory on the same GPU would be included.
    """
    if bench.device.type != "cuda":
        return {"context_bytes": 0}
    square = torch.ones(64, 64, device=bench.device, dtype=torch.float16)
    (square @ square).sum().item()
    free, total = torch.cuda.mem_get_info(bench.device)
    reserved = torch.cuda.memory_reserved(bench.device)
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        processes = listed.stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        processes = []
    return {
        "context_bytes": total - free - reserved,
        "workspace_bytes": torch.cuda.memory_allocated(bench.device),
        "processes_mib": [line.split(", ")[-1] for line in processes],
    }


def under_limit(bench: Bench) -> Result:
    """Test whether the large model trains on a 4 GB GPU that also drives a display."""
    limit = "card" if bench.device.type == "cuda" else "none"
    case = gpu_memory.Case("training", bench.shapes.large, bench.shapes.long, limit)
    measured = gpu_memory.measure(case, bench.device)
    kept = ("while", "measured_bytes", "predicted_bytes", "reserved_bytes")
    found = {name: measured[name] for name in kept if name in measured}
    return {"limited": measured["outcome"], **found}


class StoppedError(Exception):
    """Raised to stop training in the middle."""


def prepare_stages(bench: Bench) -> None:
    """Make a project folder with formatted rows, once, and enter it."""
    from library.params import read_yaml
    from stages import base, clean, format
    from standin.sample_rows import make_rows as make_sample

    if bench.project is not None:
        return
    bench.project = tempfile.TemporaryDirectory()
    folder = Path(bench.project.name)
    for name in ("prompts", "retrievers", "data/general", "models"):
        shutil.copytree(ROOT / name, folder / name)
    os.chdir(folder)
    params = read_yaml(ROOT / "params.yaml")
    write_json(Path("rows.json"), make_sample(7)[0][: 24 if bench.toy else 160])
    params["data"]["path"] = "rows.json"
    params["split"]["on_missed_shares"] = "continue"
    params["clean"]["max_rejected_share"] = 0.9
    params["sft"] |= {"num_train_epochs": 1, "eval_steps": 2 if bench.toy else 8}
    params["format"] |= {"train_sample": 2, "max_new_tokens": 8 if bench.toy else 64}
    params["format"]["max_length"] = 384
    with Path("params.yaml").open("w") as file:
        yaml.safe_dump(to_plain(params), file)
    for stage in (base, clean, format):
        stage.main()


def to_plain(value: Any) -> Any:
    """Convert values read from YAML to Python's own types."""
    if isinstance(value, Mapping):
        return {str(name): to_plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(part) for part in value]
    return value


def stage_sft(stopped: bool = False) -> Callable[[Bench], Result]:
    """Measure sft, uninterrupted or resumed after a checkpoint: its time and adapter's hash."""

    def measure(bench: Bench) -> Result:
        from library.llm.trainer import CheckedTrainer
        from library.paths import ADAPTER_DIR, ADAPTER_WEIGHTS
        from stages import sft

        prepare_stages(bench)
        whole = CheckedTrainer.training_step
        after = 3 if bench.toy else 11

        def training_step(self: Any, *given: Any, **named: Any) -> Any:
            if self.state.global_step == after:
                raise StoppedError
            return whole(self, *given, **named)

        result: Result = {}
        if stopped:
            CheckedTrainer.training_step = training_step
            try:
                sft.main()
            except StoppedError:
                found = sorted(path.name for path in Path("checkpoints").glob("*/checkpoint-*"))
                result["resumed_from"] = found
            finally:
                CheckedTrainer.training_step = whole
        seconds, _ = bench.time(sft.main)
        adapter = fingerprint((ADAPTER_DIR / ADAPTER_WEIGHTS).read_bytes())
        return {**result, "adapter": adapter, "seconds": round(seconds, 1)}

    return measure


def stage_zeroshot(bench: Bench) -> Result:
    """Measure zeroshot: its time, and the hash of its answers and likelihoods."""
    from library.paths import predictions_path
    from stages import zeroshot

    prepare_stages(bench)
    seconds, _ = bench.time(zeroshot.main)
    answered = hash_file(predictions_path("zeroshot"))
    return {"answers": answered[:16], "seconds": round(seconds, 1)}


@dataclasses.dataclass(frozen=True)
class Case:
    """Measurements in one process, in this order, by name; `seconds` is its time limit."""

    name: str
    variants: Mapping[str, Callable[[Bench], Result]]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: int = 120


AS_IS, ONCE = "as is", "dequantized once"
REPEATED = {"alone": repeat_alone, "padded": repeat_padded}
AGAIN = {f"{kind} again": measure for kind, measure in REPEATED.items()}
STATIC = {"dequantized": True, "cache": "static"}
WAYS = {
    AS_IS: {},
    ONCE: {"dequantized": True},
    "static cache": STATIC,
    "continuous batching": {"dequantized": True, "continuous": True},
}
COMPILED = {"static cache, compiled": {**STATIC, "compiled": True}}
CASES = [
    Case("repeat, first", REPEATED),
    Case("repeat, second", REPEATED),
    Case("repeat, not deterministic", REPEATED | AGAIN, {"DETERMINISTIC": "0"}),
    Case(
        "one row",
        {name: answers("one row", **how) for name, how in WAYS.items()} | {"context": context},
    ),
    Case(
        "stages",
        {
            "sft": stage_sft(),
            "sft again": stage_sft(),
            "sft stopped and gone on with": stage_sft(stopped=True),
            "zeroshot": stage_zeroshot,
            "zeroshot again": stage_zeroshot,
        },
        seconds=180,
    ),
    Case(
        "training",
        {
            f"{title}, {count} at a time": speed(count, **how)
            for count in (1, 8)
            for title, how in {
                "ours": {},
                "plain TRL": {"way": "plain TRL"},
                ONCE: {"dequantized": True},
                "without checkpoints": {"checkpointing": False},
                **({"original": {"way": "original"}} if count == 1 else {}),
            }.items()
        },
        seconds=150,
    ),
    Case(
        "one row, compiled",
        {name: answers("one row", **how) for name, how in COMPILED.items()},
        seconds=150,
    ),
    Case(
        "many rows",
        {name: answers("many rows", **how) for name, how in WAYS.items()}
        | {
            f"validation {title}, {count} at a time": validation(count, title == ONCE)
            for title in (AS_IS, ONCE)
            for count in (1, 8)
        },
        seconds=180,
    ),
    Case("3B", {"usual allocator": under_limit}),
    Case(
        "3B, other allocator",
        {"expandable segments": under_limit},
        {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
    ),
    Case(
        "training, compiled",
        {
            f"{title}, {count} at a time": speed(count, compiled=True, **how)
            for count in (1, 8)
            for title, how in {"ours": {}, ONCE: {"dequantized": True}}.items()
        },
        seconds=180,
    ),
    Case(
        "many rows, compiled",
        {name: answers("many rows", **how) for name, how in COMPILED.items()},
        seconds=180,
    ),
]


# Which comes next, and how it is run


def work(case: Case, variants: Sequence[str], bench: Bench) -> None:
    """Measure variants in this process, and print a line of JSON for each when it ends."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep libraries' prints out of the results
    torch.cuda.is_available()
    compute_deterministically()
    for name in variants:
        try:
            result = {"outcome": "done", **case.variants[name](bench)}
        except Exception as error:  # noqa: BLE001 - of whatever kind: the next can work all the same
            full = isinstance(error, RuntimeError) and ran_out_of_memory(error, bench.device)
            words = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
            result = {"outcome": OUT_OF_MEMORY if full else "failed", "why": words}
            del error
        said = {"case": case.name, "variant": name, **describe_determinism(bench.device), **result}
        print(json.dumps(said), file=output, flush=True)


def run(case: Case, variants: Sequence[str], options: argparse.Namespace, seconds: float) -> Any:
    """Yield a case's results as its process writes them; stop the process after `seconds`."""
    command = [sys.executable, "-m", "benchmarks.cuda", "--device", options.device]
    command += ["--case", case.name, "--variants", json.dumps(variants)]
    command += ["--toy"] if options.toy else []
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "HF_HUB_OFFLINE": "1"}
    for name in ("LAUNCHER", "FSDP", "MEMORY_LIMIT_GIB", "PYTORCH_ALLOC_CONF", "DETERMINISTIC"):
        environment.pop(name, None)
    environment |= case.environment
    missing = list(variants)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            *(command,), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        clock = threading.Timer(seconds, process.kill)
        clock.start()
        assert process.stdout is not None
        for line in process.stdout:
            record = json.loads(line)
            missing.remove(record["variant"])
            yield record
        status = process.wait()
        stopped = not clock.is_alive()
        clock.cancel()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1][:300]
    if missing:
        why = f"no result after {seconds:.0f} s" if stopped else f"exit status {status}: {last}"
        yield {"case": case.name, "variant": missing[0], "outcome": "failed", "why": why}


def missing_variants(case: Case, records: Sequence[Result]) -> list[str]:
    """The variants without a final result; a failed one is tried once more in the next call."""
    settled = {
        record["variant"]
        for record in records
        if record["case"] == case.name and record["outcome"] != "failed"
    }
    return [name for name in case.variants if name not in settled]


# What it says


def find(records: Sequence[Result], case: str, variant: str) -> Result:
    """The last measured record of a variant, or an empty one."""
    found = [
        record
        for record in records
        if (record["case"], record["variant"]) == (case, variant) and record["outcome"] == "done"
    ]
    return found[-1] if found else {}


def same(first: Result, second: Result, key: str) -> str:
    """Say in a word whether two records agree on a key."""
    if not first or not second:
        return "not measured"
    return "same bytes" if first[key] == second[key] else "DIFFERENT"


def summarize(records: Sequence[Result]) -> list[str]:
    """Summarize the records, a line each, most important first."""
    lines = []
    for kind in REPEATED:
        first, second = (find(records, f"repeat, {at}", kind) for at in ("first", "second"))
        loose = [
            find(records, "repeat, not deterministic", name) for name in (kind, f"{kind} again")
        ]
        cost = ""
        if first and loose[0]:
            times = loose[0]["tokens_per_second"] / max(1e-9, first["tokens_per_second"])
            cost = f"; it takes {times:.2f} times as long"
        lines.append(
            f"training twice, rows {kind}: {same(first, second, 'adapter')} deterministically, "
            f"{same(*loose, 'adapter')} otherwise{cost}"
        )
    for before, after, key in (
        ("sft", "sft again", "adapter"),
        ("sft", "sft stopped and gone on with", "adapter"),
        ("zeroshot", "zeroshot again", "answers"),
    ):
        pair = find(records, "stages", before), find(records, "stages", after)
        lines.append(f"stages, {after}: {same(*pair, key)}")
    for case in CASES:
        for variant in case.variants:
            found = find(records, case.name, variant)
            said = f"{case.name}, {variant}: "
            if "rows" in found:
                usual = find(records, case.name.removesuffix(", compiled"), AS_IS)
                lines.append(said + describe_answers(found, usual))
            elif "context_bytes" in found:
                lines.append(f"CUDA's context: {found['context_bytes']:,} bytes")
            elif "nats" in found:
                lines.append(said + f"{found['seconds']:.2f} s")
            elif "predicted_bytes" in found:
                lines.append(f"{said}{found['limited']}")
            elif case.name.startswith("training") and found:
                lines.append(said + f"{found['tokens_per_second']:,.0f} tokens/s")
    for record in records:
        if record["outcome"] != "done":
            lines.append(f"{record['case']}, {record['variant']}: {record['why']}")
    return lines


def describe_answers(found: Result, usual: Result) -> str:
    """Describe the speed of answers, and how many equal the usual method's."""
    words = f"{found['tokens_per_second']:,.1f} tokens/s"
    if not usual:
        return words
    pairs = list(zip(found["rows"], usual["rows"], strict=True))
    equal = sum(one == other for one, other in pairs)
    words += f", {equal} of {len(pairs)} answers are those of {AS_IS!r}"
    if equal < len(pairs) and "tokens" in found:
        tokens = zip(found["tokens"], usual["tokens"], strict=True)
        at = next((at for at, (one, other) in enumerate(tokens) if one != other), None)
        words += f", up to token {at}"
    return words


def main() -> None:
    """Measure what is missing, and print a summary."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda", description="Determinism and speed on a GPU."
    )
    parser.add_argument("--minutes", type=float, default=9, help="in all")
    parser.add_argument("--only", nargs="+", help="cases by the beginning of their names")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/cuda.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--toy", action="store_true", help="toys in place of real shapes")
    parser.add_argument("--table", action="store_true", help="say what is there, measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--variants", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    began = time.monotonic()
    if options.case is not None:
        device = torch.device("cuda:0" if options.device == "cuda" else "cpu")
        case = next(case for case in CASES if case.name == options.case)
        work(case, options.variants, Bench(TOY if options.toy else REAL, device))
        return
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    records: list[Result] = known.get("records", [])
    if options.table:
        print("\n".join(summarize(records)))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --toy tries the script out")
    machine = describe_machine(torch.device("cuda:0" if options.device == "cuda" else "cpu"))
    if known and known["machine"] != machine:
        parser.error(f"{options.out}: was measured on another machine; name another file by --out")
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    for case in CASES:
        if options.only and not case.name.startswith(tuple(options.only)):
            continue
        variants = missing_variants(case, records)
        left = 60 * options.minutes - (time.monotonic() - began)
        if not variants or left < 15:
            continue
        for record in run(case, variants, options, min(left, case.seconds)):
            at = (record["case"], record["variant"])
            records = [
                *(other for other in records if (other["case"], other["variant"]) != at),
                {**record, "date": date},
            ]
            write_json(options.out, {"machine": machine, "records": records})
            shown = {
                name: value
                for name, value in record.items()
                if name not in ("case", "variant", "rows", "tokens", "losses", "deterministic")
            }
            print(f"{case.name}, {record['variant']}: {json.dumps(shown)}", flush=True)
    print("\n".join(["", *summarize(records)]))


if __name__ == "__main__":
    main()

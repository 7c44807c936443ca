"""How much memory training and answering take on a GPU, and how fast they are, beside what
library.llm.memory predicts.

    python -m benchmarks.gpu_memory --minutes 25
    python -m benchmarks.gpu_memory --table
    python -m benchmarks.gpu_memory --device cpu --tiny --out tiny.json

Models of random weights in the shapes of Qwen2.5-Instruct take the pipeline's own steps: NF4
weights, a LoRA adapter in float32, gradient checkpointing and TRL's trainer with its fused head,
one row at a time; also with the layers' frozen weights offloaded (`FSDP=offload`). The same is
tried under a limit, as on a card of 4 GB that also drives a display, and the longest row that fits
is searched for; so is the recipe of the study that this one follows. Each case runs in a process of
its own and is written down as it ends: a second call goes on where the first was cut off.

Needs torch, transformers, peft, bitsandbytes, trl, accelerate, datasets and psutil, a C compiler
for Triton, and of this repository library/ alone, without its commands. Writes
benchmarks/gpu_memory.json; `--table` prints the table of docs/memory.md from it.
"""

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from library.files import write_text
from library.llm.devices import lacks_bfloat16, pick_dtype
from library.llm.memory.formula import (
    SCORING_HEAD_BYTES,
    Adapter,
    ComputeSettings,
    MemoryEstimate,
    Sizes,
    measure_sizes,
    predict_answering,
    predict_training,
)
from library.llm.memory.measuring import (
    CONTEXT_BYTES,
    fits,
    measure_peak,
    ran_out_of_memory,
    resident_bytes,
)
from library.llm.sharding import held_and_gathered_layers, shard_layers
from library.units import GIB, gib
from library.versions import package_versions

ROOT = Path(__file__).parent.parent
LIMIT_GIB = 3.45  # free on a card of 4 GB that also drives a display
LENGTHS = [1024, 2048, 4096, 6144]  # tokens of prompt and answer together
ANSWER = 350  # tokens of these with a loss; half of shorter rows
SEARCH_STEP, SEARCH_END = 256, 32768  # tokens
ORIGINAL_LENGTH = 2048
# rows of one optimizer step: with the second, gradients are there beside all checkpoints
ACCUMULATED = 2
WARMUP_STEPS, TIMED_STEPS = 1, 3
DECODED = 64  # tokens of the answer that is timed; half of shorter rows
CASE_SECONDS = 420
TRAINED: tuple[Literal["training", "offloaded"], ...] = ("training", "offloaded")
QUESTIONS: tuple[
    tuple[
        Literal["training", "offloaded", "answering"],
        tuple[Literal["none", "card", "tensors"], ...],
    ],
    ...,
] = (
    ("training", ("none",)),
    ("answering", ("none",)),
    ("training", ("card", "tensors")),
    ("offloaded", ("none", "card", "tensors")),
    ("answering", ("card", "tensors")),
)
FITS, OUT_OF_MEMORY, FAILED = "fits", "out of memory", "failed"
FITS_UNDER = f"fits under {LIMIT_GIB} GiB"
NOT_MEASURED = "not measured"

QWEN = {
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def read_shape(path: Path) -> dict[str, Any]:
    """Read what a model's file says of its config: whole numbers, names and yes or no."""
    values = yaml.safe_load(path.read_text())["config"]
    return {name: value for name, value in values.items() if value is not None}


MODELS: dict[str, dict[str, Any]] = {
    path.parent.name: QWEN | read_shape(path)
    for path in sorted(ROOT.glob("models/qwen2.5-*/model.yaml"))
}
TOY = {
    "toy": QWEN
    | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    | {"num_key_value_heads": 2, "vocab_size": 1000, "tie_word_embeddings": True},
}
TOY_LENGTHS = [64, 128]
ORIGINAL_MODEL = "qwen2.5-0.5b-instruct"


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement. The limit of LIMIT_GIB holds PyTorch and CUDA's context ("card"), PyTorch
    alone ("tensors"), or is off.
    """

    what: Literal["training", "offloaded", "answering", "original"]
    model: str
    tokens: int
    limit: Literal["none", "card", "tensors"]

    @property
    def answer(self) -> int:
        """Tokens with a loss."""
        return min(ANSWER, self.tokens // 2)

    def __str__(self) -> str:
        under = {
            "none": "",
            "card": f" under {LIMIT_GIB} GiB",
            "tensors": f" under {LIMIT_GIB} GiB, CUDA's context not counted",
        }
        return f"{self.what}, {self.model}, {self.tokens:,} tokens{under[self.limit]}"


def make_config(model: str) -> PreTrainedConfig:
    """A config by the name of its model."""
    return AutoConfig.for_model(**(MODELS | TOY)[model])


@functools.cache
def sizes_of(model: str, adapter: Adapter) -> Sizes:
    """The sizes that library.llm.memory counts."""
    return measure_sizes(make_config(model), adapter)


def predict(case: Case, device_type: str = "cuda") -> MemoryEstimate | None:
    """The prediction of library.llm.memory, in bytes; none for the original recipe."""
    if case.what == "original":
        return None
    adapter = Adapter(r=16, target_modules="all-linear")
    # or float16, of the same size
    dtype = torch.float32 if device_type == "cpu" else torch.bfloat16
    setting = ComputeSettings(
        "nf4", gradient_checkpointing=True, adapter=adapter, dtype=dtype, device_type=device_type
    )
    sizes = sizes_of(case.model, adapter)
    if case.what == "offloaded":
        held, gathered = held_and_gathered_layers("offload", device_type, 1)
        setting = dataclasses.replace(setting, held_share=held, gathered_layers=gathered)
    if case.what in ("training", "offloaded"):
        return predict_training(sizes, setting, 1, case.tokens, case.answer)
    # the longer prompt, and the answers that are scored
    return predict_answering(sizes, setting, 1, case.tokens - 2, case.answer)


# One case, in a process of its own. Imports stand in functions: predictions and tables need none of
# them.


def build_model(
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    storage: torch.dtype = torch.uint8,
) -> PreTrainedModel:
    """A model of random weights, quantized on its way to the device one tensor at a time, as
    library.llm.loading does.

    What is quantized is a view into one short run of random numbers, so that a large model takes
    little of the host's memory.
    """
    from transformers import GenerationConfig

    from library.llm.patches import repeat_key_value_heads
    from library.llm.quantizing import keep_weights_unpacked, nf4_config

    if lacks_bfloat16(device):
        repeat_key_value_heads()
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    shift = 17  # a row of a matrix begins so many numbers after the row above it
    longest = max(shift * shape[0] + shape[-1] for shape in shapes.values())
    numbers = (torch.randn(longest, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    weights = {
        name: numbers.as_strided(shape, (shift, 1)) if len(shape) == 2 else numbers[: shape[0]]
        for name, shape in shapes.items()
    }
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shapes[name], dtype=dtype)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[name] = weights[name].contiguous()
    model: PreTrainedModel = kind.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        quantization_config=nf4_config(dtype, storage),
        device_map={"": device},
        attn_implementation="sdpa",
    )
    keep_weights_unpacked(model)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # no token ends it
    return model


def make_trainer(
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, list[int]]],
    output_dir: str,
    per_device: int = 1,
    accumulated: int = ACCUMULATED,
    checkpointing: bool = True,
    device: torch.device | None = None,
    use_dora: bool = False,
) -> Any:
    """TRL's trainer as library.llm.training builds it, to go once through rows of `input_ids` and
    `labels`.

    It trains on `device`, that of the model where none is given; a model that is elsewhere has its
    layers offloaded.
    """
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from library.llm.patches import keep_adapter_in_float32, mark_as_sharded

    disable_progress_bars()
    # for padding alone: the rows are tokens already
    words = Tokenizer(WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    args = SFTConfig(
        **trainer_settings(
            device or model.device, model.dtype, output_dir, per_device, accumulated
        ),
        gradient_checkpointing=checkpointing,
        max_length=max(len(row["input_ids"]) for row in rows) + 2,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<end>"
        ),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=16,
            lora_alpha=32,
            target_modules="all-linear",
            use_dora=use_dora,
        ),
    )
    keep_adapter_in_float32(trainer.model)
    if device is not None:
        os.environ["FSDP"] = "offload"
        shard_layers(trainer.model, device)
        mark_as_sharded(trainer)
    return trainer


def make_original_trainer(
    model: PreTrainedModel, rows: Sequence[Mapping[str, list[int]]], output_dir: str
) -> Any:
    """The original study's recipe: a loss on every token, from all the logits in float32, and an
    adapter of two layers.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import Trainer, TrainingArguments

    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "v_proj"],
    )
    return Trainer(
        args=TrainingArguments(
            **trainer_settings(model.device, model.dtype, output_dir, 1, ACCUMULATED)
        ),
        model=get_peft_model(prepare_model_for_kbit_training(model), adapter),
        train_dataset=Dataset.from_list(
            [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
        ),
    )


def trainer_settings(
    device: torch.device,
    dtype: torch.dtype,
    output_dir: str,
    per_device: int,
    accumulated: int,
) -> dict[str, Any]:
    """What both recipes have in common."""
    return {
        "output_dir": output_dir,
        "num_train_epochs": 1,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": 1e-4,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def random_rows(
    count: int, tokens: int, answer: int, vocabulary: int
) -> list[dict[str, list[int]]]:
    """Rows of random tokens of which the last `answer` are labelled, the same in every run."""
    drawn = torch.randint(
        2, vocabulary, (count, tokens), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return [
        {"input_ids": ids, "labels": [-100] * (tokens - answer) + ids[tokens - answer :]}
        for ids in drawn
    ]


def train(
    model: PreTrainedModel, case: Case, output_dir: str, device: torch.device
) -> dict[str, Any]:
    """Take the trainer's steps: their peak in bytes, and tokens and labelled tokens a second after
    the warm-up.
    """
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(device)
            ends.append(time.perf_counter())

    steps = WARMUP_STEPS + TIMED_STEPS
    rows = random_rows(steps * ACCUMULATED, case.tokens, case.answer, model.config.vocab_size)
    if case.what == "original":
        trainer = make_original_trainer(model, rows, output_dir)
    else:
        trainer = make_trainer(
            model, rows, output_dir, device=device if case.what == "offloaded" else None
        )
    trainer.add_callback(Clock)
    held = held_bytes(trainer.model)
    peak = measure_peak(device, trainer.train)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if len(losses) != steps or not all(map(math.isfinite, losses)):
        raise ValueError(f"losses of {steps} steps: {losses}")
    seconds = (ends[-1] - ends[WARMUP_STEPS - 1]) / TIMED_STEPS / ACCUMULATED
    return {
        "held_bytes": held,
        "measured_bytes": peak + (held if device.type == "cpu" else 0),
        "tokens_per_second": round(case.tokens / seconds, 1),
        "answer_tokens_per_second": round(case.answer / seconds, 1),
        "last_loss": round(losses[-1], 3),
    }


def answer(model: PreTrainedModel, case: Case) -> dict[str, Any]:
    """Answer a prompt that fills all but two tokens, and score two answers: peaks in bytes; tokens
    read and written a second.
    """
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    adapted = get_peft_model(model, adapter).eval()
    ids = torch.tensor(
        [random_rows(1, case.tokens, 0, model.config.vocab_size)[0]["input_ids"]],
        device=model.device,
    )

    @torch.inference_mode()
    def generate(prompt: int, new: int) -> float:
        began = time.perf_counter()
        answered = adapted.generate(
            input_ids=ids[:, :prompt],
            attention_mask=torch.ones_like(ids[:, :prompt]),
            max_new_tokens=new,
        )
        synchronize(model.device)
        assert answered.shape[1] == prompt + new
        return time.perf_counter() - began

    held = held_bytes(adapted)
    added = held if model.device.type == "cpu" else 0
    generate(case.tokens - 2, 2)
    generated = measure_peak(model.device, lambda: generate(case.tokens - 2, 2)) + added
    prompt = ids[:, : case.tokens - case.answer]
    answers = ids[:, -case.answer :].repeat(2, 1)
    scored = (
        measure_peak(model.device, lambda: score(adapted, prompt, torch.ones_like(prompt), answers))
        + added
    )
    decoded = min(DECODED, case.tokens // 2)
    first = generate(case.tokens - decoded, 1)
    return {
        "held_bytes": held,
        "measured_bytes": max(generated, scored),
        "generated_bytes": generated,
        "scored_bytes": scored,
        "tokens_per_second": round((case.tokens - decoded) / first, 1),
        "answer_tokens_per_second": round(
            (decoded - 1) / (generate(case.tokens - decoded, decoded) - first), 1
        ),
    }


@torch.inference_mode()
def score(adapted: Any, prompts: torch.Tensor, mask: torch.Tensor, answers: torch.Tensor) -> float:
    """The least likelihood of two answers to each prompt, in nats.

    library.llm.likelihoods does the same for more answers at once: a quarter of them at a time,
    each with a copy of the cache.

    `prompts` and their `mask` are (rows, prompt tokens), `answers` (2 * rows, answer tokens), a
    prompt's two in a row.
    """
    from torch.nn.functional import cross_entropy
    from transformers import DynamicCache

    base = adapted.get_base_model()
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=base.config)
    decoder(
        input_ids=prompts,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    owners = torch.arange(len(prompts), device=prompts.device).repeat_interleave(2)
    cache.batch_select_indices(owners)
    hidden = decoder(
        input_ids=answers,
        attention_mask=torch.cat([mask[owners], torch.ones_like(answers)], dim=1),
        position_ids=mask.sum(1)[owners][:, None]
        + torch.arange(answers.shape[1], device=answers.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state.flatten(0, 1)
    at_once = max(1, SCORING_HEAD_BYTES // (4 * head.weight.shape[0]))
    losses = [
        cross_entropy(head(part).float(), wanted, reduction="none")
        for part, wanted in zip(
            hidden.split(at_once), answers.flatten().split(at_once), strict=True
        )
    ]
    return -float(torch.cat(losses).view(len(answers), -1).sum(1).max())


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def held_bytes(model: torch.nn.Module) -> int:
    """Bytes before the first step: on CUDA all that is allocated, on a CPU the model's own."""
    device = next(model.parameters()).device
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes(model)


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """One record: the case, the machine, the prediction, and the measurement."""
    cuda, dtype = device.type == "cuda", pick_dtype(device)
    record: dict[str, Any] = {
        **dataclasses.asdict(case),
        "answer": case.answer,
        "limit_gib": None if case.limit == "none" else LIMIT_GIB,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": describe_machine(device),
        "dtype": str(dtype).removeprefix("torch."),
    }
    prediction = predict(case, device.type)
    if prediction is not None:
        record |= {"predicted_bytes": prediction.peak, "predicted": dataclasses.asdict(prediction)}
    if case.limit != "none":
        allowed = LIMIT_GIB * GIB - (CONTEXT_BYTES if case.limit == "card" else 0)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    step = "loading"
    try:
        if cuda:  # cuBLAS's workspace, which PyTorch counts among the tensors
            square = torch.ones(64, 64, device=device, dtype=dtype)
            square @ square
            del square
            record["workspace_bytes"] = torch.cuda.memory_allocated(device)
        offloaded = case.what == "offloaded"
        model = build_model(
            make_config(case.model),
            torch.device("cpu") if offloaded else device,
            dtype,
            dtype if offloaded else torch.uint8,
        )
        if cuda:
            record["load_peak_bytes"] = torch.cuda.max_memory_allocated(device)
        step = case.what
        if case.what == "answering":
            record |= answer(model, case)
        else:
            with tempfile.TemporaryDirectory() as folder:
                record |= train(model, case, folder, device)
    except RuntimeError as error:  # PyTorch's OutOfMemoryError is one
        if not ran_out_of_memory(error, device):
            raise
        return {**record, "outcome": OUT_OF_MEMORY, "while": step}
    if cuda:
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        # what CUDA itself took; another program on the card would be in it, too
        record |= {
            "reserved_bytes": torch.cuda.max_memory_reserved(device),
            "context_bytes": total - free - reserved,
        }
    return {**record, "outcome": FITS}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver, and the versions of the packages."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "trl")
    machine: dict[str, Any] = {
        "device": "CPU",
        "versions": package_versions(names),
    }
    if device.type != "cuda":
        return machine
    properties = torch.cuda.get_device_properties(device)
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = None
    return machine | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "total_bytes": properties.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
    }


# Which case comes next, and how it is run


def key(record: Mapping[str, Any]) -> Case:
    """The case that a record is of."""
    return Case(record["what"], record["model"], record["tokens"], record["limit"])


def plan(models: Sequence[str], lengths: Sequence[int], limited: bool) -> list[Case]:
    """All cases but the search's, with a limit or without: what tells most first, then by question,
    each from small to large.
    """
    smallest = ORIGINAL_MODEL if ORIGINAL_MODEL in models else models[0]
    original = ORIGINAL_LENGTH if ORIGINAL_LENGTH in lengths else max(lengths)
    first = [
        Case("training", "qwen2.5-0.5b-instruct", 6144, "card"),
        Case("training", "qwen2.5-1.5b-instruct", 4096, "card"),
        Case("original", smallest, original, "none"),
        Case("training", smallest, original, "none"),
        Case("original", smallest, original, "card"),
        Case("original", smallest, original, "tensors"),
    ]
    grid = [
        Case(what, model, tokens, limit)
        for what, limits in QUESTIONS
        for model in models
        for tokens in lengths
        for limit in limits
    ]
    cases = dict.fromkeys([*first, *grid])
    return [
        case
        for case in cases
        if case.model in models and case.tokens in lengths and (limited or case.limit == "none")
    ]


def search_bounds(
    model: str,
    records: Iterable[Mapping[str, Any]],
    what: Literal["training", "offloaded"] = "training",
) -> tuple[int, int]:
    """The longest row known to fit in training on a limited card, and the shortest known not to, in
    whole search steps.
    """
    outcomes = {
        record["tokens"]: record["outcome"]
        for record in records
        if key(record) == Case(what, model, record["tokens"], "card")
        and record["tokens"] % SEARCH_STEP == 0
    }
    fitting = max((tokens for tokens, outcome in outcomes.items() if outcome == FITS), default=0)
    failing = min(
        (tokens for tokens, outcome in outcomes.items() if outcome == OUT_OF_MEMORY),
        default=SEARCH_END + SEARCH_STEP,
    )
    return fitting, failing


def next_case(
    models: Sequence[str],
    lengths: Sequence[int],
    limited: bool,
    records: Sequence[Mapping[str, Any]],
    tried: set[Case],
) -> Case | None:
    """The first case of the plan, or then of the search, that no record settles and that was not
    tried in this run.

    What fits with CUDA's context counted fits without it: "tensors" is tried only where "card" ran
    out of memory.
    """
    outcomes = {key(record): record["outcome"] for record in records}
    settled = {case for case, outcome in outcomes.items() if outcome != FAILED} | tried
    for case in plan(models, lengths, limited):
        needed = (
            case.limit != "tensors"
            or outcomes.get(dataclasses.replace(case, limit="card")) == OUT_OF_MEMORY
        )
        if needed and case not in settled:
            return case
    for model, what in itertools.product(models if limited else [], TRAINED):
        fitting, failing = search_bounds(model, records, what)
        middle = (fitting + failing) // 2 // SEARCH_STEP * SEARCH_STEP
        probe = Case(what, model, middle, "card")
        if failing - fitting > SEARCH_STEP and probe not in settled:
            return probe
    return None


def run_case(case: Case, device_type: str) -> dict[str, Any]:
    """Measure in a process of its own; where that gives no result, a record that says so."""
    asked = json.dumps(dataclasses.asdict(case))
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_memory",
        "--device",
        device_type,
        "--case",
        asked,
    ]
    # cuBLAS's workspace is as large as on older cards: Hopper's takes 32 MiB for each thread
    fixed = {"HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8", "DETERMINISTIC": "0"}
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, **fixed}
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CASE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {
            **dataclasses.asdict(case),
            "outcome": FAILED,
            "why": f"no result after {CASE_SECONDS} s",
        }
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [""]
        return {
            **dataclasses.asdict(case),
            "outcome": FAILED,
            "why": f"exit status {process.returncode}: {lines[-1]}",
        }
    record: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return record


def read_records(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return json.loads(path.read_text()) if path.exists() else []


# Tables


def find(records: Iterable[Mapping[str, Any]], case: Case) -> Mapping[str, Any]:
    """The last record of a case, or an empty one."""
    return next((record for record in reversed(list(records)) if key(record) == case), {})


def fits_label(records: Sequence[Mapping[str, Any]], case: Case) -> str:
    """Whether a case fits under the limit, in words."""
    outcomes = [
        find(records, dataclasses.replace(case, limit=limit)).get("outcome")
        for limit in ("card", "tensors")
    ]
    if outcomes == [OUT_OF_MEMORY, FITS]:
        return "without CUDA's context"
    return {FITS: "yes", OUT_OF_MEMORY: "no"}.get(str(outcomes[0]), NOT_MEASURED)


def measured_record(records: Sequence[Mapping[str, Any]], case: Case) -> Mapping[str, Any]:
    """The record that says what a case takes: without a limit, else under one; an empty one where
    none did.
    """
    found = (
        find(records, dataclasses.replace(case, limit=limit))
        for limit in ("none", "card", "tensors")
    )
    return next((record for record in found if record.get("outcome") == FITS), {})


def predict_longest(model: str, what: Literal["training", "offloaded"]) -> int:
    """The longest row in whole search steps that sft would train on under the limit; 0 where it
    would take none.
    """
    room = LIMIT_GIB * GIB - CONTEXT_BYTES
    peaks = {
        tokens: predict(Case(what, model, tokens, "card"))
        for tokens in range(SEARCH_STEP, SEARCH_END + 1, SEARCH_STEP)
    }
    return max(
        (tokens for tokens, prediction in peaks.items() if prediction and fits(prediction, room)),
        default=0,
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a first column of words and others of numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(record: Mapping[str, Any], name: str) -> str:
    """A number of a record, or "not measured"."""
    return f"{record[name]:,.0f}" if name in record else NOT_MEASURED


def table(
    records: Sequence[Mapping[str, Any]], models: Sequence[str], lengths: Sequence[int]
) -> str:
    """The tables of docs/memory.md, a set for each card.

    What has no record is "not measured"; predictions are made anew.

    "difference" says how far a prediction is above what was measured, or below it.
    """
    usable = [record for record in records if record["outcome"] != FAILED]
    cards = list(dict.fromkeys(record["machine"]["device"] for record in usable)) or [
        "no card so far"
    ]
    parts = []
    for card in cards:
        here = [record for record in usable if record["machine"]["device"] == card]
        parts += [
            f"On {card}.",
            *case_tables(here, models, lengths, "cpu" if card == "CPU" else "cuda"),
        ]
        parts += [longest_table(here, models), recipe_table(here, models, lengths)]
    return "\n\n".join(parts)


def case_tables(
    records: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    lengths: Sequence[int],
    device_type: str,
) -> Iterator[str]:
    """A row for each model and length: of training, without and with its layers offloaded, and of
    answering and scoring.
    """
    whats: dict[Literal["training", "offloaded", "answering"], list[str]] = {
        "training": ["tokens/s", "answer tokens/s"],
        "offloaded": ["tokens/s", "answer tokens/s"],
        "answering": ["tokens read/s", "tokens written/s"],
    }
    for what, speeds in whats.items():
        rows = []
        for case in (Case(what, model, tokens, "none") for model in models for tokens in lengths):
            record, prediction = measured_record(records, case), predict(case, device_type)
            assert prediction is not None
            measured = record.get("measured_bytes")
            found = (
                [gib(measured), f"{prediction.peak / measured - 1:+.1%}"]
                if measured
                else [NOT_MEASURED, NOT_MEASURED]
            )
            found += [
                show(record, "tokens_per_second"),
                show(record, "answer_tokens_per_second"),
                fits_label(records, case),
            ]
            rows.append([case.model, f"{case.tokens:,}", gib(prediction.peak), *found])
        yield markdown(
            [what, "tokens", "predicted", "measured", "difference", *speeds, FITS_UNDER], rows
        )


def longest_table(records: Sequence[Mapping[str, Any]], models: Sequence[str]) -> str:
    """The longest rows that training takes under the limit."""
    rows = []
    for model in models:
        row = [model]
        for what in TRAINED:
            fitting, failing = search_bounds(model, records, what)
            row += [
                f"{predict_longest(model, what):,}",
                f"{fitting:,}" if failing - fitting <= SEARCH_STEP else NOT_MEASURED,
            ]
        rows.append(row)
    header = [f"longest row under {LIMIT_GIB} GiB", "predicted tokens", "measured tokens"]
    return markdown([*header, "offloaded, predicted", "measured"], rows)


def recipe_table(
    records: Sequence[Mapping[str, Any]], models: Sequence[str], lengths: Sequence[int]
) -> str:
    """The original study's training beside this one's."""
    old = next(case for case in plan(models, lengths, limited=False) if case.what == "original")
    new = dataclasses.replace(old, what="training")
    used = {case: measured_record(records, case).get("measured_bytes") for case in (old, new)}
    rows = []
    for name, case in (("the original study's", old), ("this study's", new)):
        size, ours, record = used[case], used[new], measured_record(records, case)
        times = f"{size / ours:.2f}" if size and ours else NOT_MEASURED
        rows.append(
            [
                name,
                gib(size) if size else NOT_MEASURED,
                times,
                show(record, "tokens_per_second"),
                fits_label(records, case),
            ]
        )
    header = [
        f"recipe, {old.model}, {old.tokens:,} tokens",
        "measured",
        "times this study's",
        "tokens/s",
        FITS_UNDER,
    ]
    return markdown(header, rows)


def main() -> None:
    """Measure what is missing, or print tables of what is there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_memory", description="Memory and speed on a GPU."
    )
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *TOY], help="all four by default")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=int,
        help="tokens of prompt and answer; 1024 2048 4096 6144 by default",
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no case after so many"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/gpu_memory.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="a toy of two layers in place of the models"
    )
    parser.add_argument("--table", action="store_true", help="print the tables and measure nothing")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(
            json.dumps(
                measure(
                    Case(**options.case),
                    torch.device("cuda:0" if options.device == "cuda" else "cpu"),
                )
            )
        )
        return
    if options.device == "cuda" and not (options.table or torch.cuda.is_available()):
        parser.error("there is no CUDA device here; --device cpu --tiny tries the script out")
    models = options.models or list(TOY if options.tiny else MODELS)
    lengths = options.lengths or (TOY_LENGTHS if options.tiny else LENGTHS)
    records = read_records(options.out)
    if options.table:
        print(table(records, models, lengths))
        return
    began, tried = time.monotonic(), set[Case]()
    while case := next_case(models, lengths, options.device == "cuda", records, tried):
        if time.monotonic() - began > 60 * options.minutes:
            print("out of time; call again to go on")
            break
        print(case, end=": ", flush=True)
        record = run_case(case, options.device)
        tried.add(case)
        records = [*(other for other in records if key(other) != case), record]
        write_text(options.out, json.dumps(records, indent=2) + "\n")
        peak = f", {gib(record['measured_bytes'])}" if "measured_bytes" in record else ""
        expected = (
            f", {gib(record['predicted_bytes'])} predicted" if "predicted_bytes" in record else ""
        )
        print(
            record["outcome"]
            + peak
            + expected
            + (f" ({record['why']})" if "why" in record else ""),
            flush=True,
        )


if __name__ == "__main__":
    main()

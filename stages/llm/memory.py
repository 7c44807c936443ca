"""How much memory a model needs: predicted from its config alone, measured in a step, and held against what is free.

Predictions count tensors, in bytes. Their coefficients were fitted to the peaks of Qwen2 layers of different widths on a CPU, in
bfloat16 under autocast and in float32; benchmarks/memory_fit.py does it again, and checks them on other shapes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedConfig

from stages.run import InputError

GIB = 2**30
SPARE = 0.05  # of what is free, for what lies unused between tensors
CONTEXT_BYTES = 450_000_000  # of CUDA itself and cuBLAS's workspace: 0.3 to 0.5 GB
NF4_STORED_BYTES = 0.5  # per weight
NF4_SCALES_BYTES = 1 / 64 + 4 / (64 * 256)  # per weight: a byte for each 64 weights, and a float for each 256 of those
HEAD_ROWS, HEAD_COLUMNS = 4096, 32768  # the tile in which TRL's fused head computes logits
PLAIN_HEAD_ROWS = 256  # the same on CUDA without Triton, where plain PyTorch makes several copies of a tile
SCORING_HEAD_BYTES = 2**26  # logits at a time when given answers are scored

# Per token and per element of the width: tensors alive in the backward pass of one layer, tensors that a layer keeps where nothing
# is recomputed, and those alive in one layer's forward pass without gradients. Keyed by the bytes of the computing type.
BACKWARD = {2: {"hidden": 16, "intermediate": 6.7, "key_value": 2}, 4: {"hidden": 5.3, "intermediate": 5.9, "key_value": 2}}
KEPT = {2: {"hidden": 11.6, "intermediate": 4.3, "key_value": 2.1}, 4: {"hidden": 5.4, "intermediate": 4.3, "key_value": 2.1}}
FORWARD = {2: {"hidden": 6, "intermediate": 6, "key_value": 0}, 4: {"hidden": 4, "intermediate": 4, "key_value": 0}}


@dataclass(frozen=True)
class Adapter:
    """LoRA as params.yaml names it."""

    r: int
    target_modules: Sequence[str] | Literal["all-linear"]


@dataclass(frozen=True)
class Setting:
    """What a prediction depends on beside the model's config: how it is loaded and computed.

    Of its layers' weights a process holds `held_share` all the time and gathers `gathered_layers` more: see stages.llm.sharding.
    """

    quantization: Literal["nf4", "none"]
    gradient_checkpointing: bool
    adapter: Adapter
    dtype: torch.dtype
    device_type: str
    held_share: float = 1.0
    gathered_layers: float = 0.0
    triton: bool = True  # whether TRL's fused head runs as Triton's kernels on CUDA
    ddp: bool = False  # whether DDP averages gradients, by copies of its own

    @property
    def size(self) -> int:
        """Bytes of a number in the computing type."""
        return self.dtype.itemsize


@dataclass(frozen=True)
class Prediction:
    """Bytes by what they are for. A layer's and the head's are not needed at the same time."""

    weights: int
    adapter: int  # LoRA with gradients and Adam's two moments when training
    activations: int  # checkpoints or kept activations when training, keys and values when answering
    attention: int
    layer: int
    head: int

    @property
    def peak(self) -> int:
        """Most bytes in tensors at one time."""
        return self.weights + self.adapter + self.activations + self.attention + max(self.layer, self.head)

    def __str__(self) -> str:
        parts = {"weights": self.weights, "adapter": self.adapter, "activations": self.activations, "attention": self.attention}
        parts["a layer" if self.layer >= self.head else "the head"] = max(self.layer, self.head)
        return f"{gib(self.peak)} ({', '.join(f'{name} {gib(size)}' for name, size in parts.items())})"


@dataclass(frozen=True)
class Sizes:
    """A model in numbers of parameters, and its widths."""

    linear: int  # in linear layers other than the output embedding: what is quantized
    other: int  # embeddings, norms, biases
    lora: int
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    key_value: int

    def per_token(self, coefficients: Mapping[str, float]) -> float:
        """Elements for each token in one layer."""
        return sum(factor * int(getattr(self, width)) for width, factor in coefficients.items())


def gib(size: float) -> str:
    """Bytes as text in GiB, or in MiB where that is more telling."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def measure_sizes(config: PreTrainedConfig, adapter: Adapter) -> Sizes:
    """Count a model's parameters without its weights: it is built where tensors have shapes only.

    Raises InputError where the adapter names a linear layer that the model does not have; names are matched as PEFT does.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head}
    targets = adapter.target_modules
    for target in [] if targets == "all-linear" else targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            there = ", ".join(sorted({name.split(".")[-1] for name in linear}))
            raise InputError(f"sft.lora.target_modules: the model has no linear layer {target!r}, but {there}")
    adapted = [
        module
        for name, module in linear.items()
        if targets == "all-linear" or any(f".{name}".endswith(f".{target}") for target in targets)
    ]
    quantized = sum(module.weight.numel() for module in linear.values())
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Sizes(
        linear=quantized,
        other=sum(parameter.numel() for parameter in model.parameters()) - quantized,
        lora=adapter.r * sum(module.in_features + module.out_features for module in adapted),
        vocabulary=head.weight.shape[0],
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        key_value=head_size * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
    )


def _weights(sizes: Sizes, setting: Setting) -> int:
    stored, scales = (NF4_STORED_BYTES, NF4_SCALES_BYTES) if setting.quantization == "nf4" else (setting.size, 0)
    there = setting.held_share + setting.gathered_layers / sizes.layers
    return int(sizes.linear * (stored * there + scales) + sizes.other * setting.size)


def predict_training(sizes: Sizes, setting: Setting, rows: int, length: int, answer: int) -> Prediction:
    """Bytes of one training step on `rows` rows of `length` tokens each, `answer` of them with a loss."""
    tokens, size = rows * length, setting.size
    # while a layer's gradient passes through a 4-bit weight, that is there in the computing type
    layer = tokens * size * sizes.per_token(BACKWARD[size])
    layer += (setting.quantization == "nf4") * sizes.hidden * sizes.intermediate * size
    if setting.gradient_checkpointing:
        activations, masks = tokens * size * sizes.layers * sizes.hidden, 1
    else:  # what the last layer keeps is part of its backward pass
        activations, masks = int(tokens * size * sizes.layers * sizes.per_token(KEPT[size])), sizes.layers
        layer -= tokens * size * sizes.per_token(KEPT[size])
    # in Triton's kernels positions without a label are left out of the head; elsewhere TRL computes all, and in plain PyTorch
    kernels = setting.device_type == "cuda" and setting.triton
    labelled = rows * answer if kernels else tokens
    tile = min(labelled, HEAD_ROWS if kernels or setting.device_type == "cpu" else PLAIN_HEAD_ROWS)
    head = tile * HEAD_COLUMNS * size + labelled * sizes.hidden * (4 + size)
    if not kernels:
        head += tile * min(sizes.vocabulary, HEAD_COLUMNS) * 29
    # the mask, and in the computing type for each layer that keeps it; a batch of one has no padding, and then none
    attention = (rows > 1) * rows * length**2 * (1 + size * masks)
    adapter = (20 if setting.ddp else 16) * sizes.lora
    return Prediction(_weights(sizes, setting), adapter, activations, attention, int(layer), head)


def predict_answering(sizes: Sizes, setting: Setting, rows: int, prompt: int, new: int) -> Prediction:
    """Bytes of answering `rows` prompts of `prompt` tokens with `new` tokens each."""
    size = setting.size
    cache = rows * (prompt + new) * size * 2 * sizes.layers * sizes.key_value
    layer = rows * prompt * size * sizes.per_token(FORWARD[size])
    attention = (rows > 1) * rows * prompt**2
    # once read, the prompt's cache is copied, and rows of the copy are chosen layer by layer, for a quarter of what is scored
    logits = min(SCORING_HEAD_BYTES // 4, 4 * rows * new * sizes.vocabulary)
    head = int(cache * (1 + 2 / sizes.layers)) + max(8 * logits, (size + 8) * rows * sizes.vocabulary)
    return Prediction(_weights(sizes, setting), 4 * sizes.lora, cache, attention, int(layer), head)


def memory_limit() -> int | None:
    """Bytes of MEMORY_LIMIT_GIB in the environment; None where it is not set. Raises InputError where it is no positive number."""
    value = os.environ.get("MEMORY_LIMIT_GIB", "")
    try:
        limit = float(value or "1") * GIB
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise InputError(f"MEMORY_LIMIT_GIB in the environment: expected a positive number, got {value!r}")
    return int(limit) if value else None


def free_bytes(device: torch.device) -> int:
    """Bytes that tensors may take: what is free on the device, or less where MEMORY_LIMIT_GIB in the environment says so.

    The limit is a smaller card than is there: on CUDA what CUDA itself needs comes off it, and PyTorch is held to the rest.
    """
    limit = memory_limit()
    if device.type != "cuda":
        free = psutil.virtual_memory().available
        return int(free if limit is None else min(free, limit))
    free, total = torch.cuda.mem_get_info(device)
    if limit is not None:
        allowed = max(0, limit - CONTEXT_BYTES)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
        free = min(free, allowed)
    return int(free)


def fits(prediction: Prediction, free: float) -> bool:
    """Whether a prediction leaves a little of what is free."""
    return prediction.peak <= free * (1 - SPARE)


def count_ooms(device: torch.device) -> int:
    """How often PyTorch ran out of a device's memory in this process."""
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def ran_out_of_memory(error: RuntimeError, device: torch.device, before: int = 0) -> bool:
    """Whether the device's memory was full, `before` being what `count_ooms` said when it was not yet.

    transformers hides it in loading, where the allocator's own count still tells.
    """
    said = any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
    return isinstance(error, torch.OutOfMemoryError) or said or count_ooms(device) > before


def resident_bytes(model: torch.nn.Module) -> int:
    """Bytes of a process's share of parameters, gradients and buffers, what bitsandbytes needs to read 4-bit ones included."""
    size = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        size += held.nbytes + (0 if tensor.grad is None else tensor.grad.nbytes)
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        if state is not None:
            size += sum(part.nbytes for part in (state.absmax, *([state.state2.absmax] if state.nested else [])))
    return size


def measure_peak(device: torch.device, run: Callable[[], Any]) -> int:
    """The most bytes that tensors took while `run` ran, beyond those there before on a CPU and with them on CUDA.

    On CUDA this is the allocator's own count. On a CPU it is the running sum of what PyTorch's profiler saw allocated and
    freed, from run to run the same to 1%, which the process's resident memory is not.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces itself
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        now += event.nbytes()
        peak = max(peak, now)
    return peak

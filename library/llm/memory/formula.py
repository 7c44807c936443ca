"""Predict how much memory a model needs, from its config alone.

Predictions are bytes in tensors. The coefficients were fitted to peaks of Qwen2, Llama, Qwen 3 and
Gemma 3 layers of several widths, measured on a CPU in bfloat16 under autocast and in float32.
benchmarks/memory_fit.py repeats the fit and checks it on other shapes.

On CUDA training takes less per token, because PEFT sees autocast only there. On a CPU it copies an
adapter's inputs to float32 (peft.tuners.lora.bnb calls `torch.is_autocast_enabled()`, which asks
about CUDA). If PEFT sees autocast on a CPU, the fitted coefficient falls from 16 to 8.3 for the
hidden and query widths together, and from 6.7 to 5.8 for the intermediate width. 23 measurements on
an H100 (1,024 to 19,200 tokens, Qwen2.5 0.5B to 7B, benchmarks/gpu_memory.json) give 8.8 and 6.1.
Predictions with these are off by -0.9% to +1.0%; with the CPU's they were off by +0.5% to +12%.
Training without gradient checkpointing was not measured on a GPU. It uses the CPU's coefficients,
which are probably too high there.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from library.errors import InputError
from library.llm.architectures import find_unadaptable
from library.units import gib

NF4_STORED_BYTES = 0.5  # per weight
# bytes per weight: one for every 64 weights, and a float for every 256 of those
NF4_SCALES_BYTES = 1 / 64 + 4 / (64 * 256)
HEAD_ROWS, HEAD_COLUMNS = 4096, 32768  # TRL's fused head computes logits in tiles of this size
# rows of a tile on CUDA without Triton, where plain PyTorch makes several copies of it
PLAIN_HEAD_ROWS = 256
# Bytes per pair of tokens and head if attention scores are written out: in one layer's backward
# pass, and in each other layer without gradient checkpointing. Measured on Gemma 2, Bloom and
# Llama; Gemma 2 takes most.
SCORE_BYTES, KEPT_SCORE_BYTES = 17, 8
SCORING_HEAD_BYTES = 2**26  # logits computed at once when given answers are scored

# cuBLAS's workspace, which PyTorch counts among tensors, with CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8.
# This is the default on GPUs older than Hopper, and was set in all measurements.
WORKSPACE_BYTES = 8_519_680

# The share of a training step's tensors that fragmentation adds on CUDA, besides the 5% of free
# memory that is kept in reserve. Limited to 3.45 GiB, an H100 took rows of 19,200 tokens (0.5B),
# 6,656 (1.5B) and 1,792 (3B), but not 256 tokens more. At that point 7% to 10% of memory was lost
# between tensors if most of it held activations, and 1% if most of it held weights.
SCATTERED = 0.1

# Per token and element of the width: tensors in one layer's backward pass, tensors that each layer
# keeps without gradient checkpointing, and tensors in one layer's forward pass without gradients.
# Keyed by the bytes of the computing type.
BACKWARD = {
    2: {"hidden": 14.1, "query": 1.9, "intermediate": 6.7, "key_value": 2, "normed": 2.3},
    4: {"hidden": 2.9, "query": 2.4, "intermediate": 5.9, "key_value": 2, "normed": 1},
}
CUDA_BACKWARD = {"hidden": 6.3, "query": 2.5, "intermediate": 6.1, "key_value": 3, "normed": 1.8}

KEPT = {
    2: {"hidden": 7.6, "query": 5, "intermediate": 4.2, "key_value": 3.7, "normed": 1.4},
    4: {"hidden": 5.3, "query": 2.1, "intermediate": 3.8, "key_value": 2.8, "normed": 1},
}

# What DoRA adds: PEFT computes each adapted layer's whole weight, through an identity matrix as
# wide as the layer's input. First per token and element of the width as above, with all linear
# layers adapted; then float32 numbers per element of the widest input squared, and of the largest
# weight. Fitted on a CPU by benchmarks/dora_memory.py, where predictions beyond the weights are off
# by -5.7% to +9.8%. Not measured on a GPU.
DORA_BACKWARD = {
    2: {"hidden": 12.6, "intermediate": 5.1},
    4: {"hidden": 7.8, "intermediate": 2.4},
}
DORA_KEPT = {
    2: {"hidden": 7.4, "intermediate": 4.6},
    4: {"hidden": 7, "intermediate": 3.4},
}
DORA_FORWARD = {
    2: {"hidden": 1.6, "intermediate": 2.6},
    4: {"hidden": 0.5, "intermediate": 1.5},
}
DORA_TRAINING_WEIGHTS = {2: (1.3, 0.0), 4: (1.0, 3.2)}
DORA_ANSWERING_WEIGHTS = {2: (0.0, 3.9), 4: (0.0, 3.2)}

# float32 numbers per weight of the largest layer that PiSSA decomposes, the weights included
PISSA_WEIGHTS = 4.1

FORWARD = {
    2: {"hidden": 5.8, "query": 0.2, "intermediate": 6, "key_value": 0.2, "normed": 0},
    4: {"hidden": 3.6, "query": 0.4, "intermediate": 4, "key_value": 0.6, "normed": 0.4},
}


@dataclass(frozen=True)
class Adapter:
    """LoRA as params.yaml describes it. PiSSA's adapter is saved as LoRA of twice its rank."""

    r: int
    target_modules: Sequence[str] | Literal["all-linear"]
    dora: bool = False
    pissa: bool = False


@dataclass(frozen=True)
class ComputeSettings:
    """What a prediction depends on besides the model's config: how it is loaded and computed.

    A process holds `held_share` of the layers' weights all the time and gathers `gathered_layers`
    more: see library.llm.sharding. With `pairs`, as in DPO, a training row is two sequences, and a
    frozen copy of the adapter serves as the reference model.
    """

    quantization: Literal["nf4", "none"]
    gradient_checkpointing: bool
    adapter: Adapter
    dtype: torch.dtype
    device_type: str
    held_share: float = 1.0
    gathered_layers: float = 0.0
    triton: bool = True  # whether TRL's fused head uses Triton kernels on CUDA
    ddp: bool = False  # whether DDP averages gradients, with its own copies
    cublas_bytes: int = WORKSPACE_BYTES  # workspace of one thread
    # of a GPU whose flash attention is deterministic: each multiprocessor sums its own gradient of
    # the queries in float32 (dq_accum in PyTorch's flash_api.cpp); otherwise 0
    multiprocessors: int = 0
    pairs: bool = False
    optional_checkpointing: bool = False  # training keeps activations instead if they fit

    @property
    def stage(self) -> str:
        """The stage that trains so, which is also its section in params.yaml."""
        return "dpo" if self.pairs else "sft"

    @property
    def unit(self) -> str:
        """What a batch counts, in messages."""
        return "pairs of rows" if self.pairs else "rows"

    @property
    def size(self) -> int:
        """Bytes per number in the computing type."""
        return self.dtype.itemsize

    @property
    def workspace(self) -> int:
        """Bytes of cuBLAS's workspaces, which PyTorch counts among tensors."""
        return self.cublas_bytes if self.device_type == "cuda" else 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose. A layer's and the head's are never needed at the same time."""

    weights: int
    adapter: int  # in training: LoRA, its gradients and Adam's two moments
    # in training: checkpoints or kept activations; when answering: keys and values
    activations: int
    attention: int
    layer: int
    head: int
    workspace: int = 0
    scattered: int = 0  # lost to fragmentation: in no tensor, so not in the peak

    @property
    def needed(self) -> int:
        """Bytes that must be free."""
        return self.peak + self.scattered

    @property
    def peak(self) -> int:
        """The most bytes in tensors at one time."""
        return (
            self.weights
            + self.adapter
            + self.activations
            + self.attention
            + max(self.layer, self.head)
            + self.workspace
        )

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "adapter": self.adapter,
            "activations": self.activations,
            "attention": self.attention,
        }
        parts["workspace"] = self.workspace
        parts["a layer" if self.layer >= self.head else "the head"] = max(self.layer, self.head)
        parts["between tensors"] = self.scattered
        said = [f"{name} {gib(size)}" for name, size in parts.items() if size]
        return f"{gib(self.needed)} ({', '.join(said)})"


@dataclass(frozen=True)
class Sizes:
    """A model's numbers of parameters and its widths."""

    linear: int  # in linear layers except the output embedding: what is quantized
    other: int  # embeddings, norms, biases
    lora: int
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    # width normalized in a layer besides its two inputs: queries and keys in Qwen 3, outputs in
    # Gemma 3
    normed: int = 0
    heads: int = 1
    embedding: int = 0  # token embeddings within `other`, if the output head is separate
    eager_heads: int = 0  # heads whose scores are written out: PyTorch's attention cannot be used
    widest_input: int = 0  # of the adapted layers
    largest_weight: int = 0  # of the adapted layers, in elements

    def per_token(self, coefficients: Mapping[str, float]) -> float:
        """Elements per token in one layer."""
        return sum(factor * int(getattr(self, width)) for width, factor in coefficients.items())


def _is_named(name: str, targets: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _count_normed(model: torch.nn.Module, hidden: int, query: int, key_value: int) -> int:
    norms = {
        match[1]
        for name, _ in model.named_modules()
        if (match := re.search(r"[.]0[.](?:.+[.])?(\w*norm\w*)$", name))
    }
    widths = {"q": query, "k": key_value}
    return max(0, sum(widths.get(name.split("_")[0], hidden) for name in norms) - 2 * hidden)


def measure_sizes(config: PreTrainedConfig, adapter: Adapter) -> Sizes:
    """Count a model's parameters without its weights, on a device that only has shapes.

    Raises InputError if the adapter names a linear layer that the model does not have. Names are
    matched as PEFT matches them.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    targets = adapter.target_modules
    excluded = find_unadaptable(model)
    for target in [] if targets == "all-linear" else targets:
        if not any(_is_named(name, [target]) for name in linear):
            there = ", ".join(sorted({name.split(".")[-1] for name in linear}))
            raise InputError(
                f"sft.lora.target_modules: the model has no linear layer {target!r}, but {there}"
            )
    adapted = [
        module
        for name, module in linear.items()
        if (name not in excluded if targets == "all-linear" else _is_named(name, targets))
    ]
    quantized = sum(module.weight.numel() for module in linear.values())
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    query = head_size * text.num_attention_heads
    key_value = head_size * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    return Sizes(
        linear=quantized,
        other=sum(parameter.numel() for parameter in model.parameters()) - quantized,
        lora=sum(
            adapter.r * (module.in_features + module.out_features)
            + adapter.dora * module.out_features
            for module in adapted
        ),
        vocabulary=head.weight.shape[0],
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query=query,
        key_value=key_value,
        normed=_count_normed(model, text.hidden_size, query, key_value),
        heads=text.num_attention_heads,
        embedding=0 if embedding is head.weight else embedding.numel(),
        eager_heads=0 if model._supports_sdpa else text.num_attention_heads,
        widest_input=max((module.in_features for module in adapted), default=0),
        largest_weight=max((module.weight.numel() for module in adapted), default=0),
    )


def _weights(sizes: Sizes, setting: ComputeSettings) -> int:
    stored, scales = (
        (NF4_STORED_BYTES, NF4_SCALES_BYTES) if setting.quantization == "nf4" else (setting.size, 0)
    )
    there = setting.held_share + setting.gathered_layers / sizes.layers
    other = sizes.other - (sizes.embedding if setting.held_share == 0 else 0)
    return int(sizes.linear * (stored * there + scales) + other * setting.size)


def _dora_weights(sizes: Sizes, factors: tuple[float, float]) -> float:
    squared, weight = factors
    return 4 * (squared * sizes.widest_input**2 + weight * sizes.largest_weight)


def predict_training(
    sizes: Sizes, setting: ComputeSettings, rows: int, length: int, answer: int
) -> MemoryEstimate:
    """Predict the bytes of one training step on `rows` rows of `length` tokens.

    The loss covers `answer` tokens of each row. DPO's reference pass needs no extra bytes: it keeps
    nothing, and takes less than a layer's backward pass.
    """
    rows = 2 * rows if setting.pairs else rows
    tokens, size = rows * length, setting.size
    # a 4-bit weight is dequantized to the computing type while its layer's gradient is computed
    backward = CUDA_BACKWARD if setting.device_type == "cuda" else BACKWARD[size]
    layer = tokens * size * sizes.per_token(backward)
    layer += (setting.quantization == "nf4") * sizes.hidden * sizes.intermediate * size
    variant = setting.adapter
    if variant.dora:
        layer += _dora_weights(sizes, DORA_TRAINING_WEIGHTS[size])
        if setting.gradient_checkpointing:
            layer += tokens * size * sizes.per_token(DORA_BACKWARD[size])
    if variant.pissa and not setting.pairs:  # dpo starts from the saved adapter
        layer = max(layer, 4 * PISSA_WEIGHTS * sizes.largest_weight)
    if setting.gradient_checkpointing:
        activations, masks = tokens * size * sizes.layers * sizes.hidden, 1
    else:  # what the last layer keeps is counted in its backward pass
        activations, masks = (
            int(tokens * size * sizes.layers * sizes.per_token(KEPT[size])),
            sizes.layers,
        )
        layer -= tokens * size * sizes.per_token(KEPT[size])
        if variant.dora:
            activations += int(tokens * size * sizes.layers * sizes.per_token(DORA_KEPT[size]))
    # Triton's kernels skip positions without a label; on a CPU and in plain PyTorch TRL computes
    # all
    kernels = setting.device_type == "cuda" and setting.triton
    labelled = rows * answer if kernels else tokens
    tile = min(labelled, HEAD_ROWS if kernels or setting.device_type == "cpu" else PLAIN_HEAD_ROWS)
    head = tile * HEAD_COLUMNS * size + labelled * sizes.hidden * (4 + size)
    if not kernels:
        head += tile * min(sizes.vocabulary, HEAD_COLUMNS) * 29
    # the mask, plus a copy in the computing type in each layer that keeps it; a batch of one has no
    # padding, so no mask
    attention = (rows > 1) * rows * length**2 * (1 + size * masks)
    kept = (masks - 1) * KEPT_SCORE_BYTES
    attention += rows * sizes.eager_heads * length**2 * (SCORE_BYTES + kept)
    if setting.multiprocessors and not sizes.eager_heads:  # the layer includes the first copy
        copies = math.ceil(setting.multiprocessors / (rows * sizes.heads))
        layer += (copies - 1) * tokens * sizes.query * 4
    trained = sizes.lora * (2 if variant.pissa and setting.pairs else 1)
    adapter = ((20 if setting.ddp else 16) + 4 * setting.pairs) * trained
    return MemoryEstimate(
        _weights(sizes, setting),
        adapter,
        activations,
        attention,
        int(layer),
        head,
        # the backward pass runs in a thread with its own workspace; the coefficients already
        # include the smallest one
        setting.workspace and 2 * setting.workspace - WORKSPACE_BYTES,
        int(
            (setting.device_type == "cuda")
            * SCATTERED
            * (activations + attention + max(layer, head))
        ),
    )


def predict_answering(
    sizes: Sizes, setting: ComputeSettings, rows: int, prompt: int, new: int
) -> MemoryEstimate:
    """Predict the bytes of answering `rows` prompts of `prompt` tokens with `new` tokens each."""
    size = setting.size
    cache = rows * (prompt + new) * size * 2 * sizes.layers * sizes.key_value
    layer = rows * prompt * size * sizes.per_token(FORWARD[size])
    if setting.adapter.dora:
        layer += rows * prompt * size * sizes.per_token(DORA_FORWARD[size])
        layer += _dora_weights(sizes, DORA_ANSWERING_WEIGHTS[size])
    attention = rows * prompt**2 * ((rows > 1) + SCORE_BYTES * sizes.eager_heads)
    # for scoring, the prompt's cache is copied, and the copy's rows are selected layer by layer,
    # for a quarter of the completions at a time
    logits = min(SCORING_HEAD_BYTES // 4, 4 * rows * new * sizes.vocabulary)
    head = int(cache * (1 + 2 / sizes.layers)) + max(
        8 * logits, (size + 8) * rows * sizes.vocabulary
    )
    return MemoryEstimate(
        _weights(sizes, setting),
        4 * sizes.lora * (2 if setting.adapter.pissa else 1),
        cache,
        attention,
        int(layer),
        head,
        setting.workspace,
    )


def predict_merging(sizes: Sizes) -> MemoryEstimate:
    """Predict the bytes of main memory for merging an adapter into a base model in float32.

    They hold the weights, the adapter, and three copies of one linear layer's update. Measured
    processes grew by 3% more, with Qwen2 models of 137 and 331 million parameters.
    """
    weights = 4 * (sizes.linear + sizes.other)
    layer = 3 * 4 * sizes.hidden * sizes.intermediate
    return MemoryEstimate(weights, 4 * sizes.lora, 0, 0, layer, 0)

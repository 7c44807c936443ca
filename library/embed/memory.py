"""Predict an embedding model's memory from its config, and how many texts fit at once.

Predictions are bytes in tensors. The coefficients were fitted to BERT and Mistral layers of several
widths on a CPU; benchmarks/embedding_memory.py repeats the fit and checks it on other shapes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from library.embedding_models import (
    AnyEmbeddingModel,
    EmbeddingModel,
    HubEmbeddingModel,
    list_embedding_models,
    load_embedding_model_file,
    trains_whole,
)
from library.errors import InputError
from library.llm.devices import pick_device
from library.llm.memory.formula import NF4_SCALES_BYTES, NF4_STORED_BYTES
from library.llm.memory.measuring import SPARE, measure_free
from library.llm.memory.misfit import describe_free_memory
from library.params import EmbedParams, LoraParams
from library.units import gib

log = logging.getLogger(__name__)

MOST_TEXTS = 32  # encoded at once
EXAMPLE_LORA = LoraParams(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
SHORTEST = 64  # tokens, the shortest length suggested
TEXT_LENGTHS = (128, 512)  # tokens of a text that `make memory` and `make doctor` assume
MODELS_OFFERED = 3  # suggested if a model does not fit

# Bytes per token and element of the width: FORWARD is one layer without gradients, KEPT what each
# layer keeps for the backward pass, ADDED what the last layer's backward pass adds. Keyed by
# whether the feed-forward layers are gated, as in decoders, and by the bytes of the computing type.
FORWARD = {
    False: {"hidden": 16.7, "intermediate": 7.2},
    True: {"hidden": 18.0, "intermediate": 12.0},
}
KEPT = {
    (False, 4): {"hidden": 40.7, "intermediate": 8.2},
    (False, 2): {"hidden": 28.4, "intermediate": 4.1},
    (True, 4): {"hidden": 40.7, "intermediate": 16.2},
    (True, 2): {"hidden": 34.3, "intermediate": 8.1},
}
ADDED = {4: {"hidden": 11.2, "intermediate": 7.1}, 2: {"hidden": 22.0, "intermediate": 1.1}}
# per pair of tokens and head, if PyTorch stores the attention scores: on a CPU with dropout
SCORE_BYTES = 12
# per element that goes into an adapter: its value after dropout, and the dropout mask
LORA_INPUT_BYTES = {4: 5.0, 2: 4.5}


@dataclass(frozen=True)
class EncoderSizes:
    """A model's numbers of parameters and its widths."""

    linear: int  # in linear layers, which are quantized
    other: int  # embeddings, norms, biases, experts
    lora: int
    lora_inputs: int  # elements per token that go into an adapter
    layers: int
    hidden: int
    intermediate: int  # of all experts that a token uses
    heads: int
    gated: bool
    drops_scores: bool

    def per_token(self, coefficients: Mapping[str, float]) -> float:
        """Bytes per token in one layer."""
        return sum(factor * int(getattr(self, width)) for width, factor in coefficients.items())


@dataclass(frozen=True)
class EncoderSettings:
    """How a model is loaded and trained: what its memory depends on besides its config."""

    nf4: bool
    gradient_checkpointing: bool
    all_weights: bool  # are trained, not an adapter
    weight_bytes: int  # of a number as it is loaded
    computing_bytes: int  # of a number as training computes it
    device_type: str


@dataclass(frozen=True)
class EncoderEstimate:
    """Bytes by purpose."""

    weights: int
    trained: int  # gradients and Adam's two moments
    activations: int

    @property
    def peak(self) -> int:
        """The most bytes in tensors at one time."""
        return self.weights + self.trained + self.activations

    def fits(self, free: int) -> bool:
        """Whether it fits into `free` bytes with a small reserve."""
        return self.peak <= free * (1 - SPARE)

    def record(self) -> dict[str, int]:
        """The estimate as JSON, in MB."""
        sizes = {**asdict(self), "peak": self.peak}
        return {name: round(size / 1e6) for name, size in sizes.items()}

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients and moments": self.trained,
            "activations": self.activations,
        }
        named = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
        return f"{gib(self.peak)} ({named})"


def read_encoder_config(model: AnyEmbeddingModel, folder: Path | None) -> PreTrainedConfig:
    """The config.json in a model's folder, or the values in its file until that is downloaded.

    Raises InputError if there is neither.
    """
    if folder is not None:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return config
    assert isinstance(model, HubEmbeddingModel)
    return AutoConfig.for_model(**model.config.model_dump(exclude_none=True))


def measure_encoder(config: PreTrainedConfig, lora: LoraParams | None) -> EncoderSizes:
    """Count a model's parameters without its weights, on a device that only has shapes.

    Raises InputError if an adapter names a linear layer that the model does not have.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    targets = [] if lora is None or lora.target_modules == "all-linear" else lora.target_modules
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            there = ", ".join(sorted({name.split(".")[-1] for name in linear}))
            raise InputError(
                f"params.yaml: embed.lora: target_modules: the model has no linear layer "
                f"{target!r}, but {there}"
            )
    adapted = [
        module
        for name, module in linear.items()
        if lora is not None
        and (not targets or any(f".{name}".endswith(f".{target}") for target in targets))
    ]
    rank = 0 if lora is None else lora.r
    quantized = sum(module.weight.numel() for module in linear.values())
    dropped = (
        getattr(config, name, 0) for name in ("attention_probs_dropout_prob", "attention_dropout")
    )
    return EncoderSizes(
        linear=quantized,
        other=sum(parameter.numel() for parameter in model.parameters()) - quantized,
        lora=rank * sum(module.in_features + module.out_features for module in adapted),
        lora_inputs=sum(module.in_features for module in adapted),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size * getattr(config, "num_experts_per_tok", 1),
        heads=config.num_attention_heads,
        gated=any("gate" in name for name, _ in model.named_parameters()),
        drops_scores=any(dropped),
    )


def make_encoder_settings(
    model: EmbeddingModel, lora: LoraParams | None, device_type: str
) -> EncoderSettings:
    """How the stages load and train a model on such a device."""
    return EncoderSettings(
        nf4=model.quantization == "nf4",
        gradient_checkpointing=model.gradient_checkpointing,
        all_weights=lora is None,
        weight_bytes=4 if device_type == "cpu" or model.dtype == "float32" else 2,
        computing_bytes=4 if device_type == "cpu" else 2,
        device_type=device_type,
    )


def _weights(sizes: EncoderSizes, settings: EncoderSettings) -> float:
    stored = NF4_STORED_BYTES + NF4_SCALES_BYTES if settings.nf4 else settings.weight_bytes
    return sizes.linear * stored + sizes.other * settings.weight_bytes


def predict_encoding(
    sizes: EncoderSizes, settings: EncoderSettings, texts: int, length: int
) -> EncoderEstimate:
    """Predict the memory of encoding `texts` texts of `length` tokens at once, without
    gradients.
    """
    size = settings.weight_bytes
    layer = texts * length * sizes.per_token(FORWARD[sizes.gated])
    unpacked = settings.nf4 * sizes.hidden * sizes.intermediate * size
    mask = texts * length**2 * size
    return EncoderEstimate(int(_weights(sizes, settings)), 0, int(layer + unpacked + mask))


def predict_step(
    sizes: EncoderSizes, settings: EncoderSettings, texts: int, *lengths: int
) -> EncoderEstimate:
    """Predict the memory of a training step with `texts` texts of each length in one mini-batch.

    The lengths are those of questions, passages and wrong answers, which are in memory together if
    the batch is in one piece.
    """
    tokens, size = texts * sum(lengths), settings.computing_bytes
    squares = texts * sum(length**2 for length in lengths)
    kept = tokens * sizes.per_token(KEPT[sizes.gated, size])
    scores = squares * size  # the mask
    if settings.device_type == "cpu" and sizes.drops_scores:
        scores += squares * sizes.heads * SCORE_BYTES
    kept += tokens * sizes.lora_inputs / sizes.layers * LORA_INPUT_BYTES[size]
    added = tokens * sizes.per_token(ADDED[size])
    if settings.gradient_checkpointing:
        activations = tokens * 4 * sizes.layers * sizes.hidden + kept + scores + added
    else:
        activations = sizes.layers * (kept + scores) + added
    weights = _weights(sizes, settings)
    if settings.nf4:  # one layer's in the computing type
        weights += sizes.hidden * sizes.intermediate * size
    elif size < settings.weight_bytes:  # autocast keeps copies
        weights += sizes.linear * size
    trained = 12 * (sizes.linear + sizes.other) if settings.all_weights else 16 * sizes.lora
    return EncoderEstimate(int(weights), trained, int(activations))


def plan_encoding(model: AnyEmbeddingModel, folder: Path | None, length: int) -> int:
    """How many texts of at most `length` tokens to encode at once.

    Raises InputError if not even one is predicted to fit.
    """
    device = pick_device()
    settings = make_encoder_settings(model, None, device.type)
    sizes = measure_encoder(read_encoder_config(model, folder), None)
    free = measure_free(device)
    texts = MOST_TEXTS
    while texts > 1 and not predict_encoding(sizes, settings, texts, length).fits(free):
        texts //= 2
    predicted = predict_encoding(sizes, settings, texts, length)
    if not predicted.fits(free):
        smaller = "".join(
            f"\n  {change}: {other}"
            for change, other in _models_that_fit(
                lambda sizes, settings: predict_encoding(sizes, settings, 1, length),
                *(sizes, None, device, free),
            )
        )
        raise InputError(
            f"embed.model: encoding a text of {length} tokens needs {predicted}; "
            f"{describe_free_memory(free, device.type)}"
            + (f"\nwhat would fit:{smaller}" if smaller else "")
        )
    return texts


def check_trainable(model: EmbeddingModel, lora: LoraParams | None) -> None:
    """Raise InputError if all weights are to be trained but have 4 or 16 bits."""
    if lora is None and not trains_whole(model):
        kept = "4 bits" if model.quantization == "nf4" else "bfloat16"
        raise InputError(
            f"embed.lora: null trains all weights, but this model's are in {kept}; "
            f"train an adapter: dvc exp run embedding/dvc.yaml -S '{as_override(EXAMPLE_LORA)}'"
        )


def refuse_training(model: AnyEmbeddingModel, params: EmbedParams) -> None:
    """Raise InputError if `embed_sft` cannot train a model, as far as that is known before a
    download.
    """
    check_trainable(model, params.lora)
    if isinstance(model, HubEmbeddingModel):
        plan_step(model, None, params, [[min(SHORTEST, model.max_length)]], said=False)


def plan_step(
    model: AnyEmbeddingModel,
    folder: Path | None,
    params: EmbedParams,
    lengths: Sequence[Sequence[int]],
    said: bool = True,
) -> dict[int, EncoderEstimate]:
    """The mini-batch sizes to try in training, largest first, that are predicted to fit, each with
    the memory of a step.

    `lengths` are, for each kind of pairs, the tokens of the longest question, right text and wrong
    text: a batch in one piece holds all of them in memory, and sentence-transformers pads right and
    wrong texts to the longest of both. `embed.mini_batch_size` leaves only that
    size, with a warning if it is not predicted to fit. Otherwise raises InputError if size 1 does
    not fit, with what would.
    """
    length = max(max(kind) for kind in lengths)
    device = pick_device()
    settings = make_encoder_settings(model, params.lora, device.type)
    config = read_encoder_config(model, folder)
    sizes = measure_encoder(config, params.lora)
    free = measure_free(device)

    def need(rows: int) -> EncoderEstimate:
        together = [[length]]
        if rows >= params.batch_size:
            together = [[asked, *[max(texts, default=0)] * len(texts)] for asked, *texts in lengths]
        steps = (predict_step(sizes, settings, rows, *kind) for kind in together)
        return max(steps, key=lambda step: step.peak)

    wanted = params.mini_batch_size and min(params.mini_batch_size, params.batch_size)
    choices = batch_choices(params.batch_size) if wanted is None else [wanted]
    steps = {rows: need(rows) for rows in choices}
    fitting = {rows: step for rows, step in steps.items() if step.fits(free)}
    if fitting:
        if said:
            rows, step = next(iter(fitting.items()))
            log.info(
                "batch size %d in mini-batches of %d, with texts of up to %d tokens, needs %s; %s "
                "are free",
                *(params.batch_size, rows, length, step, gib(free)),
            )
        return fitting
    if wanted is not None:
        log.warning(
            "embed.mini_batch_size: %d needs %s; %s. Set it to null, and the largest that fits is "
            "taken",
            *(wanted, steps[wanted], describe_free_memory(free, device.type)),
        )
        return steps
    found = list(_alternatives(config, settings, params, length, free))
    lines = [
        f"embed_sft: mini-batch size 1 with a text of {length} tokens needs {need(1)}; "
        f"{describe_free_memory(free, device.type)}",
        "what would fit:" if found else "no change of one or two things would fit",
        *(f"  {change}: {predicted}" for change, predicted in found),
    ]
    raise InputError("\n".join(lines))


def batch_choices(batch_size: int) -> list[int]:
    """The batch size and its halves down to one."""
    choices = [batch_size]
    while choices[-1] > 1:
        choices.append(choices[-1] // 2)
    return choices


def _alternatives(
    config: PreTrainedConfig,
    settings: EncoderSettings,
    params: EmbedParams,
    length: int,
    free: int,
) -> Iterator[tuple[str, EncoderEstimate]]:
    """Overrides with which size 1 fits: ways to train, each added to the last, then lengths and
    models.
    """
    file = f"models/embedding/{params.model}.yaml"
    changed, lora = settings, params.lora
    said = ""
    steps = (
        (replace(settings, gradient_checkpointing=True), f"{file}:gradient_checkpointing=true"),
        (
            replace(settings, gradient_checkpointing=True, all_weights=False),
            f"'{as_override(EXAMPLE_LORA)}'",
        ),
        (
            replace(settings, gradient_checkpointing=True, all_weights=False, nf4=True),
            f"{file}:quantization=nf4",
        ),
    )
    for other, override in steps:
        if other == changed:
            continue
        changed, said = other, f"{said} -S {override}".strip()
        lora = EXAMPLE_LORA if lora is None and not changed.all_weights else lora
        predicted = predict_step(measure_encoder(config, lora), changed, 1, length)
        if predicted.fits(free):
            yield said, predicted
    sizes = measure_encoder(config, params.lora)
    shorter = length // 2
    while shorter >= SHORTEST and not predict_step(sizes, settings, 1, shorter).fits(free):
        shorter //= 2
    if shorter >= SHORTEST:
        yield f"-S {file}:max_length={shorter}", predict_step(sizes, settings, 1, shorter)
    yield from _models_that_fit(
        lambda sizes, settings: predict_step(sizes, settings, 1, length),
        *(sizes, params.lora, pick_device(), free),
    )


def as_override(lora: LoraParams) -> str:
    """`embed.lora` as `dvc exp run -S` takes it."""
    values = ", ".join(f"{name}: {value}" for name, value in lora.model_dump().items())
    return f"embed.lora={{{values}}}"


def _models_that_fit(
    predict: Callable[[EncoderSizes, EncoderSettings], EncoderEstimate],
    sizes: EncoderSizes,
    lora: LoraParams | None,
    device: torch.device,
    free: int,
) -> Iterator[tuple[str, EncoderEstimate]]:
    """Hub models with fewer parameters that would fit, largest first."""
    smaller = []
    for name in list_embedding_models():
        model = load_embedding_model_file(name)
        if isinstance(model, HubEmbeddingModel):
            other = measure_encoder(read_encoder_config(model, None), lora)
            if other.linear + other.other < sizes.linear + sizes.other:
                settings = make_encoder_settings(model, lora, device.type)
                smaller.append((name, other, predict(other, settings)))
    smaller.sort(key=lambda entry: -(entry[1].linear + entry[1].other))
    command = "dvc exp run embedding/dvc.yaml -S embed.model="
    found = [(f"{command}{name}", need) for name, _, need in smaller if need.fits(free)]
    yield from found[:MODELS_OFFERED]

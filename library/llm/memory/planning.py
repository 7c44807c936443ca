"""Before loading a model: does it fit, with which batch size, and what would fit if not."""

import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from library.errors import InputError
from library.llm.architectures import read_config
from library.llm.determinism import cublas_workspace, wants_determinism
from library.llm.devices import device_name, lacks_bfloat16, pick_device
from library.llm.memory.formula import (
    Adapter,
    ComputeSettings,
    MemoryEstimate,
    Sizes,
    measure_sizes,
    predict_answering,
    predict_merging,
    predict_training,
)
from library.llm.memory.measuring import fits, free_beside, free_bytes, measure_free
from library.llm.memory.misfit import (
    Alternative,
    Misfit,
    ShorterLength,
    describe_answering_misfit,
    describe_merging_misfit,
    describe_training_misfit,
)
from library.llm.processes import processes
from library.llm.sharding import find_sharding, held_and_gathered_layers
from library.params import (
    AnyModel,
    DpoParams,
    FormatParams,
    HubModel,
    LocalModel,
    ModelFile,
    SftParams,
    list_models,
    load_model_file,
)
from library.records import FormattedRow
from library.units import gib

log = logging.getLogger(__name__)

MODELS_OFFERED = 3  # suggested if a model does not fit
MOST_TOKENS = 65536  # in a batch of prompts: a GPU gets no faster with more
MOST_TOKENS_ON_CPU = 8192  # the same on a CPU
# parameters times tokens of a training batch: beyond this, a larger batch only adds padding, and a
# step takes up to twice as long (LOG.md)
MOST_WORK_ON_CPU = 2 * 10**10


@dataclass(frozen=True)
class LongestLengths:
    """Tokens of the longest rows: of prompt and answer together, and of the answer alone."""

    length: int
    answer: int
    shorter: Sequence[ShorterLength] = ()


@dataclass(frozen=True)
class Plan:
    """How sft or dpo trains on this machine, and what it needs."""

    device: str
    free: int  # bytes
    processes: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    predicted: MemoryEstimate

    def record(self) -> dict[str, object]:
        """The plan as JSON, in MB, without the free memory: it is the same in every run."""
        values = asdict(self)
        del values["free"]
        predicted = {"peak": self.predicted.peak, **asdict(self.predicted)}
        return values | {"predicted": {name: round(size / 1e6) for name, size in predicted.items()}}


def lengths_below(max_length: int, least: int) -> range:
    """Values of format.max_length to try, largest first, down to `least`."""
    step = max(16, max_length // 512 * 16)
    return range((max_length - 1) // step * step, least - 1, -step)


def shorter_lengths(rows: Sequence[FormattedRow], params: FormatParams) -> list[ShorterLength]:
    """Lower values of format.max_length, and the longest formatted row with each.

    They stop at the least that leaves room for every answer: below that, rows would be rejected.
    """
    reserves = [max(row["answer_tokens"], params.max_new_tokens) for row in rows]
    least = max(
        row["question_tokens"] + reserve for row, reserve in zip(rows, reserves, strict=True)
    )
    passages = sum(len(row["passages"]) for row in rows)
    passage_tokens = sum(row["prompt_tokens"] - row["question_tokens"] for row in rows)

    def longest(max_length: int) -> int:
        return max(
            min(row["prompt_tokens"], max_length - reserve) + row["answer_tokens"]
            for row, reserve in zip(rows, reserves, strict=True)
        )

    return [
        ShorterLength(length, longest(length), length - least, passage_tokens // max(1, passages))
        for length in lengths_below(params.max_length, least)
    ]


def make_settings(
    model_file: ModelFile, sft: SftParams, device_type: str, count: int | None = None
) -> ComputeSettings:
    """How the stages load and compute a model on such a device.

    `count` is the number of processes, by default as many as are running. Raises InputError if the
    adapter cannot be trained on this base model.
    """
    if sft.lora.starts_from_weights and model_file.quantization != "none":
        raise InputError(
            f"params.yaml: sft.lora.init_lora_weights: {sft.lora.init_lora_weights} takes the "
            "adapter out of the base's weights, and in 4 bits what is left of them is another "
            "base; set it to true or gaussian, or quantization: none in the model's file"
        )
    count = count or processes().num_processes
    sharding = find_sharding(count)
    held, gathered = held_and_gathered_layers(sharding, device_type, count)
    settings = ComputeSettings(
        quantization=model_file.quantization,
        gradient_checkpointing=bool(model_file.gradient_checkpointing),
        adapter=Adapter(
            sft.lora.r,
            sft.lora.target_modules,
            dora=sft.lora.use_dora,
            pissa=sft.lora.starts_from_weights,
        ),
        dtype=torch.bfloat16 if device_type == "cuda" else torch.float32,
        device_type=device_type,
        held_share=held,
        gathered_layers=gathered,
        ddp=count > 1 and sharding is None,
        optional_checkpointing=model_file.gradient_checkpointing == "auto" and sharding is None,
    )
    return _repeatable(settings) if device_type == "cuda" and wants_determinism() else settings


def _repeatable(settings: ComputeSettings) -> ComputeSettings:
    """The settings for a GPU that computes deterministically; for a GPU on another machine they
    only cover cuBLAS's workspace.
    """
    settings = replace(settings, cublas_bytes=cublas_workspace())
    if not torch.cuda.is_available() or lacks_bfloat16(pick_device()):
        return settings
    card = torch.cuda.get_device_properties(pick_device())
    return replace(settings, multiprocessors=card.multi_processor_count)


def can_offload(settings: ComputeSettings) -> bool:
    """Whether FSDP=offload would move frozen weights off the device."""
    return settings.device_type == "cuda" and settings.held_share > 0


def offload(settings: ComputeSettings) -> ComputeSettings:
    """The settings with the layers' frozen weights in main memory."""
    held, gathered = held_and_gathered_layers(
        "offload", settings.device_type, processes().num_processes
    )
    return replace(settings, held_share=held, gathered_layers=gathered, ddp=False)


def load_sizes(model_file: AnyModel, adapter: Adapter) -> Sizes | None:
    """A model's sizes without its weights: from its file in models/, or from config.json.

    None if neither is there.
    """
    if isinstance(model_file, HubModel):
        if model_file.config is None:
            return None
        return measure_sizes(
            AutoConfig.for_model(**model_file.config.model_dump(exclude_none=True)), adapter
        )
    if not isinstance(model_file, LocalModel):
        return None
    folder = Path(model_file.folder)
    return read_sizes(folder, adapter) if (folder / "config.json").is_file() else None


def read_sizes(folder: Path, adapter: Adapter) -> Sizes:
    """The sizes of the model whose config.json is in a folder."""
    return measure_sizes(read_config(folder), adapter)


def read_count(name: str) -> int | None:
    """A positive whole number from the environment; None if it is not set.

    Raises InputError if it is something else.
    """
    value = os.environ.get(name, "")
    if value and not (value.isdecimal() and int(value)):
        raise InputError(
            f"{name} in the environment: expected a positive whole number, got {value!r}"
        )
    return int(value) if value else None


def batch_size_choices(effective_batch_size: int, section: str = "sft") -> list[int]:
    """The batch sizes that a process may take, largest first.

    Times the number of processes, each divides the effective batch size of a section of
    params.yaml. PER_DEVICE_TRAIN_BATCH_SIZE in the environment leaves only that size. Raises
    InputError if it, or the number of processes, does not divide the effective batch size.
    """
    count = processes().num_processes
    if effective_batch_size % count:
        raise InputError(
            f"LAUNCHER in the environment: {count} processes do not divide "
            f"{section}.effective_batch_size, {effective_batch_size}"
        )
    share = effective_batch_size // count
    wanted = read_count("PER_DEVICE_TRAIN_BATCH_SIZE")
    if wanted is None:
        return [rows for rows in range(share, 0, -1) if share % rows == 0]
    if share % wanted:
        raise InputError(
            f"PER_DEVICE_TRAIN_BATCH_SIZE in the environment: {wanted} does not divide "
            f"{section}.effective_batch_size, {effective_batch_size}"
            + (f", in {count} processes" if count > 1 else "")
        )
    return [wanted]


def plan_training(
    config_dir: Path,
    settings: ComputeSettings,
    params: SftParams | DpoParams,
    longest: LongestLengths,
    most_rows: int | None = None,
) -> Plan:
    """Choose the largest batch size, at most `most_rows`, predicted to fit on every process.

    Raises InputError if one row does not fit, with the changes that would and their memory.
    """
    sizes = read_sizes(config_dir, settings.adapter)
    device = pick_device()
    free = measure_free(device)
    choices = [
        rows
        for rows in batch_size_choices(params.effective_batch_size, settings.stage)
        if most_rows is None or rows <= most_rows
    ]
    if not choices:
        raise InputError(
            "PER_DEVICE_TRAIN_BATCH_SIZE in the environment: so many rows are too much for memory; "
            "unset it"
        )
    found = choose_batch_size(sizes, settings, longest, choices, free)
    if isinstance(found, Misfit):
        raise InputError("\n".join(describe_training_misfit(found)))
    rows, chosen, predicted = found
    count = processes().num_processes
    steps = params.effective_batch_size // rows // count
    checkpointing = chosen.gradient_checkpointing
    return Plan(device_name(device), free, count, rows, steps, checkpointing, predicted)


def choose_batch_size(
    sizes: Sizes,
    settings: ComputeSettings,
    longest: LongestLengths,
    choices: Sequence[int],
    free: int,
) -> tuple[int, ComputeSettings, MemoryEstimate] | Misfit:
    """Choose the first batch size whose training step fits, or list what would fit if none does.

    `choices` are the batch sizes, largest first; a CPU takes only those that may pay. Returns the
    batch size, the settings with or without gradient checkpointing (which gives the same adapter,
    but takes longer), and the prediction.
    """
    if settings.device_type == "cpu":
        work = (sizes.linear + sizes.other) * longest.length * (2 if settings.pairs else 1)
        choices = [rows for rows in choices if rows * work <= MOST_WORK_ON_CPU] or choices[-1:]
    ways = [settings]
    if settings.optional_checkpointing:
        ways.insert(0, replace(settings, gradient_checkpointing=False))
    for rows, way in itertools.product(choices, ways):
        predicted = predict_training(sizes, way, rows, longest.length, longest.answer)
        if fits(predicted, free):
            return rows, way, predicted
    alternatives = [
        alternative
        for alternative in _training_alternatives(sizes, settings, longest, rows, free)
        if fits(alternative.predicted, free)
    ]
    return Misfit(
        *(longest.length, rows, predicted, free, settings.device_type, alternatives),
        *(settings.stage, settings.unit),
    )


def _training_alternatives(
    sizes: Sizes, settings: ComputeSettings, longest: LongestLengths, rows: int, free: int
) -> Iterator[Alternative]:
    """Single changes that could make a training step fit; the caller checks which do."""

    def need(
        sizes: Sizes = sizes,
        settings: ComputeSettings = settings,
        rows: int = rows,
        length: int = longest.length,
    ) -> MemoryEstimate:
        return predict_training(sizes, settings, rows, length, longest.answer)

    if rows > 1:  # smaller batch sizes were set aside by the environment
        change = "PER_DEVICE_TRAIN_BATCH_SIZE=1 in the environment, or unset"
        yield Alternative(change, need(rows=1))
    if settings.quantization == "none":
        quantized = replace(settings, quantization="nf4")
        yield Alternative("quantization: nf4 in the model's file", need(settings=quantized))
    if not settings.gradient_checkpointing:
        saving = replace(settings, gradient_checkpointing=True)
        yield Alternative("gradient_checkpointing: true in the model's file", need(settings=saving))
    if can_offload(settings):
        yield Alternative("FSDP=offload in the environment", need(settings=offload(settings)))
    for shorter in longest.shorter:
        if fits(predicted := need(length=shorter.longest), free):
            yield Alternative(f"format.max_length={shorter.max_length}", predicted, shorter)
            break
    rank = settings.adapter.r // 2
    while rank:
        smaller = replace(sizes, lora=sizes.lora * rank // settings.adapter.r)
        if fits(predicted := need(smaller), free):
            yield Alternative(f"sft.lora.r={rank}", predicted)
            break
        rank //= 2
    offered = 0
    for name, model_file, other in _smaller_models(sizes, settings.adapter):
        changed = replace(
            settings,
            quantization=model_file.quantization,
            gradient_checkpointing=bool(model_file.gradient_checkpointing),
        )
        if fits(predicted := need(other, changed), free) and offered < MODELS_OFFERED:
            offered += 1
            yield Alternative(f"model={name}", predicted)


def _smaller_models(sizes: Sizes, adapter: Adapter) -> list[tuple[str, HubModel, Sizes]]:
    """Hub models with fewer parameters, largest first."""
    smaller = []
    for name in list_models():
        model_file = load_model_file(name)
        if isinstance(model_file, HubModel):
            other = load_sizes(model_file, adapter)
            if other is not None and other.linear + other.other < sizes.linear + sizes.other:
                smaller.append((name, model_file, other))
    return sorted(smaller, key=lambda entry: -(entry[2].linear + entry[2].other))


@dataclass(frozen=True)
class Way:
    """Another way to answer, as a user would choose it: settings, prompt lengths, and the folder of
    config.json if it is another model's.
    """

    change: str
    settings: ComputeSettings
    longest: LongestLengths
    config_dir: Path | None = None


def offloaded_ways(settings: ComputeSettings, longest: LongestLengths) -> list[Way]:
    """Answering with the layers' frozen weights in main memory, if that saves any."""
    if not can_offload(settings):
        return []
    return [Way("FSDP=offload in the environment", offload(settings), longest)]


def unadapted(settings: ComputeSettings) -> ComputeSettings:
    """The settings without an adapter."""
    return replace(settings, adapter=Adapter(0, "all-linear"))


def merged(settings: ComputeSettings) -> ComputeSettings:
    """How `load_merged` loads a model on the same device: neither quantized nor adapted."""
    whole = replace(settings, held_share=1.0, gathered_layers=0.0)
    return replace(unadapted(whole), quantization="none")


def on_cpu(settings: ComputeSettings) -> ComputeSettings:
    """The settings on the CPU, in its computing type."""
    return replace(settings, device_type="cpu", dtype=torch.float32)


def plan_answering(
    config_dir: Path,
    settings: ComputeSettings,
    longest: LongestLengths,
    ways: Sequence[Iterable[Way]] = (),
    most_tokens: int = sys.maxsize,
    instead: str = "model={}",
    shown: bool = True,
) -> int:
    """Tokens of a batch when answering, padding included, at most `most_tokens`.

    It is TOKENS_PER_BATCH in the environment, or what is predicted to fit. Raises InputError if one
    row does not fit, with what would: the first fitting one of each of `ways`, and smaller models,
    whose names are put into `instead`. A size from the environment is never refused, only warned
    about. Logs the memory, and that warning, if `shown`.
    """
    sizes = read_sizes(config_dir, settings.adapter)
    free = measure_free(pick_device())
    prompt, new = longest.length - longest.answer, longest.answer

    def need(tokens: int) -> MemoryEstimate:
        rows = max(1, tokens // longest.length)
        return predict_answering(sizes, settings, rows, prompt, new)

    wanted = read_count("TOKENS_PER_BATCH")
    if wanted is not None:
        tokens = min(wanted, most_tokens)
    else:
        most = MOST_TOKENS_ON_CPU if settings.device_type == "cpu" else MOST_TOKENS
        tokens = min(most, most_tokens)
        while tokens > longest.length and not fits(need(tokens), free):
            tokens //= 2
    predicted = need(tokens)
    if shown:
        log.info("a batch of %d tokens needs %s; %s are free", tokens, predicted, gib(free))
    if fits(predicted, free):
        return tokens
    if wanted is None:
        alternatives = [
            *_fitting_ways(config_dir, settings.device_type, ways, free),
            *_fitting_models(sizes, settings, longest, free, instead),
        ]
        misfit = Misfit(longest.length, 1, predicted, free, settings.device_type, alternatives)
        raise InputError("\n".join(describe_answering_misfit(misfit, prompt)))
    if shown:
        log.warning(
            "TOKENS_PER_BATCH in the environment is more than fits; unset it if memory runs out"
        )
    return tokens


def plan_dequantizing(
    config_dir: Path, settings: ComputeSettings, longest: LongestLengths, tokens: int
) -> bool:
    """Whether to dequantize 4-bit weights once before answering: if batches of `tokens` tokens
    still fit. Layers that FSDP shards or offloads stay in 4 bits.
    """
    if settings.quantization != "nf4" or find_sharding() is not None:
        return False
    rows = max(1, tokens // longest.length)
    whole = replace(settings, quantization="none")
    predicted = predict_answering(
        *(read_sizes(config_dir, settings.adapter), whole, rows),
        *(longest.length - longest.answer, longest.answer),
    )
    free = measure_free(pick_device())
    there = fits(predicted, free)
    log.info(
        "4-bit weights %s: that needs %s, %s are free",
        "are dequantized once" if there else "stay, and are dequantized for each token",
        *(predicted, gib(free)),
    )
    return there


def _predict_row(
    sizes: Sizes, settings: ComputeSettings, longest: LongestLengths
) -> MemoryEstimate:
    new = longest.answer
    return predict_answering(sizes, settings, 1, longest.length - new, new)


def _fitting_ways(
    config_dir: Path, device_type: str, ways: Sequence[Iterable[Way]], free: int
) -> Iterator[Alternative]:
    for kind in ways:
        for way in kind:
            same = way.settings.device_type == device_type
            room = free if same else free_bytes(torch.device(way.settings.device_type))
            sizes = read_sizes(way.config_dir or config_dir, way.settings.adapter)
            predicted = _predict_row(sizes, way.settings, way.longest)
            if fits(predicted, room):
                yield Alternative(way.change, predicted)
                break


def _fitting_models(
    sizes: Sizes, settings: ComputeSettings, longest: LongestLengths, free: int, instead: str
) -> list[Alternative]:
    fitting = []
    for name, model_file, other in _smaller_models(sizes, settings.adapter):
        # a merged model is not quantized, whichever it is
        kept = settings.adapter.r == 0 and settings.quantization == "none"
        changed = replace(settings, quantization="none" if kept else model_file.quantization)
        if fits(predicted := _predict_row(other, changed, longest), free):
            fitting.append(Alternative(instead.format(name), predicted))
    return fitting[:MODELS_OFFERED]


def check_merging(
    config_dir: Path, adapter: Adapter, asking: str = "python -m commands.ask"
) -> None:
    """Log how much main memory merging needs.

    Raises InputError if less is free, with the models that would fit and the command `asking` that
    needs no merging.
    """
    sizes = read_sizes(config_dir, adapter)
    free = free_beside(pick_device())
    predicted = predict_merging(sizes)
    log.info("merging needs %s; %s are free", predicted, gib(free))
    if fits(predicted, free):
        return
    needs = [
        Alternative(f"model={name}", predict_merging(other))
        for name, _, other in _smaller_models(sizes, adapter)
    ]
    fitting = [other for other in needs if fits(other.predicted, free)][:MODELS_OFFERED]
    raise InputError(
        "\n".join(describe_merging_misfit(Misfit(0, 0, predicted, free, "cpu", fitting), asking))
    )

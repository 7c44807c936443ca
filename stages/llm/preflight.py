"""Before a model is loaded: does it fit, how many rows at a time, and what would fit if it does not.

`python -m stages.llm.preflight` prints what every model in models/ needs, by length and rows at a time.
"""

import argparse
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from stages.llm.loading import pick_device
from stages.llm.memory import (
    CONTEXT_BYTES,
    SPARE,
    Adapter,
    Prediction,
    Setting,
    Sizes,
    fits,
    free_bytes,
    gib,
    measure_sizes,
    memory_limit,
    predict_answering,
    predict_training,
)
from stages.llm.processes import from_all, processes
from stages.llm.sharding import count_layers, find_sharding
from stages.params import MODELS_DIR, FormatParams, HubModel, LocalModel, ModelFile, SftParams, load_model_file, load_params
from stages.run import InputError, run_stage

log = logging.getLogger(__name__)

MOST_TOKENS = 65536  # in a batch that is answered: beyond, a card gets no faster


@dataclass(frozen=True)
class Longest:
    """Tokens of the longest rows: prompt and answer together, and the answer alone."""

    length: int
    answer: int
    shorter: Sequence[tuple[str, int]] = ()  # other values of format.max_length, in words, and the longest row by them


def lengths_below(max_length: int, least: int) -> range:
    """Values of format.max_length to try, the largest first, of which none is below `least`."""
    step = max(16, max_length // 512 * 16)
    return range((max_length - 1) // step * step, least - 1, -step)


def shorten(rows: Sequence[Mapping[str, Any]], params: FormatParams) -> list[tuple[str, int]]:
    """What lower values of format.max_length leave for passages, in words, and the longest of the formatted rows by them.

    Down to the least that leaves each question the room for its answer: below, rows would be rejected.
    """
    room = [max(row["answer_tokens"], params.max_new_tokens) for row in rows]
    least = max(row["question_tokens"] + tokens for row, tokens in zip(rows, room, strict=True))
    passages = sum(len(row["passages"]) for row in rows)
    passage = sum(row["prompt_tokens"] - row["question_tokens"] for row in rows) // max(1, passages)
    return [
        (
            f"format.max_length={length}, which leaves {length - least} tokens or more for passages of about {passage}",
            max(min(row["prompt_tokens"], length - tokens) + row["answer_tokens"] for row, tokens in zip(rows, room, strict=True)),
        )
        for length in lengths_below(params.max_length, least)
    ]


@dataclass(frozen=True)
class Plan:
    """How sft goes about its work on this machine, and what it needs: for the log and the report."""

    device: str
    free: int  # bytes
    processes: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    predicted: Prediction

    def record(self) -> dict[str, object]:
        """The plan as JSON, its bytes in MB, so that it is the same where nothing changed; what is free is not."""
        values = asdict(self)
        del values["free"]
        values["predicted"] = {"peak": self.predicted.peak, **asdict(self.predicted)}
        values["predicted"] = {name: round(size / 1e6) for name, size in values["predicted"].items()}
        return values


def device_name(device: torch.device) -> str:
    """The device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def make_setting(model_file: ModelFile, sft: SftParams, device_type: str, count: int | None = None) -> Setting:
    """How the stages load and compute a model on such a device, in `count` processes, or in those that there are."""
    count = count or processes().num_processes
    sharding = find_sharding(count)
    held, gathered = count_layers(sharding, device_type, count)
    return Setting(
        quantization=model_file.quantization,
        gradient_checkpointing=model_file.gradient_checkpointing,
        adapter=Adapter(sft.lora.r, sft.lora.target_modules),
        dtype=torch.bfloat16 if device_type == "cuda" else torch.float32,
        device_type=device_type,
        held_share=held,
        gathered_layers=gathered,
        ddp=count > 1 and sharding is None,
    )


def can_offload(setting: Setting) -> bool:
    """Whether FSDP=offload would keep frozen weights off the device that are there now."""
    return setting.device_type == "cuda" and setting.held_share > 0


def offload(setting: Setting) -> Setting:
    """The same with the layers' frozen weights in the computer's memory."""
    held, gathered = count_layers("offload", setting.device_type, processes().num_processes)
    return replace(setting, held_share=held, gathered_layers=gathered, ddp=False)


def load_sizes(model_file: HubModel | LocalModel, adapter: Adapter) -> Sizes | None:
    """A model's sizes without its weights: from what its file says, or from config.json; None where neither is there."""
    if isinstance(model_file, HubModel):
        if model_file.config is None:
            return None
        return measure_sizes(AutoConfig.for_model(**model_file.config.model_dump()), adapter)
    if not (Path(model_file.path) / "config.json").is_file():
        return None
    return measure_sizes(AutoConfig.from_pretrained(model_file.path, local_files_only=True), adapter)


def read_count(name: str) -> int | None:
    """A positive whole number in the environment; None where it is not set. Raises InputError where it is something else."""
    value = os.environ.get(name, "")
    if value and not (value.isdecimal() and int(value)):
        raise InputError(f"{name} in the environment: expected a positive whole number, got {value!r}")
    return int(value) if value else None


def rows_at_once(effective_batch_size: int) -> list[int]:
    """The rows a process may take at a time, most first: they, and the processes, divide the effective batch size.

    PER_DEVICE_TRAIN_BATCH_SIZE in the environment leaves that number alone. Raises InputError where the processes, or it, do not
    divide.
    """
    count = processes().num_processes
    if effective_batch_size % count:
        raise InputError(
            f"LAUNCHER in the environment: {count} processes do not divide sft.effective_batch_size, {effective_batch_size}"
        )
    share = effective_batch_size // count
    asked = read_count("PER_DEVICE_TRAIN_BATCH_SIZE")
    if asked is None:
        return [rows for rows in range(share, 0, -1) if share % rows == 0]
    if share % asked:
        raise InputError(
            f"PER_DEVICE_TRAIN_BATCH_SIZE in the environment: {asked} does not divide sft.effective_batch_size, "
            f"{effective_batch_size}" + (f", in {count} processes" if count > 1 else "")
        )
    return [asked]


def measure_free(device: torch.device) -> int:
    """Bytes that are free for tensors in the process that has least, once CUDA and what joins processes have taken theirs."""
    if device.type == "cuda":
        square = torch.ones(64, 64, device=device, dtype=torch.float16)
        (square @ square).sum().item()  # loads cuBLAS, and waits for it
    processes().wait_for_everyone()
    return int(min(from_all([free_bytes(device)])))


def plan_training(config_dir: Path, setting: Setting, sft: SftParams, longest: Longest, most_rows: int | None = None) -> Plan:
    """The most rows at a time, `most_rows` at most, that are predicted to fit; every process gets the same plan.

    Raises InputError where one row is too much, with what would fit and how much that takes.
    """
    sizes = measure_sizes(AutoConfig.from_pretrained(config_dir, local_files_only=True), setting.adapter)
    device = pick_device()
    free = measure_free(device)
    choices = [rows for rows in rows_at_once(sft.effective_batch_size) if most_rows is None or rows <= most_rows]
    if not choices:
        raise InputError("PER_DEVICE_TRAIN_BATCH_SIZE in the environment: so many rows are too much for memory; unset it")
    for rows in choices:
        prediction = predict_training(sizes, setting, rows, longest.length, longest.answer)
        if fits(prediction, free):
            count = processes().num_processes
            return Plan(device_name(device), free, count, rows, sft.effective_batch_size // rows // count, prediction)
    raise InputError("\n".join(explain_misfit(sizes, setting, longest, choices[-1], free)))


def free_of(free: int, setting: Setting) -> str:
    """What is free, in words, where something did not fit."""
    return f"{gib(free)} are free on {setting.device_type}, and {SPARE:.0%} of it are kept free"


def explain_misfit(sizes: Sizes, setting: Setting, longest: Longest, rows: int, free: int) -> Iterator[str]:
    """Lines that say what training needs and what is free, and which changes of one thing would fit."""

    def need(sizes: Sizes = sizes, setting: Setting = setting, rows: int = rows, length: int = longest.length) -> Prediction:
        return predict_training(sizes, setting, rows, length, longest.answer)

    yield f"sft: rows of {longest.length} tokens, {rows} at a time, need {need()}; {free_of(free, setting)}"
    ways = []
    if rows > 1:  # or fewer would have been tried
        ways.append(("PER_DEVICE_TRAIN_BATCH_SIZE=1 in the environment, or unset", need(rows=1)))
    if setting.quantization == "none":
        ways.append(("quantization: nf4 in the model's file", need(setting=replace(setting, quantization="nf4"))))
    if not setting.gradient_checkpointing:
        saving = replace(setting, gradient_checkpointing=True)
        ways.append(("gradient_checkpointing: true in the model's file", need(setting=saving)))
    if can_offload(setting):
        ways.append(("FSDP=offload in the environment", need(setting=offload(setting))))
    for way, length in longest.shorter:
        if fits(need(length=length), free):
            ways.append((way, need(length=length)))
            break
    rank = setting.adapter.r // 2
    while rank:
        smaller = replace(sizes, lora=sizes.lora * rank // setting.adapter.r)
        if fits(need(smaller), free):
            ways.append((f"sft.lora.r={rank}", need(smaller)))
            break
        rank //= 2
    for path in sorted(MODELS_DIR.glob("*.yaml")):
        model_file = load_model_file(path.stem)
        other = load_sizes(model_file, setting.adapter) if isinstance(model_file, HubModel) else None
        if other is not None and other.linear + other.other < sizes.linear + sizes.other:
            changed = replace(
                setting, quantization=model_file.quantization, gradient_checkpointing=model_file.gradient_checkpointing
            )
            ways.append((f"model={path.stem}", need(other, changed)))
    fitting = [f"  {way}: {prediction}" for way, prediction in ways if fits(prediction, free)]
    yield "what would fit:" if fitting else "nothing that changes one thing would fit: neither length nor rank nor another model"
    yield from fitting


def plan_answering(config_dir: Path, setting: Setting, longest: Longest) -> int:
    """Tokens of a batch, padding included, when answering: TOKENS_PER_BATCH in the environment, or what is predicted to fit.

    On a CPU 8192 at most, beyond which it gets no faster. Raises InputError where one row is too much; what the environment asks
    for is not refused, and warned of.
    """
    sizes = measure_sizes(AutoConfig.from_pretrained(config_dir, local_files_only=True), setting.adapter)
    free = measure_free(pick_device())
    prompt, new = longest.length - longest.answer, longest.answer
    asked = read_count("TOKENS_PER_BATCH")
    if asked is not None:
        tokens = asked
    else:
        tokens = 8192 if setting.device_type == "cpu" else MOST_TOKENS
        while tokens > longest.length and not fits(predict_answering(sizes, setting, tokens // longest.length, prompt, new), free):
            tokens //= 2
    prediction = predict_answering(sizes, setting, max(1, tokens // longest.length), prompt, new)
    log.info("%d tokens at a time need %s, %s are free", tokens, prediction, gib(free))
    if fits(prediction, free):
        return tokens
    if asked is not None:
        log.warning("that is more than fits: unset TOKENS_PER_BATCH in the environment if memory runs out")
    else:
        offloaded = can_offload(setting) and fits(predict_answering(sizes, offload(setting), 1, prompt, new), free)
        way = ", or set FSDP=offload in the environment" if offloaded else ""
        raise InputError(
            f"answering a prompt of {prompt} tokens needs {prediction}, {free_of(free, setting)}; "
            f"lower format.max_length, or choose a smaller model{way}"
        )
    return tokens


def table(device_type: str, count: int, lengths: Sequence[int], rows: Sequence[int], free: int | None) -> Iterator[str]:
    """Lines of Markdown: the predicted peak of a training step for every model file, and of answering the longest prompt.

    It is that of each of `count` processes.
    """
    params = load_params()
    yield f"| model | rows at a time | {' | '.join(f'{length:,} tokens' for length in lengths)} | answering {lengths[-1]:,} |"
    yield f"|---|--:|{'--:|' * (len(lengths) + 1)}"
    for path in sorted(MODELS_DIR.glob("*.yaml")):
        model_file = load_model_file(path.stem)
        setting = make_setting(model_file, params.sft, device_type, count)
        sizes = load_sizes(model_file, setting.adapter)
        if sizes is None:
            yield f"| {path.stem} | | {'| ' * len(lengths)}not known until its config.json is here |"
            continue
        answer = params.format.max_new_tokens
        for at_once in rows:
            cells = [predict_training(sizes, setting, at_once, length, min(length, answer)) for length in lengths]
            cells.append(predict_answering(sizes, setting, at_once, max(1, lengths[-1] - answer), answer))
            marked = [gib(cell.peak) + ("" if free is None or fits(cell, free) else " ✗") for cell in cells]
            yield f"| {path.stem} | {at_once} | {' | '.join(marked)} |"


def positive(text: str) -> int:
    """A positive whole number of the command line."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Predict what training and answering need, for every model in models/.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="16-bit types on CUDA, float32 on a CPU")
    parser.add_argument("--lengths", type=positive, nargs="+", default=[1024, 2048, 4096, 6144], help="tokens of a row")
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 4], help="rows at a time")
    parser.add_argument(
        "--processes", type=positive, default=1, help="how many share the layers, where FSDP in the environment says so"
    )
    asked = parser.parse_args()
    limit, free = memory_limit(), None
    if asked.device == "cpu" or torch.cuda.is_available():
        free = free_bytes(pick_device() if asked.device == "cuda" else torch.device("cpu"))
    elif limit is not None:
        free = max(0, limit - CONTEXT_BYTES)
    print("\n".join(table(asked.device, asked.processes, asked.lengths, asked.rows, free)))
    sharding = find_sharding(asked.processes)
    how = "" if sharding is None else f" with FSDP={sharding}"
    how += f" for each of {asked.processes} processes" if asked.processes > 1 else ""
    if free is None:
        print(f"\nPredicted{how}, on a CUDA card; there is none here. MEMORY_LIMIT_GIB=4 marks what a card of 4 GiB can't hold.")
    else:
        print(f"\nPredicted{how}. ✗: more than {1 - SPARE:.0%} of the {gib(free)} that are free for tensors.")


if __name__ == "__main__":
    run_stage(main)

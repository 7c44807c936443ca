"""Before a model is loaded: does it fit, how many rows at a time, and what would fit if it does not.

`python -m stages.llm.preflight` prints what every model in models/ needs, by length and rows at a time.
"""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from stages.llm.loading import pick_device
from stages.llm.memory import (
    CONTEXT_BYTES,
    Adapter,
    Prediction,
    Setting,
    Sizes,
    fits,
    free_bytes,
    gib,
    measure_sizes,
    predict_answering,
    predict_training,
)
from stages.llm.processes import from_all, processes
from stages.llm.sharding import count_layers, find_sharding
from stages.params import MODELS_DIR, HubModel, LocalModel, ModelFile, SftParams, load_model_file, load_params
from stages.run import InputError, run_stage

log = logging.getLogger(__name__)

MOST_TOKENS = 65536  # in a batch that is answered: beyond, a card gets no faster


@dataclass(frozen=True)
class Longest:
    """Tokens of the longest rows: prompt and answer together, and the answer alone."""

    length: int
    answer: int


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


def make_setting(model_file: ModelFile, sft: SftParams, device_type: str) -> Setting:
    """How the stages load and compute a model on such a device."""
    held, gathered = count_layers(find_sharding(), device_type, processes().num_processes)
    return Setting(
        quantization=model_file.quantization,
        gradient_checkpointing=model_file.gradient_checkpointing,
        adapter=Adapter(sft.lora.r, sft.lora.target_modules),
        dtype=torch.bfloat16 if device_type == "cuda" else torch.float32,
        device_type=device_type,
        held_share=held,
        gathered_layers=gathered,
    )


def offload(setting: Setting) -> Setting:
    """The same with the layers' frozen weights in the computer's memory."""
    held, gathered = count_layers("offload", setting.device_type, processes().num_processes)
    return replace(setting, held_share=held, gathered_layers=gathered)


def load_sizes(model_file: HubModel | LocalModel, adapter: Adapter) -> Sizes | None:
    """A model's sizes without its weights: from what its file says, or from config.json; None where neither is there."""
    if isinstance(model_file, HubModel):
        if model_file.config is None:
            return None
        return measure_sizes(AutoConfig.for_model(**model_file.config.model_dump()), adapter)
    if not (Path(model_file.path) / "config.json").is_file():
        return None
    return measure_sizes(AutoConfig.from_pretrained(model_file.path, local_files_only=True), adapter)


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
    value = os.environ.get("PER_DEVICE_TRAIN_BATCH_SIZE")
    if value is None:
        return [rows for rows in range(share, 0, -1) if share % rows == 0]
    if not value.isdigit() or int(value) == 0 or share % int(value):
        raise InputError(
            f"PER_DEVICE_TRAIN_BATCH_SIZE in the environment: {value!r} does not divide sft.effective_batch_size, "
            f"{effective_batch_size}" + (f", in {count} processes" if count > 1 else "")
        )
    return [int(value)]


def plan_training(config_dir: Path, setting: Setting, sft: SftParams, longest: Longest, most_rows: int | None = None) -> Plan:
    """The most rows at a time, `most_rows` at most, that are predicted to fit; every process gets the same plan.

    Raises InputError where one row is too much, with what would fit and how much that takes.
    """
    sizes = measure_sizes(AutoConfig.from_pretrained(config_dir, local_files_only=True), setting.adapter)
    device = pick_device()
    free = min(from_all([free_bytes(device)]))
    choices = [rows for rows in rows_at_once(sft.effective_batch_size) if most_rows is None or rows <= most_rows]
    if not choices:
        raise InputError("PER_DEVICE_TRAIN_BATCH_SIZE in the environment: so many rows are too much for memory; unset it")
    for rows in choices:
        prediction = predict_training(sizes, setting, rows, longest.length, longest.answer)
        if fits(prediction, free):
            count = processes().num_processes
            return Plan(device_name(device), free, count, rows, sft.effective_batch_size // rows // count, prediction)
    raise InputError("\n".join(explain_misfit(sizes, setting, longest, choices[-1], free)))


def explain_misfit(sizes: Sizes, setting: Setting, longest: Longest, rows: int, free: int) -> Iterator[str]:
    """Lines that say what training needs and what is free, and which changes of one thing would fit."""
    needed = predict_training(sizes, setting, rows, longest.length, longest.answer)
    yield f"sft: {longest.length} tokens, {rows} rows at a time, need {needed}, {gib(free)} are free on {setting.device_type}"
    ways = []
    if setting.quantization == "none":
        quantized = replace(setting, quantization="nf4")
        small = predict_training(sizes, quantized, 1, longest.length, longest.answer)
        ways.append(("quantization: nf4 in the model's file", small))
    if rows > 1:
        one = predict_training(sizes, setting, 1, longest.length, longest.answer)
        ways.append(("PER_DEVICE_TRAIN_BATCH_SIZE=1 in the environment", one))
    if not setting.gradient_checkpointing:
        saving = replace(setting, gradient_checkpointing=True)
        ways.append(
            ("gradient_checkpointing: true in the model's file", predict_training(sizes, saving, 1, longest.length, longest.answer))
        )
    if setting.held_share == 1 and setting.device_type == "cuda":
        offloaded = predict_training(sizes, offload(setting), 1, longest.length, longest.answer)
        ways.append(("FSDP=offload in the environment", offloaded))
    for length in range((longest.length - 1) // 64 * 64, longest.answer, -64):
        shorter = predict_training(sizes, setting, 1, length, longest.answer)
        if fits(shorter, free):
            ways.append((f"format.max_length={length}", shorter))
            break
    rank = setting.adapter.r // 2
    while rank:
        smaller = replace(sizes, lora=sizes.lora * rank // setting.adapter.r)
        prediction = predict_training(smaller, setting, 1, longest.length, longest.answer)
        if fits(prediction, free):
            ways.append((f"sft.lora.r={rank}", prediction))
            break
        rank //= 2
    for path in sorted(MODELS_DIR.glob("*.yaml")):
        model_file = load_model_file(path.stem)
        other = load_sizes(model_file, setting.adapter) if isinstance(model_file, HubModel) else None
        if other is not None and other.linear + other.other < sizes.linear + sizes.other:
            changed = replace(
                setting, quantization=model_file.quantization, gradient_checkpointing=model_file.gradient_checkpointing
            )
            ways.append((f"model={path.stem}", predict_training(other, changed, 1, longest.length, longest.answer)))
    fitting = [f"  {way}: {prediction}" for way, prediction in ways if fits(prediction, free)]
    yield "what would fit:" if fitting else "nothing that changes one thing would fit: neither length nor rank nor another model"
    yield from fitting


def plan_answering(config_dir: Path, setting: Setting, longest: Longest) -> int:
    """Tokens of a batch, padding included, when answering: TOKENS_PER_BATCH in the environment, or what is predicted to fit.

    On a CPU 8192 at most, beyond which it gets no faster. Raises InputError where one row is too much.
    """
    sizes = measure_sizes(AutoConfig.from_pretrained(config_dir, local_files_only=True), setting.adapter)
    free = min(from_all([free_bytes(pick_device())]))
    prompt, new = longest.length - longest.answer, longest.answer
    value = os.environ.get("TOKENS_PER_BATCH")
    if value is not None:
        if not value.isdigit() or int(value) == 0:
            raise InputError(f"TOKENS_PER_BATCH in the environment: expected a positive whole number, got {value!r}")
        tokens = int(value)
    else:
        tokens = 8192 if setting.device_type == "cpu" else MOST_TOKENS
        while tokens > longest.length and not fits(predict_answering(sizes, setting, tokens // longest.length, prompt, new), free):
            tokens //= 2
    prediction = predict_answering(sizes, setting, max(1, tokens // longest.length), prompt, new)
    log.info("%d tokens at a time need %s, %s are free", tokens, prediction, gib(free))
    if value is None and not fits(prediction, free):
        way = ", or set FSDP=offload in the environment" if setting.device_type == "cuda" and setting.held_share else ""
        way *= fits(predict_answering(sizes, offload(setting), 1, prompt, new), free)
        raise InputError(
            f"answering a prompt of {prompt} tokens needs {prediction}, {gib(free)} are free on {setting.device_type}; "
            f"lower format.max_length, or choose a smaller model{way}"
        )
    return tokens


def table(device_type: str, lengths: Sequence[int], rows: Sequence[int], free: int | None) -> Iterator[str]:
    """Lines of Markdown: the predicted peak of a training step for every model file, and of answering the longest prompt."""
    params = load_params()
    yield f"| model | rows at a time | {' | '.join(f'{length:,} tokens' for length in lengths)} | answering {lengths[-1]:,} |"
    yield f"|---|--:|{'--:|' * (len(lengths) + 1)}"
    for path in sorted(MODELS_DIR.glob("*.yaml")):
        model_file = load_model_file(path.stem)
        setting = make_setting(model_file, params.sft, device_type)
        sizes = load_sizes(model_file, setting.adapter)
        if sizes is None:
            yield f"| {path.stem} | | {'| ' * len(lengths)}not known until its config.json is here |"
            continue
        answer = params.format.max_new_tokens
        for count in rows:
            cells = [predict_training(sizes, setting, count, length, min(length, answer)) for length in lengths]
            cells.append(predict_answering(sizes, setting, count, lengths[-1] - answer, answer))
            marked = [gib(cell.peak) + ("" if free is None or fits(cell, free) else " ✗") for cell in cells]
            yield f"| {path.stem} | {count} | {' | '.join(marked)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Predict what training and answering need, for every model in models/.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="16-bit types on CUDA, float32 on a CPU")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 6144], help="tokens of a row")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="rows at a time")
    asked = parser.parse_args()
    here = pick_device()
    known = "MEMORY_LIMIT_GIB" in os.environ or here.type == asked.device
    free = None
    if known:
        free = free_bytes(here)
        if asked.device == "cuda" and here.type != "cuda":
            free = max(0, free - CONTEXT_BYTES)
    print("\n".join(table(asked.device, asked.lengths, asked.rows, free)))
    if free is None:
        print("\nPredicted for a CUDA card; there is none here. MEMORY_LIMIT_GIB=4 marks what a card of 4 GiB can't hold.")
    else:
        print(f"\nPredicted. ✗: more than the {gib(free)} that are free for tensors.")


if __name__ == "__main__":
    run_stage(main)

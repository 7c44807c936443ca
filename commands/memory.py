"""Print the memory that every model needs, by length and batch size: python -m commands.memory"""

import argparse
from collections.abc import Iterator, Sequence

import torch

from library.embed.encoder import find_folder
from library.embed.memory import (
    EXAMPLE_LORA,
    MOST_TEXTS,
    TEXT_LENGTHS,
    make_encoder_settings,
    measure_encoder,
    predict_encoding,
    predict_step,
    read_encoder_config,
)
from library.embedding_models import (
    HubEmbeddingModel,
    list_embedding_models,
    load_embedding_model_file,
    trains_whole,
)
from library.entry import run_main
from library.errors import InputError
from library.llm.devices import pick_device
from library.llm.memory.formula import predict_answering, predict_training
from library.llm.memory.measuring import CONTEXT_BYTES, SPARE, fits, free_bytes, memory_limit
from library.llm.memory.planning import load_sizes, make_settings
from library.llm.sharding import find_sharding
from library.params import list_models, load_model_file, load_params
from library.units import gib


def table(
    device_type: str, count: int, lengths: Sequence[int], rows: Sequence[int], free: int | None
) -> Iterator[str]:
    """Yield Markdown lines: predicted peak memory of training and answering, for every model file.

    With several processes it is the peak of each.
    """
    params = load_params()
    yield (
        f"| model | batch size | {' | '.join(f'{length:,} tokens' for length in lengths)} | "
        f"answering {lengths[-1]:,} |"
    )
    yield f"|---|--:|{'--:|' * (len(lengths) + 1)}"
    for name in list_models():
        model_file = load_model_file(name)
        setting = make_settings(model_file, params.sft, device_type, count)
        sizes = load_sizes(model_file, setting.adapter)
        if sizes is None:
            yield f"| {name} | | {'| ' * len(lengths)}unknown until its config.json is downloaded |"
            continue
        answer = params.format.max_new_tokens
        for at_once in rows:
            cells = [
                predict_training(sizes, setting, at_once, length, min(length, answer))
                for length in lengths
            ]
            cells.append(
                predict_answering(sizes, setting, at_once, max(1, lengths[-1] - answer), answer)
            )
            marked = [
                gib(cell.peak) + ("" if free is None or fits(cell, free) else " ✗")
                for cell in cells
            ]
            yield f"| {name} | {at_once} | {' | '.join(marked)} |"


def embedding_table(device_type: str, free: int | None) -> Iterator[str]:
    """Yield the same for the embedding models of `make embed`: training and encoding.

    Training follows `embed.lora`. If that is null and the model cannot be trained whole, or if it
    names layers that the model lacks, an example adapter is used.
    """
    params = load_params().embed
    head = [f"{texts} x {length}" for texts in (1, params.batch_size) for length in TEXT_LENGTHS]
    yield f"| embedding model | trained | {' | '.join(head)} | encoding {MOST_TEXTS} |"
    yield f"|---|---|{'--:|' * (len(head) + 1)}"
    for name in list_embedding_models():
        model = load_embedding_model_file(name)
        folder = None
        if not isinstance(model, HubEmbeddingModel):
            try:
                folder = find_folder(model)
            except InputError as error:
                yield f"| {name} | | {'| ' * len(head)}{error} |"
                continue
        lora = params.lora or (None if trains_whole(model) else EXAMPLE_LORA)
        settings = make_encoder_settings(model, lora, device_type)
        config = read_encoder_config(model, folder)
        try:
            sizes = measure_encoder(config, lora)
        except InputError:  # of another architecture
            lora = EXAMPLE_LORA
            sizes = measure_encoder(config, lora)
        cells = [
            predict_step(sizes, settings, texts, length) if length <= model.max_length else None
            for texts in (1, params.batch_size)
            for length in TEXT_LENGTHS
        ]
        most = min(TEXT_LENGTHS[-1], model.max_length)
        cells.append(predict_encoding(sizes, settings, MOST_TEXTS, most))
        marked = [
            "–"
            if cell is None
            else gib(cell.peak) + ("" if free is None or cell.fits(free) else " ✗")
            for cell in cells
        ]
        how = "all weights" if lora is None else f"adapter, r={lora.r}"
        yield f"| {name} | {how} | {' | '.join(marked)} |"


def positive(text: str) -> int:
    """Parse a positive whole number of the command line."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description="Predict the memory for training and answering, for every model in models/."
    )
    parser.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        default="cuda",
        help="16-bit types on CUDA, float32 on a CPU",
    )
    parser.add_argument(
        "--lengths",
        type=positive,
        nargs="+",
        default=[1024, 2048, 4096, 6144],
        help="tokens of a row",
    )
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 4], help="batch sizes")
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        help="how many processes share the layers, if FSDP is set in the environment",
    )
    asked = parser.parse_args()
    limit, free = memory_limit(), None
    if asked.device == "cpu" or torch.cuda.is_available():
        free = free_bytes(pick_device() if asked.device == "cuda" else torch.device("cpu"))
    elif limit is not None:
        free = max(0, limit - CONTEXT_BYTES)
    print("\n".join(table(asked.device, asked.processes, asked.lengths, asked.rows, free)))
    print(
        "\nEmbedding models (make embed): texts in memory x tokens of each. A row has two or three"
    )
    print("texts. –: longer than the model's longest input.\n")
    print("\n".join(embedding_table(asked.device, free)))
    sharding = find_sharding(asked.processes)
    how = "" if sharding is None else f" with FSDP={sharding}"
    how += f" for each of {asked.processes} processes" if asked.processes > 1 else ""
    if free is None:
        print(
            f"\nPredicted{how} for a CUDA GPU; this machine has none. MEMORY_LIMIT_GIB=4 marks "
            "what does not fit a GPU with 4 GiB."
        )
    else:
        print(
            f"\nPredicted{how}. ✗: more than {1 - SPARE:.0%} of the {gib(free)} that are free for "
            "tensors."
        )


if __name__ == "__main__":
    run_main(main)

"""Checks of the GPU and its libraries, memory, disk, the Hub and the embedding model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands.doctor.finding import Finding
from library.errors import InputError
from library.repository.client import failure_line, run

HUB_SECONDS = 3
PROBE_SECONDS = 300
LOW_BYTES = 2 * 2**30  # of disk: a run may fail with less

REINSTALL_TORCH = (
    "pip install --force-reinstall --constraint requirements.lock --index-url "
    "https://pypi.org/simple torch"
)


def run_probe(name: str) -> tuple[str, str | None]:
    """Run one of `commands.doctor.probes`; return what it printed and why it failed, if it did."""
    ended = run(sys.executable, "-m", "commands.doctor.probes", name, timeout=PROBE_SECONDS)
    if ended.returncode < 0:
        return "", f"ended by signal {-ended.returncode}"
    return (ended.stdout, None) if ended.returncode == 0 else ("", failure_line(ended.stderr))


def read_driver() -> list[str] | None:
    """Name and driver of every GPU that nvidia-smi sees; None if it is missing or sees none."""
    if shutil.which("nvidia-smi") is None:
        return None
    listed = run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    lines = [line.strip() for line in listed.stdout.splitlines() if line.strip()]
    return lines if listed.returncode == 0 and lines else None


def describe_gpus(torch: dict[str, Any], driver: list[str] | None) -> Iterator[Finding]:
    """Findings from what PyTorch sees and what the driver sees."""
    build = f"PyTorch {torch['version']} is built for " + (
        f"CUDA {torch['cuda']}" if torch["cuda"] else "no CUDA"
    )
    for index, card in enumerate(torch["cards"]):
        major, minor = card["capability"]
        text = (
            f"{card['name']}, {card['bytes'] / 2**30:.1f} GiB, compute capability {major}.{minor}"
        )
        if (major, minor) < (8, 0):
            text += ": an older GPU, which computes in float16 and without FlashAttention"
        yield Finding("ok", f"GPU {index}", text)
    if torch["cards"]:
        return
    if driver is None:
        yield Finding(
            "note",
            "GPU",
            f"none: runs on the CPU in float32, minutes with the built-in model; {build}",
        )
    elif torch["cuda"] is None:
        yield Finding("problem", "GPU", f"{driver[0]} is here, but {build}", REINSTALL_TORCH)
    else:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        reason = (
            "the driver is too old for it"
            if hidden is None
            else f"CUDA_VISIBLE_DEVICES is {hidden!r}"
        )
        remedy = (
            "update the driver, then: nvidia-smi"
            if hidden is None
            else "unset CUDA_VISIBLE_DEVICES"
        )
        yield Finding(
            "problem",
            "GPU",
            f"{driver[0]} is here, but {build} and cannot use it: {reason}",
            remedy,
        )


def check_gpu() -> Iterator[Finding]:
    """Check PyTorch and the GPU, and whether 4-bit weights work."""
    printed, fault = run_probe("torch_and_cards")
    if fault is not None:
        yield Finding("problem", "PyTorch", fault, REINSTALL_TORCH)
        return
    seen = json.loads(printed)
    yield from describe_gpus(seen, read_driver())
    if seen["cards"]:
        _, fault = run_probe("triton")
        if fault is not None:
            text = f"{fault}; plain PyTorch computes the loss, more slowly"
            yield Finding("note", "Triton", text, "sudo apt-get install gcc python3-dev")
        else:
            yield Finding("ok", "Triton", "its kernels work, so TRL's fused loss is used")
    _, fault = run_probe("four_bits")
    if fault is not None:
        remedy = "rm -f .venv/.ready && make environment, or quantization: none in the model's file"
        yield Finding("problem", "bitsandbytes", f"4-bit weights do not work: {fault}", remedy)
    else:
        yield Finding("ok", "bitsandbytes", "4-bit weights work")


def check_disk() -> Iterator[Finding]:
    """Check the free space for DVC's cache and the Hub's."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {"DVC's cache": Path(".dvc/cache"), "the Hub's cache": Path(HF_HUB_CACHE)}
    for name, path in places.items():
        there = next(
            parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists()
        )
        free = shutil.disk_usage(there).free
        text = f"{free / 2**30:.1f} GiB free for {name}"
        remedy = (
            "dvc gc --all-commits --all-experiments" if name == "DVC's cache" else "hf cache prune"
        )
        yield (
            Finding("note", "disk", f"{text}: low", remedy)
            if free < LOW_BYTES
            else Finding("ok", "disk", text)
        )


def is_reachable(url: str) -> bool:
    """Whether a server answers at all."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:  # no route, no name, no answer in time
        return False


def check_hub() -> Iterator[Finding]:
    """Check that a Hub model is cached or can be downloaded, and that it is the one `base`
    recorded.
    """
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    from library.files import read_json
    from library.llm.manifest import (
        IncompleteModelError,
        check_manifest,
        find_model_folder,
        model_source,
    )
    from library.params import HubModel, load_model_file, load_params
    from library.paths import MANIFEST_PATH

    name = load_params().model
    model = load_model_file(name)
    reachable = not HF_HUB_OFFLINE and is_reachable(ENDPOINT)
    answer = f"{ENDPOINT} does not answer"
    if reachable:
        answer = f"{ENDPOINT} answers"
    elif HF_HUB_OFFLINE:
        answer = f"{ENDPOINT} is not asked: HF_HUB_OFFLINE"
    source = model_source(model)
    try:
        folder = find_model_folder(source)
        manifest = read_json(MANIFEST_PATH) if MANIFEST_PATH.is_file() else {}
        if manifest.get("source") == source:
            check_manifest(manifest, folder)
    except IncompleteModelError as error:
        if not isinstance(model, HubModel):
            yield Finding("problem", "model", str(error), f"ln -s /path/to/model/* models/{name}/")
        elif reachable:
            yield Finding(
                "note", "model", f"{model.id} is not in the Hub's cache; {answer}", "dvc repro base"
            )
        else:
            remedy = (
                "unset HF_HUB_OFFLINE"
                if HF_HUB_OFFLINE
                else "set HTTPS_PROXY, or HF_ENDPOINT to a mirror"
            )
            yield Finding(
                "problem", "model", f"{model.id} is not in the Hub's cache; {answer}", remedy
            )
        return
    except InputError as error:  # the message contains the fix
        yield Finding("problem", "model", str(error))
        return
    yield Finding("ok", "model", f"{name} is on this disk; {answer}")


def check_memory() -> Iterator[Finding]:
    """Check that training on rows of format.max_length is predicted to fit."""
    from library.llm.devices import pick_device
    from library.llm.memory.measuring import free_bytes
    from library.llm.memory.misfit import (
        Misfit,
        ShorterLength,
        describe_alternative,
        describe_training_misfit,
    )
    from library.llm.memory.planning import (
        LongestLengths,
        batch_size_choices,
        choose_batch_size,
        lengths_below,
        load_sizes,
        make_settings,
    )
    from library.params import load_model_file, load_params
    from library.units import gib

    params = load_params()
    device = pick_device()
    model = load_model_file(params.model)
    settings = make_settings(model, params.sft, device.type)
    sizes = load_sizes(model, settings.adapter)
    if sizes is None:
        text = f"unknown for {params.model} until its config.json is downloaded"
        yield Finding("note", "memory", text, "dvc repro base")
        return
    free = free_bytes(device)
    length, answer = params.format.max_length, params.format.max_new_tokens
    shorter = [ShorterLength(other, other) for other in lengths_below(length, answer)]
    choices = batch_size_choices(params.sft.effective_batch_size)
    found = choose_batch_size(
        sizes, settings, LongestLengths(length, answer, shorter), choices, free
    )
    if isinstance(found, Misfit):
        remedy = "close other programs, or choose a smaller model: make memory"
        if found.alternatives:
            remedy = describe_alternative(found.alternatives[0])
        yield Finding("problem", "memory", next(describe_training_misfit(found)), remedy)
        return
    rows, _, predicted = found
    text = (
        f"{params.model}, batch size {rows} with rows of {length} tokens: "
        f"{gib(predicted.needed)} predicted"
    )
    yield Finding("ok", "memory", f"{text}, {gib(free)} free on {device.type}")


def check_embedding() -> Iterator[Finding]:
    """Check that the embedding model of `make embed` is here, with its packages, and that training
    it is predicted to fit. Nothing is checked until `make embed` ran here or embed.model was set to
    another model than the packaged one.
    """
    from huggingface_hub import try_to_load_from_cache

    from library.embed.encoder import find_folder
    from library.embed.memory import TEXT_LENGTHS, plan_step
    from library.embedding_models import (
        HubEmbeddingModel,
        PackagedEmbeddingModel,
        load_embedding_model_file,
    )
    from library.llm.devices import pick_device
    from library.llm.memory.measuring import free_bytes
    from library.params import load_params
    from library.paths import RANKED_TEXTS_PATH
    from library.units import gib

    subject, embed = "embedding model", load_params().embed
    model = load_embedding_model_file(embed.model)
    if isinstance(model, PackagedEmbeddingModel) and not RANKED_TEXTS_PATH.is_file():
        return
    if importlib.util.find_spec("sentence_transformers") is None:
        remedy = "pip install --constraint requirements.lock --editable '.[embedding]'"
        yield Finding("problem", subject, "sentence-transformers is not installed", remedy)
        return
    folder = None
    if not isinstance(model, HubEmbeddingModel):
        folder = find_folder(model)  # raises InputError with the fix
        yield Finding("ok", subject, f"{embed.model} is on this disk")
    elif any(
        isinstance(try_to_load_from_cache(model.id, name, revision=model.revision), str)
        for name in (model.pickle, "model.safetensors", "model.safetensors.index.json")
        if name
    ):
        yield Finding("ok", subject, f"{model.id} is in the Hub's cache")
    else:
        text = f"{model.id} is not in the Hub's cache; make embed downloads it"
        yield Finding("note", subject, text, "make embed")
    length = min(TEXT_LENGTHS[-1], model.max_length)
    rows, step = next(iter(plan_step(model, folder, embed, [[length] * 3], said=False).items()))
    device = pick_device()
    free = free_bytes(device)
    text = (
        f"{embed.model}, {rows} rows at a time with texts of {length} tokens: {gib(step.peak)} "
        f"predicted, {gib(free)} free on {device.type}"
    )
    if step.fits(free):
        yield Finding("ok", "embedding memory", text)
    else:  # embed.mini_batch_size is taken as it is
        yield Finding("problem", "embedding memory", text, "set embed.mini_batch_size to null")

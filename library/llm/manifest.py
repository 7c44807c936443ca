"""The manifest of the base model: its source, and the size and SHA-256 of each file.

Weights stay where they are, in the Hub's cache or in a folder. Nothing that is loaded may differ
from the manifest.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from library.errors import InputError
from library.files import hash_once, read_json
from library.llm.unpacking import read_quantization, unpack, unpacked_folder
from library.params import AnyModel, HubModel, LocalModel

log = logging.getLogger(__name__)

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class IncompleteModelError(InputError):
    """A model's folder, or a file in it, is missing."""


def source_name(source: Mapping[str, str]) -> str:
    """The name of a base model's source for messages."""
    return source["path"] if "path" in source else f"{source['id']} at {source['revision']}"


def find_model_folder(source: Mapping[str, str], download: bool = False) -> Path:
    """The folder of a model's files: its path, its unpacked GGUF file, or the commit in the Hub's
    cache.

    Raises IncompleteModelError if the folder or a file is missing, and InputError if it cannot be a
    base model. With `download`, missing files are downloaded from the Hub.
    """
    if "sha256" in source:
        folder = unpacked_folder(source["sha256"])
        if not folder.is_dir():
            raise IncompleteModelError(
                f"{source['path']} is not unpacked on this machine: run `dvc repro base --force`"
            )
        return folder
    if "path" in source:
        folder = Path(source["path"])
        if not folder.is_dir():
            raise IncompleteModelError(f"{folder}: no such folder")
        check_model_files(folder, str(folder))
        return folder
    name = source_name(source)
    try:
        folder = Path(
            snapshot_download(source["id"], revision=source["revision"], local_files_only=True)
        )
        check_model_files(folder, name)
        return folder
    except (LocalEntryNotFoundError, IncompleteModelError) as error:
        if not download:
            raise IncompleteModelError(
                f"{name} is not complete in the hub cache: run `dvc repro base --force`"
            ) from error
    log.info("downloading %s", name)
    try:
        folder = Path(
            snapshot_download(source["id"], revision=source["revision"], allow_patterns=PATTERNS)
        )
    except GatedRepoError as error:
        raise InputError(
            f"{name} is gated: accept its licence at https://huggingface.co/{source['id']}, then "
            "`hf auth login` with a token of that account"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name} is not in the Hub's cache and cannot be downloaded: {error}"
        ) from error
    check_model_files(folder, name)
    return folder


def check_model_files(folder: Path, name: str) -> None:
    """Raise IncompleteModelError naming a file that the model `name` lacks; weights must be
    safetensors.

    Raises InputError if adapter files are beside them: transformers would silently apply the
    adapter.
    """
    index = folder / WEIGHTS_INDEX
    adapters = [file for file in ADAPTERS if (folder / file).exists()]
    if adapters and (index.exists() or (folder / WEIGHTS).exists()):
        raise InputError(
            f"{name}: {' and '.join(adapters)} would be loaded on top of its weights; if the "
            f"adapter is merged into them, rm {' '.join(str(folder / file) for file in adapters)}"
        )
    if adapters:
        raise InputError(
            f"{name}: an adapter ({adapters[0]}), not a model; name the base model that it was "
            "trained on, or merge the two and name the merged folder"
        )
    for path in sorted(path for pattern in PATTERNS for path in folder.glob(pattern)):
        if not path.exists():
            raise IncompleteModelError(
                f"{name}: {path.name} is a link to {path.readlink()}, which is not there"
            )
    weights = list_weights(folder)
    if index.exists() and weights == [WEIGHTS] and _indexed(index) != [WEIGHTS]:
        other = next((file for file in _indexed(index) if (folder / file).exists()), None)
        if other is not None:
            raise InputError(
                f"{name}: {WEIGHTS} would be loaded, but {WEIGHTS_INDEX} names {other}; remove "
                "those that do not belong to the model"
            )
    for file in ["config.json", *weights]:
        if Path(file).name != file:
            raise InputError(f"{name}: {WEIGHTS_INDEX} names {file!r}, which is not in the folder")
        if not (folder / file).is_file():
            pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
            shards = sorted(path.name for path in folder.glob("*.safetensors"))
            hint = ""
            packed = sorted(path.name for path in folder.glob("*.gguf"))
            if packed:
                hint = f"; for a GGUF file: path: {packed[0]}, in place of sha256 in its model.yaml"
            if pickles and file in weights:
                hint = (
                    f"; {pickles[0]} is a pickle, which can run code and is never loaded: save the "
                    "model with save_pretrained, which writes safetensors"
                )
            elif shards and file == WEIGHTS:
                hint = f", and no {WEIGHTS_INDEX}, which says what {shards[0]} holds"
            raise IncompleteModelError(f"{name}: no {file}{hint}")


def list_weights(folder: Path) -> list[str]:
    """The weight files that transformers loads: a single one, or those in the index."""
    index = folder / WEIGHTS_INDEX
    return [WEIGHTS] if not index.exists() or (folder / WEIGHTS).exists() else _indexed(index)


def _indexed(index: Path) -> list[str]:
    """The weight files in an index."""
    values = read_json(index)
    files = values.get("weight_map") if isinstance(values, dict) else None
    named = set(files.values()) if isinstance(files, dict) else set()
    if not named or not all(isinstance(file, str) for file in named):
        raise InputError(f"{index}: its weight_map does not name a file for each weight")
    if "metadata" not in values:
        raise InputError(f"{index}: its metadata is missing")
    return sorted(named)


def model_source(model: AnyModel) -> dict[str, str]:
    """The source of a base model, as in its manifest."""
    if isinstance(model, HubModel):
        return {"id": model.id, "revision": model.revision}
    if isinstance(model, LocalModel):
        return {"path": model.folder}
    path = Path(model.path)
    if not path.is_file():
        raise IncompleteModelError(f"{path}: no such file")
    quantized = read_quantization(path)
    return {"path": model.path, "sha256": hash_once(path), "quantized": quantized}


def make_manifest(model: AnyModel) -> dict[str, Any]:
    """The manifest of a base model; downloads a Hub model and unpacks a GGUF file if needed."""
    source = model_source(model)
    if "sha256" in source and not unpacked_folder(source["sha256"]).is_dir():
        unpack(Path(source["path"]), unpacked_folder(source["sha256"]))
    folder = find_model_folder(source, download=True)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hash_once(folder / name)}
        for name in list_model_files(folder)
    }
    expected = model.sha256 if isinstance(model, LocalModel) else None
    if expected is not None and (actual := files.get(WEIGHTS, {}).get("sha256")) != expected:
        raise InputError(f"{folder / WEIGHTS}: SHA-256 is {actual}, expected {expected}")
    return {"source": source, "files": files}


def list_model_files(folder: Path) -> list[str]:
    """The names of the files that a model consists of."""
    return sorted({path.name for pattern in PATTERNS for path in folder.glob(pattern)})


def check_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError if the folder's files differ from the manifest."""
    remedy = "since the base stage saw it; run `dvc repro base --force`, then `dvc repro`"
    for name in sorted({*manifest["files"], *list_model_files(folder)}):
        path, expected = folder / name, manifest["files"].get(name)
        if expected is None:
            raise InputError(f"{path}: added {remedy}")
        if (
            not path.is_file()
            or path.stat().st_size != expected["bytes"]
            or hash_once(path) != expected["sha256"]
        ):
            raise InputError(f"{path}: changed {remedy}")

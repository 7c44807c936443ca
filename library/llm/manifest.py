"""Which files the base model is made of.

A manifest says what the base model is: its source and the size and SHA-256 of each file. Weights
stay where they are (the hub's cache, or a folder); nothing that is loaded may differ from the
manifest.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from library.errors import InputError
from library.files import hash_file, read_json, write_json
from library.params import HubModel, LocalModel
from library.paths import CHECKPOINTS_DIR

log = logging.getLogger(__name__)

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
RECHECKED_BYTES = 64 * 2**20  # up to here a file is read each time, not only where it has moved
HASHES_PATH = CHECKPOINTS_DIR / "hashes.json"


class IncompleteModelError(InputError):
    """A model's folder lacks a file, or is not there."""


def source_name(source: Mapping[str, str]) -> str:
    """A base model's source as messages name it."""
    return source["path"] if "path" in source else f"{source['id']} at {source['revision']}"


def find_model_folder(source: Mapping[str, str], download: bool = False) -> Path:
    """The folder with a model's files: its own path, or the hub cache's folder of that commit.

    Raises IncompleteModelError where it, or a file of it, is not there, and InputError where it
    can't be a base; with `download`, the hub is asked for what the cache lacks.
    """
    if "path" in source:
        folder = Path(source["path"])
        if not folder.is_dir():
            raise IncompleteModelError(
                f"{folder}: no such folder (path in the file that `model` names under models/)"
            )
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
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name} is neither in the hub cache nor can it be downloaded: {error}"
        ) from error
    check_model_files(folder, name)
    return folder


def check_model_files(folder: Path, name: str) -> None:
    """Raise IncompleteModelError naming a file that the folder of the model `name` lacks.

    Only safetensors count as weights. Raises InputError where files of an adapter lie beside them:
    transformers would put it on the model without a word, and the base would not be the base.
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
            f"{name}: an adapter ({adapters[0]}), not a model; name the base that it was trained "
            "on, or merge it into that and name the merged folder"
        )
    weights = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else [WEIGHTS]
    )
    for file in ["config.json", *weights]:
        if Path(file).name != file:
            raise InputError(f"{name}: {WEIGHTS_INDEX} names {file!r}, which is not in the folder")
        if not (folder / file).is_file():
            pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
            hint = (
                f"; {pickles[0]} is a pickle, which can run code and is never loaded: save the "
                "model with save_pretrained, which writes safetensors"
                if pickles and file in weights
                else ""
            )
            raise IncompleteModelError(f"{name}: no {file}{hint}")


def make_manifest(model: HubModel | LocalModel) -> dict[str, Any]:
    """What the base model is made of; one of a hub that is not here yet is downloaded."""
    source = (
        {"id": model.id, "revision": model.revision}
        if isinstance(model, HubModel)
        else {"path": Path(model.path).as_posix()}
    )
    folder = find_model_folder(source, download=True)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hash_weights(folder / name)}
        for name in list_model_files(folder)
    }
    expected = model.sha256 if isinstance(model, LocalModel) else None
    if expected is not None and (actual := files.get(WEIGHTS, {}).get("sha256")) != expected:
        raise InputError(f"{folder / WEIGHTS}: SHA-256 is {actual}, expected {expected}")
    return {"source": source, "files": files}


def list_model_files(folder: Path) -> list[str]:
    """The names of the files that a model is made of."""
    return sorted({path.name for pattern in PATTERNS for path in folder.glob(pattern)})


def hash_weights(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    A large one is read again only where its size, times or inode are others than when this machine
    hashed it last: gigabytes are not read at every start.
    """
    before = path.stat()
    if before.st_size <= RECHECKED_BYTES:
        return hash_file(path)
    look = [before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino]
    known: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        known = read_json(HASHES_PATH)
    key = str(path.resolve())
    if known.get(key, {}).get("look") != look:
        known[key] = {"look": look, "sha256": hash_file(path)}
        write_json(HASHES_PATH, known)
    return str(known[key]["sha256"])


def check_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError where the folder's files are others than the manifest says, or have another
    content.
    """
    remedy = "since the base stage saw it; run `dvc repro base --force`, then `dvc repro`"
    for name in sorted({*manifest["files"], *list_model_files(folder)}):
        path, expected = folder / name, manifest["files"].get(name)
        if expected is None:
            raise InputError(f"{path}: added {remedy}")
        if (
            not path.is_file()
            or path.stat().st_size != expected["bytes"]
            or hash_weights(path) != expected["sha256"]
        ):
            raise InputError(f"{path}: changed {remedy}")

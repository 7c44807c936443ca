"""Which files the base model is made of.

A manifest says what the base model is: its source and the size and SHA-256 of each file. Weights
stay where they are (the hub's cache, or a folder); nothing that is loaded may differ from the
manifest.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from library.errors import InputError
from library.files import hash_file
from library.params import HubModel, LocalModel

log = logging.getLogger(__name__)

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
RECHECKED_BYTES = 64 * 2**20


def find_model_folder(source: Mapping[str, str], download: bool = False) -> Path:
    """The folder with a model's files: its own path, or the hub cache's folder of that commit.

    Raises InputError where it, or a file of it, is not there; with `download`, the hub is asked for
    what the cache lacks.
    """
    if "path" in source:
        folder = Path(source["path"])
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder (path in the file that `model` names under models/)"
            )
        check_model_files(folder, str(folder))
        return folder
    name = f"{source['id']} at {source['revision']}"
    try:
        folder = Path(
            snapshot_download(source["id"], revision=source["revision"], local_files_only=True)
        )
        check_model_files(folder, name)
        return folder
    except (LocalEntryNotFoundError, InputError) as error:
        if not download:
            raise InputError(
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
    """Raise InputError naming a file that the folder of the model `name` lacks.

    Only safetensors count as weights.
    """
    index = folder / WEIGHTS_INDEX
    weights = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else [WEIGHTS]
    )
    for file in ["config.json", *weights]:
        if not (folder / file).is_file():
            raise InputError(f"{name}: no {file}")


def make_manifest(model: HubModel | LocalModel) -> dict[str, Any]:
    """What the base model is made of; one of a hub that is not here yet is downloaded."""
    source = (
        {"id": model.id, "revision": model.revision}
        if isinstance(model, HubModel)
        else {"path": Path(model.path).as_posix()}
    )
    folder = find_model_folder(source, download=True)
    names = sorted({path.name for pattern in PATTERNS for path in folder.glob(pattern)})
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
        for name in names
    }
    expected = model.sha256 if isinstance(model, LocalModel) else None
    if expected is not None and (actual := files.get(WEIGHTS, {}).get("sha256")) != expected:
        raise InputError(f"{folder / WEIGHTS}: SHA-256 is {actual}, expected {expected}")
    return {"source": source, "files": files}


def check_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError where a file's size, or a small file's hash, is no longer what the manifest
    says.
    """
    for name, expected in manifest["files"].items():
        path = folder / name
        changed = not path.is_file() or path.stat().st_size != expected["bytes"]
        if not changed and expected["bytes"] <= RECHECKED_BYTES:
            changed = hash_file(path) != expected["sha256"]
        if changed:
            raise InputError(
                f"{path}: changed since the base stage saw it; run `dvc repro base --force`"
            )

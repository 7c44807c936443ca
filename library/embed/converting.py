"""Convert weights that were published only as a pickle to safetensors."""

import logging
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from library.errors import InputError, describe_error
from library.files import hash_file

log = logging.getLogger(__name__)


def convert_pickle(folder: Path, name: str) -> Path:
    """Convert a model's weights once, beside the Hub's cache, under the pickle's hash; returns the
    folder.

    PyTorch reads the pickle with `weights_only`, so anything but tensors is refused. Raises
    InputError if it cannot be read so.
    """
    converted = Path(constants.HF_HOME) / "converted-pickles" / hash_file(folder / name)
    if converted.is_dir():
        return converted
    log.info("converting %s to %s", folder / name, converted)
    try:
        tensors = torch.load(folder / name, map_location="cpu", weights_only=True)
        # saved tensors must not share memory
        weights = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
    except Exception as error:  # any kind: the file is broken
        raise InputError(
            f"{folder / name}: not a pickle of tensors only: {describe_error(error)}"
        ) from error
    converted.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=converted.parent) as made:
        complete = Path(made) / "model"
        complete.mkdir()
        for file in folder.iterdir():
            if file.suffix in (".json", ".txt", ".model"):
                shutil.copyfile(file, complete / file.name)
        save_file(weights, complete / "model.safetensors", metadata={"format": "pt"})
        complete.replace(converted)
    return converted

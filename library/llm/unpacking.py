"""Unpack a GGUF file, as Ollama and LM Studio store models, for transformers.

Its quantized weights become 16 bits wide, but the precision that quantizing lost stays lost.
"""

import logging
import tempfile
from pathlib import Path

import torch
from gguf import GGUFReader, LlamaFileType
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from library.errors import InputError, describe_error

log = logging.getLogger(__name__)


def unpacked_folder(sha256: str) -> Path:
    """The folder for an unpacked GGUF file: beside the Hub's cache, shared by all projects."""
    return Path(constants.HF_HOME) / "unpacked-gguf" / sha256


def read_quantization(path: Path) -> str:
    """The type of a GGUF file's weights as llama.cpp names it: Q4_1, Q8_0, F16.

    Raises InputError if it is not a GGUF file of a model.
    """
    try:
        kind = GGUFReader(path).fields["general.file_type"].contents()
        return LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except Exception as error:  # any kind: the file is broken
        raise InputError(f"{path}: not a GGUF file of a model: {describe_error(error)}") from error


def unpack(path: Path, folder: Path) -> None:
    """Write a GGUF file's model, in bfloat16, and its tokenizer to a folder; all or nothing.

    Raises InputError if transformers cannot.
    """
    log.info("unpacking %s to %s", path, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        complete = Path(made) / "model"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                local_files_only=True,
                dtype=torch.bfloat16,
                # otherwise the weights stay packed, and cannot be saved
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True
            )
        except Exception as error:  # any kind: transformers cannot read it
            raise InputError(
                f"{path}: transformers can't unpack it: {describe_error(error)}; name the model on "
                "the hub that it was made of"
            ) from error
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(complete)
        tokenizer.save_pretrained(complete)
        for file in complete.iterdir():
            file.chmod(0o644)
        complete.replace(folder)

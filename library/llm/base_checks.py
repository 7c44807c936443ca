"""Refuse a model folder that cannot be a base model, before a weight is loaded.

It refuses what transformers would load silently as something else, or fail on much later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from library.errors import InputError, describe_error
from library.files import read_json
from library.llm.manifest import list_weights
from library.params import ModelConfig

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")  # as safetensors names them


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InputError if the file contains none."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, not {str(values)[:40]}")
    return values


def load_config(folder: Path, name: str) -> PreTrainedConfig:
    """The configuration of a causal language model that transformers itself knows.

    Raises InputError for any other, including those with the author's code, which never runs.
    """
    path = folder / "config.json"
    values = read_object(path)
    text_config = values.get("text_config")
    for section in (values, text_config if isinstance(text_config, dict) else {}):
        for key in SIZES:
            size = section.get(key)
            if isinstance(size, int) and size < 1:
                raise InputError(f"{path}: {key} is {size}; it must be at least 1")
    kind = values.get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if kind in CONFIG_MAPPING:
            raise InputError(
                f"{path}: not valid for model_type {kind!r}: {describe_error(error)}"
            ) from error
        reason = (
            "it needs its author's code (auto_map in config.json), which never runs here"
            if "auto_map" in values
            else f"transformers {transformers.__version__} does not know it"
        )
        raise InputError(
            f"{name}: model_type {kind!r} cannot be used: {reason}; choose a model whose "
            "architecture transformers knows"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{name}: model_type {kind!r} is not a causal language model in transformers; choose "
            "an instruct model"
        )
    return config


def check_files(folder: Path, config: PreTrainedConfig) -> None:
    """Raise InputError for invalid .json files, an unknown end-of-turn token, or unusable weights.

    Weights that config.json declares as quantized are not checked.
    """
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        values = read_object(folder / name) if (folder / name).exists() else {}
        ends = values.get("eos_token_id") if name == "generation_config.json" else None
        listed = ends if isinstance(ends, list) else [ends or 0]
        if not all(isinstance(end, int) for end in listed):
            raise InputError(f"{folder / name}: eos_token_id is {ends!r}, expected token ids")
    if getattr(config, "quantization_config", None):
        return
    for path in (folder / name for name in list_weights(folder)):
        try:
            with safe_open(path, "pt") as weights:
                for key in sorted(weights.keys()):
                    _check_weight(path, key, weights)
        except (OSError, SafetensorError) as error:
            pointer = path.read_bytes()[:8] == b"version "
            remedy = "a Git LFS pointer: git lfs pull" if pointer else "copy or download it again"
            raise InputError(
                f"{path}: cannot be read: {describe_error(error)}; {remedy}"
            ) from error


def _check_weight(path: Path, key: str, weights: Any) -> None:
    """Raise InputError for a weight of integers, NaN, or zeros, as a truncated download leaves
    it.
    """
    dtype = weights.get_slice(key).get_dtype()
    if key.endswith("weight") and dtype not in WEIGHT_DTYPES:
        raise InputError(
            f"{path}: {key} is {dtype}, a quantized weight, but config.json has no "
            "quantization_config; save the model unquantized"
        )
    if dtype in WEIGHT_DTYPES:
        weight = weights.get_tensor(key)
        if not weight.isfinite().all():
            raise InputError(f"{path}: {key} contains NaN or infinities")
        if weight.ndim > 1 and not key.endswith("bias") and not weight.any():
            raise InputError(f"{path}: {key} is all zeros; copy or download the file again")


def check_config(expected: ModelConfig, config: PreTrainedConfig, name: str) -> None:
    """Raise InputError if the `config` in the model file `name` differs from config.json.

    Values that config.json leaves out are transformers' defaults.
    """
    for key, value in expected.model_dump(exclude_none=True).items():
        actual = getattr(config, key, None)
        if actual != value:
            raise InputError(
                f"{name}: config.{key}: {value}, but the model's config.json has {actual}"
            )


def check_quantization(
    config: PreTrainedConfig, quantization: Literal["nf4", "none"], name: str
) -> None:
    """Raise InputError if weights are quantized in another way than the model file asks for.

    transformers would keep them as they are. Weights in bitsandbytes' 4 bits count as `nf4`.
    """
    found: Mapping[str, Any] = getattr(config, "quantization_config", None) or {}
    if not isinstance(found, Mapping):
        found = vars(found)
    if not found:
        return
    method = str(found.get("quant_method", "bitsandbytes")).rpartition(".")[2].lower()
    if method == "bitsandbytes" and found.get("load_in_4bit"):
        if quantization == "nf4":
            return
        raise InputError(
            f"{name}: its weights are quantized to 4 bits; set quantization: nf4 in the model's "
            "file, or name the unquantized model"
        )
    raise InputError(
        f"{name}: its weights are quantized ({method}); name the unquantized model, which "
        "quantization: nf4 loads in 4 bits"
    )


def check_vocabulary(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Raise InputError if the tokenizer has a token id beyond the model's embedding."""
    rows = config.get_text_config().vocab_size
    token, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if last >= rows:
        raise InputError(
            f"{name}: the tokenizer's token {token!r} has the id {last}, but the model's embedding "
            f"has {rows} rows: the tokenizer belongs to another model"
        )

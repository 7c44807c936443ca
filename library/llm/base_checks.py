"""What makes a model folder unusable as a base, told from its files before a weight is loaded.

What transformers would load from it without a word, or fail on much later, is refused here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from library.errors import InputError
from library.files import read_json
from library.params import ModelConfig


def load_config(folder: Path, name: str) -> PreTrainedConfig:
    """The configuration of a causal language model that transformers itself knows.

    Raises InputError for any other, among them those that come with code of their author: that is
    never run.
    """
    try:
        values = dict(read_json(folder / "config.json"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: config.json is no JSON object: {error}") from error
    kind = values.get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        if "auto_map" in values:
            reason = (
                "it needs code of its author (auto_map in config.json), which is never run here"
            )
        raise InputError(
            f"{name}: model_type {kind!r} can't be used: {reason}; choose a model whose "
            "architecture transformers has"
        ) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{name}: model_type {kind!r} is no causal language model in transformers; choose an "
            "instruct model"
        )
    return config


def check_config(expected: ModelConfig, config_path: Path, name: str) -> None:
    """Raise InputError where the model file `name` says another `config` than config.json."""
    actual = read_json(config_path)
    for key, value in expected.model_dump().items():
        if actual.get(key) != value:
            raise InputError(
                f"{name}: config.{key}: {value}, but the model's config.json has {actual.get(key)}"
            )


def check_quantization(
    config: PreTrainedConfig, quantization: Literal["nf4", "none"], name: str
) -> None:
    """Raise InputError where weights are quantized otherwise than the model file asks for.

    transformers keeps them as they are, whatever it is asked for. Those that bitsandbytes has
    quantized to 4 bits are what `nf4` makes.
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
    """Raise InputError where the tokenizer has a token that the model's embedding lacks."""
    rows = config.get_text_config().vocab_size
    token, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if last >= rows:
        raise InputError(
            f"{name}: the tokenizer's token {token!r} has the id {last}, the model's embedding "
            f"{rows} rows: the tokenizer is that of another model"
        )


def count_positions(folder: Path) -> int | None:
    """How many tokens a model was made for; None where its configuration does not say."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return getattr(config.get_text_config(), "max_position_embeddings", None)

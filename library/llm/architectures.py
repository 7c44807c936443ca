"""What differs between architectures, decided by a model's configuration."""

from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.nn import Linear4bit
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.utils import is_flash_attn_2_available

from library.errors import InputError
from library.llm.devices import lacks_bfloat16

MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder that `base` has checked."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return config


def count_positions(folder: Path) -> int | None:
    """How many tokens a model was made for; None if its configuration does not say."""
    return getattr(read_config(folder).get_text_config(), "max_position_embeddings", None)


def pick_attention(
    device: torch.device, config: PreTrainedConfig
) -> Literal["flash_attention_2", "sdpa", "eager"]:
    """The attention implementation: FlashAttention if it is installed and the GPU supports it, else
    SDPA.

    Architectures without either, such as Gemma 2 with its capped scores, use eager attention.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    flash = device.type == "cuda" and not lacks_bfloat16(device) and is_flash_attn_2_available()
    if flash and kind._supports_flash_attn:
        return "flash_attention_2"
    return "sdpa" if kind._supports_sdpa else "eager"


def keeps_states(config: PreTrainedConfig) -> bool:
    """Whether a layer keeps a state instead of keys and values: convolution, linear attention, SSM.

    Padding before a text changes the state, and single rows cannot be selected from it.
    """
    return any(
        isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in DynamicCache(config=config).layers
    )


def needs_no_padding(device: torch.device, config: PreTrainedConfig) -> bool:
    """Whether the rows of a batch can be concatenated and still be kept apart."""
    return pick_attention(device, config) == "flash_attention_2" and not keeps_states(config)


def find_unadaptable(model: PreTrainedModel) -> list[str]:
    """Linear layers that `all-linear` leaves out.

    These are routers with more than one output, and Mamba's output projection, whose weight is read
    past the adapter (PEFT refuses it).
    """
    mamba = model.config.model_type in MAMBA
    return sorted(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (
            type(module).forward not in (torch.nn.Linear.forward, Linear4bit.forward)
            or (mamba and name.endswith(".out_proj"))
        )
    )


def logit_changes(config: PreTrainedConfig) -> tuple[float, float | None]:
    """The factor of a model's logits, and the value at which they are capped.

    Cohere scales, Granite divides, Gemma caps. Any other change fails the scorer's check.
    """
    values = config.get_text_config()
    scale = getattr(values, "logit_scale", None)
    divisor = getattr(values, "logits_scaling", None)
    if scale is None:
        scale = 1.0 if divisor is None else 1 / divisor
    return scale, getattr(values, "final_logit_softcapping", None)


def find_decoder(model: PreTrainedModel) -> torch.nn.Module:
    """A causal model without its head.

    Raises InputError if transformers returns the whole model, as for Llama 4: TRL's loss would
    fail.
    """
    decoder: torch.nn.Module = model.get_decoder()
    if decoder is model:
        raise InputError(
            f"{type(model).__name__} has no decoder separate from its head, which TRL's loss and "
            "the scoring of answers need"
        )
    return decoder

"""Four bits a weight, by bitsandbytes."""

import torch
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4_config(dtype: torch.dtype, storage: torch.dtype = torch.uint8) -> BitsAndBytesConfig:
    """NF4 with double quantization, stored as numbers of one type and computed in another."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=storage,
    )


def keep_weights_unpacked(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    An evaluation repacks them, and the next training step fails or loses its input gradient. No
    issue is known upstream; bitsandbytes-foundation/bitsandbytes#2078 is about the same packing.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False

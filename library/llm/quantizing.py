"""How bitsandbytes is asked for 4 bits a weight."""

import torch
from transformers import BitsAndBytesConfig


def nf4_config(dtype: torch.dtype, storage: torch.dtype = torch.uint8) -> BitsAndBytesConfig:
    """Four bits a weight, stored as numbers of one type and computed in another."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=storage,
    )

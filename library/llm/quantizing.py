"""Quantize weights to 4 bits with bitsandbytes."""

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4_config(dtype: torch.dtype, storage: torch.dtype = torch.uint8) -> BitsAndBytesConfig:
    """The configuration of NF4 with double quantization, stored in one type and computed in
    another.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=storage,
    )


def keep_weights_unpacked(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    An evaluation repacks them, and the next training step then fails or loses its input gradient.
    There is no upstream issue for this; bitsandbytes-foundation/bitsandbytes#2078 is about the same
    packing.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


class DequantizedLinear(torch.nn.Linear):
    """A 4-bit linear layer whose weights are dequantized once, to its computing type.

    bitsandbytes dequantizes them for every product, to the same numbers, so products are the same
    bits on a CPU and where it calls cuBLAS. On CUDA its own kernel for few rows (up to three)
    rounds each weight twice and each product to 16 bits, so a row alone is rounded differently than
    in a batch. This layer avoids that.
    """

    def __init__(self, layer: Linear4bit) -> None:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        if layer.compute_dtype is not None:
            weight = weight.to(layer.compute_dtype)
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer's outputs, in the type of its inputs."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        product = torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, bias)
        return product.to(x.dtype)


def dequantize_once(model: torch.nn.Module) -> None:
    """Dequantize a model's 4-bit linear layers in place, also those under adapters."""
    places = [
        (module, name)
        for module in model.modules()
        for name, layer in module.named_children()
        if isinstance(layer, Linear4bit)
    ]
    for module, name in places:  # one by one, so each layer's 4 bits are freed at once
        setattr(module, name, DequantizedLinear(getattr(module, name)))

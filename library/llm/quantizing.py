"""Four bits a weight, by bitsandbytes."""

import torch
from bitsandbytes.functional import dequantize_4bit
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


class DequantizedLinear(torch.nn.Linear):
    """A 4-bit linear layer whose weights were dequantized once, to the type that it computes in.

    bitsandbytes dequantizes them for every product, to the same numbers. On a CPU the products are
    the same bits, too. On CUDA they are where it calls cuBLAS; for few rows it has a kernel of its
    own, which up to three rounds each weight twice and each product to 16 bits, so that a row alone
    is rounded otherwise than in a batch. Here it is not.
    """

    def __init__(self, layer: Linear4bit) -> None:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        if layer.compute_dtype is not None:
            weight = weight.to(layer.compute_dtype)
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's outputs, in the type of its inputs."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        product = torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, bias)
        return product.to(x.dtype)


def dequantize_once(model: torch.nn.Module) -> None:
    """Dequantize a model's 4-bit linear layers, in place, under adapters too."""
    places = [
        (module, name)
        for module in model.modules()
        for name, layer in module.named_children()
        if isinstance(layer, Linear4bit)
    ]
    for module, name in places:  # nothing else holds a layer: its 4 bits go as its weights come
        setattr(module, name, DequantizedLinear(getattr(module, name)))

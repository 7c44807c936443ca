"""Put the base model into memory: quantized or not, with an adapter or without, set up to answer and nothing else.

No code of a model's author is ever run, and weights are safetensors alone.
"""

import json
from pathlib import Path
from typing import Literal, cast

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from stages.llm.manifest import check_manifest, find_folder
from stages.llm.prompts import load_tokenizer
from stages.run import InputError


def pick_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """What to compute in: bfloat16 from compute capability 8.0, float16 below, float32 on a CPU.

    `torch.cuda.is_bf16_supported` counts emulation and says yes to older cards. CPUs without AVX512-BF16 are thirty times
    slower in bfloat16 than in float32.
    """
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def load_model(base_dir: Path, quantization: Literal["nf4", "none"], adapter_dir: Path | None = None) -> PreTrainedModel:
    """The base model that the manifest in `base_dir` names, with an adapter on it if one is given, ready to answer.

    Raises InputError where files changed, or where the adapter was trained on another base.
    """
    manifest = json.loads((base_dir / "manifest.json").read_text())
    if adapter_dir is not None and json.loads((adapter_dir / "base.json").read_text()) != manifest:
        raise InputError(f"{adapter_dir}: was trained on another base model than {base_dir}; run `dvc repro`")
    folder = find_folder(manifest["source"])
    check_manifest(manifest, folder)
    device = pick_device()
    dtype = pick_dtype(device)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=dtype,
        quantization_config=config if quantization == "nf4" else None,
        device_map={"": device},
        attn_implementation="sdpa",
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # With AVX512-BF16 an evaluation repacks the weights, and the next training step fails or loses its gradient.
            module.support_avx512bf16_for_cpu = False
    ends = model.generation_config.eos_token_id
    tokenizer = load_tokenizer(base_dir)
    # A fresh configuration: Qwen ships sampling settings and a repetition penalty that would be inherited otherwise.
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted({tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or [])}),
        pad_token_id=tokenizer.pad_token_id,
    )
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, adapter_dir, local_files_only=True)
    model.eval()
    return cast(PreTrainedModel, model)

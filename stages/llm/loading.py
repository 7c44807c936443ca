"""Put the base model into memory: quantized or not, with an adapter or without, set up to answer and nothing else.

No code of a model's author is ever run, and weights are safetensors alone.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import sdpa_attention
from transformers.utils import is_flash_attn_2_available

from stages.llm.manifest import check_manifest, find_folder
from stages.llm.memory import count_ooms, ran_out_of_memory
from stages.llm.processes import processes
from stages.llm.prompts import load_tokenizer
from stages.llm.sharding import find_sharding, shard_layers
from stages.run import InputError


def pick_device() -> torch.device:
    """The CUDA device of the process that asks, or the CPU where there is none."""
    return torch.device("cuda", processes().local_process_index) if torch.cuda.is_available() else torch.device("cpu")


def is_old(device: torch.device) -> bool:
    """Whether a card computes no bfloat16 of its own: compute capability below 8.0, such as the GTX 1650's 7.5."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def pick_attention(device: torch.device) -> Literal["flash_attention_2", "sdpa"]:
    """FlashAttention where it is installed and the card has what it takes, else PyTorch's own."""
    return "flash_attention_2" if device.type == "cuda" and not is_old(device) and is_flash_attn_2_available() else "sdpa"


def repeat_keys() -> None:
    """Have transformers repeat keys and values that heads share before it calls PyTorch's attention.

    Given them shared, cards below compute capability 8.0 have only the kernel that writes out all heads x S x S scores.
    """
    sdpa_attention.use_gqa_in_sdpa = lambda *_: False


def pick_dtype(device: torch.device) -> torch.dtype:
    """What to compute in: bfloat16 from compute capability 8.0, float16 below, float32 on a CPU.

    `torch.cuda.is_bf16_supported` counts emulation and says yes to older cards. CPUs without AVX512-BF16 are thirty times
    slower in bfloat16 than in float32.
    """
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if is_old(device) else torch.bfloat16


def describe_device() -> str:
    """What is computed on, and in which type: results of one and another do not mix."""
    device = pick_device()
    return f"{device.type}, {pick_dtype(device)}"


@contextmanager
def explain_out_of_memory(device: torch.device, advice: str) -> Iterator[None]:
    """Raise InputError with advice where memory runs out in loading: transformers makes another error of it than PyTorch's."""
    before = count_ooms(device)
    try:
        yield
    except RuntimeError as error:
        if ran_out_of_memory(error, device, before):
            raise InputError(f"out of memory while the model is loaded; {advice}") from None
        raise


def check_made(base_dir: Path, adapter_dir: Path | None) -> None:
    """Raise InputError where base or adapter is not there, or where the adapter was trained on another base."""
    for path, stage in [(base_dir / "manifest.json", "base"), *([(adapter_dir / "base.json", "sft")] if adapter_dir else [])]:
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `dvc repro {stage}`")
    if adapter_dir and json.loads((adapter_dir / "base.json").read_text()) != json.loads((base_dir / "manifest.json").read_text()):
        raise InputError(f"{adapter_dir}: was trained on another base model than {base_dir}; run `dvc repro`")


def greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy answers up to an end-of-turn token; Qwen's own configuration would bring sampling and a repetition penalty."""
    ends = model.generation_config.eos_token_id
    return GenerationConfig(
        do_sample=False,
        eos_token_id=sorted({tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or [])}),
        pad_token_id=tokenizer.pad_token_id,
    )


def load_model(
    base_dir: Path, quantization: Literal["nf4", "none"], adapter_dir: Path | None = None, shard: bool = True
) -> PreTrainedModel:
    """The base model that the manifest in `base_dir` names, with an adapter on it if one is given, ready to answer.

    Where FSDP in the environment asks for it, its layers are sharded; with `shard` off it waits for that on the CPU, since what
    adds an adapter must see the weights whole. Raises InputError where files changed, or where the adapter was trained on another
    base.
    """
    check_made(base_dir, adapter_dir)
    manifest = json.loads((base_dir / "manifest.json").read_text())
    folder = find_folder(manifest["source"])
    check_manifest(manifest, folder)
    device = pick_device()
    dtype = pick_dtype(device)
    if is_old(device):
        repeat_keys()
    sharded = find_sharding() is not None
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if sharded else torch.uint8,  # FSDP takes floating-point types alone
    )
    with explain_out_of_memory(device, "choose a smaller model, or set FSDP=offload in the environment"):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            quantization_config=config if quantization == "nf4" else None,
            device_map={"": torch.device("cpu") if sharded else device},
            attn_implementation=pick_attention(device),
        )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # With AVX512-BF16 an evaluation repacks the weights, and the next training step fails or loses its gradient.
            module.support_avx512bf16_for_cpu = False
    model.generation_config = greedy_config(model, load_tokenizer(base_dir))
    if adapter_dir is not None:
        # by way of the CPU: PEFT would read it to the first card, whichever is this process's own
        model = PeftModel.from_pretrained(model, adapter_dir, local_files_only=True, torch_device="cpu")
    if shard:
        shard_layers(model, device)
    model.eval()
    return cast(PreTrainedModel, model)

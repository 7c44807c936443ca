"""Load the base model, quantized or not, with an adapter or without, ready to answer.

No code of a model's author ever runs, and weights are read from safetensors only.
"""

import re
from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from library.errors import InputError, describe_error
from library.files import hash_adapter, read_json
from library.llm.architectures import pick_attention, read_config
from library.llm.chat_template import load_tokenizer
from library.llm.devices import lacks_bfloat16, pick_device, pick_dtype
from library.llm.manifest import check_manifest, find_model_folder, source_name
from library.llm.memory.measuring import explain_out_of_memory
from library.llm.patches import repeat_key_value_heads
from library.llm.quantizing import dequantize_once, keep_weights_unpacked, nf4_config
from library.llm.sharding import find_sharding, shard_layers
from library.paths import ADAPTER_CONFIG, ADAPTER_RECORD, ADAPTER_WEIGHTS, DPO_ADAPTER_DIR


def check_artifacts(base_dir: Path, adapter_dir: Path | None) -> None:
    """Raise InputError if base or adapter is missing or changed, or if they do not match."""
    made_by = {base_dir / "manifest.json": "base"}
    maker = "dpo" if adapter_dir == DPO_ADAPTER_DIR else "sft"
    if adapter_dir is not None:
        names = ("base.json", ADAPTER_RECORD, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        made_by |= {adapter_dir / name: maker for name in names}
    for path, stage in made_by.items():
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `dvc repro {stage}`")
    if adapter_dir is None:
        return
    if read_json(adapter_dir / "base.json") != read_json(base_dir / "manifest.json"):
        raise InputError(
            f"{adapter_dir}: was trained on another base model than {base_dir}; run `dvc repro`"
        )
    if read_json(adapter_dir / ADAPTER_RECORD).get("adapter") != hash_adapter(adapter_dir):
        raise InputError(f"{adapter_dir}: not as {maker} wrote it; run `dvc repro {maker} --force`")


def greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The configuration for greedy answers that end at an end-of-turn token.

    It replaces the model's own: Qwen's would add sampling and a repetition penalty.
    """
    ends = model.generation_config.eos_token_id
    known = [ends] if isinstance(ends, int) else ends or []
    return GenerationConfig(
        do_sample=False,
        eos_token_id=sorted({tokenizer.eos_token_id, *known}),
        pad_token_id=tokenizer.pad_token_id,
    )


def _read_weights(
    folder: Path,
    name: str,
    advice: str,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Load the weights of the model `name` to a device.

    Raises InputError if they do not fit (with `advice`), cannot be read, or differ from what
    config.json asks for. transformers would fill missing weights with random numbers and, when it
    quantizes, also weights of another shape.
    """
    own = pick_device()
    config = read_config(folder)
    try:
        with explain_out_of_memory(own, advice):
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=pick_dtype(own),
                quantization_config=quantization,
                device_map={"": device},
                attn_implementation=pick_attention(own, config),
                output_loading_info=True,
            )
    except InputError:
        raise
    except Exception as error:  # any kind: the files are broken, or transformers cannot read them
        reason = re.split(r"(?<=\w)[.] (?=[A-Z])", describe_error(error))[0]  # without advice
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than config.json says"
        raise InputError(f"{name}: can't be loaded: {reason}") from error
    unexpected = [key for key in found["unexpected_keys"] if ".layers." in key]
    for keys, fault in (
        (found["missing_keys"], "not in its files"),
        (found["mismatched_keys"], "of another shape than config.json says"),
        (unexpected, "of layers that config.json does not have"),
    ):
        if keys:
            first = min(key if isinstance(key, str) else key[0] for key in keys)
            raise InputError(f"{name}: {len(keys)} of its weights are {fault}, such as {first}")
    return cast(PreTrainedModel, model)


def load_model(
    base_dir: Path,
    quantization: Literal["nf4", "none"],
    adapter_dir: Path | None = None,
    shard: bool = True,
    dequantize: bool = False,
    trainable: bool = False,
) -> PreTrainedModel:
    """The base model that the manifest in `base_dir` names, ready to answer.

    An adapter, if given, is put on it, and can be trained if `trainable`. Layers are sharded if
    FSDP in the environment asks for it; with `shard` off they wait on the CPU instead, because
    adding an adapter needs whole weights. `dequantize` dequantizes 4-bit weights once, which takes
    the memory of unquantized ones: `plan_dequantizing` says whether it fits. Raises InputError if
    files changed, or if the adapter was trained on another base.
    """
    check_artifacts(base_dir, adapter_dir)
    manifest = read_json(base_dir / "manifest.json")
    folder = find_model_folder(manifest["source"])
    check_manifest(manifest, folder)
    device = pick_device()
    dtype = pick_dtype(device)
    if lacks_bfloat16(device):
        repeat_key_value_heads()
    sharded = find_sharding() is not None
    # FSDP only takes floating-point types
    config = nf4_config(dtype, dtype if sharded else torch.uint8)
    model = _read_weights(
        folder,
        source_name(manifest["source"]),
        "choose a smaller model, or set FSDP=offload in the environment",
        torch.device("cpu") if sharded else device,
        config if quantization == "nf4" else None,
    )
    keep_weights_unpacked(model)
    model.generation_config = greedy_config(model, load_tokenizer(base_dir))
    if adapter_dir is not None:
        # through the CPU, because PEFT would read it to the first GPU in every process
        model = PeftModel.from_pretrained(
            *(model, adapter_dir),
            is_trainable=trainable,
            local_files_only=True,
            torch_device="cpu",
        )
    if dequantize:  # after the adapter, because PEFT's 4-bit layer adds in 16 bits
        dequantize_once(model)
    if shard:
        shard_layers(model, device)
    model.eval()
    return cast(PreTrainedModel, model)


def load_merged(folder: Path) -> PreTrainedModel:
    """Load a model folder, not quantized, ready to answer as `load_model` makes it."""
    device = pick_device()
    if lacks_bfloat16(device):
        repeat_key_value_heads()
    model = _read_weights(
        folder,
        str(folder),
        "it is not quantized: set CUDA_VISIBLE_DEVICES to nothing, and it is asked on the CPU",
        device,
    )
    model.generation_config = greedy_config(model, load_tokenizer(folder))
    model.eval()
    return cast(PreTrainedModel, model)

"""A fine-tuned model as one folder that needs no adapter: made of base and adapter, and loaded again."""

import json
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from stages.corpus.rows import write_json
from stages.llm.loading import (
    check_made,
    explain_out_of_memory,
    greedy_config,
    is_old,
    pick_attention,
    pick_device,
    pick_dtype,
    repeat_keys,
)
from stages.llm.manifest import check_manifest, find_folder
from stages.llm.prompts import load_tokenizer


def merge_adapter(base_dir: Path, adapter_dir: Path, folder: Path) -> None:
    """Write the base model with the adapter's weights added to its own: weights in bfloat16, configuration and tokenizer.

    The base is loaded as it is published, not quantized, and in float32, which takes four bytes a parameter of the processor's
    memory: sums are rounded once, when all is done. Raises InputError as `check_made` does, or where files changed.
    """
    check_made(base_dir, adapter_dir)
    manifest = json.loads((base_dir / "manifest.json").read_text())
    source = find_folder(manifest["source"])
    check_manifest(manifest, source)
    tokenizer = load_tokenizer(base_dir)
    base = AutoModelForCausalLM.from_pretrained(source, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, adapter_dir, local_files_only=True, torch_device="cpu")
    merged = adapted.merge_and_unload().to(torch.bfloat16)
    merged.generation_config = greedy_config(merged, tokenizer)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # how the tokenizer was loaded here is nothing to pass on
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(
        folder / "tokenizer_config.json",
        {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")},
    )
    for path in folder.iterdir():
        path.chmod(0o644)


def load_merged(folder: Path) -> PreTrainedModel:
    """A model folder, not quantized, ready to answer as `load_model` makes it."""
    device = pick_device()
    if is_old(device):
        repeat_keys()
    with explain_out_of_memory(device, "it is not quantized: set CUDA_VISIBLE_DEVICES to nothing, and it is asked on the CPU"):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=pick_dtype(device),
            device_map={"": device},
            attn_implementation=pick_attention(device),
        )
    model.generation_config = greedy_config(model, load_tokenizer(folder))
    model.eval()
    return cast(PreTrainedModel, model)

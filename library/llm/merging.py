"""Merge a fine-tuned model into one folder that needs no adapter."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from library.files import read_json, write_json
from library.llm.chat_template import load_tokenizer
from library.llm.loading import check_artifacts, greedy_config
from library.llm.manifest import check_manifest, find_model_folder


def merge_adapter(base_dir: Path, adapter_dir: Path, folder: Path) -> None:
    """Write the base model with the adapter merged in: bfloat16 weights, configuration, tokenizer.

    The base is loaded as published, not quantized, and in float32, so that sums are rounded only
    once, at the end. That takes four bytes of main memory per parameter. Raises InputError as
    `check_artifacts` does, or if files changed.
    """
    check_artifacts(base_dir, adapter_dir)
    manifest = read_json(base_dir / "manifest.json")
    source = find_model_folder(manifest["source"])
    check_manifest(manifest, source)
    tokenizer = load_tokenizer(base_dir)
    base = AutoModelForCausalLM.from_pretrained(
        source, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    adapted = PeftModel.from_pretrained(
        base, adapter_dir, local_files_only=True, torch_device="cpu"
    )
    merged = adapted.merge_and_unload().to(torch.bfloat16)
    merged.generation_config = greedy_config(merged, tokenizer)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # drop settings from how the tokenizer was loaded here
    settings = read_json(folder / "tokenizer_config.json")
    write_json(
        folder / "tokenizer_config.json",
        {
            name: value
            for name, value in settings.items()
            if name not in ("is_local", "local_files_only")
        },
    )
    for path in folder.iterdir():
        path.chmod(0o644)

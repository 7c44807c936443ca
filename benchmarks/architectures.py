"""Which architectures `base` takes: each as a tiny model with random weights and our tokenizer.

Run by `python -m benchmarks.architectures [NAME …]`, with `--quantization nf4` in 4 bits.
Prints a Markdown table: what `base` said, and how far a score with the cache is off one without.
"""

import argparse
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from library.errors import InputError
from library.llm.devices import device_name, pick_device, pick_dtype
from stages import base

ROOT = Path(__file__).parent.parent
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": None,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
WINDOW = {"sliding_window": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
PLAIN = (
    *("llama", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "olmo2", "gpt_neox", "stablelm"),
    *("nemotron", "glm4", "ernie4_5", "hunyuan_v1_dense", "apertus", "arcee", "seed_oss"),
    *("bloom", "rwkv", "minicpm3"),
)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in PLAIN},
    **dict.fromkeys(("mistral", "cohere2", "olmo3"), WINDOW),
    "gemma2": WINDOW | {"query_pre_attn_scalar": 16},
    "gemma3_text": WINDOW | {"query_pre_attn_scalar": 16},
    "exaone4": WINDOW | {"sliding_window_pattern": 2},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.1, "embedding_multiplier": 2.0},
    "mixtral": EXPERTS,
    "gpt_oss": EXPERTS | WINDOW,
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "block_multiple_of": 16,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "n_groups": 1, "chunk_size": 16},
    "falcon_h1": MAMBA | {"mamba_n_heads": 4, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA
    | {
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 128,
    },
    "jamba": {"num_experts": 2},
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 16},
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
}


class LastMessages(logging.Handler):
    """What was logged since it was emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())


def try_architecture(kind: str, quantization: str, heard: LastMessages) -> tuple[str, str]:
    """What `base` says of a model in models/local, and the difference that it logged."""
    shutil.rmtree("models", ignore_errors=True)
    folder = Path("models/local")
    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny")
    values = COMMON | ARCHITECTURES[kind] | {"vocab_size": len(tokenizer)}
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = (ROOT / "models/local/model.yaml").read_text(encoding="utf-8")
    text, count = re.subn(r"(?m)^quantization: .*$", f"quantization: {quantization}", text)
    assert count == 1
    (folder / "model.yaml").write_text(text)
    heard.messages.clear()
    try:
        base.main()
        said = "passes"
    except InputError as error:
        said = f"refused: {str(error).removeprefix('models/local: ')[:160]}"
    off = re.search(r"are (\S+) nats", "\n".join(heard.messages))
    return said, off[1] if off else ""


def main() -> None:
    """Try them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures")
    parser.add_argument("names", nargs="*", choices=[*ARCHITECTURES, []], metavar="NAME")
    parser.add_argument("--quantization", choices=["none", "nf4"], default="none")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    heard = LastMessages()
    logging.basicConfig(level=logging.INFO, handlers=[heard])
    device = pick_device()
    print(f"{device_name(device)}, {pick_dtype(device)}, {arguments.quantization}\n")
    print("| architecture | `base` | nats a token |\n|---|---|--:|")
    with tempfile.TemporaryDirectory(prefix="architectures-") as name:
        os.chdir(name)
        shutil.copytree(ROOT / "prompts", "prompts")
        params = (ROOT / "params.yaml").read_text(encoding="utf-8")
        Path("params.yaml").write_text(re.sub(r"(?m)^model: \S+", "model: local", params))
        for kind in arguments.names or ARCHITECTURES:
            said, off = try_architecture(kind, arguments.quantization, heard)
            print(f"| {kind} | {said} | {off} |", flush=True)
        os.chdir(ROOT)


if __name__ == "__main__":
    main()

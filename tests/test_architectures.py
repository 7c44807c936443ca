"""Architectures that people use, two layers of random weights each, from base to predict."""

from pathlib import Path

import pytest
import torch
from conftest import edit_yaml
from transformers import AutoConfig, AutoModelForCausalLM

from library.files import read_jsonl
from library.llm.answering import likelihood_requests
from library.llm.chat_template import load_tokenizer
from library.llm.loading import load_model
from library.paths import ADAPTER_DIR, BASE_DIR
from stages import base, clean, format, predict, sft, zeroshot

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
STATES = {  # of linear attention and of state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
}
ARCHITECTURES = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "phi3": {"pad_token_id": 0},
    "smollm3": {"pad_token_id": 0, "bos_token_id": 0},
    "olmo2": {"pad_token_id": 0},
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 16},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.1},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 16},
    "mixtral": EXPERTS,
    "glm4": {"pad_token_id": 0},
    "stablelm": {},
    "phi": {},
    "bloom": {"n_head": 4, "n_layer": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "qwen3_next": EXPERTS | STATES,
    "qwen3_5_text": STATES,
    "granitemoehybrid": EXPERTS
    | MAMBA
    | {"layer_types": ["mamba", "attention"], "logits_scaling": 8.0},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 128},
    "mamba2": {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1, "expand": 2},
    "jamba": {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1} | EXPERTS,
    **{
        kind: {}
        for kind in (*("nemotron", "ernie4_5", "hunyuan_v1_dense", "apertus", "arcee", "seed_oss"),)
    },
    "olmo3": {"sliding_window": 16},
    "exaone4": {"sliding_window": 16, "sliding_window_pattern": 2},
    "gpt_oss": EXPERTS | {"sliding_window": 16},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "mamba": {"state_size": 8},
    "deepseek_v3": {
        "head_dim": 8,
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
    "minicpm3": {
        "head_dim": None,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
}


@pytest.fixture
def with_architecture(project):
    def make(kind, values):
        folder = Path("models/local")
        tokenizer = load_tokenizer(folder)
        torch.manual_seed(1)
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SIZES | values)
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        edit_yaml("models/local/model.yaml", quantization="none")

    return make


def score_alone(model, prompt, completion):
    """The log-likelihood of a completion by the model's own forward, in nats."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    own = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(own.gather(1, torch.tensor(completion)[:, None]).double().sum())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "values"), ARCHITECTURES.items(), ids=ARCHITECTURES)
def test_an_architecture_goes_from_base_to_predict_and_is_scored_as_it_scores_itself(
    with_architecture, monkeypatch, kind, values
):
    with_architecture(kind, values)
    if kind in ("jamba", "mamba"):  # on a CPU their scan keeps all states once for each token
        monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "1")
    for stage in (base, clean, format, zeroshot, sft, predict):
        stage.main()
    tokenizer = load_tokenizer(BASE_DIR)
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    for system, adapter_dir in (("zeroshot", None), ("sft", ADAPTER_DIR)):
        model = load_model(BASE_DIR, "none", adapter_dir)
        written = {
            row["id"]: row["likelihood"]
            for row in read_jsonl(Path(f"data/predictions/{system}.jsonl"))
        }
        for index, asked, requests in likelihood_requests(tokenizer, rows[:2]):
            for (variant, answer), (prompt, completion) in zip(asked, requests, strict=True):
                found = written[rows[index]["id"]][answer][variant]["sum"]
                own = score_alone(model, prompt, completion)
                assert abs(found - own) < 1e-4 * len(completion), (system, variant, answer)
        for row in rows[:2]:
            (prompt,) = [
                requests[0][0] for _, _, requests in likelihood_requests(tokenizer, [row])
            ][:1]
            ids = torch.tensor([prompt])
            alone = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8
            )
            text = tokenizer.decode(alone[0, len(prompt) :], skip_special_tokens=True).strip()
            said = next(
                r["prediction"]
                for r in read_jsonl(Path(f"data/predictions/{system}.jsonl"))
                if r["id"] == row["id"]
            )
            assert said.startswith(text.rstrip("\ufffd")), (system, said, text)

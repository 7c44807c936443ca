"""What cards below compute capability 8.0 can't do, with the capability made up: each trap, and
that it is avoided.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen2Config
from transformers.integrations import sdpa_attention

from library.llm import architectures, loading
from library.llm.architectures import pick_attention
from library.llm.devices import lacks_bfloat16, pick_dtype
from library.llm.loading import load_model
from library.llm.patches import repeat_key_value_heads
from library.paths import BASE_DIR
from stages import base

CARD = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((7, 5), torch.float16),
        ((6, 1), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ],
)
def test_bfloat16_is_for_cards_that_compute_in_it_not_for_those_that_emulate_it(
    monkeypatch, capability, dtype
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    assert pick_dtype(CARD) is dtype
    assert lacks_bfloat16(CARD) == (dtype is torch.float16)
    assert pick_dtype(torch.device("cpu")) is torch.float32


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [((7, 5), True, "sdpa"), ((8, 6), False, "sdpa"), ((8, 6), True, "flash_attention_2")],
)
def test_flash_attention_is_for_cards_that_have_what_it_takes(
    monkeypatch, capability, installed, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(architectures, "is_flash_attn_2_available", lambda: installed)
    assert pick_attention(CARD, Qwen2Config()) == expected
    assert pick_attention(torch.device("cpu"), Qwen2Config()) == "sdpa"
    assert pick_attention(torch.device("cpu"), Gemma2Config()) == "eager"


def called_with(monkeypatch, rows):
    """What PyTorch's attention is given by a model whose four heads share two keys, and what the
    model answers.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        calls.append((key.shape[1], value.shape[1], kwargs.get("enable_gqa", False)))
        return original(query, key, value, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        logits = model(input_ids=torch.arange(8).repeat(rows, 1)).logits
    return calls, logits


def test_shared_keys_are_repeated_so_that_no_scores_of_all_pairs_are_written_out(monkeypatch):
    calls, expected = called_with(monkeypatch, 1)
    assert calls == [(2, 2, True)], "transformers no longer falls into this trap: the remedy can go"
    repeat_key_value_heads()
    calls, logits = called_with(monkeypatch, 1)
    assert calls == [(4, 4, False)]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("old", [True, False])
def test_keys_are_repeated_on_old_cards_alone(project, monkeypatch, old):
    base.main()
    monkeypatch.setattr(loading, "lacks_bfloat16", lambda _: old)
    load_model(BASE_DIR, "none")
    keys = torch.zeros(1, 2, 8, 16)
    assert sdpa_attention.use_gqa_in_sdpa(None, keys, keys) is not old

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM

from stages.llm import pretrain
from stages.llm.prompts import load_tokenizer
from stages.params import load_recipe


@pytest.fixture
def recipe():
    shipped = load_recipe(ROOT / "models/tiny/recipe.yaml")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512}
    return shipped.model_copy(
        update=small | {"row_tokens": 512, "rows_per_step": 2, "steps": 4, "list_steps": 1, "warmup_steps": 1}
    )


def test_a_run_that_was_stopped_ends_with_the_same_bytes(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 2)
    whole = pretrain.train(recipe, tmp_path / "whole", tmp_path / "state")

    step = pretrain.batch

    def stop(recipe, number, *rest):
        if number == 3:
            raise KeyboardInterrupt
        return step(recipe, number, *rest)

    monkeypatch.setattr(pretrain, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(recipe, tmp_path / "again", tmp_path / "stopped")
    monkeypatch.setattr(pretrain, "batch", step)
    assert pretrain.train(recipe, tmp_path / "again", tmp_path / "stopped") == whole
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_it_starts_with_heads_that_attend_to_the_token_before(recipe):
    tokenizer = pretrain.train_tokenizer(recipe)
    model = pretrain.build_model(recipe.model_copy(update={"hidden_size": 128}), tokenizer)
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 500, (1, 60), generator=torch.Generator().manual_seed(1))
    attention = model(input_ids=ids, output_attentions=True).attentions[0][0]
    assert attention[0].diagonal(-1).mean() > 0.9
    assert attention[1].diagonal(-1).mean() < 0.2


def test_the_embedded_model_can_be_loaded_and_its_tokenizer_loses_nothing():
    tokenizer = load_tokenizer(ROOT / "models/tiny")
    for text in ("Its drive shaft consists of black composite.", "  µ 12½ \u2062 naïve\n\n日本 <b>&amp;"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    model = AutoModelForCausalLM.from_pretrained(ROOT / "models/tiny", dtype=torch.bfloat16)
    assert (ROOT / "models/tiny/model.safetensors").stat().st_size < 10_000_000
    assert model.config.vocab_size >= len(tokenizer)

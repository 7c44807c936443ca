"""What stays in the computer's memory where layers are offloaded: here, token embeddings."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from library.llm.memory.formula import (
    Adapter,
    ComputeSettings,
    measure_sizes,
    predict_answering,
    predict_training,
)
from library.llm.sharding import HostEmbedding, keep_embeddings_on_host
from library.params import load_model_file

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def make_model(tied=False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def train_a_step(host):
    """Loss and the adapter's gradients, with layers computed again as in training."""
    model = make_model()
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable()
    if host:
        assert keep_embeddings_on_host(adapted.get_base_model())
    adapted.train()
    loss = adapted(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss, {
        name: parameter.grad for name, parameter in adapted.named_parameters() if "lora" in name
    }


def test_embeddings_in_the_computers_memory_give_the_same_bits():
    (loss, gradients), (other, again) = train_a_step(False), train_a_step(True)
    assert torch.equal(loss, other)
    assert gradients.keys() == again.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0
        assert torch.equal(gradient, again[name]), name
    plain, model = make_model().eval(), make_model().eval()
    keep_embeddings_on_host(model)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    answers = (one.generate(IDS, max_new_tokens=5, do_sample=False) for one in (plain, model))
    assert torch.equal(*answers)


def test_they_are_looked_up_where_they_are_and_are_no_part_of_the_model():
    model = make_model()
    weight = model.get_input_embeddings().weight
    assert keep_embeddings_on_host(model)
    assert isinstance(model.get_input_embeddings(), HostEmbedding)
    assert all(parameter is not weight for parameter in model.parameters())
    # what moves the model leaves them: a device that holds nothing stands for a card
    model.to("meta")
    assert model.device.type == "meta"
    assert weight.device.type == "cpu"
    assert "embed_tokens.weight" not in " ".join(model.state_dict())


def test_embeddings_that_the_head_shares_or_that_are_trained_stay():
    tied = make_model(tied=True)
    assert not keep_embeddings_on_host(tied)
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    adapted = get_peft_model(
        make_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    )
    assert not keep_embeddings_on_host(adapted.get_base_model())


@pytest.mark.parametrize(("name", "elements"), [("7b", 152_064 * 3584), ("3b", 0)])
def test_a_prediction_with_offloaded_layers_leaves_them_out(name, elements):
    values = load_model_file(f"qwen2.5-{name}-instruct").config.model_dump(exclude_none=True)
    sizes = measure_sizes(AutoConfig.for_model(**values), Adapter(16, "all-linear"))
    assert sizes.embedding == elements  # the smaller ones have one matrix for both ends
    whole = ComputeSettings("nf4", True, Adapter(16, "all-linear"), torch.bfloat16, "cuda")
    offloaded = replace(whole, held_share=0.0, gathered_layers=1.25)
    for predict, arguments in (
        (predict_training, (1, 1024, 400)),
        (predict_answering, (1, 900, 124)),
    ):
        weights = predict(sizes, offloaded, *arguments).weights
        kept = predict(replace(sizes, embedding=0), offloaded, *arguments).weights
        assert kept - weights == 2 * elements
        alone = predict(replace(sizes, embedding=0), whole, *arguments).weights
        assert predict(sizes, whole, *arguments).weights == alone

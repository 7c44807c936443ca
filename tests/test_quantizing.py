"""4-bit weights that are dequantized once: the same bits as bitsandbytes gives at each step."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

from benchmarks.gpu_memory import build_model, make_config
from library.formatted import read_formatted
from library.llm.answering import answer_rows
from library.llm.chat_template import load_tokenizer
from library.llm.loading import load_model
from library.llm.memory.formula import (
    Adapter,
    ComputeSettings,
    measure_sizes,
    predict_answering,
)
from library.llm.memory.measuring import SPARE
from library.llm.memory.planning import LongestLengths, plan_dequantizing
from library.llm.quantizing import DequantizedLinear, dequantize_once
from library.paths import BASE_DIR
from library.units import GIB
from stages import base, clean, format

CPU = torch.device("cpu")


def build(dtype, adapter=True):
    """A toy of two layers with an adapter that changes what it says."""
    model = build_model(make_config("toy"), CPU, dtype)
    if not adapter:
        return model.eval()
    torch.manual_seed(1)
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return adapted.eval()


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_model_computes_the_same_bits(dtype, adapter):
    model, once = build(dtype, adapter), build(dtype, adapter)
    layers = count(model, Linear4bit)
    dequantize_once(once)
    assert (count(once, Linear4bit), count(once, DequantizedLinear)) == (0, layers)
    assert layers == 14
    ids = torch.randint(1000, (2, 40), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    with torch.inference_mode():
        for rows in (slice(0, 1), slice(1, 2), slice(0, 2)):
            asked = {"input_ids": ids[rows], "attention_mask": mask[rows]}
            assert torch.equal(model(**asked).logits, once(**asked).logits)
            written = [
                each.generate(**asked, max_new_tokens=24, do_sample=False) for each in (model, once)
            ]
            assert torch.equal(*written)
    if adapter:  # and the adapter is heard
        with torch.inference_mode(), once.disable_adapter():
            assert not torch.equal(once(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bits(dtype):
    ids = torch.randint(1000, (2, 40), generator=torch.Generator().manual_seed(3))
    gradients = []
    for once in (False, True):
        model = build(dtype).train()
        if once:
            dequantize_once(model)
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(
            {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        )
    assert len(gradients[0]) == 28
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.fixture
def formatted(project):
    for stage in (base, clean, format):
        stage.main()


def test_answers_and_likelihoods_of_the_pipeline_are_the_same(formatted):
    rows, tokenizer = read_formatted("test"), load_tokenizer(BASE_DIR)
    answers = [
        answer_rows(load_model(BASE_DIR, "nf4", dequantize=once), tokenizer, rows, 16)
        for once in (False, True)
    ]
    assert rows
    assert answers[0] == answers[1]


def test_weights_are_dequantized_where_the_same_batches_fit(formatted, monkeypatch, caplog):
    adapter = Adapter(16, "all-linear")
    settings = ComputeSettings("nf4", False, adapter, torch.float32, "cpu")
    whole = ComputeSettings("none", False, adapter, torch.float32, "cpu")
    sizes, lengths = (
        measure_sizes(AutoConfig.from_pretrained(BASE_DIR), adapter),
        LongestLengths(500, 100),
    )
    need = predict_answering(sizes, whole, 2048 // 500, 400, 100).peak
    caplog.set_level("INFO")

    def plan(size, settings=settings, tokens=2048):
        monkeypatch.setenv("MEMORY_LIMIT_GIB", str(size / GIB / (1 - SPARE)))
        return plan_dequantizing(BASE_DIR, settings, lengths, tokens)

    assert plan(need + 10) is True
    assert caplog.messages[-1].startswith("4-bit weights are dequantized once: that needs ")
    assert plan(need - 10**4) is False
    assert caplog.messages[-1].startswith("4-bit weights stay, and are dequantized for each token")
    assert plan(need - 10**4, tokens=500) is True
    assert plan(need + 10, whole) is False
    monkeypatch.setenv("FSDP", "offload")
    assert plan(need + 10) is False

"""Variants of LoRA: each trains, is saved, read again and merged as the model that was trained."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import edit_yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from library.errors import InputError
from library.files import read_json, read_jsonl
from library.llm.batching import Batching
from library.llm.chat_template import load_tokenizer, prompt_completion_ids
from library.llm.likelihoods import score_completions
from library.llm.loading import load_merged, load_model
from library.llm.memory.formula import (
    Adapter,
    ComputeSettings,
    measure_sizes,
    predict_answering,
    predict_training,
)
from library.llm.memory.measuring import measure_peak
from library.llm.memory.planning import make_settings
from library.llm.merging import merge_adapter
from library.llm.training import TrainingTask, build_trainer, save_adapter
from library.params import load_model_file, load_params
from library.paths import ADAPTER_DIR, BASE_DIR
from stages import base, clean, format, predict, sft

WEIGHTS = "adapter_model.safetensors"
VARIANTS = {
    "rslora, gaussian": {"use_rslora": True, "init_lora_weights": "gaussian"},
    # the embedded model's queries and keys have rows of zeros
    "dora": {"use_dora": True, "target_modules": ["v_proj", "o_proj", "up_proj", "down_proj"]},
    "pissa, rslora": {"init_lora_weights": "pissa", "use_rslora": True},
}


@pytest.fixture(scope="module")
def made_dir(tmp_path_factory):
    """Where what `formatted` made first is kept for the tests after it."""
    return tmp_path_factory.mktemp("formatted") / "made"


@pytest.fixture
def formatted(project, made_dir):
    """A project with formatted rows and an unquantized base."""
    edit_yaml("models/local/model.yaml", quantization="none")
    edit_yaml("params.yaml", sft__learning_rate=5e-3, sft__num_train_epochs=3.0)
    if not made_dir.exists():
        for stage in (base, clean, format):
            stage.main()
        for name in ("artifacts", "data", "metrics"):
            shutil.copytree(name, made_dir / name)
    for name in ("artifacts", "data", "metrics"):
        shutil.copytree(made_dir / name, name, dirs_exist_ok=True)
    return [
        list(read_jsonl(Path(f"data/formatted/{split}.jsonl"))) for split in ("train", "validation")
    ]


def set_lora(variant):
    edit_yaml("params.yaml", **{f"sft__lora__{name}": value for name, value in variant.items()})


def score(model, rows):
    """The mean loss over rows of each row's own, as the validation loss is."""
    tokenizer = load_tokenizer(BASE_DIR)
    pairs = [prompt_completion_ids(tokenizer, row["messages"], row["positive"]) for row in rows]
    sums = score_completions(model, tokenizer, [[pair] for pair in pairs], Batching(4096), "test")
    return sum(
        -score / len(answer) for (score,), (_, answer) in zip(sums, pairs, strict=True)
    ) / len(rows)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_saved_and_merged_is_what_was_trained(formatted, tmp_path, name):
    set_lora(VARIANTS[name])
    train, validation = formatted
    params = load_params()
    task = TrainingTask(
        tokenizer=load_tokenizer(BASE_DIR),
        train=train,
        validation=validation,
        params=params.sft,
        max_length=params.format.max_length,
        gradient_checkpointing=False,
        output_dir=Path("checkpoints/test"),
    )
    trainer = build_trainer(load_model(BASE_DIR, "none"), task, 4)
    plain = score(load_model(BASE_DIR, "none"), validation)
    # it begins as the base
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-4)
    trainer.train()
    trained = trainer.evaluate()["eval_loss"]
    assert trained < 0.98 * plain
    save_adapter(trainer.model, ADAPTER_DIR)
    config = read_json(ADAPTER_DIR / "adapter_config.json")
    started_from_weights = name.startswith("pissa")
    assert config["r"] == params.sft.lora.r * (2 if started_from_weights else 1)
    assert config["init_lora_weights"] in (True, "gaussian")
    reloaded = score(load_model(BASE_DIR, "none", ADAPTER_DIR), validation)
    assert reloaded == pytest.approx(trained, rel=1e-4)
    # saved twice, the same bytes: nothing of the conversion remains
    before = (ADAPTER_DIR / WEIGHTS).read_bytes()
    save_adapter(trainer.model, ADAPTER_DIR)
    assert (ADAPTER_DIR / WEIGHTS).read_bytes() == before
    merge_adapter(BASE_DIR, ADAPTER_DIR, tmp_path / "merged")
    merged = score(load_merged(tmp_path / "merged"), validation)
    assert merged == pytest.approx(trained, rel=5e-3)  # rounded to bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(("name", "quantization"), [("pissa, rslora", "none"), ("dora", "nf4")])
def test_a_variant_goes_through_the_stages(formatted, name, quantization):
    set_lora(VARIANTS[name])
    edit_yaml("models/local/model.yaml", quantization=quantization)
    sft.main()
    first = (ADAPTER_DIR / WEIGHTS).read_bytes()
    predict.main()
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    given = [row["likelihood"] for row in read_jsonl(Path("data/predictions/sft.jsonl"))]
    losses = [-said["positive"]["question"]["sum"] for said in given]
    tokens = [said["positive"]["question"]["tokens"] for said in given]
    expected = score(load_model(BASE_DIR, quantization, ADAPTER_DIR), rows)
    mean = sum(loss / count for loss, count in zip(losses, tokens, strict=True)) / len(rows)
    assert mean == pytest.approx(expected, rel=1e-3)
    sft.main()
    assert (ADAPTER_DIR / WEIGHTS).read_bytes() == first


def test_by_default_the_adapter_and_its_config_are_plain_lora(formatted):
    sft.main()
    config = read_json(ADAPTER_DIR / "adapter_config.json")
    expected = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0).to_dict()
    differing = {name for name, value in config.items() if expected.get(name) != value}
    assert differing <= {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version"),
        *("target_modules", "exclude_modules", "peft_type", "task_type"),
    }
    names = {name.split(".")[-2] for name in load_file(ADAPTER_DIR / WEIGHTS)}
    assert names == {"lora_A", "lora_B"}


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"init_lora_weights": False}, r"init_lora_weights: expected true, gaussian, pissa or pis"),
        ({"init_lora_weights": "eva"}, r"init_lora_weights: .*not 'eva': .* need data first"),
        ({"init_lora_weights": "pissa_niter_0"}, r"init_lora_weights: expected true, gaussian"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, r"sft\.lora: use_dora: true and init_l"),
        ({"use_dora": True, "lora_dropout": 0.1}, r"sft\.lora: use_dora: true with lora_dropout"),
        ({"modules_to_save": ["lm_head"]}, r"sft\.lora: modules_to_save is not offered: .* or rai"),
        ({"use_rslora": "yes"}, r"sft\.lora\.use_rslora: .*true or false, got 'yes'"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(project, variant, message):
    set_lora(variant)
    with pytest.raises(InputError, match=message):
        load_params()


def test_dora_is_refused_where_a_layer_has_rows_of_zeros(formatted):
    set_lora({"use_dora": True})
    message = r"use_dora: model\.layers\.\d\.self_attn\..* rows of zeros"
    with pytest.raises(InputError, match=message):
        sft.main()


def test_pissa_is_refused_on_a_base_in_4_bits_before_anything_is_loaded(formatted):
    set_lora({"init_lora_weights": "pissa"})
    edit_yaml("models/local/model.yaml", quantization="nf4")
    with pytest.raises(
        InputError, match=r"sft\.lora\.init_lora_weights: pissa takes .* or quantization: none in"
    ):
        sft.main()


WIDE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4000,
    "tie_word_embeddings": True,
}


def test_a_step_of_dora_takes_what_was_predicted():
    """On a model wider than the tiny one, so that tensors and not small change decide."""
    config = AutoConfig.for_model("qwen2", **WIDE)
    adapter = Adapter(16, "all-linear", dora=True)
    sizes = measure_sizes(config, adapter)
    for checkpointing in (False, True):
        setting = ComputeSettings("none", checkpointing, adapter, torch.float32, "cpu")
        model = AutoModelForCausalLM.from_config(config)
        add_fused_lm_head(model)
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear", use_dora=True)
        model = get_peft_model(model, lora)
        ids = torch.randint(0, 4000, (2, 512))
        mask = torch.ones_like(ids)
        held = sum(value.nbytes for value in model.parameters())
        if not checkpointing:
            with torch.no_grad():
                asked = held + measure_peak(
                    torch.device("cpu"),
                    partial(
                        model.generate,
                        input_ids=ids,
                        attention_mask=mask,
                        max_new_tokens=2,
                        do_sample=False,
                    ),
                )
            predicted = predict_answering(sizes, setting, 2, 512, 2)
            assert predicted.peak == pytest.approx(asked, rel=0.1)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        trainable = [value for value in model.parameters() if value.requires_grad]
        assert sum(value.numel() for value in trainable) == sizes.lora

        def step(model=model, ids=ids, mask=mask, trainable=trainable):
            model(
                input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True
            ).loss.backward()
            torch.optim.AdamW(trainable).step()

        measured = held + measure_peak(torch.device("cpu"), step)
        predicted = predict_training(sizes, setting, 2, 512, 512)
        assert predicted.peak == pytest.approx(measured, rel=0.1)


def test_pissa_takes_no_more_than_was_predicted_when_it_takes_weights_apart():
    config = AutoConfig.for_model("qwen2", **WIDE | {"vocab_size": 64})
    adapter = Adapter(16, "all-linear", pissa=True)
    sizes = measure_sizes(config, adapter)
    setting = ComputeSettings("none", True, adapter, torch.float32, "cpu")
    model = AutoModelForCausalLM.from_config(config)
    lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights="pissa")
    measured = measure_peak(torch.device("cpu"), lambda: get_peft_model(model, lora))
    # weights that were there before are replaced one by one, and their end is not counted
    measured -= 4 * (sizes.linear + sizes.lora)
    predicted = predict_training(sizes, setting, 1, 16, 16)
    assert predicted.layer == int(4 * 4.1 * 256 * 1024)
    assert 0.5 * predicted.layer < measured < predicted.layer


def test_a_saved_adapter_of_pissa_counts_twice_where_it_is_asked(formatted):
    set_lora({"init_lora_weights": "pissa"})
    params = load_params()
    setting = make_settings(load_model_file("local"), params.sft, "cpu")
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), setting.adapter)
    assert predict_answering(sizes, setting, 1, 10, 2).adapter == 8 * sizes.lora
    assert json.loads(Path(BASE_DIR / "config.json").read_text())["hidden_size"] == 64

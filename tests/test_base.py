"""What `base` refuses: models that would be loaded as something else, or fail much later."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import edit_yaml

from commands.doctor import machine
from library.errors import InputError
from library.llm import manifest as manifest_module
from library.llm.base_checks import count_positions
from library.llm.chat_template import find_markup, load_tokenizer
from library.llm.manifest import check_manifest, hash_weights, make_manifest
from library.params import load_model_file
from stages import base


@pytest.fixture
def model(project, tiny_dir):
    """A model folder of one's own, which models/local.yaml names."""
    edit_yaml(Path("models/local.yaml"), path="mine")
    return shutil.copytree(tiny_dir, project / "mine")


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal():
    with pytest.raises(InputError) as error:
        base.main()
    assert not Path("artifacts/base/manifest.json").exists()
    return str(error.value)


def test_a_model_as_save_pretrained_writes_it_passes(model):
    base.main()
    assert Path("artifacts/base/manifest.json").is_file()


def test_files_of_an_adapter_beside_the_weights_are_refused(model):
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert refusal() == (
        "mine: adapter_config.json would be loaded on top of its weights; if the adapter is merged "
        "into them, rm mine/adapter_config.json"
    )


def test_an_adapter_alone_is_no_model(model):
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    assert refusal().startswith(
        "mine: an adapter (adapter_config.json), not a model; name the base"
    )


def test_weights_as_pickles_alone_are_refused(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "no model.safetensors; pytorch_model.bin is a pickle" in refusal()


def test_an_index_names_no_file_outside_the_folder(model):
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../elsewhere.safetensors', which is not in the folder" in refusal()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "modeling.Mystery"}},
            "code of its author (auto_map in config.json), which is never run here",
        ),
        ({"model_type": "mystery"}, "model_type 'mystery' can't be used"),
        ({"model_type": "t5"}, "model_type 't5' is no causal language model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantized (gptq)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "are quantized (fp8)"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "are quantized (bitsandbytes)",
        ),
    ],
)
def test_a_config_that_would_load_as_something_else_is_refused(model, values, said):
    edit_json(model / "config.json", **values)
    answer = refusal()
    assert said in answer
    assert "trust_remote_code" not in answer


def test_4_bits_of_bitsandbytes_are_what_nf4_makes_and_not_what_none_asks_for(model):
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(model / "config.json", quantization_config=four_bits)
    base.main()
    shutil.rmtree("artifacts/base")
    edit_yaml(Path("models/local.yaml"), quantization="none")
    assert "set quantization: nf4" in refusal()


def test_a_tokenizer_of_another_model_is_refused(model):
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens([f"<extra {number}>" for number in range(600)])
    tokenizer.save_pretrained(model)
    assert "'<extra 599>' has the id" in refusal()


def test_a_file_that_came_after_base_is_refused(model):
    base.main()
    manifest = json.loads(Path("artifacts/base/manifest.json").read_text())
    (model / "generation_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"generation_config\.json: (added|changed) since the base"
    ):
        check_manifest(manifest, model)


def test_other_weights_of_the_same_size_are_noticed_however_large(model, monkeypatch):
    monkeypatch.setattr(manifest_module, "RECHECKED_BYTES", 1)
    manifest = make_manifest(load_model_file("local"))
    check_manifest(manifest, model)
    weights = model / "model.safetensors"
    content, times = bytearray(weights.read_bytes()), weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync --times leaves it
    with pytest.raises(InputError, match=r"model\.safetensors: changed since the base stage saw"):
        check_manifest(manifest, model)


def test_a_large_file_is_read_again_only_where_it_was_touched(model, monkeypatch):
    monkeypatch.setattr(manifest_module, "RECHECKED_BYTES", 1)
    read = []
    hash_file = manifest_module.hash_file
    monkeypatch.setattr(
        manifest_module, "hash_file", lambda path: (read.append(path), hash_file(path))[1]
    )
    weights = model / "model.safetensors"
    first = hash_weights(weights)
    assert hash_weights(weights) == first
    assert len(read) == 1
    copy = weights.with_name("copy")
    shutil.copy(weights, copy)
    copy.replace(weights)
    assert hash_weights(weights) == first
    assert len(read) == 2


def test_markup_is_every_token_that_decoding_drops_or_the_template_is_made_of(model):
    tokenizer = load_tokenizer(model)
    assert "<|im_start|>" not in tokenizer.all_special_tokens
    assert find_markup(tokenizer, ["plain", "<|im_start|>system"]) == "<|im_start|>"
    # as SmolLM2 has it: special, without a role
    tokenizer.add_tokens(["<filename>"], special_tokens=True)
    assert find_markup(load_tokenizer(model), ["<filename>"]) is None
    tokenizer.save_pretrained(model)
    again = load_tokenizer(model)
    assert again.decode(again("a<filename>b").input_ids, skip_special_tokens=True) == "ab"
    assert find_markup(again, ["a <filename> b"]) == "<filename>"
    # white space as one token, and a word that the template does not use, are text
    again.add_tokens(["\n\n", "<table>"])
    again.save_pretrained(model)
    assert find_markup(load_tokenizer(model), ["a\n\nb <table>"]) is None


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2", "max_position_embeddings": 64},
        {"model_type": "gpt2", "n_positions": 64},
        {"model_type": "gemma3", "text_config": {"max_position_embeddings": 64}},
    ],
)
def test_positions_are_found_wherever_a_config_has_them(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert count_positions(tmp_path) == 64


def test_the_doctor_says_that_the_weights_are_no_longer_those_that_base_saw(model):
    base.main()
    (finding,) = machine.check_hub()
    assert finding.level == "ok"
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    (finding,) = machine.check_hub()
    assert finding.level == "problem"
    assert "mine/model.safetensors: changed since the base stage saw it" in finding.text
    assert "dvc repro base --force" in finding.text

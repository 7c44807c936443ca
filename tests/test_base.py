"""What `base` refuses: models that would be loaded as something else, or fail much later."""

import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, edit_yaml, make_rows
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Replace
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Model

from commands.doctor import machine
from library import files
from library.errors import InputError
from library.files import hash_once, read_json
from library.llm.architectures import count_positions
from library.llm.chat_template import find_markup, load_tokenizer, read_answer
from library.llm.formatting import format_row
from library.llm.loading import load_model
from library.llm.manifest import check_manifest, make_manifest
from library.llm.prompts import load_prompt
from library.params import load_model_file, load_params
from library.paths import BASE_DIR, prompt_path
from stages import base


@pytest.fixture
def model(project, tiny_dir):
    """The folder of the model `local`, with files that can be changed."""
    for path in tiny_dir.iterdir():
        (project / "models/local" / path.name).unlink()
    return shutil.copytree(tiny_dir, project / "models/local", dirs_exist_ok=True)


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
        "models/local: adapter_config.json would be loaded on top of its weights; if the adapter "
        "is merged into them, rm models/local/adapter_config.json"
    )


def test_an_adapter_alone_is_no_model(model):
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    assert refusal().startswith(
        "models/local: an adapter (adapter_config.json), not a model; name the base"
    )


def test_weights_as_pickles_alone_are_refused(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "no model.safetensors; pytorch_model.bin is a pickle" in refusal()


def test_an_index_names_no_file_outside_the_folder(model):
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}, "metadata": {}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../elsewhere.safetensors', which is not in the folder" in refusal()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "modeling.Mystery"}},
            "its author's code (auto_map in config.json), which never runs here",
        ),
        ({"model_type": "mystery"}, "model_type 'mystery' cannot be used"),
        ({"model_type": "t5"}, "model_type 't5' is not a causal language model"),
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
    base.main()
    quantized = load_model(BASE_DIR, "nf4")
    (model / "model.safetensors").unlink()
    quantized.save_pretrained(model)
    assert read_json(model / "config.json")["quantization_config"]["load_in_4bit"]
    base.main()
    shutil.rmtree("artifacts/base")
    edit_yaml(Path("models/local/model.yaml"), quantization="none")
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
    monkeypatch.setattr(files, "RECHECKED_BYTES", 1)
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
    monkeypatch.setattr(files, "RECHECKED_BYTES", 1)
    read = []
    hash_file = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda path: (read.append(path), hash_file(path))[1])
    weights = model / "model.safetensors"
    first = hash_once(weights)
    assert hash_once(weights) == first
    assert len(read) == 1
    copy = weights.with_name("copy")
    shutil.copy(weights, copy)
    copy.replace(weights)
    assert hash_once(weights) == first
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
    assert "models/local/model.safetensors: changed since the base stage saw it" in finding.text
    assert "dvc repro base --force" in finding.text


def edit_weights(model, edit):
    path = model / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda weights: weights.pop("model.layers.1.input_layernorm.weight"),
            "1 of its weights are not in its files, such as model.layers.1.input_layernorm.weight",
        ),
        (  # with quantization: none transformers refuses it; with nf4 it loads
            lambda weights: weights.update({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 8)}),
            "shapes cannot be multiplied",
        ),
        (
            lambda weights: weights.update({"model.layers.9.mlp.up_proj.weight": torch.ones(3, 8)}),
            "1 of its weights are of layers that config.json does not have",
        ),
    ],
)
def test_weights_that_would_be_filled_with_random_numbers_are_refused(model, edit, said):
    edit_weights(model, edit)
    assert said in refusal()


def norm(value):
    return lambda weights: weights.update(
        {"model.norm.weight": value(weights["model.norm.weight"])}
    )


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (norm(lambda old: old.to(torch.int8)), "model.norm.weight is I8, a quantized weight"),
        (norm(lambda old: old * math.nan), "model.norm.weight contains NaN or infinities"),
        (  # quantized, no number of it would be NaN
            lambda weights: weights["model.layers.1.self_attn.q_proj.weight"][0].fill_(math.nan),
            "model.layers.1.self_attn.q_proj.weight contains NaN or infinities",
        ),
        (
            lambda weights: weights["model.layers.2.mlp.up_proj.weight"].zero_(),
            "model.layers.2.mlp.up_proj.weight is all zeros; copy or download the file again",
        ),
    ],
)
def test_weights_that_are_no_numbers_to_compute_with_are_refused(model, edit, said):
    edit_weights(model, edit)
    assert said in refusal()


def test_a_file_that_is_no_safetensors_is_refused_in_words(model):
    (model / "model.safetensors").write_bytes(b"not a model" * 100)
    assert refusal().startswith("models/local/model.safetensors: cannot be read: ")
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refusal().endswith("; a Git LFS pointer: git lfs pull")


def test_a_template_that_changes_the_answer_is_refused(model):
    path = model / "chat_template.jinja"
    answer = "{{ message.content }}<|im_end|>{% endgeneration %}"
    changed = answer.replace("content", "content | lower")
    path.write_text(path.read_text().replace(answer, changed))
    assert "changes an answer: 'It is 4.5 mm" in (said := refusal())
    assert "it is 4.5 mm (about" in said


def test_blanks_before_punctuation_are_read_as_they_were_written(model):
    tokenizer = load_tokenizer(model)
    tokenizer.clean_up_tokenization_spaces = True  # as Llama 3 has it
    text = "The case is x = y , and they do n't say why ."
    assert read_answer(tokenizer, tokenizer(text)["input_ids"]) == text


def test_an_answer_that_the_tokenizer_can_not_write_is_rejected_by_format(model):
    tokenizer = load_tokenizer(model)
    tokenizer.backend_tokenizer.normalizer = Replace("µ", "u")
    row = make_rows(1)[0] | {"id": "a", "place": "line 1", "contradicts": None}
    row |= {"also_right": [], "turns": []}
    params = load_params().format
    template = load_prompt(prompt_path(params.prompt))
    format_row(row | {"positive": "It is 5 um."}, "test", "g", tokenizer, template, params)
    with pytest.raises(InputError, match=r"can't write its answer, which it reads as 'It is 5 um"):
        format_row(row | {"positive": "It is 5 µm."}, "test", "g", tokenizer, template, params)


def test_a_template_that_refuses_the_messages_is_refused_in_words(model):
    (model / "chat_template.jinja").write_text("{{ raise_exception('System role not supported') }}")
    assert refusal() == (
        "models/local: the tokenizer's chat template does not take messages of system, user: "
        "System role not supported"
    )


def test_a_template_that_leaves_out_the_question_is_refused(model):
    path = model / "chat_template.jinja"
    text = path.read_text()
    path.write_text(text.replace("in messages %", "in messages if message.role != 'user' %"))
    assert refusal().startswith("models/local: its chat template drops or changes 'The lid")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{oops", "models/local/config.json: not JSON: Expecting property name"),
        ("[1, 2]", "models/local/config.json: expected a JSON object, not [1, 2]"),
        (
            '{"model_type": "qwen2", "layer_types": 1}',
            "models/local/config.json: not valid for model_type 'qwen2': ",
        ),
    ],
)
def test_a_config_that_is_none_is_refused_in_words(model, config, said):
    (model / "config.json").write_text(config)
    assert refusal().startswith(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        *(
            ({key: value}, f"/config.json: {key} is {value}; it must be at least 1")
            for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
            for value in (0, -1)
        ),
        ({"max_position_embeddings": -5}, "/config.json: max_position_embeddings is -5"),
        ({"num_attention_heads": 3}, ": its weights have other shapes than config.json says"),
        ({"num_key_value_heads": 3}, ": its weights have other shapes than config.json says"),
        ({"intermediate_size": 7}, ": its weights have other shapes than config.json says"),
        ({"hidden_act": "nope"}, ": config.json makes no model: KeyError: 'nope'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys"),
    ],
)
def test_a_config_of_other_values_is_refused_in_words(model, values, said):
    edit_yaml(Path("models/local/model.yaml"), quantization="none")
    edit_json(model / "config.json", **values)
    answer = refusal()
    assert answer.startswith("models/local")
    assert said in answer
    assert "ignore_mismatched_sizes" not in answer


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("generation_config.json", "{oops", "generation_config.json: not JSON"),
        ("generation_config.json", "[]", "generation_config.json: expected a JSON object, not []"),
        *(
            ("generation_config.json", f'{{"eos_token_id": {ends}}}', "expected token ids")
            for ends in ('"2"', "[2, null]", '{"a": 1}')
        ),
        ("tokenizer_config.json", "{oops", "tokenizer_config.json: not JSON"),
        ("tokenizer.json", "{}", ": no usable tokenizer: KeyError: 'added_tokens'"),
        ("tokenizer.json", None, ": no tokenizer: found none of tokenizer.json, vocab.*, *.model"),
    ],
)
def test_files_that_can_not_be_read_are_named(model, name, text, said):
    (model / name).unlink()
    if text is not None:
        (model / name).write_text(text)
    assert said in refusal()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{oops", "not JSON"),
        ("[1]", "its weight_map does not name a file for each weight"),
        ("{}", "its weight_map does not name a file for each weight"),
        ('{"weight_map": {"a": 1}}', "its weight_map does not name a file for each weight"),
        ('{"weight_map": {"a": "part.safetensors"}}', "its metadata is missing"),
    ],
)
def test_an_index_that_says_nothing_is_refused_in_words(model, text, said):
    (model / "model.safetensors").rename(model / "part.safetensors")
    (model / "model.safetensors.index.json").write_text(text)
    assert said in refusal()


def test_an_index_beside_a_single_file_of_weights_is_not_asked(model):
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors"}, "metadata": {}}')
    base.main()  # as transformers
    index.write_text('{"weight_map": {"a": "part.safetensors"}, "metadata": {}}')
    base.main()
    shutil.copy(model / "model.safetensors", model / "part.safetensors")
    shutil.rmtree("artifacts/base")
    assert "model.safetensors would be loaded, but" in refusal()


def test_shards_without_their_index_are_told_of(model):
    (model / "model.safetensors").rename(model / "part.safetensors")
    assert refusal() == (
        "models/local: no model.safetensors, and no model.safetensors.index.json, which says what "
        "part.safetensors holds"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "merges.txt"])
def test_links_to_nothing_are_named(model, name):
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(f"/nowhere/{name}")
    assert refusal() == f"models/local: {name} is a link to /nowhere/{name}, which is not there"


def shuffle_vocabulary(model):
    values = json.loads((model / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    ids = list(vocabulary.values())
    random.Random(7).shuffle(ids)
    values["model"]["vocab"] = dict(zip(vocabulary, ids, strict=True))
    (model / "tokenizer.json").write_text(json.dumps(values))


def test_a_tokenizer_of_another_model_of_the_same_size_is_told_of(model, caplog):
    # the embedded model: the project's has random weights, and tells nothing apart
    shutil.copy(ROOT / "models/tiny/model.safetensors", model)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "models/tiny" / name, model)
    base.main()
    assert "in reverse" not in caplog.text
    shuffle_vocabulary(model)
    base.main()
    assert (
        "models/local finds a sentence hardly likelier than its tokens in reverse (" in caplog.text
    )


def test_a_model_whose_cache_changes_its_scores_is_refused(model, monkeypatch):
    forward = Qwen2Model.forward

    def forget_positions(self, input_ids=None, position_ids=None, **rest):
        positions = torch.arange(input_ids.shape[1])[None]  # as if nothing had been read before
        return forward(self, input_ids=input_ids, position_ids=positions, **rest)

    monkeypatch.setattr(Qwen2Model, "forward", forget_positions)
    assert "scores an answer differently with and without the cache" in refusal()


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": None,
}


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("granite", {"logits_scaling": 8.0, "attention_multiplier": 0.1}, None),
        ("gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 16}, None),
        # biases of experts that are zero are no missing weights
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}, None),
        ("rwkv", {}, "answers differently beside a longer prompt, because it reads the padding"),
        (
            "llama4_text",
            {
                "intermediate_size_mlp": 64,
                "num_local_experts": 4,
                "pad_token_id": 0,
                "layer_types": ["full_attention", "full_attention"],
            },
            "Llama4ForCausalLM has no decoder separate from its head",
        ),
    ],
)
def test_an_architecture_passes_or_is_refused_in_words(model, kind, values, said):
    tokenizer = load_tokenizer(model)
    (model / "model.safetensors").unlink()
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SMALL | values)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    edit_yaml(Path("models/local/model.yaml"), quantization="none")
    if said is None:
        base.main()
    else:
        assert said in refusal()


def test_a_layer_that_the_model_does_not_have_is_named_before_anything_runs(model):
    edit_yaml("params.yaml", sft__lora__target_modules=["foo"])
    assert "sft.lora.target_modules: the model has no linear layer 'foo'" in refusal()


def test_where_the_model_does_not_fit_base_says_that_it_was_not_tried(model, monkeypatch, caplog):
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "0.001")
    with caplog.at_level("INFO"):
        base.main()
    assert "models/local was not tried out, because it cannot run here" in caplog.text

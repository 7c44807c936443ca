"""Embedding models of every architecture with tiny random weights, and the memory they take."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, copy_params, edit_yaml, make_rows
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from commands.memory import embedding_table
from library.embed import memory, training
from library.embed.encoder import encode, find_folder, load_encoder
from library.embed.memory import (
    EXAMPLE_LORA,
    batch_choices,
    make_encoder_settings,
    measure_encoder,
    plan_encoding,
    plan_step,
    predict_step,
    read_encoder_config,
    refuse_training,
)
from library.embed.opening import open_encoder
from library.embedding_models import EmbeddingModel, load_embedding_model_file
from library.errors import InputError
from library.files import hash_file, read_json
from library.llm.memory.measuring import CONTEXT_BYTES, SPARE, measure_peak
from library.params import load_params
from library.paths import EMBED_MEMORY_PATH, EMBEDDER_DIR
from library.units import GIB
from stages import clean, embed_evaluate, embed_sft, embed_zeroshot

FOLDER = ROOT / "models/embedding"
TINY = EmbeddingModel(
    dtype="float32",
    quantization="none",
    gradient_checkpointing=False,
    is_causal=False,
    pooling="mean",
    include_prompt=True,
    max_length=64,
    query_prompt="query: ",
    document_prompt="",
    learning_rate=1e-3,
    license="MIT",
)
OWN = {
    "bert": {},
    "xlm-roberta": {"pad_token_id": 0},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
}


def put_tiny(folder, kind):
    """A model of one kind with two layers and random weights, and MiniLM's tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=30522,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        **OWN[kind],
    )
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # so that what a token sees matters
    model.save_pretrained(folder)
    minilm = find_folder(load_embedding_model_file("minilm", FOLDER))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, folder)


def token_vectors(encoder, texts):
    """The vectors of all tokens of texts in one batch."""
    return [
        vectors.numpy()
        for vectors in encoder.encode(texts, output_value="token_embeddings", batch_size=8)
    ]


@pytest.mark.parametrize("kind", OWN)
def test_both_ways_means_that_a_token_sees_what_comes_after_it_with_padding_and_without(
    tmp_path, kind
):
    put_tiny(tmp_path, kind)
    encoder = load_encoder(TINY, tmp_path)
    alone = token_vectors(encoder, ["the valve is made of brass and of steel"])[0]
    other = token_vectors(encoder, ["the valve is made of brass and of gold"])[0]
    assert np.abs(alone[1] - other[1]).max() > 1e-3  # eight tokens before the word that differs
    padded = token_vectors(
        encoder, ["the valve is made of brass and of steel", "a longer text " * 8]
    )[0]
    assert np.abs(alone - padded[: len(alone)]).max() < 1e-5
    if kind in ("mistral", "mixtral"):
        causal = load_encoder(TINY.model_copy(update={"is_causal": True}), tmp_path)
        one, two = (
            token_vectors(causal, [f"the valve is made of brass and of {metal}"])[0]
            for metal in ("steel", "gold")
        )
        assert np.abs(one[1] - two[1]).max() < 1e-6


def test_a_prompt_that_is_not_pooled_still_says_what_is_asked(tmp_path):
    put_tiny(tmp_path, "mistral")
    pooled = load_encoder(TINY, tmp_path)
    asked = load_encoder(TINY.model_copy(update={"include_prompt": False}), tmp_path)
    prompt = len(pooled.tokenizer("query: ", add_special_tokens=False)["input_ids"])
    every = token_vectors(pooled, ["query: a valve"])[0]
    mean = every[1 + prompt :].mean(0)  # [CLS] and the prompt are left out
    found = encode(asked, ["a valve"], "query", "x")[0]
    assert np.abs(found - mean / np.linalg.norm(mean)).max() < 1e-5
    assert np.abs(found - encode(pooled, ["a valve"], "query", "x")[0]).max() > 1e-3


def test_weights_that_files_lack_are_named_and_not_made_up(tmp_path):
    put_tiny(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"1 weights are missing in its files, such as .*layer\.1\.output"
    ):
        load_encoder(TINY, tmp_path)


def test_bge_m3_at_512_tokens_trains_on_a_card_of_4_gib_in_4_bits_with_an_adapter():
    model = load_embedding_model_file("bge-m3", FOLDER)
    config = read_encoder_config(model, None)
    room = (3.45 * GIB - CONTEXT_BYTES) * (1 - SPARE)
    small = model.model_copy(update={"quantization": "nf4", "gradient_checkpointing": True})
    for lora, changed, fits in ((None, model, False), (EXAMPLE_LORA, small, True)):
        predicted = predict_step(
            measure_encoder(config, lora), make_encoder_settings(changed, lora, "cuda"), 1, 512
        )
        assert (predicted.peak <= room) == fits
    # 568 million weights, by hand: 4 bytes each, 12 for gradient and moments, 2 for copies of 302
    whole = predict_step(
        measure_encoder(config, None), make_encoder_settings(model, None, "cuda"), 1, 512
    )
    assert whole.weights + whole.trained == pytest.approx(16 * 568e6 + 2 * 303e6, rel=0.02)


@pytest.mark.parametrize("lengths", [(8, 220, 8), (8, 220)])
def test_a_step_on_texts_of_unequal_lengths_takes_what_is_predicted(lengths):
    model = load_embedding_model_file("minilm", FOLDER)
    folder = find_folder(model)
    encoder = load_encoder(model, folder).train()
    params = load_params(ROOT / "params.yaml").embed.model_copy(update={"batch_size": 4})
    predicted = plan_step(model, folder, params, [lengths], said=False)[4]
    texts = [encoder.preprocess([" ".join(["pump"] * (length - 2))] * 4) for length in lengths]
    assert [text["input_ids"].shape[1] for text in texts] == list(lengths)
    loss = training.ranking_loss(encoder, 4, 4)
    measured = measure_peak(torch.device("cpu"), lambda: loss(texts, None).backward())
    # gradients take the place of what the backward pass has freed
    assert measured == pytest.approx(predicted.activations, rel=0.12)


def test_every_model_of_a_hub_is_as_large_as_its_makers_say():
    for name, millions in {
        "all-minilm-l6-v2": 22.7,
        "e5-small-v2": 33.4,
        "multilingual-e5-large-instruct": 560,
        "bge-m3": 568,
        "gritlm-7b": 7111,
        "gritlm-8x7b": 46572,
    }.items():
        model = load_embedding_model_file(name, FOLDER)
        sizes = measure_encoder(read_encoder_config(model, None), None)
        assert (sizes.linear + sizes.other) / 1e6 == pytest.approx(millions, rel=0.02), name


def test_what_can_not_fit_is_refused_before_any_of_it_is_downloaded(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "4")
    monkeypatch.setattr("library.embed.encoder.snapshot_download", None)
    with pytest.raises(InputError) as error:
        open_encoder(load_embedding_model_file("gritlm-8x7b"))
    said = str(error.value)
    assert said.startswith("embed.model: encoding a text of 64 tokens needs ")
    assert "what would fit:\n  dvc exp run embedding/dvc.yaml -S embed.model=" in said
    assert "embed.model=bge-m3: 2." in said
    assert "gritlm-7b" not in said


def test_fewer_texts_at_a_time_where_memory_is_small(monkeypatch):
    model = load_embedding_model_file("bge-m3", FOLDER)
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "64")
    assert plan_encoding(model, None, 512) == 32
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "2.7")
    assert 1 <= plan_encoding(model, None, 2048) < 16


@pytest.fixture
def tiny_project(tmp_path, monkeypatch, request):
    """A project with a tiny model, a Mistral unless another is asked for, and clean rows."""
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    put_tiny(tmp_path / "weights", getattr(request, "param", "mistral"))
    Path("rows.json").write_text(json.dumps(make_rows(40)))
    values = TINY.model_dump() | {
        "path": "weights",
        "sha256": hash_file(Path("weights/model.safetensors")),
    }
    Path("models/embedding").mkdir(exist_ok=True)
    Path("models/embedding/tiny.yaml").write_text(json.dumps(values))
    edit_yaml(
        "params.yaml",
        data__path="rows.json",
        split__on_missed_shares="continue",
        embed__model="tiny",
        embed__batch_size=4,
        embed__eval_steps=4,
        evaluate__draws=1000,
    )
    clean.main()
    return tmp_path


@pytest.mark.parametrize("tiny_project", OWN, indirect=True)
def test_4_bits_with_an_adapter_and_checkpoints_go_through_all_stages(tiny_project):
    edit_yaml("models/embedding/tiny.yaml", quantization="nf4", gradient_checkpointing=True)
    for stage in (embed_zeroshot, embed_sft):
        with pytest.raises(InputError, match=r"embed\.lora: null trains all weights, .* in 4 bits"):
            stage.main()
    edit_yaml("params.yaml", embed__lora=EXAMPLE_LORA.model_dump())
    embed_zeroshot.main()
    embed_sft.main()
    embed_evaluate.main()
    config = read_json(EMBEDDER_DIR / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["r"]) == ("weights", 16)
    written = load_file(EMBEDDER_DIR / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}


def test_4_bit_layers_pass_gradients_on_after_they_have_encoded(tmp_path):
    put_tiny(tmp_path, "bert")
    encoder = load_encoder(TINY.model_copy(update={"quantization": "nf4"}), tmp_path)
    training.add_adapter(encoder, EXAMPLE_LORA)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)

    def gradients():
        encoder.eval()  # no dropout, as in encoding
        vectors = encoder(encoder.preprocess(["a valve of brass", "a pump"]))["sentence_embedding"]
        encoder.zero_grad()
        (vectors[0] @ vectors[1]).backward()
        return [weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None]

    before = gradients()
    encode(encoder, ["a valve", "a pump"], "document", "x")
    after = gradients()
    assert len(after) == len(before) == 24
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_checkpoints_and_parts_of_a_batch_change_no_more_than_rounding(tiny_project):
    embed_zeroshot.main()
    vectors = []
    for checkpointing, at_once in ((False, 4), (True, 4), (False, 2), (True, 1)):
        edit_yaml("models/embedding/tiny.yaml", gradient_checkpointing=checkpointing)
        edit_yaml("params.yaml", embed__mini_batch_size=at_once)
        embed_sft.main()
        tuned = SentenceTransformer(str(EMBEDDER_DIR), local_files_only=True)
        vectors.append(tuned.encode(["a valve of brass"]))
    for other in vectors[1:]:
        assert np.abs(other - vectors[0]).max() < 1e-3


def test_the_longest_texts_are_proved_first_and_fewer_taken_where_memory_runs_out(
    tiny_project, monkeypatch, caplog
):
    caplog.set_level("INFO")
    embed_zeroshot.main()
    embed_sft.main()
    recorded = read_json(EMBED_MEMORY_PATH)
    assert (recorded["batch_size"], recorded["mini_batch_size"]) == (4, 4)
    assert recorded["out_of_memory"] == []
    assert recorded["predicted"].keys() == {"weights", "trained", "activations", "peak"}
    assert recorded["measured"] == pytest.approx(recorded["predicted"]["peak"], rel=0.2)
    whole = (EMBEDDER_DIR / "model.safetensors").read_bytes()
    assert "measured on the longest texts: a step with mini-batch size 4 takes" in caplog.text
    monkeypatch.setattr(training.PairTrainer, "measure_training_step", lambda self: 0)
    embed_sft.main()
    assert (EMBEDDER_DIR / "model.safetensors").read_bytes() == whole  # nothing remains of it

    def run_out(self):
        if getattr(self.loss, "mini_batch_size", 4) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0

    monkeypatch.setattr(training.PairTrainer, "measure_training_step", run_out)
    embed_sft.main()
    assert "a step with mini-batch size 1" in caplog.text
    assert caplog.text.count("out of memory before the first step") == 2
    recorded = read_json(EMBED_MEMORY_PATH)
    assert (recorded["mini_batch_size"], recorded["out_of_memory"]) == (1, [4, 2])


def test_what_would_fit_is_said_as_it_is_typed(tiny_project, monkeypatch):
    embed_zeroshot.main()
    model = load_embedding_model_file("tiny")
    sizes = measure_encoder(read_encoder_config(model, Path("weights")), None)
    settings = make_encoder_settings(model, None, "cpu")
    need = predict_step(sizes, settings, 1, 64).peak
    monkeypatch.setattr(memory, "measure_free", lambda device: int(need * 0.9))
    with pytest.raises(InputError) as error:
        embed_sft.main()
    lines = str(error.value).splitlines()
    assert lines[0].startswith("embed_sft: mini-batch size 1 with a text of ")
    assert lines[1] == "what would fit:"
    assert any("-S 'embed.lora={r: 16, lora_alpha: 32" in line for line in lines[2:])
    edit_yaml("params.yaml", embed__mini_batch_size=1)
    embed_sft.main()  # what is asked for is done


def test_memory_is_listed_before_anything_is_downloaded(monkeypatch):
    monkeypatch.chdir(ROOT)
    room = int(3.45 * GIB - CONTEXT_BYTES)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in embedding_table("cuda", room)
    ]
    assert rows[0][2:] == ["1 x 128", "1 x 512", "32 x 128", "32 x 512", "encoding 32"]
    named = {row[0]: row[1:] for row in rows[2:]}
    assert named["bge-m3"][0] == "all weights"
    assert [cell.endswith("✗") for cell in named["bge-m3"][1:]] == [True, True, True, True, False]
    assert named["gritlm-7b"][0] == "adapter, r=16"
    assert named["minilm"][1:] == named["all-minilm-l6-v2"][1:]
    assert named["minilm"][2] == "–"  # it sees 256 tokens


def test_more_tokens_than_positions_are_refused(tmp_path):
    for kind, positions in (("bert", 512), ("xlm-roberta", 510)):
        put_tiny(tmp_path / kind, kind)
        load_encoder(TINY.model_copy(update={"max_length": positions}), tmp_path / kind)
        with pytest.raises(
            InputError, match=rf"max_length: {positions + 1} .* the model has {positions} positions"
        ):
            load_encoder(TINY.model_copy(update={"max_length": positions + 1}), tmp_path / kind)


def test_a_model_that_can_not_be_trained_is_refused_before_it_is_downloaded(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "4")
    params = load_params().embed.model_copy(update={"model": "bge-m3"})
    with pytest.raises(
        InputError, match=r"embed_sft: mini-batch size 1 with a text of 64 tokens needs 8\."
    ):
        refuse_training(load_embedding_model_file("bge-m3"), params)


def test_of_steps_that_find_everything_the_last_is_kept(tiny_project, caplog):
    """Six validation rows are all found from the first: step 1, at a rate of 0, taught nothing."""
    edit_yaml("params.yaml", embed__eval_steps=1, embed__num_train_epochs=1.0)
    embed_zeroshot.main()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training.InformationRetrievalEvaluator,
            "__call__",
            lambda self, model, *_, **__: {"validation_cosine_ndcg@10": 1.0},
        )
        caplog.set_level("INFO")
        embed_sft.main()
    best = re.search(r"best validation nDCG@10 1\.0000, at step (\d+) of (\d+)", caplog.text)
    assert best[1] == best[2]
    tuned = load_file(EMBEDDER_DIR / "model.safetensors")
    untuned = load_file("weights/model.safetensors")
    assert any(not torch.equal(part, untuned[name]) for name, part in tuned.items())


def test_a_batch_and_its_halves():
    assert batch_choices(12) == [12, 6, 3, 1]

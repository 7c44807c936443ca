import csv
import io
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, edit_yaml

from stages import base, clean, format, sft
from stages.corpus.rows import read_jsonl
from stages.llm.loading import load_model
from stages.llm.prompts import BASE_DIR, load_tokenizer
from stages.llm.training import build_trainer, check_dataset, count_steps, find_rows, per_device_batch_size
from stages.params import load_params
from stages.run import InputError


@pytest.fixture
def formatted(project):
    base.main()
    clean.main()
    format.main()
    return [list(read_jsonl(Path(f"data/formatted/{split}.jsonl"))) for split in ("train", "validation")]


def make_trainer(formatted, quantization="nf4", rows=None):
    params = load_params()
    model = load_model(BASE_DIR, quantization)
    tokenizer = load_tokenizer(BASE_DIR)
    train, validation = formatted
    return build_trainer(
        model, tokenizer, rows or train, validation, params.sft, params.format.max_length, False, Path("checkpoints")
    )


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_adapter_weights_move_and_base_weights_do_not(formatted, quantization):
    trainer = make_trainer(formatted, quantization)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trainable == {name for name in before if "lora_" in name}
    assert {before[name].dtype for name in trainable} == {torch.float32}
    packed = {value.dtype for name, value in before.items() if "proj.base_layer.weight" in name}
    assert packed == ({torch.uint8} if quantization == "nf4" else {torch.float32})
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == trainable


def test_the_loss_is_on_the_answer_and_its_end_of_turn_alone(formatted):
    trainer = make_trainer(formatted)
    tokenizer = load_tokenizer(BASE_DIR)
    for made, row in zip(trainer.train_dataset, formatted[0], strict=True):
        labelled = [label for label in made["labels"] if label != -100]
        assert tokenizer.decode(labelled).strip() == row["positive"] + tokenizer.eos_token


def test_what_trl_would_cut_drop_or_ask_otherwise_is_an_error(formatted):
    trainer = make_trainer(formatted)
    tokenizer = load_tokenizer(BASE_DIR)
    rows, dataset = formatted[0], list(trainer.train_dataset)
    check_dataset(dataset, rows, tokenizer, 512)
    cut = [{**dataset[0], "input_ids": dataset[0]["input_ids"][:-4]}, *dataset[1:]]
    unlabelled = [{**dataset[0], "labels": [-100] * len(dataset[0]["labels"])}, *dataset[1:]]
    everywhere = [{**dataset[0], "labels": dataset[0]["input_ids"]}, *dataset[1:]]
    other = [{**dataset[0], "input_ids": dataset[1]["input_ids"]}, *dataset[1:]]
    for broken, message in (
        (dataset[1:], r"\d+ rows went in, \d+ came out"),
        (cut, "the answer is cut off"),
        (unlabelled, "the loss is not on the answer"),
        (everywhere, "the loss is not on the answer"),
        (other, "not the prompt that is asked"),
    ):
        with pytest.raises(InputError, match=message):
            check_dataset(broken, rows, tokenizer, 512)
    with pytest.raises(InputError, match=r"tokens, format\.max_length is 50"):
        check_dataset(dataset, rows, tokenizer, 50)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_rows(formatted):
    trainer = make_trainer(formatted)
    weights = next(value for name, value in trainer.model.named_parameters() if "lora_B" in name)
    weights.data.fill_(float("nan"))
    ids = {row["id"] for row in formatted[0]}
    with pytest.raises(InputError, match=r"sft: the loss is nan at step 1, rows (\w+, ){3}\w+") as error:
        trainer.train()
    assert set(str(error.value).split("rows ")[1].split(", ")) <= ids


def test_rows_are_found_behind_their_padding():
    dataset = [{"id": "a", "input_ids": [1, 2]}, {"id": "b", "input_ids": [1, 2, 3]}]
    assert find_rows(dataset, [[1, 2, 0, 0], [1, 2, 3, 0], [9, 9, 9, 9]]) == ["a", "b", "unknown"]


def test_the_stage_keeps_the_best_adapter_and_a_history_without_seconds(formatted):
    sft.main()
    names = {path.name for path in sft.ADAPTER_DIR.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    config = json.loads((sft.ADAPTER_DIR / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    history = list(csv.DictReader(io.StringIO(Path("reports/sft_history.csv").read_text())))
    assert history[0].keys() == {"step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"}
    assert [row["step"] for row in history if row["eval_loss"]] == ["2", "3"]
    first = (sft.ADAPTER_DIR / "adapter_model.safetensors").read_bytes()
    sft.main()
    assert (sft.ADAPTER_DIR / "adapter_model.safetensors").read_bytes() == first


@pytest.mark.parametrize(("rows", "epochs", "warmup", "expected"), [(6, 3.0, 2, 3), (17, 1.5, 0, 5), (16, 1.0, 1, 2)])
def test_steps_are_counted_as_the_trainer_counts_them_and_a_warm_up_that_never_ends_is_an_error(rows, epochs, warmup, expected):
    params = load_params(ROOT / "params.yaml").sft
    params = params.model_copy(update={"num_train_epochs": epochs, "warmup_steps": warmup, "effective_batch_size": 8})
    assert count_steps(rows, params) == expected
    with pytest.raises(InputError, match=rf"sft\.warmup_steps: {expected}, but {rows} train rows make only {expected} optimizer"):
        count_steps(rows, params.model_copy(update={"warmup_steps": expected}))


def test_the_adapter_with_the_least_validation_loss_is_kept(formatted):
    edit_yaml(Path("params.yaml"), sft__learning_rate=5.0, sft__num_train_epochs=8.0, sft__early_stopping_patience=1)
    trainer = make_trainer(formatted)
    trainer.train()
    assert trainer.state.max_steps == count_steps(len(formatted[0]), load_params().sft)
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.best_global_step == min(losses, key=losses.get)
    assert trainer.state.global_step < trainer.state.max_steps, "a learning rate of 5 should have stopped early"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-5)


def test_an_adapter_made_for_another_base_is_refused(formatted):
    sft.main()
    manifest = json.loads((BASE_DIR / "manifest.json").read_text())
    manifest["files"]["config.json"]["sha256"] = "0" * 64
    (sft.ADAPTER_DIR / "base.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was trained on another base model"):
        load_model(BASE_DIR, "nf4", sft.ADAPTER_DIR)


@pytest.mark.parametrize(("value", "expected"), [(None, 8), ("2", 2), ("8", 8)])
def test_the_batch_per_device_divides_the_effective_one(monkeypatch, value, expected):
    if value is not None:
        monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", value)
    assert per_device_batch_size(8, torch.device("cpu")) == expected
    assert per_device_batch_size(8, torch.device("cuda")) == (1 if value is None else expected)
    monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "3")
    with pytest.raises(InputError, match="'3' does not divide"):
        per_device_batch_size(8, torch.device("cpu"))

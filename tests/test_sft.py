import csv
import io
import json
import math
from functools import cached_property
from pathlib import Path

import pytest
import torch
from conftest import ROOT, edit_yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import peft_model
from peft.utils import save_and_load as safetensors_reader
from safetensors.torch import load_file
from transformers import TrainingArguments
from trl import SFTTrainer
from trl.kernels import chunked_logprob

from library.errors import InputError
from library.files import read_jsonl
from library.llm import trainer as trainer_module
from library.llm.batching import make_batches
from library.llm.chat_template import load_tokenizer
from library.llm.checkpoints import COMPLETE, find_checkpoint
from library.llm.loading import load_model
from library.llm.memory.formula import PLAIN_HEAD_ROWS
from library.llm.memory.measuring import measure_peak, resident_bytes
from library.llm.patches import set_up_fused_head
from library.llm.trainer import CheckedTrainer, find_row_ids, split_batch
from library.llm.trainer_callbacks import MarkComplete
from library.llm.training import TrainingTask, build_trainer, logging_steps
from library.llm.training_rows import BLANK, EpochSampler, check_dataset, count_steps
from library.params import load_params
from library.paths import ADAPTER_DIR, BASE_DIR, MEMORY_PATH
from stages import base, clean, format, sft


@pytest.fixture
def formatted(project):
    base.main()
    clean.main()
    format.main()
    return [
        list(read_jsonl(Path(f"data/formatted/{split}.jsonl"))) for split in ("train", "validation")
    ]


def make_trainer(
    formatted, quantization="nf4", rows=None, per_device=4, checkpointing=False, padding_free=False
):
    params = load_params()
    model = load_model(BASE_DIR, quantization)
    tokenizer = load_tokenizer(BASE_DIR)
    train, validation = formatted
    task = TrainingTask(
        tokenizer=tokenizer,
        train=rows or train,
        validation=validation,
        params=params.sft,
        max_length=params.format.max_length,
        gradient_checkpointing=checkpointing,
        output_dir=Path("checkpoints/test"),
        padding_free=padding_free,
    )
    return build_trainer(model, task, per_device)


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
    moved = {
        name
        for name, value in trainer.model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == trainable


def test_the_loss_is_on_the_answer_and_its_end_of_turn_alone(formatted):
    trainer = make_trainer(formatted)
    tokenizer = load_tokenizer(BASE_DIR)
    *rows, blank = trainer.train_dataset
    assert (blank["id"], set(blank["labels"])) == (BLANK, {-100})
    for made, row in zip(rows, formatted[0], strict=True):
        labelled = [label for label in made["labels"] if label != -100]
        assert tokenizer.decode(labelled).strip() == row["positive"] + tokenizer.eos_token


def test_what_trl_would_cut_drop_or_ask_otherwise_is_an_error(formatted):
    trainer = make_trainer(formatted)
    tokenizer = load_tokenizer(BASE_DIR)
    rows, dataset = formatted[0], list(trainer.train_dataset)[:-1]
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
    with pytest.raises(
        InputError, match=r"sft: the loss is nan at step 1, rows (\w+, ){3}\w+"
    ) as error:
        trainer.train()
    assert set(str(error.value).split("rows ")[1].split(", ")) <= ids


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_validation_loss_is_the_mean_of_each_rows_own_however_many_at_a_time(
    formatted, quantization, monkeypatch
):
    trainer = make_trainer(formatted, quantization, per_device=1)
    trainer.train()
    trainer.model.eval()
    own = []
    for row in trainer.eval_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="none")
        own.append(losses[labels[1:] != -100].mean().item())
    assert len(own) > 2
    assert max(own) > 1.01 * min(own)  # the mean over all tokens would be another
    batches = []
    score = trainer_module.score_completions

    def count(model, tokenizer, requests, batching, name):
        batches.append(
            len(list(make_batches([len(p + c) for ((p, c),) in requests], batching.tokens)))
        )
        return score(model, tokenizer, requests, batching, name)

    monkeypatch.setattr(trainer_module, "score_completions", count)
    for rows in (1, 4):
        trainer.args.per_device_train_batch_size = rows
        assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert batches[1] < batches[0] <= len(own)


def test_a_validation_loss_that_is_not_finite_stops_the_run_with_its_row(formatted, monkeypatch):
    trainer = make_trainer(formatted)
    weights = next(value for name, value in trainer.model.named_parameters() if "lora_B" in name)
    before = weights.data.clone()
    weights.data.fill_(math.nan)
    with pytest.raises(InputError, match="Qwen2ForCausalLM gives log-likelihoods that are no num"):
        trainer.evaluate()
    weights.data.copy_(before)
    score = trainer_module.score_completions
    monkeypatch.setattr(
        trainer_module, "score_completions", lambda *given: [*score(*given)[:-1], [-math.inf]]
    )
    last = formatted[1][-1]["id"]
    with pytest.raises(InputError, match=f"sft: the validation loss is inf at step 0, row {last}"):
        trainer.evaluate()


def test_rows_of_a_batch_without_padding_are_told_apart():
    ids, positions = torch.tensor([[7, 8, 9, 7, 5, 5]]), torch.tensor([[0, 1, 2, 0, 1, 0]])
    assert split_batch({"input_ids": ids, "position_ids": positions}) == [[7, 8, 9], [7, 5], [5]]
    assert split_batch({"input_ids": ids, "attention_mask": ids}) == ids.tolist()


def test_rows_are_found_behind_their_padding():
    dataset = [{"id": "a", "input_ids": [1, 2]}, {"id": "b", "input_ids": [1, 2, 3]}]
    assert find_row_ids(dataset, [[1, 2, 0, 0], [1, 2, 3, 0], [9, 9, 9, 9]]) == [
        "a",
        "b",
        "unknown",
    ]


def test_the_stage_keeps_the_best_adapter_and_a_history_without_seconds(formatted):
    sft.main()
    names = {path.name for path in ADAPTER_DIR.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "base.json", "made.json"}
    config = json.loads((ADAPTER_DIR / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    history = list(csv.DictReader(io.StringIO(Path("reports/sft_history.csv").read_text())))
    assert history[0].keys() == {"step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"}
    assert [row["step"] for row in history if row["eval_loss"]] == ["2", "3"]
    first = (ADAPTER_DIR / "adapter_model.safetensors").read_bytes()
    sft.main()
    assert (ADAPTER_DIR / "adapter_model.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("rows", "epochs", "warmup", "expected"), [(6, 3.0, 2, 3), (17, 1.5, 0, 5), (16, 1.0, 1, 2)]
)
def test_steps_are_counted_as_the_trainer_counts_them_and_a_warm_up_that_never_ends_is_an_error(
    rows, epochs, warmup, expected
):
    params = load_params(ROOT / "params.yaml").sft
    params = params.model_copy(
        update={"num_train_epochs": epochs, "warmup_steps": warmup, "effective_batch_size": 8}
    )
    assert count_steps(rows, params) == expected
    with pytest.raises(
        InputError,
        match=rf"sft\.warmup_steps: {expected}, but {rows} train rows make only {expected} opti",
    ):
        count_steps(rows, params.model_copy(update={"warmup_steps": expected}))


def test_the_adapter_with_the_least_validation_loss_is_kept(formatted):
    edit_yaml(
        Path("params.yaml"),
        sft__learning_rate=50.0,
        sft__num_train_epochs=8.0,
        sft__early_stopping_patience=1,
    )
    trainer = make_trainer(formatted)
    trainer.train()
    assert trainer.state.max_steps == count_steps(len(formatted[0]), load_params().sft)
    losses = {
        entry["step"]: entry["eval_loss"]
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    }
    assert trainer.state.best_global_step == min(losses, key=losses.get)
    assert trainer.state.global_step < trainer.state.max_steps, (
        "a learning rate of 50 should have stopped early"
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-5)


def test_an_adapter_made_for_another_base_is_refused(formatted):
    sft.main()
    manifest = json.loads((BASE_DIR / "manifest.json").read_text())
    manifest["files"]["config.json"]["sha256"] = "0" * 64
    (ADAPTER_DIR / "base.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was trained on another base model"):
        load_model(BASE_DIR, "nf4", ADAPTER_DIR)


@given(st.integers(1, 40), st.integers(0, 9), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_and_blanks_to_fill_its_last_step(
    rows, seed, effective, epoch
):
    order = EpochSampler(rows, seed, effective)
    order.epoch = epoch
    drawn = list(order)
    assert len(drawn) == len(order) == math.ceil(rows / effective) * effective
    assert sorted(drawn[:rows]) == list(range(rows))
    assert set(drawn[rows:]) <= {rows}
    other = EpochSampler(rows, seed, effective)
    other.epoch = epoch + 1
    assert rows < 8 or list(other) != drawn
    assert list(order) == drawn


@pytest.mark.parametrize(
    ("eval_steps", "steps", "expected"), [(80, 430, 20), (2, 3, 1), (50, 400, 10), (7, 1000, 1)]
)
def test_the_loss_is_logged_at_every_evaluation(eval_steps, steps, expected):
    assert logging_steps(eval_steps, steps) == expected


@pytest.mark.parametrize(("per_device", "padding_free"), [(1, False), (4, True)])
def test_how_rows_go_through_the_device_changes_the_adapter_by_rounding_alone(
    formatted, per_device, padding_free
):
    rows = formatted[0][:10]  # so that the last step is not full
    adapters, losses = [], []
    for how in ({}, {"per_device": per_device, "padding_free": padding_free}):
        trainer = make_trainer(formatted, rows=rows, **how)
        trainer.train()
        adapters.append(
            {
                name: value.detach()
                for name, value in trainer.model.named_parameters()
                if value.requires_grad
            }
        )
        losses.append(
            [
                entry[key]
                for entry in trainer.state.log_history
                for key in ("loss", "eval_loss")
                if key in entry
            ]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in adapters[0].items():
        assert (value - adapters[1][name]).norm() < 1e-3 * value.norm(), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_proof_takes_a_real_step_and_leaves_nothing_of_it(formatted, checkpointing):
    edit_yaml("params.yaml", sft__lora__lora_dropout=0.1)
    trainer = make_trainer(formatted, checkpointing=checkpointing)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    random = torch.get_rng_state()
    peak = trainer.measure_training_step()
    assert all(
        torch.equal(value, before[name]) and value.grad is None
        for name, value in trainer.model.named_parameters()
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.measure_training_step() == peak
    trainer.train()
    proved = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    fresh = make_trainer(formatted, checkpointing=checkpointing)
    fresh.train()
    assert [entry["loss"] for entry in fresh.state.log_history if "loss" in entry] == proved


@pytest.mark.parametrize("per_device", [1, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_takes_no_more_than_was_proved(formatted, checkpointing, per_device):
    edit_yaml("params.yaml", sft__lora__r=128)  # so that gradients and moments weigh something
    longest = max(formatted[0], key=lambda row: row["prompt_tokens"] + row["answer_tokens"])
    trainer = make_trainer(
        [[longest] * 8, [longest]], per_device=per_device, checkpointing=checkpointing
    )
    proved = trainer.measure_training_step()
    resident = resident_bytes(trainer.model)
    assert proved == pytest.approx(
        resident + measure_peak(torch.device("cpu"), trainer.train), rel=0.02
    )


def test_the_proof_takes_as_many_rows_as_a_step_where_there_are_fewer(formatted):
    longest = max(formatted[0], key=lambda row: row["prompt_tokens"] + row["answer_tokens"])
    trainer = make_trainer([[longest] * 2, [longest]], per_device=4)
    proved = trainer.measure_training_step()
    resident = resident_bytes(trainer.model)
    assert proved == pytest.approx(
        resident + measure_peak(torch.device("cpu"), trainer.train), rel=0.02
    )


def test_where_triton_fails_the_head_is_computed_in_smaller_tiles_to_the_same_loss(
    formatted, monkeypatch, caplog
):
    assert not set_up_fused_head(torch.device("cpu"))
    monkeypatch.setattr(chunked_logprob, "_TRITON_AVAILABLE", True)
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", chunked_logprob.TOKEN_CHUNK_SIZE)
    trainer = make_trainer(formatted)
    rows = [row for row in trainer.train_dataset if row["id"] != BLANK][:2]

    def loss():
        inputs = trainer._prepare_inputs(trainer.data_collator(rows))
        return trainer.compute_loss(trainer.model, inputs).item()

    whole = loss()
    assert not set_up_fused_head(torch.device("cuda"))  # which is not there
    assert "the loss is computed by plain PyTorch, more slowly" in caplog.text
    assert (chunked_logprob._TRITON_AVAILABLE, chunked_logprob.TOKEN_CHUNK_SIZE) == (
        False,
        PLAIN_HEAD_ROWS,
    )
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", 64)  # several tiles a row
    assert loss() == pytest.approx(whole, rel=1e-6)


def test_the_best_adapter_is_read_by_way_of_the_cpu(formatted, monkeypatch):
    """PEFT reads to the first card, in every process."""
    devices = []
    original = safetensors_reader.safe_load_file

    def safe_load_file(path, device=None, **options):
        devices.append(device)
        return original(path, device=device, **options)

    monkeypatch.setattr(safetensors_reader, "safe_load_file", safe_load_file)
    monkeypatch.setattr(peft_model, "infer_device", lambda: "cuda")
    sft.main()
    load_model(BASE_DIR, "nf4", ADAPTER_DIR)
    assert devices == ["cpu", "cpu"]


def test_a_model_that_is_to_be_sharded_is_not_moved_before(formatted, monkeypatch):
    moved = []
    monkeypatch.setattr(
        SFTTrainer, "_move_model_to_device", lambda self, model, device: moved.append(device)
    )
    make_trainer(formatted, "none")
    assert moved
    moved.clear()
    monkeypatch.setattr(trainer_module, "find_sharding", lambda: "offload")
    make_trainer(formatted, "none")
    assert not moved


def test_one_process_uses_one_card_however_many_there_are(formatted, monkeypatch):
    original = TrainingArguments.__dict__["_setup_devices"]

    def with_two(arguments):
        device = original.func(arguments)
        arguments._n_gpu = 2  # what transformers sets once where it sees two cards
        return device

    patched = cached_property(with_two)
    patched.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", patched)
    assert make_trainer(formatted).args.n_gpu == 1


def test_longest_rows_without_a_finite_loss_stop_the_run_before_its_first_step(formatted):
    trainer = make_trainer(formatted)
    next(value for name, value in trainer.model.named_parameters() if "lora_B" in name).data.fill_(
        float("inf")
    )
    with pytest.raises(
        InputError, match=r"sft: the loss of the longest rows, (\w+, ){3}\w+, is nan"
    ):
        trainer.measure_training_step()


def test_a_checkpoint_that_was_not_written_whole_is_not_used(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for step, complete in ((8, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_a_kill_before_a_checkpoint_is_marked_leaves_the_one_before(formatted, monkeypatch):
    edit_yaml("params.yaml", sft__num_train_epochs=3.0)
    original = MarkComplete.on_save

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(MarkComplete, "on_save", on_save)
    with pytest.raises(KeyboardInterrupt):
        sft.main()
    (folder,) = Path("checkpoints").iterdir()
    assert (folder / "checkpoint-6").is_dir()
    assert find_checkpoint(folder).name == "checkpoint-4"


def stop_at(monkeypatch, step, error, times=1):
    """Make the training step raise an error at a step; as often as `times` says, if it comes by
    again.
    """
    raised = []
    original = CheckedTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step and len(raised) < times:
            raised.append(step)
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CheckedTrainer, "training_step", training_step)


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_checkpoint_and_ends_in_the_same_adapter(
    formatted, monkeypatch, caplog
):
    caplog.set_level("INFO")
    edit_yaml("params.yaml", sft__num_train_epochs=2.0, sft__lora__lora_dropout=0.1)
    edit_yaml("params.yaml", sft__learning_rate=2e-3)
    sft.main()
    made = [
        path.read_bytes()
        for path in (ADAPTER_DIR / "adapter_model.safetensors", Path("reports/sft_history.csv"))
    ]
    with monkeypatch.context() as patch:
        stop_at(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            sft.main()
    (folder,) = Path("checkpoints").iterdir()
    assert find_checkpoint(folder).name == "checkpoint-4"
    # under another key nothing of it is looked at
    edit_yaml("params.yaml", sft__learning_rate=3e-3)
    sft.main()
    assert "resuming from" not in caplog.text
    edit_yaml("params.yaml", sft__learning_rate=2e-3)
    sft.main()
    assert f"resuming from {folder}/checkpoint-4" in caplog.text
    again = [
        path.read_bytes()
        for path in (ADAPTER_DIR / "adapter_model.safetensors", Path("reports/sft_history.csv"))
    ]
    assert again == made
    assert not folder.exists()


def test_out_of_memory_later_is_caught_once_with_fewer_rows_at_a_time(
    formatted, monkeypatch, caplog
):
    edit_yaml("models/local/model.yaml", gradient_checkpointing=False)
    sft.main()
    whole = load_file(ADAPTER_DIR / "adapter_model.safetensors")
    with monkeypatch.context() as patch:
        stop_at(patch, 2, torch.OutOfMemoryError())
        sft.main()
    assert "out of memory at step 2 with batch size 4; continuing with a smaller one" in caplog.text
    record = json.loads(MEMORY_PATH.read_text())
    assert record["incidents"] == ["out of memory at step 2 with batch size 4"]
    assert (record["per_device_train_batch_size"], record["gradient_accumulation_steps"]) == (2, 2)
    for name, value in load_file(ADAPTER_DIR / "adapter_model.safetensors").items():
        assert (value - whole[name]).norm() < 1e-3 * value.norm(), name
    said = (
        r"out of memory at step 2 with batch size 2 and rows of \d+ tokens; predicted: .*; "
        r"free: .*; set gradient_checkpointing: true in the model's file, and run it again"
    )
    with monkeypatch.context() as patch:
        stop_at(
            patch,
            2,
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            times=2,
        )
        with pytest.raises(InputError, match=said):
            sft.main()


def test_out_of_memory_without_checkpointing_goes_on_with_it_to_the_same_bytes(
    formatted, monkeypatch, caplog
):
    edit_yaml("models/local/model.yaml", gradient_checkpointing="auto")
    sft.main()
    whole = (ADAPTER_DIR / "adapter_model.safetensors").read_bytes()
    assert json.loads(MEMORY_PATH.read_text())["gradient_checkpointing"] is False
    with monkeypatch.context() as patch:
        stop_at(patch, 2, torch.OutOfMemoryError())
        sft.main()
    assert "with batch size 4; continuing with gradient checkpointing" in caplog.text
    record = json.loads(MEMORY_PATH.read_text())
    assert (record["per_device_train_batch_size"], record["gradient_checkpointing"]) == (4, True)
    assert (ADAPTER_DIR / "adapter_model.safetensors").read_bytes() == whole
    edit_yaml("models/local/model.yaml", gradient_checkpointing=True)
    sft.main()
    assert record["measured"] == json.loads(MEMORY_PATH.read_text())["measured"]


def test_a_proof_that_does_not_fit_takes_fewer_rows_before_the_first_step(formatted, monkeypatch):
    original = CheckedTrainer.measure_training_step

    def measure_training_step(self):
        if self.args.per_device_train_batch_size > 1:
            raise torch.OutOfMemoryError
        return original(self)

    monkeypatch.setattr(CheckedTrainer, "measure_training_step", measure_training_step)
    sft.main()
    record = json.loads(MEMORY_PATH.read_text())
    assert (
        record["per_device_train_batch_size"],
        record["gradient_accumulation_steps"],
        record["incidents"],
    ) == (1, 4, [])

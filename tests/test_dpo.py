"""Preference tuning: from the adapter of sft, held to the model that sft left."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from all_stages import ASKED
from conftest import ROOT, edit_yaml, wide_config
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from commands import ask, export
from library.errors import InputError
from library.files import hash_adapter, read_json, read_jsonl, write_json
from library.llm import preferences
from library.llm.chat_template import load_tokenizer
from library.llm.checkpoints import find_checkpoint
from library.llm.generation import generate_answers
from library.llm.loading import load_model
from library.llm.memory.formula import Adapter, ComputeSettings, measure_sizes, predict_training
from library.llm.memory.measuring import measure_peak, resident_bytes
from library.llm.merging import merge_adapter
from library.llm.preferences import (
    PreferenceTask,
    PreferenceTrainer,
    build_preference_trainer,
    choose_pairs,
    load_policy,
    logging_steps,
)
from library.llm.prompts import load_asked_prompt
from library.pages.cards import read_model_facts, render_card
from library.pages.statements import no_gain_sentence
from library.params import load_params
from library.paths import (
    ADAPTER_DIR,
    BASE_DIR,
    DPO_ADAPTER_DIR,
    DPO_DIR,
    DPO_MEMORY_PATH,
    MERGED_DIR,
)
from stages import base, clean, dpo, evaluate, format, sft

WEIGHTS = "adapter_model.safetensors"
MADE = ("artifacts", "data", "metrics", "reports")
JUDGED = {"dpo__learning_rate": 5e-3, "review__systems": ["dpo", "sft"]}


@pytest.fixture(scope="module")
def made_dir(tmp_path_factory):
    """Where what `tuned` made first is kept for the tests after it."""
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def judged_dir(tmp_path_factory):
    """Where what was judged first, with JUDGED for parameters, is kept."""
    return tmp_path_factory.mktemp("judged")


@pytest.fixture
def tuned(project, made_dir):
    """A project with an adapter of sft."""
    edit_yaml("params.yaml", dpo__num_train_epochs=1.0, sft__learning_rate=2e-3)
    for name in MADE:
        if (made_dir / name).exists():
            shutil.copytree(made_dir / name, name, dirs_exist_ok=True)
    if not ADAPTER_DIR.exists():
        for stage in (base, clean, format, sft):
            stage.main()
        for name in MADE:
            shutil.copytree(name, made_dir / name)
    return list(read_jsonl(Path("data/formatted/train.jsonl")))


def make_trainer(rows, per_device=4, checkpointing=False, quantization="nf4"):
    task = PreferenceTask(
        tokenizer=load_tokenizer(BASE_DIR),
        pairs=choose_pairs(rows),
        params=load_params().dpo,
        gradient_checkpointing=checkpointing,
        output_dir=Path("checkpoints/test"),
    )
    return build_preference_trainer(load_policy(quantization), task, per_device)


def collate(trainer, count):
    return trainer.data_collator([trainer.train_dataset[at] for at in range(count)])


def test_at_step_0_the_policy_is_the_model_that_sft_left_and_so_is_the_reference(tuned):
    edit_yaml("params.yaml", sft__lora__lora_dropout=0.5)
    trainer = make_trainer(tuned)
    saved = load_file(ADAPTER_DIR / WEIGHTS)
    assert any(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)
    held = dict(trainer.model.named_parameters())
    for name, value in saved.items():
        for adapter in ("default", "ref"):
            own = held[name.replace(".weight", f".{adapter}.weight")]
            assert torch.equal(own, value), name
            assert own.requires_grad == (adapter == "default")
    inputs = collate(trainer, 4)
    trainer.model.train()
    asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    with torch.no_grad():
        log_probs = trainer.model(**asked, labels=labels, fused_lm_head=True).log_probs.sum(1)
    reference = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))
    assert torch.equal(log_probs, reference)
    with trainer.model.disable_adapter(), torch.no_grad():
        untuned = trainer.model(**asked, labels=labels, fused_lm_head=True).log_probs.sum(1)
    assert (untuned - reference).abs().min() > 0.01  # the base as it is would be another reference
    # and so the loss is that of a coin
    assert trainer.compute_proof_loss(inputs).item() == pytest.approx(0.693147, abs=1e-6)


def test_training_moves_the_policy_alone_and_prefers_right_answers(tuned):
    edit_yaml("params.yaml", dpo__num_train_epochs=2.0, dpo__learning_rate=2e-3)
    trainer = make_trainer(tuned)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {
        name
        for name, value in trainer.model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == {name for name in before if ".default." in name}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[-1] < losses[0]


def test_blanks_do_not_count_in_what_is_logged_of_rewards(tuned):
    edit_yaml("params.yaml", dpo__learning_rate=1e-12)
    trainer = make_trainer(choose_pairs(tuned)[:3])
    with torch.no_grad():  # a policy that prefers every right answer by 2 nats
        trainer.model.train()
        inputs = trainer.data_collator(list(trainer.train_dataset))
        assert inputs["completion_mask"].any(dim=1).tolist() == [True, True, True, False] * 2
        trainer.compute_ref_log_probs(trainer.model, inputs)
        real = torch.tensor([1.0, 1.0, 1.0, 0.0])
        trainer.precompute_ref_logps = True
        logps = trainer.compute_ref_log_probs(trainer.model, inputs)
        inputs["ref_chosen_logps"] = logps[0] - 2 * real
        inputs["ref_rejected_logps"] = logps[1]
        trainer.compute_loss(trainer.model, inputs)
    assert trainer._metrics["train"]["rewards/accuracies"] == [pytest.approx(1)]
    assert trainer._metrics["train"]["rewards/margins"] == [pytest.approx(0.1 * 2, rel=1e-4)]


def test_a_pair_is_the_prompt_that_is_asked_with_both_answers_whole(tuned):
    trainer, tokenizer = make_trainer(tuned), load_tokenizer(BASE_DIR)
    *made, blank = trainer.train_dataset
    assert (blank["chosen_ids"], blank["rejected_ids"]) == ([], [])
    rows = choose_pairs(tuned)
    assert len(made) == len(rows) > 4
    for pair, row in zip(made, rows, strict=True):
        assert len(pair["prompt_ids"]) == row["prompt_tokens"]
        for name, answer in (("chosen_ids", "positive"), ("rejected_ids", "negative")):
            written = tokenizer.decode(pair[name]).strip()
            assert written == row[answer] + tokenizer.eos_token
        assert trainer.count_tokens(pair) == row["tokens"]
    inputs = collate(trainer, len(made) + 1)
    longest = max(row["tokens"] for row in rows)
    assert inputs["input_ids"].shape == (2 * len(made) + 2, longest)


def test_without_wrong_answers_it_says_what_to_set(tuned):
    rows = [row | {"negative": None} for row in tuned]
    Path("data/formatted/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        InputError, match=r"dpo\.num_train_epochs: no train row has a wrong .*data\.columns\.negati"
    ):
        dpo.main()


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_rows(tuned):
    trainer = make_trainer(tuned)
    weights = next(
        value for name, value in trainer.model.named_parameters() if "lora_B.default" in name
    )
    weights.data.fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"dpo: the loss is nan at step 1, rows (\w+, )*\w+"
    ) as error:
        trainer.train()
    assert set(str(error.value).split("rows ")[1].split(", ")) <= {row["id"] for row in tuned}
    with pytest.raises(InputError, match="dpo: the loss of the longest rows"):
        trainer.measure_training_step()


def test_the_proof_takes_what_training_takes_and_leaves_nothing_of_it(tuned):
    edit_yaml("params.yaml", dpo__num_train_epochs=2.0)
    longest = max(choose_pairs(tuned), key=lambda row: row["tokens"])
    trainer = make_trainer([longest] * 4, per_device=2, checkpointing=True)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    proved = trainer.measure_training_step()
    assert all(
        torch.equal(value, before[name]) and value.grad is None
        for name, value in trainer.model.named_parameters()
    )
    assert not trainer._metrics["train"]
    taken = resident_bytes(trainer.model) + measure_peak(torch.device("cpu"), trainer.train)
    assert proved == pytest.approx(taken, rel=0.02)


def test_off_by_default_it_takes_nothing(project):
    DPO_DIR.mkdir(parents=True)
    (DPO_DIR / "old").touch()
    code = (
        "import sys; from stages import dpo; dpo.main(); "
        "assert not {'torch', 'transformers', 'trl'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})
    assert read_json(Path("data/predictions/dpo/systems.json")) == {"systems": []}
    assert [path.name for path in DPO_DIR.iterdir()] == ["off.json"]


def test_it_is_asked_judged_and_said_beside_the_others(tuned, judged_dir, caplog):
    edit_yaml("params.yaml", **JUDGED)
    caplog.set_level("INFO")
    for stage in ASKED:
        stage.main()
    assert "with pairs of rows of up to " in caplog.text
    assert not [*Path("checkpoints").glob("dpo-*")]
    assert {path.name for path in DPO_DIR.iterdir()} == {"adapter", "history.csv", "memory.json"}
    record = read_json(DPO_ADAPTER_DIR / "made.json")
    assert record["started_from"] == hash_adapter(ADAPTER_DIR)
    assert record["adapter"] == hash_adapter(DPO_ADAPTER_DIR) != hash_adapter(ADAPTER_DIR)
    memory = read_json(DPO_MEMORY_PATH)
    assert memory["per_device_train_batch_size"] == 4
    assert memory["predicted"]["peak"] == pytest.approx(memory["measured"]["train"], rel=0.25)
    history = list(csv.DictReader(io.StringIO((DPO_DIR / "history.csv").read_text())))
    assert history[0].keys() >= {"step", "loss", "rewards/accuracies", "rewards/margins"}
    metrics = read_json(Path("metrics/evaluation.json"))
    judged = metrics["others"]["dpo"]
    assert judged["bits_per_byte"].keys() >= {"zeroshot", "dpo", "p_holm"}
    assert judged["tuned"]["rouge_l"].keys() >= {"dpo", "sft", "p_holm"}
    # corrected together: as many claims more as there are comparisons
    assert judged["rouge_l"]["p_holm"] >= judged["rouge_l"]["p"]
    text = Path("reports/report.md").read_text()
    assert "DPO changed the fine-tuned model" in text or "DPO made the fine-tuned model" in text
    assert "\n- fine-tuned, then DPO: " in text  # its answers beside the others'
    assert read_json(Path("reports/review_key.json"))["systems"] == ["dpo", "sft"]
    assert read_json(Path("reports/costs.json"))["dpo"]["seconds_per_row"] > 0

    for name in MADE:
        shutil.copytree(name, judged_dir / name)

    made = json.dumps(record | {"started_from": "0" * 64})
    (DPO_ADAPTER_DIR / "made.json").write_text(made)
    with pytest.raises(InputError, match="artifacts/dpo/adapter: trained on from another adapter"):
        evaluate.main()
    answers = Path("data/predictions/dpo/dpo.jsonl")
    answers.write_text(answers.read_text().replace('"stop"', '"length"') + "\n")
    with pytest.raises(InputError, match=r"dpo\.jsonl: not as dpo wrote it; run `dvc repro`"):
        evaluate.main()


def test_it_is_exported_and_asked_in_the_fine_tuned_models_place(
    tuned, judged_dir, monkeypatch, capfd, caplog
):
    edit_yaml("params.yaml", **JUDGED)
    if not (judged_dir / "metrics").exists():  # else the test before this one made it
        for stage in ASKED:
            stage.main()
    else:
        for name in MADE:
            shutil.copytree(judged_dir / name, name, dirs_exist_ok=True)
    metrics = read_json(Path("metrics/evaluation.json"))
    judged = metrics["others"]["dpo"]
    judged["tuned"]["verdict"] = 0
    write_json(Path("metrics/evaluation.json"), metrics)
    monkeypatch.setattr(sys, "argv", ["export", "--system", "dpo"])
    capfd.readouterr()
    caplog.set_level("INFO")
    export.main()
    printed = capfd.readouterr().out

    result = judged["tuned"]["rouge_l"]
    (said,) = [line for line in caplog.messages if "ships the model before DPO" in line]
    assert said.startswith(
        "There is no evidence that DPO changed the fine-tuned model: ROUGE-L is "
        f"{result['dpo']:.3f}, {result['sft']:.3f} before it (Holm p = "
    )
    expected = Path("expected")
    merge_adapter(BASE_DIR, DPO_ADAPTER_DIR, expected)
    made, other = (load_file(folder / "model.safetensors") for folder in (MERGED_DIR, expected))
    assert all(torch.equal(value, other[name]) for name, value in made.items())

    card = (MERGED_DIR / "README.md").read_text()
    matter, body = card.split("---\n", 2)[1:]
    assert "- sft\n- dpo\n" in matter
    assert "# A model fine-tuned and trained with DPO to answer questions from passages\n" in body
    assert "then by TRL's `DPOTrainer`" in body
    assert re.search(r"^dpo:\n  num_train_epochs: 1\.0\n", body, re.MULTILINE)
    assert "fine-tuning and DPO" in body
    assert "| metric | zero-shot | fine-tuned, then DPO | the reference itself |" in body
    for name, row in (("ROUGE-L", "rouge_l"), ("bits per byte of the reference", "bits_per_byte")):
        value = judged[row]
        cells = f" | {value['zeroshot']:.3f} | {value['dpo']:.3f} | "
        (measured, shipped) = [line for line in body.splitlines() if line.startswith(f"| {name} ")]
        assert cells in measured
        assert (
            f"| {value['delta']:+.3f} | {value['low']:+.3f} to {value['high']:+.3f} |" in measured
        )
        assert f"| {value['p']:.4f} | {value['p_holm']:.4f} | {value['n']} |" in measured
        assert cells in shipped
        assert shipped in printed
    # fine-tuning's own numbers are nowhere but where the two are compared
    own = metrics["bits_per_byte"]
    assert own["sft"] != judged["bits_per_byte"]["dpo"]
    assert f"{own['zeroshot']:.3f} | {own['sft']:.3f}" not in card
    assert f"{metrics['general_text']['sft']:.3f} bits per byte" not in card
    assert "Forgetting was not measured after DPO." in card
    assert "(`sft.seed` 7, `dpo.seed` 7)" in card
    # sft's own card says that it is without DPO
    measured = {"measured": read_json(Path("data/predictions/sft_model.json"))}
    sft_card = render_card(read_model_facts(load_params()), measured)
    assert "validation loss; without DPO\n" in sft_card
    assert "artifacts/dpo/adapter/; `make export SYSTEM=dpo` merges that one.\n" in sft_card
    assert f"| {own['zeroshot']:.3f} | {own['sft']:.3f} |" in sft_card

    question = ["What is it made of?", "--max-new-tokens", "8"]
    prompt = ask.prompt_for(
        *(question[0], "", load_tokenizer(BASE_DIR), load_asked_prompt("answer"), load_params())
    )
    for system, folder in (("zeroshot", None), ("sft", ADAPTER_DIR), ("dpo", DPO_ADAPTER_DIR)):
        monkeypatch.setattr(sys, "argv", ["ask", *question, "--system", system])
        ask.main()
        model = load_model(BASE_DIR, "nf4", folder)
        (answer,) = generate_answers(model, load_tokenizer(BASE_DIR), [prompt.ids], 8)
        assert capfd.readouterr().out == answer["prediction"] + "\n"

    monkeypatch.setattr(sys, "argv", ["ask", *question, "--system", "dpo"])
    record = read_json(DPO_ADAPTER_DIR / "made.json")
    write_json(DPO_ADAPTER_DIR / "made.json", record | {"started_from": "0" * 64})
    with pytest.raises(InputError, match="artifacts/dpo/adapter: trained on from another adapter"):
        ask.main()
    shutil.rmtree(DPO_DIR)
    with pytest.raises(InputError, match=r"base\.json: no such file; run `dvc repro dpo`"):
        ask.main()
    edit_yaml("params.yaml", dpo__num_train_epochs=0, review__systems=["zeroshot", "sft"])
    with pytest.raises(InputError, match=r"dpo\.num_train_epochs is 0, which turns DPO off; run "):
        ask.main()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (1, "DPO made the fine-tuned model worse: ROUGE-L is 0.400, 0.500 before it (Holm p = "),
        (0, "There is no evidence that DPO changed the fine-tuned model: ROUGE-L is 0.400, 0.500 "),
        (-1, ""),
    ],
)
def test_what_is_not_better_is_said(verdict, said):
    rouge_l = {"dpo": 0.4, "sft": 0.5, "p_holm": 0.01}
    metrics = {"others": {"dpo": {"tuned": {"verdict": verdict, "rouge_l": rouge_l}}}}
    sentence = no_gain_sentence(metrics, "rouge_l")
    assert sentence.startswith(said)
    assert bool(sentence) == bool(said)


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_checkpoint_and_ends_in_the_same_adapter(
    tuned, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(preferences, "SAVE_STEPS", 2)
    edit_yaml("params.yaml", dpo__num_train_epochs=2.0, dpo__learning_rate=2e-3)

    def made():
        return [path.read_bytes() for path in (DPO_ADAPTER_DIR / WEIGHTS, DPO_DIR / "history.csv")]

    dpo.main()
    whole = made()
    answers = Path("data/predictions/dpo/dpo.jsonl").read_bytes()
    original, calls = PreferenceTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        calls.append(self.state.global_step)
        if self.state.global_step == 3 and calls.count(3) == 1:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PreferenceTrainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        dpo.main()
    (folder,) = Path("checkpoints").glob("dpo-*")
    assert find_checkpoint(folder).name == "checkpoint-2"
    assert not DPO_ADAPTER_DIR.exists()
    dpo.main()
    assert f"resuming from {folder}/checkpoint-2" in caplog.text
    assert made() == whole
    assert Path("data/predictions/dpo/dpo.jsonl").read_bytes() == answers


@pytest.mark.parametrize(
    ("steps", "every"), [(3, 1), (19, 1), (20, 2), (75, 5), (150, 10), (4000, 20)]
)
def test_the_log_has_an_entry_at_each_checkpoint(steps, every):
    assert logging_steps(steps) == every
    assert preferences.SAVE_STEPS % every == 0


def test_a_step_takes_what_was_predicted(tuned, tmp_path):
    config = wide_config()
    adapter = Adapter(16, "all-linear")
    sizes, tokenizer = measure_sizes(config, adapter), load_tokenizer(BASE_DIR)
    answers = [
        {**row, "tokens": 0, "positive": row["positive"] * 3, "negative": row["negative"] * 3}
        for row in choose_pairs(tuned)[:1]
    ]
    for checkpointing in (False, True):
        task = PreferenceTask(tokenizer, answers, load_params().dpo, checkpointing, tmp_path)
        model = get_peft_model(
            AutoModelForCausalLM.from_config(config),
            LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"),
        )
        trainer = build_preference_trainer(model, task, 1)
        measured = trainer.measure_training_step()
        length = max(map(trainer.count_tokens, trainer.train_dataset))
        setting = ComputeSettings("none", checkpointing, adapter, torch.float32, "cpu", pairs=True)
        predicted = predict_training(sizes, setting, 1, length, length)
        assert predicted.peak == pytest.approx(measured, rel=0.1), length


def test_what_does_not_fit_is_refused_before_anything_is_loaded(tuned, monkeypatch):
    monkeypatch.setattr(preferences, "load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "0.0001")
    with pytest.raises(
        InputError, match=r"^dpo: batch size 1 with pairs of rows of \d+ tokens needs "
    ):
        dpo.main()
    monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "3")
    with pytest.raises(InputError, match=r"3 does not divide dpo\.effective_batch_size, 4"):
        dpo.main()


@pytest.mark.slow
def test_two_processes_that_share_layers_give_what_one_gives(tuned):
    dpo.main()
    alone = load_file(DPO_ADAPTER_DIR / WEIGHTS)
    two = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc-per-node 2"
    subprocess.run(
        [sys.executable, "-m", "stages.dpo"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "LAUNCHER": two,
            "FSDP": "full_shard",
        },
        check=True,
    )
    before, other = (load_file(folder / WEIGHTS) for folder in (ADAPTER_DIR, DPO_ADAPTER_DIR))
    for name, value in alone.items():
        moved = (value - before[name]).norm()
        assert moved > 0, name
        assert (value - other[name]).norm() < 1e-3 * value.norm() + 0.1 * moved, name

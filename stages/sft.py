"""Fine-tune a LoRA adapter on the train rows, watched on the validation rows.

Reads data/formatted/train.jsonl, data/formatted/validation.jsonl and artifacts/base/. Writes artifacts/adapter/ and
reports/sft_history.csv.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages.corpus.rows import read_jsonl, write_json, write_text
from stages.llm.loading import load_model
from stages.llm.prompts import BASE_DIR, load_tokenizer
from stages.llm.training import build_trainer, count_steps
from stages.params import load_model_file, load_params
from stages.run import run_stage

log = logging.getLogger(__name__)

ADAPTER_DIR = Path("artifacts/adapter")


def history_csv(log_history: Iterable[Mapping[str, Any]]) -> str:
    """The trainer's log as CSV: step, epoch, train loss, validation loss, learning rate and gradient norm.

    Seconds are left out: nothing here may change when nothing changed.
    """
    columns = ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    entries = pd.DataFrame(list(log_history)).reindex(columns=columns)
    merged = entries.groupby("step", as_index=False).first()
    return str(merged.dropna(subset=["loss", "eval_loss"], how="all").to_csv(index=False))


def save_adapter(model: Any, adapter_dir: Path) -> None:
    """Save the adapter and the manifest of its base; the same adapter gives the same bytes.

    PEFT holds `target_modules` as a set, whose order changes from process to process, and notes the base's folder on this disk.
    """
    shutil.rmtree(adapter_dir, ignore_errors=True)
    adapter_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=adapter_dir.parent) as folder:
        complete = Path(folder) / "adapter"
        model.save_pretrained(complete)
        (complete / "README.md").unlink(missing_ok=True)
        manifest = json.loads((BASE_DIR / "manifest.json").read_text())
        config = json.loads((complete / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])
        config["base_model_name_or_path"] = manifest["source"].get("id", manifest["source"].get("path"))
        write_json(complete / "adapter_config.json", config)
        write_json(complete / "base.json", manifest)
        complete.replace(adapter_dir)


def main() -> None:
    """Train and keep the adapter with the least validation loss."""
    params = load_params()
    model_file = load_model_file(params.model)
    train = list(read_jsonl(Path("data/formatted/train.jsonl")))
    validation = list(read_jsonl(Path("data/formatted/validation.jsonl")))
    steps = count_steps(len(train), params.sft)
    model = load_model(BASE_DIR, model_file.quantization)
    with tempfile.TemporaryDirectory(prefix="sft-") as checkpoints:
        trainer = build_trainer(
            model,
            load_tokenizer(BASE_DIR),
            train,
            validation,
            params.sft,
            params.format.max_length,
            model_file.gradient_checkpointing,
            Path(checkpoints),
        )
        trainable, total = trainer.model.get_nb_trainable_parameters()
        log.info("training %s of %s parameters on %d rows, %d steps at most", f"{trainable:,}", f"{total:,}", len(train), steps)
        trainer.train()
        log.info("least validation loss %.4f, seen at step %s", trainer.state.best_metric, trainer.state.best_global_step)
    save_adapter(trainer.model, ADAPTER_DIR)
    write_text(Path("reports/sft_history.csv"), history_csv(trainer.state.log_history))


if __name__ == "__main__":
    run_stage(main)

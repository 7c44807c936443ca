"""Fine-tune a LoRA adapter on the train rows, watched on the validation rows.

Reads data/formatted/train.jsonl, data/formatted/validation.jsonl and artifacts/base/. Writes
artifacts/adapter/, reports/sft_history.csv and reports/sft_memory.json: what was predicted and what
one step on the longest rows took.
"""

import logging
import shutil
from dataclasses import replace

from library.corpus.fractions import take_fraction
from library.entry import run_main
from library.files import write_json, write_text
from library.formatted import read_formatted
from library.llm.architectures import needs_no_padding, read_config
from library.llm.chat_template import load_tokenizer
from library.llm.checkpoints import checkpoint_dir
from library.llm.devices import describe_device, pick_device
from library.llm.loading import load_model
from library.llm.memory.planning import (
    LongestLengths,
    make_settings,
    plan_training,
    shorter_lengths,
)
from library.llm.patches import set_up_fused_head
from library.llm.processes import start_processes
from library.llm.trainer import CheckedTrainer
from library.llm.training import TrainingTask, build_trainer, history_csv, save_adapter
from library.llm.training_loop import train_within_memory
from library.llm.training_rows import count_steps
from library.params import load_model_file, load_params
from library.paths import ADAPTER_DIR, BASE_DIR, HISTORY_PATH, MEMORY_PATH, formatted_path

log = logging.getLogger(__name__)


def main() -> None:
    """Train and keep the adapter with the least validation loss."""
    state = start_processes()
    params = load_params()
    model_file = load_model_file(params.model)
    train = take_fraction(read_formatted("train"), params.sft.train_fraction)
    validation = read_formatted("validation")
    steps = count_steps(len(train), params.sft)
    log.info("%d train rows, %d optimizer steps at most", len(train), steps)

    device = pick_device()
    settings = make_settings(model_file, params.sft, device.type)
    settings = replace(settings, triton=set_up_fused_head(device))
    rows = [*train, *validation]
    longest = LongestLengths(
        length=max(row["prompt_tokens"] + row["answer_tokens"] for row in rows),
        answer=max(row["answer_tokens"] for row in train),
        shorter=shorter_lengths(rows, params.format),
    )
    checkpoints = checkpoint_dir(
        "sft",
        [formatted_path("train"), formatted_path("validation"), BASE_DIR],
        [
            params.format.max_length,
            params.sft.model_dump(),
            model_file.model_dump(),
            describe_device(),
        ],
    )
    task = TrainingTask(
        tokenizer=load_tokenizer(BASE_DIR),
        train=train,
        validation=validation,
        params=params.sft,
        max_length=params.format.max_length,
        gradient_checkpointing=model_file.gradient_checkpointing,
        output_dir=checkpoints,
        padding_free=needs_no_padding(device, read_config(BASE_DIR)),
    )

    def build(per_device: int) -> CheckedTrainer:
        model = load_model(BASE_DIR, model_file.quantization, shard=False)
        return build_trainer(model, task, per_device)

    trainer, memory = train_within_memory(
        lambda most_rows: plan_training(BASE_DIR, settings, params.sft, longest, most_rows),
        build,
        longest.length,
        checkpoints,
    )
    loss, step = trainer.state.best_metric, trainer.state.best_global_step
    log.info("least validation loss %.4f, at step %s", loss, step)
    if state.is_main_process:
        save_adapter(trainer.model, ADAPTER_DIR)
        write_text(HISTORY_PATH, history_csv(trainer.state.log_history))
        tokens = {"length": longest.length, "answer": longest.answer}
        write_json(MEMORY_PATH, {**memory, "longest": tokens})
        shutil.rmtree(checkpoints)
    state.wait_for_everyone()


if __name__ == "__main__":
    run_main(main)

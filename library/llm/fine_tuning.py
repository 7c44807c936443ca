"""One fine-tuning run, from formatted rows to the trained adapter."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from library.corpus.fractions import take_fraction
from library.formatted import read_formatted
from library.llm.architectures import needs_no_padding, read_config
from library.llm.chat_template import load_tokenizer
from library.llm.checkpoints import checkpoint_dir
from library.llm.devices import describe_device, pick_device
from library.llm.loading import load_model
from library.llm.memory.planning import LongestLengths, make_settings, shorter_lengths
from library.llm.patches import set_up_fused_head
from library.llm.trainer import CheckedTrainer
from library.llm.training import TrainingTask, build_trainer
from library.llm.training_loop import train_within_memory
from library.llm.training_rows import count_steps
from library.params import Params, load_model_file
from library.paths import BASE_DIR, formatted_path

log = logging.getLogger(__name__)


def training_dir(stage: str, params: Params) -> Path:
    """The folder for the checkpoints of a stage's run with these parameters."""
    return checkpoint_dir(
        stage,
        [formatted_path("train"), formatted_path("validation"), BASE_DIR],
        [
            params.format.max_length,
            params.sft.model_dump(exclude={"seeds"}),
            load_model_file(params.model).model_dump(),
            describe_device(),
        ],
    )


def fine_tune(params: Params, checkpoints: Path) -> tuple[CheckedTrainer, dict[str, Any]]:
    """Train until the validation loss stops falling; resumes from a checkpoint if there is one.

    Returns the trainer, whose model has the adapter with the lowest validation loss, and the
    predicted and measured memory. Raises InputError if not even one row fits.
    """
    model_file = load_model_file(params.model)
    train = take_fraction(read_formatted("train"), params.sft.train_fraction)
    validation = read_formatted("validation")
    steps = count_steps(len(train), params.sft)
    log.info(
        "%d train rows, epochs: %g, at most %d optimizer steps, validation every %d steps",
        *(len(train), params.sft.num_train_epochs, steps, params.sft.eval_steps),
    )

    device = pick_device()
    settings = make_settings(model_file, params.sft, device.type)
    settings = replace(settings, triton=set_up_fused_head(device))
    rows = [*train, *validation]
    longest = LongestLengths(
        length=max(row["prompt_tokens"] + row["answer_tokens"] for row in rows),
        answer=max(row["answer_tokens"] for row in train),
        shorter=shorter_lengths(rows, params.format),
    )
    task = TrainingTask(
        tokenizer=load_tokenizer(BASE_DIR),
        train=train,
        validation=validation,
        params=params.sft,
        max_length=params.format.max_length,
        gradient_checkpointing=settings.gradient_checkpointing,
        output_dir=checkpoints,
        padding_free=needs_no_padding(device, read_config(BASE_DIR)),
    )

    def build(per_device: int, checkpointing: bool) -> CheckedTrainer:
        model = load_model(BASE_DIR, model_file.quantization, shard=False)
        return build_trainer(model, replace(task, gradient_checkpointing=checkpointing), per_device)

    trainer, memory = train_within_memory(settings, params.sft, longest, build, checkpoints)
    loss, step = trainer.state.best_metric, trainer.state.best_global_step
    log.info("the adapter of step %s has the lowest validation loss, %.4f", step, loss)
    return trainer, memory

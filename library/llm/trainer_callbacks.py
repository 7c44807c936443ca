"""Callbacks of the trainer: each epoch's order, progress, and marks on complete checkpoints."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from library.llm.checkpoints import COMPLETE
from library.llm.processes import processes
from library.llm.training_rows import EpochSampler
from library.progress import SECONDS_BETWEEN_UPDATES


class AdvanceEpoch(TrainerCallback):  # type: ignore[misc]  # transformers ships types that mypy is told to skip
    """Tells the sampler which epoch begins."""

    def __init__(self, order: EpochSampler) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch that begins, or that a resumed run is in, for the sampler's order."""
        self.order.epoch = int(state.epoch or 0)


class Progress(ProgressCallback):  # type: ignore[misc]
    """A progress bar, with a line for each evaluation."""

    loss = float("nan")
    measure, title = "eval_loss", "validation loss"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar, and limit how often it is redrawn."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.mininterval = SECONDS_BETWEEN_UPDATES

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show no bar for an evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write the last logged loss next to each validation loss."""
        self.loss = logs.get("loss", self.loss)
        if self.measure in logs and self.training_bar is not None:
            self.training_bar.write(
                f"step {state.global_step} of {state.max_steps}: loss {self.loss:.4f}, "
                f"{self.title} {logs[self.measure]:.4f}"
            )


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint once it is completely written; a kill can leave half of one."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint just written, once all processes have finished it."""
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

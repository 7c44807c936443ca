"""Fine-tune a LoRA adapter on the train rows; the lowest validation loss selects the checkpoint.

Reads data/formatted/train.jsonl, data/formatted/validation.jsonl and artifacts/base/. Writes
artifacts/adapter/, reports/sft_history.csv and reports/sft_memory.json: the predicted memory, the
memory of one step on the longest rows and, on CUDA, whether it computed deterministically.
"""

import logging
import shutil

from library.entry import run_main
from library.files import write_json, write_text
from library.llm.determinism import describe_determinism
from library.llm.devices import pick_device
from library.llm.fine_tuning import fine_tune, training_dir
from library.llm.processes import start_processes
from library.llm.training import history_csv, save_adapter
from library.params import load_params
from library.paths import ADAPTER_DIR, HISTORY_PATH, MEMORY_PATH

log = logging.getLogger(__name__)


def main() -> None:
    """Train, and save the adapter with the lowest validation loss."""
    state = start_processes()
    params = load_params()
    checkpoints = training_dir("sft", params)
    trainer, memory = fine_tune(params, checkpoints)
    if state.is_main_process:
        save_adapter(trainer.model, ADAPTER_DIR)
        write_text(HISTORY_PATH, history_csv(trainer.state.log_history))
        write_json(MEMORY_PATH, {**memory, **describe_determinism(pick_device())})
        shutil.rmtree(checkpoints)
        log.info("%s: the adapter", ADAPTER_DIR)
    state.wait_for_everyone()


if __name__ == "__main__":
    run_main(main)

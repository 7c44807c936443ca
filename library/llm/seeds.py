"""Fine-tune once more with each further seed, and ask the test rows."""

import logging
import shutil
from pathlib import Path

from library.files import hash_adapter, read_json, write_json
from library.formatted import read_formatted
from library.llm.fine_tuning import fine_tune, training_dir
from library.llm.memory.measuring import free_memory
from library.llm.processes import start_processes
from library.llm.session import open_session
from library.llm.training import save_adapter
from library.params import Params
from library.paths import ADAPTER_RECORD, SEEDS_PATH, seed_name
from library.records import seed_system

log = logging.getLogger(__name__)


def is_whole(adapter_dir: Path) -> bool:
    """Whether an adapter is there, unchanged since it was saved."""
    record = adapter_dir / ADAPTER_RECORD
    return record.is_file() and read_json(record)["adapter"] == hash_adapter(adapter_dir)


def repeat_with_seeds(params: Params) -> None:
    """Train and answer with each seed of `sft.seeds` besides `sft.seed`, one after the other.

    Each seed's adapter and answers are kept under checkpoints/, and reused if nothing has changed.
    """
    state = start_processes()
    if state.is_main_process:
        shutil.rmtree(SEEDS_PATH.parent, ignore_errors=True)
    test = read_formatted("test")
    for seed in params.sft.more_seeds:
        sft = params.sft.model_copy(update={"seed": seed})
        run = params.model_copy(update={"sft": sft})
        kept_dir = training_dir("seeds", run)
        adapter_dir = kept_dir / "adapter"
        if not is_whole(adapter_dir):
            log.info("training with seed %d", seed)
            trainer, _ = fine_tune(run, kept_dir)
            if state.is_main_process:
                save_adapter(trainer.model, adapter_dir)
            state.wait_for_everyone()
            del trainer
        if state.is_main_process:
            for checkpoint in kept_dir.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        free_memory()
        name = seed_name(seed_system(seed))
        session = open_session("seeds", adapter_dir, rows={"test": test}, trained=True)
        session.close(name, {name: session.answer("test", seed_system(seed))})
        del session
        free_memory()
    if state.is_main_process:
        write_json(SEEDS_PATH, {"seeds": params.sft.more_seeds})

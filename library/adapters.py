"""Whether the adapters of sft and dpo belong to the present parameters and files."""

from library.errors import InputError
from library.files import hash_adapter, hash_file, read_json
from library.params import Params
from library.paths import (
    ADAPTER_DIR,
    ADAPTER_DIRS,
    ADAPTER_RECORD,
    ADAPTER_WEIGHTS,
    DPO_ADAPTER_DIR,
    PARAMS_PATH,
    formatted_path,
)
from library.records import DPO


def check_turned_on(system: str, params: Params) -> None:
    """Raise InputError if the parameters turn the training of a system off."""
    if system == DPO and not params.dpo.num_train_epochs:
        raise InputError(
            f"{PARAMS_PATH}: dpo.num_train_epochs is 0, which turns DPO off; run "
            "`dvc exp run -S dpo.num_train_epochs=1`"
        )


def check_trained_rows(system: str) -> None:
    """Raise InputError if the adapter of sft or dpo was trained on other rows than are there."""
    folder = ADAPTER_DIRS[system]
    for split, rows in read_json(folder / ADAPTER_RECORD)["rows"].items():
        if hash_file(formatted_path(split)) != rows:
            raise InputError(
                f"{folder}: trained on other rows than {formatted_path(split)} holds; run "
                "`dvc repro`"
            )


def check_started_from() -> None:
    """Raise InputError if dpo's training did not start from the present adapter of sft; if that is
    not there, this is not known.
    """
    if not (ADAPTER_DIR / ADAPTER_WEIGHTS).is_file():
        return
    record = read_json(DPO_ADAPTER_DIR / ADAPTER_RECORD)
    if record["started_from"] != hash_adapter(ADAPTER_DIR):
        raise InputError(
            f"{DPO_ADAPTER_DIR}: trained on from another adapter than {ADAPTER_DIR} holds; run "
            "`dvc repro`"
        )

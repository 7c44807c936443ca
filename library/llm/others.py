"""What else a fine-tuned model is compared with: its base with examples, and other models."""

import gc
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from library.errors import InputError
from library.files import read_json, read_jsonl, write_json
from library.formatted import read_formatted
from library.llm.architectures import count_positions
from library.llm.chat_template import (
    hash_ids,
    load_tokenizer,
    prompt_completion_ids,
    prompt_ids,
)
from library.llm.examples import few_shot_rows
from library.llm.preparing import prepare_base
from library.llm.processes import start_processes
from library.llm.prompts import load_prompt
from library.llm.session import open_session
from library.params import Params, list_others
from library.paths import (
    BASE_DIR,
    CLEAN_ROWS_PATH,
    OTHERS_PATH,
    RIVALS_DIR,
    SPLITS_PATH,
    other_name,
    prompt_path,
)
from library.records import FEW_SHOT, CleanRow, FormattedRow

log = logging.getLogger(__name__)


def ask_others(params: Params) -> None:
    """Ask each system that `evaluate` names the test rows, one after the other; what was asked
    before, and has not changed, is not asked again.

    Raises InputError where a system can't be asked.
    """
    state = start_processes()
    if state.is_main_process:
        shutil.rmtree(OTHERS_PATH.parent, ignore_errors=True)
    test = read_formatted("test")
    if params.evaluate.few_shot:
        _ask(FEW_SHOT, params.model, BASE_DIR, _few_shot(test, params))
    for name in params.evaluate.rivals:
        base_dir = RIVALS_DIR / name
        if state.is_main_process:
            prepare_base(name, base_dir, params.sft)
        state.wait_for_everyone()
        _ask(name, name, base_dir, _rival_rows(test, name, base_dir))
    if state.is_main_process:
        write_json(OTHERS_PATH, {"systems": list_others(params.evaluate)})


def _ask(system: str, model: str, base_dir: Path, rows: Sequence[FormattedRow]) -> None:
    session = open_session("others", base_dir=base_dir, model=model, rows={"test": rows})
    # what was answered is kept: another system, and this one need not be asked again
    session.close(other_name(system), {other_name(system): session.answer("test", system)})
    del session  # the next model needs its memory
    gc.collect()
    torch.cuda.empty_cache()


def _few_shot(test: Sequence[FormattedRow], params: Params) -> list[FormattedRow]:
    clean = {row["id"]: cast(CleanRow, row) for row in read_jsonl(CLEAN_ROWS_PATH)}
    count = params.evaluate.few_shot
    template = load_prompt(
        prompt_path(params.format.prompt), read_json(SPLITS_PATH)["answer_sentences"]
    )
    rows, fewer = few_shot_rows(
        *(test, clean, read_formatted("train"), count),
        *(load_tokenizer(BASE_DIR), template, params.format),
    )
    log.info("few-shot: %d rows, %d with room for fewer than %d examples", len(rows), fewer, count)
    return rows


def _rival_rows(test: Sequence[FormattedRow], name: str, base_dir: Path) -> list[FormattedRow]:
    """The same messages in another model's tokens."""
    tokenizer, positions = load_tokenizer(base_dir), count_positions(base_dir)
    rows: list[FormattedRow] = []
    for row in test:
        ids = prompt_ids(tokenizer, row["messages"])
        answers = [row["positive"], *([row["negative"]] if row["negative"] else [])]
        longest = max(
            len(prompt_completion_ids(tokenizer, row["messages_bare"], text)[1]) for text in answers
        )
        if positions is not None and len(ids) + longest > positions:
            raise InputError(
                f"evaluate.rivals: {name}: row {row['id']} takes {len(ids) + longest} of its "
                f"tokens, and it has {positions} positions; lower format.max_length"
            )
        rows.append(
            {
                **row,
                "prompt_tokens": len(ids),
                "prompt_hash": hash_ids(ids),
                "tokens": len(ids) + longest,
            }
        )
    return rows

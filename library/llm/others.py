"""Ask the systems to compare with: the base with examples or thinking, and other models."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from library.errors import InputError
from library.files import read_json, read_jsonl, write_json
from library.formatted import read_formatted
from library.llm.adapted_template import adapt_template
from library.llm.architectures import count_positions
from library.llm.chat_template import (
    hash_ids,
    load_tokenizer,
    prompt_completion_ids,
    prompt_ids,
)
from library.llm.examples import few_shot_rows
from library.llm.manifest import find_model_folder
from library.llm.memory.measuring import free_memory
from library.llm.preparing import prepare_base
from library.llm.processes import start_processes
from library.llm.prompts import load_asked_prompt
from library.llm.session import AnsweringSession, open_session, plan_rows
from library.llm.thinking import CLOSING, answer_after_thoughts
from library.params import Params, list_others, load_model_file
from library.paths import (
    BASE_DIR,
    CLEAN_ROWS_PATH,
    MANIFEST_PATH,
    OTHERS_PATH,
    RIVALS_DIR,
    other_name,
)
from library.records import FEW_SHOT, THINKING, CleanRow, FormattedRow, Prediction

log = logging.getLogger(__name__)


def ask_others(params: Params) -> None:
    """Ask each system that `evaluate` names the test rows, one after the other.

    Systems that have not changed since they were asked are skipped. Raises InputError if one cannot
    be asked.
    """
    state = start_processes()
    if state.is_main_process:
        shutil.rmtree(OTHERS_PATH.parent, ignore_errors=True)
    test = read_formatted("test")
    # check all systems before asking any
    thinking = _load_thinking_tokenizer(params) if params.evaluate.thinking_tokens else None
    examples: dict[str, float] = {}
    with_examples: list[FormattedRow] = []
    if params.evaluate.few_shot:
        with_examples, examples = _few_shot(test, params)
        _check_memory("evaluate.few_shot", params.model, BASE_DIR, with_examples, params)
    rivals: dict[str, list[FormattedRow]] = {}
    thoughtful = [] if thinking is None else _rows_for_thoughts(test, thinking, params)
    for name in params.evaluate.rivals:
        base_dir = RIVALS_DIR / name
        if state.is_main_process:
            prepare_base(name, base_dir, params.sft)
        state.wait_for_everyone()
        title = f"evaluate.rivals: {name}"
        rivals[name] = _rows_in_tokens(test, load_tokenizer(base_dir), base_dir, title)
        _check_memory(title, name, base_dir, rivals[name], params, instead="{} in its place")
    if with_examples:
        _ask(FEW_SHOT, params.model, BASE_DIR, with_examples)
    if thinking is not None:
        _ask_thinking(thoughtful, thinking, params)
    for name, rows in rivals.items():
        _ask(name, name, RIVALS_DIR / name, rows)
    if state.is_main_process:
        systems = list_others(params.evaluate)
        write_json(
            OTHERS_PATH, {"systems": systems, **({"examples": examples} if examples else {})}
        )


def _ask(system: str, model: str, base_dir: Path, rows: Sequence[FormattedRow]) -> None:
    session = _open(base_dir=base_dir, model=model, rows={"test": rows})
    _close(session, system, session.answer("test", system))


def _check_memory(
    title: str,
    model: str,
    base_dir: Path,
    rows: Sequence[FormattedRow],
    params: Params,
    thinking_tokens: int = 0,
    instead: str = "model={}",
) -> None:
    """Raise InputError, beginning with `title`, if the longest row does not fit into memory.

    Logs nothing: `open_session` plans again, with what is free then, and says so.
    """
    try:
        model_file = load_model_file(model)
        plan_rows(base_dir, model_file, params, rows, thinking_tokens, instead, shown=False)
    except InputError as error:
        raise InputError(f"{title}: {error}") from error


def _load_thinking_tokenizer(params: Params) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(find_model_folder(read_json(MANIFEST_PATH)["source"]))
    adapt_template(tokenizer, load_model_file(params.model).chat_template_kwargs, thinking=True)
    return tokenizer


def _rows_for_thoughts(
    test: Sequence[FormattedRow], tokenizer: PreTrainedTokenizerBase, params: Params
) -> list[FormattedRow]:
    count = params.evaluate.thinking_tokens
    name = "evaluate.thinking_tokens"
    rows = _rows_in_tokens(
        test, tokenizer, BASE_DIR, name, count + CLOSING + params.format.max_new_tokens
    )
    _check_memory(name, params.model, BASE_DIR, rows, params, thinking_tokens=count)
    return rows


def _ask_thinking(
    rows: Sequence[FormattedRow], tokenizer: PreTrainedTokenizerBase, params: Params
) -> None:
    count = params.evaluate.thinking_tokens
    session = _open(rows={"test": rows}, thinking_tokens=count)
    answers = answer_after_thoughts(
        *(session.model, tokenizer, rows, count, session.max_new_tokens),
        *(session.batching, THINKING),
    )
    _close(session, THINKING, answers)


def _open(**asked: Any) -> AnsweringSession:
    free_memory()  # of the last model
    return open_session("others", **asked)


def _close(session: AnsweringSession, system: str, answers: Sequence[Prediction]) -> None:
    # answers are kept: changing one system does not repeat the others
    session.close(other_name(system), {other_name(system): answers})


def _few_shot(
    test: Sequence[FormattedRow], params: Params
) -> tuple[list[FormattedRow], dict[str, float]]:
    clean = {row["id"]: cast(CleanRow, row) for row in read_jsonl(CLEAN_ROWS_PATH)}
    count = params.evaluate.few_shot
    template = load_asked_prompt(params.format.prompt)
    rows, counts = few_shot_rows(
        *(test, clean, read_formatted("train"), count),
        *(load_tokenizer(BASE_DIR), template, params.format),
    )
    if not any(counts):
        raise InputError(
            f"evaluate.few_shot: of {len(rows)} test rows none has room for an example: raise "
            "format.max_length, or set it to 0"
        )
    log.info("few-shot: %.1f examples per prompt on average (wanted: %d)", mean(counts), count)
    if 0 in counts:
        log.warning("few-shot: %d prompts have no room for an example", counts.count(0))
    return rows, {"asked": count, "mean": mean(counts), "rows_without": counts.count(0)}


def _rows_in_tokens(
    test: Sequence[FormattedRow],
    tokenizer: PreTrainedTokenizerBase,
    base_dir: Path,
    name: str,
    room: int = 0,
) -> list[FormattedRow]:
    """The same messages tokenized for another model, with `room` tokens for its output.

    Raises InputError, beginning with `name`, if the model has too few positions.
    """
    positions = count_positions(base_dir)
    rows: list[FormattedRow] = []
    for row in test:
        ids = prompt_ids(tokenizer, row["messages"])
        answers = [row["positive"], *([row["negative"]] if row["negative"] else [])]
        longest = max(
            room,
            *(
                len(prompt_completion_ids(tokenizer, row["messages_bare"], text)[1])
                for text in answers
            ),
        )
        if positions is not None and len(ids) + longest > positions:
            raise InputError(
                f"{name}: row {row['id']} takes {len(ids) + longest} tokens, and the model has "
                f"{positions} positions; lower format.max_length"
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

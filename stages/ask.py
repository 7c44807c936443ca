"""Ask at a terminal, with the prompt that the pipeline would build: python -m stages.ask "question" --context file.txt

Question and context are cleaned as `clean` does it, and passages chosen within the same budget as `format` does it. The base model
answers with the adapter; with --base without it; with --model a folder such as artifacts/merged does. The answer alone goes to
standard output.
"""

import argparse
import json
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from stages.corpus.passages import passages_given
from stages.corpus.rows import is_text
from stages.corpus.rules import clean_text
from stages.format import format_row
from stages.llm.answering import answer_rows
from stages.llm.loading import check_made, load_model
from stages.llm.manifest import check_files
from stages.llm.merging import load_merged
from stages.llm.prompts import BASE_DIR, build_messages, load_prompt, load_tokenizer, prompt_ids, reads_passages
from stages.llm.sharding import find_sharding
from stages.params import Params, load_model_file, load_params
from stages.run import InputError, run_stage

log = logging.getLogger(__name__)


def read_context(name: str) -> str:
    """The text of a file, or of standard input where its name is "-". Raises InputError where it can't be read or is empty."""
    path = Path(name)
    if name != "-" and (path.is_dir() or not path.exists()):
        raise InputError(f"{name}: {'a folder' if path.is_dir() else 'no such file'} (--context)")
    try:
        text = (sys.stdin.buffer.read() if name == "-" else path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if not text.strip():
        raise InputError(f"{name}: the context is empty; leave --context out to ask the question alone")
    return text


def format_question(
    question: str, context: str, tokenizer: PreTrainedTokenizerBase, template: Template, params: Params
) -> dict[str, Any]:
    """A question as the test row that `clean` and `format` would make of it, but without answers; and `context`, cleaned.

    Raises InputError where nothing is left of the question, where it leaves no room for the answer, or where a text holds the
    tokenizer's markup.
    """
    if not is_text(question):
        raise InputError("the question is not UTF-8; set the terminal to UTF-8")
    rules = [name for name, on in params.clean.rules if on]
    question, context = (clean_text(text, rules)[0] for text in (question, context))
    if not question.strip():
        raise InputError("the question is empty; ask one, in quotation marks")
    tokens = len(prompt_ids(tokenizer, build_messages(template, [], question)))
    budget = params.format.max_length - params.format.max_new_tokens
    if tokens > budget:
        raise InputError(
            f"the question takes {tokens} tokens, {budget} are for question and passages (format.max_length less "
            "format.max_new_tokens in params.yaml); ask a shorter one"
        )
    row = {"id": "question", "query": question, "anchor": context, "positive": "", "negative": None, "contradicts": None}
    try:
        formatted = format_row(row, "test", tokenizer, template, params.format)
    except InputError as error:
        raise InputError(f"question or context: {error}; take it out") from error
    return {**formatted, "group": "", "pair": None, "positive": None, "context": context}


def main() -> None:
    """Answer the question of the command line."""
    parser = argparse.ArgumentParser(prog="python -m stages.ask", description="Ask the fine-tuned model.")
    parser.add_argument("question")
    parser.add_argument("--context", help="a text file to answer from; - is standard input")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--base", action="store_true", help="ask the base model without the adapter")
    which.add_argument("--model", type=Path, help="ask the model in this folder, such as artifacts/merged")
    parser.add_argument("--max-new-tokens", type=int, help="cut the answer off after so many (default: format.max_new_tokens)")
    parser.add_argument("--show-passages", action="store_true", help="show the passages of the prompt, on standard error")
    options = parser.parse_args()
    params = load_params()
    find_sharding()  # what it refuses is refused before anything is loaded
    limit = params.format.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens
    if limit < 1:
        raise InputError(f"--max-new-tokens: expected a positive whole number, got {limit}")
    context = "" if options.context is None else read_context(options.context)
    adapter_dir = None if options.base else Path("artifacts/adapter")
    if options.model is None:
        check_made(BASE_DIR, adapter_dir)
    elif options.model.is_dir():
        check_files(options.model, str(options.model))
    else:
        raise InputError(f"{options.model}: no such folder (--model); `make export` makes artifacts/merged")
    folder = options.model or BASE_DIR
    tokenizer = load_tokenizer(folder)
    template = load_prompt(Path("prompts") / f"{params.format.prompt}.jinja")
    row = format_question(options.question, context, tokenizer, template, params)
    positions = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    if positions is not None and row["prompt_tokens"] + limit > positions:
        raise InputError(f"--max-new-tokens: {limit} after {row['prompt_tokens']} of the prompt are beyond the model's {positions}")

    passages = passages_given(row, row["context"], params.format.passage_characters)
    if context and not passages:
        reason = "the question leaves no room for a whole one"
        if not row["context"].strip():
            reason = "nothing is left of it once it is cleaned"
        elif not reads_passages(template):
            reason = "the template leaves them out"
        log.warning("no passage of the context is in the prompt: %s", reason)
    if options.show_passages:
        for index, passage in zip(row["passages"], passages, strict=False):
            log.info("passage %d of %d: %s\n", index + 1, row["passages_in_context"], passage)
    with redirect_stdout(sys.stderr):  # what libraries print is no answer
        quantization = load_model_file(params.model).quantization
        model = load_merged(folder) if options.model else load_model(BASE_DIR, quantization, adapter_dir)
        (answer,) = answer_rows(model, tokenizer, [row], limit)
    if answer["finish_reason"] == "length":
        log.warning("the answer was cut off after %d tokens; --max-new-tokens allows more", limit)
    print(answer["prediction"])


if __name__ == "__main__":
    run_stage(main)

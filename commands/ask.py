"""Ask the model a question in a terminal: python -m commands.ask "question" --context file.txt

Builds the prompt as the pipeline does: it cleans question and context like `clean` and chooses
passages within the budget like `format`. The fine-tuned model answers; --system dpo asks the model
after DPO, --base (or --system zeroshot) the base model, --model a folder such as artifacts/merged.
Only the answer goes to standard output.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from library.adapters import check_started_from, check_turned_on
from library.corpus.cleaning_rules import clean_text
from library.corpus.shapes import is_text
from library.embed.retrieving import load_ranker
from library.entry import run_main
from library.errors import InputError
from library.llm.architectures import count_positions
from library.llm.chat_template import find_markup, load_tokenizer
from library.llm.devices import pick_device
from library.llm.generation import generate_answers
from library.llm.loading import check_artifacts, load_merged, load_model
from library.llm.manifest import check_model_files
from library.llm.memory.formula import ComputeSettings
from library.llm.memory.planning import (
    LongestLengths,
    Way,
    make_settings,
    merged,
    offloaded_ways,
    on_cpu,
    plan_answering,
    plan_dequantizing,
    unadapted,
)
from library.llm.prompts import Prompt, build_prompt, load_asked_prompt, reads_passages
from library.llm.sharding import find_sharding
from library.params import Params, load_model_file, load_params
from library.paths import ADAPTER_DIR, ADAPTER_DIRS, BASE_DIR
from library.records import DPO, SFT, ZEROSHOT

log = logging.getLogger(__name__)


def read_context(name: str) -> str:
    """Read the context from a file, or from standard input if `name` is "-".

    Raises InputError if it cannot be read or is empty.
    """
    path = Path(name)
    if name != "-" and (path.is_dir() or not path.exists()):
        raise InputError(f"{name}: {'a folder' if path.is_dir() else 'no such file'} (--context)")
    try:
        text = (sys.stdin.buffer.read() if name == "-" else path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if not text.strip():
        raise InputError(
            f"{name}: the context is empty; leave --context out to ask the question alone"
        )
    return text


def clean_question(question: str, context: str, params: Params) -> tuple[str, str]:
    """Clean question and context as `clean` does.

    Raises InputError if nothing is left of the question.
    """
    if not is_text(question):
        raise InputError("the question is not UTF-8; set the terminal to UTF-8")
    rules = [name for name, on in params.clean.rules if on]
    question, context = (clean_text(text, rules)[0] for text in (question, context))
    if not question.strip():
        raise InputError("the question is empty; ask one, in quotation marks")
    return question, context


def prompt_for(
    question: str,
    context: str,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    params: Params,
) -> Prompt:
    """Build the prompt of a cleaned question and context, as `format` does for a test row.

    Raises InputError if the question leaves no room for the answer, or if a text contains markup of
    the tokenizer.
    """
    budget = params.format.max_length - params.format.max_new_tokens
    prompt = build_prompt(
        *(tokenizer, template, question, context, budget, params.format.passage_characters),
        rank=load_ranker(params.format.retriever),
    )
    if len(prompt.question_ids) > budget:
        raise InputError(
            f"the question takes {len(prompt.question_ids)} tokens, but question and passages may "
            f"take {budget} (format.max_length minus format.max_new_tokens); ask a shorter one"
        )
    markup = find_markup(tokenizer, (question, context))
    if markup is not None:
        raise InputError(
            f"question or context: contains the tokenizer's markup {markup!r}; remove it"
        )
    return prompt


def why_no_passage(context: str, template: Template) -> str:
    """Say why no passage of a cleaned context is in the prompt."""
    if not context.strip():
        return "cleaning leaves nothing of it"
    if not reads_passages(template):
        return "the prompt template leaves passages out"
    return "the question leaves no room for a whole passage"


def parse_options() -> argparse.Namespace:
    """Parse the command line. Raises InputError for a number out of range."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.ask", description="Ask the fine-tuned model."
    )
    parser.add_argument("question")
    parser.add_argument("--context", help="a text file to answer from; - is standard input")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--system",
        choices=[ZEROSHOT, *ADAPTER_DIRS],
        default=SFT,
        help="ask the base model, the fine-tuned one (the default), or the one after DPO",
    )
    which.add_argument(
        "--base",
        action="store_const",
        dest="system",
        const=ZEROSHOT,
        help="ask the base model: --system zeroshot",
    )
    which.add_argument(
        "--model", type=Path, help="ask the model in this folder, such as artifacts/merged"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help="longest answer in tokens (default: format.max_new_tokens)",
    )
    parser.add_argument(
        "--show-passages",
        action="store_true",
        help="print the passages of the prompt to standard error",
    )
    options = parser.parse_args()
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise InputError(
            f"--max-new-tokens: expected a positive whole number, got {options.max_new_tokens}"
        )
    return options


def check_memory(
    folder: Path, options: argparse.Namespace, params: Params, prompt: int, limit: int
) -> bool:
    """Log the memory for answering a prompt of `prompt` tokens with up to `limit` new ones.

    Returns whether there is room to dequantize 4-bit weights once. Raises InputError if it does not
    fit, with a list of what would.
    """
    adapted = make_settings(load_model_file(params.model), params.sft, pick_device().type)
    settings, longest = adapted, LongestLengths(prompt + limit, limit)
    ways: list[Iterable[Way]] = []
    if options.model is not None:
        settings = merged(adapted)
        if (BASE_DIR / "config.json").is_file() and ADAPTER_DIR.is_dir():
            way = Way("base model and adapter, without --model", adapted, longest, BASE_DIR)
            ways.append([way])
        if settings.device_type == "cuda":
            ways.append(
                [Way("CUDA_VISIBLE_DEVICES= in the environment", on_cpu(settings), longest)]
            )
    elif options.system == ZEROSHOT:
        settings = unadapted(adapted)
    if options.model is None:
        ways.append(offloaded_ways(settings, longest))
    ways += [shorter_prompts(settings, prompt, limit), shorter_answers(settings, prompt, limit)]
    tokens = plan_answering(folder, settings, longest, ways, most_tokens=longest.length)
    return plan_dequantizing(folder, settings, longest, tokens)


def halves(count: int, least: int = 16) -> Iterator[int]:
    """Yield half of a count, a quarter and so on, down to `least`."""
    while (count := count // 2) >= least:
        yield count


def shorter_prompts(settings: ComputeSettings, prompt: int, limit: int) -> Iterator[Way]:
    """Yield ways to ask with half of the prompt's tokens, a quarter and so on."""
    for tokens in halves(prompt):
        change = f"question and --context of {tokens} tokens, as a prompt"
        yield Way(change, settings, LongestLengths(tokens + limit, limit))


def shorter_answers(settings: ComputeSettings, prompt: int, limit: int) -> Iterator[Way]:
    """Yield ways to ask with half of the answer's tokens, a quarter and so on."""
    for tokens in halves(limit):
        change = f"--max-new-tokens {tokens}"
        yield Way(change, settings, LongestLengths(prompt + tokens, tokens))


def main() -> None:
    """Answer the question given on the command line."""
    options = parse_options()
    params = load_params()
    find_sharding()  # raises before anything is loaded
    limit = options.max_new_tokens or params.format.max_new_tokens
    context = "" if options.context is None else read_context(options.context)
    adapter_dir = ADAPTER_DIRS.get(options.system)
    if options.model is None:
        check_turned_on(options.system, params)
        check_artifacts(BASE_DIR, adapter_dir)
        if options.system == DPO:
            check_started_from()
    elif options.model.is_dir():
        check_model_files(options.model, str(options.model))
    else:
        raise InputError(
            f"{options.model}: no such folder (--model); `make export` makes artifacts/merged"
        )
    folder = options.model or BASE_DIR
    tokenizer = load_tokenizer(folder)
    template = load_asked_prompt(params.format.prompt)
    question, cleaned = clean_question(options.question, context, params)
    prompt = prompt_for(question, cleaned, tokenizer, template, params)
    positions = count_positions(folder)
    if positions is not None and len(prompt.ids) + limit > positions:
        raise InputError(
            f"--max-new-tokens: {limit} after a prompt of {len(prompt.ids)} tokens exceed the "
            f"model's {positions}"
        )

    if context and not prompt.passages:
        reason = why_no_passage(cleaned, template)
        log.warning("no passage of the context is in the prompt: %s", reason)
    if options.show_passages:
        for index, passage in zip(prompt.indices, prompt.passages, strict=True):
            log.info("passage %d of %d: %s\n", index + 1, len(prompt.ranked), passage)
    once = check_memory(folder, options, params, len(prompt.ids), limit)
    with redirect_stdout(sys.stderr):  # keep what libraries print out of the answer
        if options.model:
            model = load_merged(folder)
        else:
            quantization = load_model_file(params.model).quantization
            model = load_model(BASE_DIR, quantization, adapter_dir, dequantize=once)
        (answer,) = generate_answers(model, tokenizer, [prompt.ids], limit)
    if answer["finish_reason"] == "length":
        log.warning("the answer was cut off at %d tokens; allow more with --max-new-tokens", limit)
    print(answer["prediction"])


if __name__ == "__main__":
    run_main(main)

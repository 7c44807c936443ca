"""How the model is asked: prompt templates, the messages they make, and the tokens of prompts and answers."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages.run import InputError

BASE_DIR = Path("artifacts/base")

Message = dict[str, str]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template, an end-of-turn token and a padding token. Raises InputError without them."""
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no usable tokenizer: {error}") from error
    if tokenizer.chat_template is None:
        raise InputError(f"{folder}: the tokenizer has no chat template; choose an instruct model")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer names no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_prompt(path: Path) -> Template:
    """Read a template with the blocks `system` and `user`. Raises InputError naming the file where it has not both."""
    # Nothing is escaped: the text goes to a tokenizer, never to a page.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        template = environment.from_string(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.jinja")))
        raise InputError(f"{path}: no such prompt template; there are: {known} (format.prompt in params.yaml)") from None
    except TemplateError as error:
        raise InputError(f"{path}: {error}") from error
    missing = {"system", "user"} - set(template.blocks)
    if missing:
        raise InputError(f"{path}: needs the block {' and '.join(sorted(missing))}")
    return template


def build_messages(template: Template, passages: Sequence[str], question: str) -> list[Message]:
    """The system and user messages of one row. No passages or an empty question leave that part of the prompt out.

    The system message is always there: chat templates such as Qwen's put one of their own in its place otherwise.
    """

    def render(block: str) -> str:
        context = template.new_context({"passages": list(passages), "question": question})
        return "".join(template.blocks[block](context)).strip()

    return [{"role": "system", "content": render("system")}, {"role": "user", "content": render("user")}]


def reads_passages(template: Template) -> bool:
    """Whether a template shows the model the passages that it is given."""
    return build_messages(template, ["A passage."], "A question?") != build_messages(template, [], "A question?")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the messages up to where the model's answer begins."""
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)
    return [int(token) for token in ids]


def hash_ids(ids: Sequence[int]) -> str:
    """Sixteen hexadecimal digits that tell one prompt from another, as the model sees it."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def prompt_completion_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str
) -> tuple[list[int], list[int]]:
    """Token ids of the messages up to where the answer begins, and of the answer, up to and with the end-of-turn token.

    Raises InputError where the chat template does not continue the prompt's tokens, or ends no answer with that token.
    """
    prompt = prompt_ids(tokenizer, messages)
    turns = [*messages, {"role": "assistant", "content": answer}]
    ids = [int(token) for token in tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)]
    if ids[: len(prompt)] != prompt:
        raise InputError("the tokenizer's chat template changes the prompt once an answer follows it")
    completion = ids[len(prompt) :]
    while completion and completion[-1] != tokenizer.eos_token_id:
        completion.pop()
    if not completion:
        raise InputError(f"the tokenizer's chat template ends no answer with its eos_token {tokenizer.eos_token!r}")
    return prompt, completion

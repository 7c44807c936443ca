"""Turn messages into tokens with a model's chat template: the prompt, and the answer's turn."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from library.errors import InputError, describe_error
from library.records import Message

THINK, THINK_END = "<think>", "</think>"  # around thoughts, in all templates that know thinking
# what such a template adds to a prompt when thinking is off
_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*\Z")
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")  # one of them makes a tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a chat template, an end-of-turn token and a padding token.

    Raises InputError if one is missing.
    """
    if not any(file for pattern in VOCABULARIES for file in folder.glob(pattern)):
        raise InputError(f"{folder}: no tokenizer: found none of {', '.join(VOCABULARIES)}")
    try:
        tokenizer = cast(
            PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, local_files_only=True)
        )
    except Exception as error:  # any kind: the files are broken
        raise InputError(f"{folder}: no usable tokenizer: {describe_error(error)}") from error
    if tokenizer.chat_template is None:
        raise InputError(f"{folder}: the tokenizer has no chat template; choose an instruct model")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer names no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@cache
def _markup(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern of the tokens that decoding drops or that the chat template is made of.

    `all_special_tokens` has only tokens with a role: neither `<|im_start|>` nor `<filename>`.
    """
    template = str(tokenizer.chat_template)
    tokens = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template)
    }
    every = sorted({*tokens, *tokenizer.all_special_tokens}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, every)) or r"(?!)")


def find_markup(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> str | None:
    """The tokenizer's markup in one of the texts, or None.

    It would be read as markup in a prompt, or lost when an answer is decoded.
    """
    for text in texts:
        if found := _markup(tokenizer).search(text):
            return found[0]
    return None


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
) -> str:
    """The messages as the chat template writes them. Raises InputError if the template refuses
    them.
    """
    return str(_apply(tokenizer, messages, add_generation_prompt, tokenize=False))


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tokenize: bool = True,
) -> Any:
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=add_generation_prompt,
            tokenize=tokenize,
            return_dict=False,
        )
    except Exception as error:  # any kind: the template is foreign code
        roles = ", ".join(message["role"] for message in messages)
        reason = error if isinstance(error, TemplateError) else describe_error(error)
        raise InputError(
            f"the tokenizer's chat template does not take messages of {roles}: {reason}"
        ) from error


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the messages, up to where the model's answer begins."""
    return list(map(int, _apply(tokenizer, messages, add_generation_prompt=True)))


def read_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer's token ids, with its spaces as they are.

    Llama 3's tokenizer would drop the one before a comma.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


def strip_asked(asked: str) -> str:
    """A rendered prompt without trailing white space and empty think block.

    The template may leave these out once an answer follows.
    """
    return _EMPTY_THOUGHT.sub("", asked).rstrip()


def hash_ids(ids: Sequence[int]) -> str:
    """16 hexadecimal digits that identify a prompt as the model sees it."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def prompt_completion_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the answer with its end-of-turn token.

    If the template omits an empty think block or white space before a given answer, or ends it
    without a token, the answer's own ids and the end-of-turn token are used. Raises InputError if
    the template changes the prompt in any other way.
    """
    prompt = prompt_ids(tokenizer, messages)
    turns: list[Message] = [*messages, {"role": "assistant", "content": answer}]
    ids = list(map(int, _apply(tokenizer, turns, add_generation_prompt=False)))
    end = tokenizer.eos_token_id
    if ids[: len(prompt)] == prompt and end in ids[len(prompt) :]:
        return prompt, ids[len(prompt) : ids.index(end, len(prompt)) + 1]
    asked = render(tokenizer, messages, add_generation_prompt=True)
    if not render(tokenizer, turns).startswith(strip_asked(asked)):
        raise InputError(
            "the tokenizer's chat template changes the prompt once an answer follows it"
        )
    own = tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]
    return prompt, [*map(int, own), int(end)]

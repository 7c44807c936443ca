"""Adapt a model's chat template, so that it asks as its makers intended and always in the same way.

`base` writes the adapted template with the tokenizer. Everything that loads it, also a server of
the merged model, asks alike: the caller has no switches to set.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from library.errors import InputError
from library.llm.chat_template import THINK, THINK_END, render, strip_asked
from library.records import Message

TODAY = date(2024, 7, 26)  # for templates that write the date: Llama 3.2's default
SWITCHES = ("enable_thinking", "thinking")  # the names that templates use for it

SYSTEM = "Answer the question from the passages."
CONTEXT = (
    "The lid (12) turns on two hinges (14, 16) of brass or nylon.\n\nEach is 4.5 mm thick; a pin "
    "of 1.25 mm holds it. At more than 90 degrees, the lid locks."
)
QUESTION = "How thick is each hinge, and what holds it?"
ANSWER = 'It is 4.5 mm (about 3/16 in.); a pin of 1.25 mm holds it: "No screws", at 0-90%.'

_FORMATTED_DATE = re.compile(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)")
_ANY_DATE = f"{{% macro strftime_now(format) %}}{TODAY:%d %B %Y}{{% endmacro %}}"
# What Gemma's template does with a system message: its text goes before the first user turn.
_FOLD_SYSTEM = (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + "
    "messages[1]['content']}] + messages[2:] %}"
    "{% endif %}"
)


def example_messages(context: str = CONTEXT) -> list[Message]:
    """The messages that a model is tried with: a system message, and a question on a context."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{context}\n\nQuestion: {QUESTION}".strip()},
    ]


def adapt_template(
    tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any], thinking: bool = False
) -> list[str]:
    """Adapt a tokenizer's chat template and eos_token in place; returns the changes as text.

    - Variables get the values of `kwargs`, thinking is off, and the date is fixed.
    - A system message that the template refuses or drops goes before the user's.
    - What it puts between prompt and answer, such as an empty think block, belongs to the prompt.
    - The token that ends a turn becomes the eos_token.

    With `thinking`, thinking is on and a prompt ends in an open think block. Raises InputError if
    the template cannot be adapted.
    """
    template = str(tokenizer.chat_template)
    changes = []
    switches = [name for name in SWITCHES if _switches(tokenizer, name)]
    if thinking and (not switches or THINK_END not in tokenizer.get_vocab()):
        raise InputError(
            "evaluate.thinking_tokens: its chat template cannot turn thinking on, or "
            f"{THINK_END} is not a single token; set it to 0"
        )
    for name, value in kwargs.items():
        if re.search(rf"\b{re.escape(name)}\b", template) is None:
            raise InputError(f"chat_template_kwargs: the chat template has no variable {name!r}")
        if name in SWITCHES and value:
            raise InputError(
                f"chat_template_kwargs: {name}: {value}: the train rows have no thoughts, so "
                "thinking is off in training and in asking; remove the line "
                "(evaluate.thinking_tokens compares with the base model with thinking on)"
            )
    for name, value in {**kwargs, **dict.fromkeys(switches, thinking)}.items():
        template = _set(template, name, value)
        changes.append(f"{name} is {json.dumps(value)}")
    if "strftime_now" in template:
        template = _FORMATTED_DATE.sub(lambda call: json.dumps(f"{TODAY:{call[2]}}"), template)
        template = _ANY_DATE + template if "strftime_now(" in template else template
        changes.append(f"the date that it writes is always {TODAY:%d %B %Y}")
    tokenizer.chat_template = template
    if not _takes_system(tokenizer):
        tokenizer.chat_template = _FOLD_SYSTEM + template
        changes.append("the system message goes before the first question")
    asked = render(tokenizer, example_messages(), add_generation_prompt=True)
    for text in (SYSTEM, CONTEXT, QUESTION):
        if text not in asked:
            raise InputError(f"its chat template drops or changes {text[:60]!r}")
    answer: Message = {"role": "assistant", "content": ANSWER}
    whole = render(tokenizer, [*example_messages(), answer])
    before, found, after = whole.rpartition(ANSWER)
    if not found:
        raise InputError(
            f"its chat template changes an answer: {ANSWER!r} becomes "
            f"{whole[-len(ANSWER) - 20 :]!r}"
        )
    if thinking:
        lead = "" if asked.rstrip().endswith(THINK) else f"{THINK}\n"
    else:
        lead = before[len(asked) :] if before.startswith(asked) else ""
    if lead.strip():
        tokenizer.chat_template = (
            str(tokenizer.chat_template).removesuffix("\n")
            + f"{{% if add_generation_prompt %}}{{{{ {json.dumps(lead)} }}}}{{% endif %}}"
        )
        changes.append(f"a prompt ends in {lead!r}")
    elif not thinking and before.rstrip() not in (asked.rstrip(), strip_asked(asked)):
        if THINK in asked[len(before.rstrip()) :]:
            raise InputError(
                "it thinks before each answer, and its chat template cannot turn that off; choose "
                "a model that can"
            )
        raise InputError(
            f"its chat template changes the prompt once an answer follows it: {asked[-60:]!r} "
            f"becomes {before[-60:]!r}"
        )
    end = _find_end(tokenizer, after)
    if end != tokenizer.eos_token:
        changes.append(f"a turn ends in {end!r}, not {tokenizer.eos_token!r}")
        tokenizer.eos_token = end
    return changes


def _set(template: str, name: str, value: Any) -> str:
    return f"{{% set {name} = {json.dumps(value)} %}}{template}"


def _switches(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether setting a variable to false changes the prompt."""
    template = str(tokenizer.chat_template)
    asked = []
    for tried in (template, _set(template, name, False)):
        tokenizer.chat_template = tried
        try:
            asked.append(render(tokenizer, example_messages()[1:], add_generation_prompt=True))
        except InputError:
            asked.append("")
    tokenizer.chat_template = template
    return name in template and asked[0] != asked[1]


def _takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the prompt contains the system message."""
    try:
        return SYSTEM in render(tokenizer, example_messages(), add_generation_prompt=True)
    except InputError:
        return False


def _find_end(tokenizer: PreTrainedTokenizerBase, after: str) -> str:
    """The token that ends a turn: the first special token of the text after an answer.

    If there is none, it is the eos_token, which the model learned to end with before it learned
    turns.
    """
    special = {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    } | {tokenizer.eos_token_id}
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    end = next((number for number in ids if number in special), tokenizer.eos_token_id)
    return str(tokenizer.convert_ids_to_tokens(end))

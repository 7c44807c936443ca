"""Write a Modelfile, which makes Ollama ask a model as it was asked here.

Ollama's templates are Go's: https://docs.ollama.com/modelfile and https://pkg.go.dev/text/template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from library.errors import InputError
from library.llm.chat_template import render
from library.records import Message

ROLES = ("system", "user", "assistant")
# placeholders for messages, to be found in a chat template's output
SAID = {"system": "Ssystem", "user": "Uuser", "assistant": "Aassistant"}


@dataclass(frozen=True)
class Turns:
    """What a chat template writes before and after each role's messages, and before the answer."""

    around: Mapping[str, tuple[str, str]]
    asking: str


def read_turns(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Read what the tokenizer's chat template writes around messages.

    None if that differs between messages of a role, so that it is not a plain list of turns. The
    beginning-of-sequence token is left out, because llama.cpp and Ollama add it themselves.
    """
    short, long = _conversation("system", "user"), _conversation(*ROLES, "user")
    try:
        begun, asked = (
            render(tokenizer, messages, add_generation_prompt=True) for messages in (short, long)
        )
    except InputError:
        return None
    parts, more = _split(begun, short), _split(asked, long)
    if parts is None or more is None:
        return None
    (head, middle, tail), (_, _, answered, again, _) = parts, more
    first = str(tokenizer.bos_token or "")
    if first in middle:  # it begins each turn, as in SmolLM2
        first = ""
    first = first if head.startswith(first) else ""
    head = head.removeprefix(first)
    opening = next((token for token in _added_tokens(tokenizer) if head.startswith(token)), None)
    if opening is None or opening not in middle:
        return None
    user = middle[middle.rindex(opening) :]
    closed = tail[: tail.rindex(opening)] if opening in tail else tail
    turns = Turns(
        {
            "system": (head, middle.removesuffix(user)),
            "user": (user, closed),
            "assistant": (answered.removeprefix(closed), again.removesuffix(user)),
        },
        tail.removeprefix(closed),
    )
    written = (write_turns(turns, messages) for messages in (short, long))
    return (
        turns if list(written) == [begun.removeprefix(first), asked.removeprefix(first)] else None
    )


def write_turns(turns: Turns, messages: Sequence[Message]) -> str:
    """Write messages as a list of turns, up to where the answer begins."""
    written = [
        f"{turns.around[message['role']][0]}{message['content']}{turns.around[message['role']][1]}"
        for message in messages
    ]
    return "".join([*written, turns.asking])


def write_go_template(turns: Turns) -> str | None:
    """Write the turns as a Go template; None if a turn's text has a special meaning there."""
    texts = [text for around in turns.around.values() for text in around]
    if any(sign in text for text in [*texts, turns.asking] for sign in ("{{", '"""')):
        return None
    cases = [
        f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}{{{{ '
        for role, (before, after) in turns.around.items()
    ]
    return f"{{{{ range .Messages }}}}{{{{ {'else '.join(cases)}end }}}}{{{{ end }}}}{turns.asking}"


def render_modelfile(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    source: str,
    max_length: int,
    max_new_tokens: int,
    stop: Sequence[str],
) -> str:
    """Write a Modelfile for the model at `source`, a path relative to the Modelfile.

    It decodes greedily, with a context of `max_length` tokens and the system message of `messages`,
    those of any row. A comment says so if the chat template is not a plain list of turns, in which
    case Ollama reads the model's own, or if the system message cannot be included.
    """
    turns = read_turns(tokenizer)
    template = write_go_template(turns) if turns else None
    lines = [
        "# For Ollama. In this folder: ollama create NAME, then ollama run NAME",
        f"FROM {source}",
    ]
    if template is None:
        lines.append(
            "# No TEMPLATE: the model's chat template is no plain list of turns. Ollama reads the "
            "model's own; compare."
        )
    else:
        lines.append(f'TEMPLATE """{template}"""')
    system = next((turn["content"] for turn in messages if turn["role"] == "system"), "")
    if '"""' in system:
        lines.append(
            '# No SYSTEM: the system message has """ in it, which would end it here. Send it with '
            "each request."
        )
    elif system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [
        f"PARAMETER num_ctx {max_length}",
        f"PARAMETER num_predict {max_new_tokens}",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        *(f'PARAMETER stop "{token}"' for token in stop),
    ]
    return "\n".join(lines) + "\n"


def _conversation(*roles: str) -> list[Message]:
    return [{"role": role, "content": SAID[role]} for role in roles]


def _split(written: str, messages: Sequence[Message]) -> list[str] | None:
    """Split a text at the messages, into one part more than there are messages.

    None if a message is missing or occurs twice.
    """
    parts = []
    for message in messages:
        before, found, written = written.partition(message["content"])
        if not found:
            return None
        parts.append(before)
    return None if any(text in written for text in SAID.values()) else [*parts, written]


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    contents = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    return sorted(filter(None, contents), key=len, reverse=True)

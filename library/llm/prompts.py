"""Build prompts: a template from prompts/, the passages that fit, and the messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from library.corpus.passages import Ranker, rank_passages, split_passages
from library.errors import InputError
from library.files import read_json
from library.llm.chat_template import prompt_ids
from library.paths import SPLITS_PATH, prompt_path
from library.records import Message


@dataclass(frozen=True)
class Prompt:
    """The messages of one question and context, whole and with parts left out.

    `passages` are the texts that fit, at `indices` among all passages; `ranked` are the indices of
    all, best first; `best_passage` is the best one's text, or "". Token ids end where the answer
    begins: `ids` of the whole prompt, `question_ids` without passages.
    """

    messages: list[Message]
    messages_no_context: list[Message]
    messages_no_question: list[Message]
    messages_bare: list[Message]
    indices: list[int]
    passages: list[str]
    ranked: list[int]
    best_passage: str
    ids: list[int]
    question_ids: list[int]


def load_prompt(path: Path, answer_sentences: int = 1) -> Template:
    """Read a template with the blocks `system` and `user`.

    It can use `answer_sentences`, the number of sentences an answer should have. Raises InputError
    naming the file if a block is missing.
    """
    # no escaping: the text goes to a tokenizer, never to a page
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.globals["answer_sentences"] = answer_sentences
    try:
        template = environment.from_string(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.jinja")))
        raise InputError(
            f"{path}: no such prompt template; there are: {known} (format.prompt in params.yaml)"
        ) from None
    except TemplateError as error:
        raise InputError(f"{path}: {error}") from error
    missing = {"system", "user"} - set(template.blocks)
    if missing:
        raise InputError(f"{path}: needs the block {' and '.join(sorted(missing))}")
    return template


def load_asked_prompt(name: str) -> Template:
    """A template with the number of sentences that `format` counted; 1 if `format` has not run."""
    counted = SPLITS_PATH.is_file()
    return load_prompt(
        prompt_path(name), read_json(SPLITS_PATH)["answer_sentences"] if counted else 1
    )


def build_messages(
    template: Template, passages: Sequence[str], question: str, turns: Sequence[Message] = ()
) -> list[Message]:
    """The system and user messages of a row, with its earlier turns between them.

    Without passages or question, that part of the prompt is left out; without a question, the
    earlier turns too. There is always a system message, the row's own (in `turns`) or the
    template's, because chat templates such as Qwen's would add one of their own.
    """

    def render(block: str) -> str:
        context = template.new_context({"passages": list(passages), "question": question})
        return "".join(template.blocks[block](context)).strip()

    system: list[Message] = [turn for turn in turns if turn["role"] == "system"]
    earlier = [turn for turn in turns if turn["role"] != "system"] if question else []
    return [
        *(system or [{"role": "system", "content": render("system")}]),
        *earlier,
        {"role": "user", "content": render("user")},
    ]


def reads_passages(template: Template) -> bool:
    """Whether a template shows the passages to the model."""
    return build_messages(template, ["A passage."], "A question?") != build_messages(
        template, [], "A question?"
    )


def build_prompt(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    question: str,
    context: str,
    budget: int,
    passage_characters: int,
    turns: Sequence[Message] = (),
    rank: Ranker = rank_passages,
) -> Prompt:
    """The prompt of a question after its earlier turns, with the passages that fit into `budget`
    tokens.

    The context is cut into passages of at most `passage_characters`, which `rank` orders. A
    question longer than the budget gets no passages.
    """
    passages = split_passages(context, passage_characters)
    ranked = rank(passages, question)
    indices = choose_passages(tokenizer, template, passages, ranked, question, budget, turns)
    kept = [passages[index] for index in indices]
    messages = build_messages(template, kept, question, turns)
    without_context = build_messages(template, [], question, turns)
    return Prompt(
        messages=messages,
        messages_no_context=without_context,
        messages_no_question=build_messages(template, kept, "", turns),
        messages_bare=build_messages(template, [], "", turns),
        indices=indices,
        passages=kept,
        ranked=ranked,
        best_passage=passages[ranked[0]] if ranked else "",
        ids=prompt_ids(tokenizer, messages),
        question_ids=prompt_ids(tokenizer, without_context),
    )


def choose_passages(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    passages: list[str],
    ranked: list[int],
    question: str,
    budget: int,
    turns: Sequence[Message] = (),
) -> list[int]:
    """Indices of the passages in the prompt, in document order.

    Whole passages are taken in the order of `ranked`, up to the first that would exceed `budget`
    tokens. None if the template leaves passages out.
    """
    if not reads_passages(template):
        return []
    left = budget - len(prompt_ids(tokenizer, build_messages(template, [], question, turns)))
    chosen: list[int] = []
    for index in ranked:
        left -= len(tokenizer(passages[index] + "\n\n", add_special_tokens=False)["input_ids"])
        if left < 0:
            break
        chosen.append(index)
    # tokens at the seams and the template's own words can make the whole longer than the sum of its
    # parts, so measure it
    while chosen:
        kept = [passages[index] for index in sorted(chosen)]
        if len(prompt_ids(tokenizer, build_messages(template, kept, question, turns))) <= budget:
            break
        chosen.pop()
    return sorted(chosen)

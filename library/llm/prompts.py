"""What the model is asked: a template of prompts/, the passages that fit, and their messages."""

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
    """What is asked about one context: the messages, and the same with parts of them left out.

    `passages` are the texts that fit, at `indices` of the context's; `ranked` are those of all, the
    best first, and `best_passage` is its text, "" where there is none. Token ids are those up to
    where the answer begins: `ids` of the whole, `question_ids` of the question alone.
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
    """Read a template with the blocks `system` and `user`, which can say how many sentences an
    answer is to have.

    Raises InputError naming the file where it has not both.
    """
    # Nothing is escaped: the text goes to a tokenizer, never to a page.
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
    """A template of prompts/ with the number of sentences that `format` counted; one, where it has
    not run.
    """
    counted = SPLITS_PATH.is_file()
    return load_prompt(
        prompt_path(name), read_json(SPLITS_PATH)["answer_sentences"] if counted else 1
    )


def build_messages(
    template: Template, passages: Sequence[str], question: str, turns: Sequence[Message] = ()
) -> list[Message]:
    """The system and user messages of one row, with the turns before its question between them.

    No passages or an empty question leave that part of the prompt out, the earlier turns with the
    question. The system message is always there, the row's own (in `turns`) in place of the
    template's: chat templates such as Qwen's put one of their own in its place otherwise.
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
    """Whether a template shows the model the passages that it is given."""
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
    """The prompt of a question, after the turns before it: with the passages of its context that
    fit into `budget` tokens.

    The context is cut into passages of at most `passage_characters`, which `rank` puts in order. A
    question that is longer than the budget is asked without any.
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
    """Indices of the passages that go into the prompt, in document order.

    In the order of `ranked`, each whole, up to the first that would take the prompt beyond `budget`
    tokens. None where the template leaves passages out.
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
    # tokens at the seams, and a template's own words, can make the whole longer than its parts:
    # measure it
    while chosen:
        kept = [passages[index] for index in sorted(chosen)]
        if len(prompt_ids(tokenizer, build_messages(template, kept, question, turns))) <= budget:
            break
        chosen.pop()
    return sorted(chosen)

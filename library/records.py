"""The types of the rows that stages hand on, as the files in data/ hold them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any, NotRequired, TypedDict

SPLITS = ("train", "validation", "test")
SYSTEMS = ZEROSHOT, SFT = "zeroshot", "sft"  # that are compared: the base as it is, and tuned
# of the other systems: the base with train rows in its prompt, and the base with thinking on
FEW_SHOT, THINKING = "few_shot", "thinking"
# the fine-tuned model trained again: its name is this with the seed behind it
SEED_PREFIX = f"{SFT}@"
DPO = "dpo"  # the fine-tuned model, trained on by preferences
BASELINES = ("no_context", "best_passage", "longer", "gold")  # that need no other model


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


class CleanRow(TypedDict):
    """A usable row, cleaned (data/clean/rows.jsonl).

    `place` is its place in the user's file, `context_id` belongs to its raw context. `anchor` is ""
    if there is none. `also_right` are right answers beyond `positive`, `turns` is what was said
    before the question, and `contradicts` is the id of a row that says the opposite.
    """

    id: str
    place: str
    context_id: str
    anchor: str
    query: str
    positive: str
    negative: str | None
    also_right: list[str]
    turns: list[Message]
    contradicts: str | None


class FormattedRow(TypedDict):
    """A row as it is asked and trained on (data/formatted/).

    `passages` are indices of the passages in the prompt; `ranked` has all, the best for the
    question first. `answer_tokens` counts the positive, `tokens` the prompt and the longer answer.
    `pair` is the id of the row that swaps its answers with this one. `also_right` are right answers
    beyond the positive; only the positive is trained on and scored.
    """

    group: str
    id: str
    messages: list[Message]
    messages_no_context: list[Message]
    messages_no_question: list[Message]
    messages_bare: list[Message]
    question: str
    positive: str
    also_right: list[str]
    negative: str | None
    contradicts: str | None
    passages: list[int]
    ranked: list[int]
    best_passage: str
    prompt_tokens: int
    question_tokens: int
    prompt_hash: str
    prompt_hash_no_context: str
    answer_tokens: int
    tokens: int
    pair: str | None


class Likelihood(TypedDict):
    """How likely an answer is: its log-probability in nats, and its number of tokens and UTF-8
    bytes.
    """

    sum: float
    tokens: int
    bytes: int


class Likelihoods(TypedDict):
    """Likelihoods of a row's answers by what the model saw before: `question`, `no_question` or
    `bare`.
    """

    positive: dict[str, Likelihood]
    negative: dict[str, Likelihood] | None


class Answer(TypedDict):
    """What a model wrote.

    `finish_reason` is "stop", or "length" if `max_new_tokens` cut it off. `generated_tokens`
    includes the end-of-turn token.
    """

    prediction: str
    finish_reason: str
    generated_tokens: int


class Computation(TypedDict):
    """What computed a result: the GPU's name or CPU, the floating-point type, and on a GPU
    determinism.
    """

    device: str
    dtype: str
    deterministic: NotRequired[bool]


class Dequantizing(TypedDict, total=False):
    """On a GPU, whether 4-bit weights were dequantized once: that rounds otherwise."""

    dequantized: bool


class Answerer(Computation, Dequantizing):
    """Which weights gave a system's answers (data/predictions/SYSTEM_model.json).

    `base` is the hash of the base model's files (`hash_base`), `adapter` that of the adapter
    (`hash_adapter`) or None, `answers` the SHA-256 of the files of answers, by name.
    """

    base: str
    adapter: str | None
    answers: dict[str, str]


class QuestionAnswer(Answer):
    """An answer to a question without its passages (data/predictions/no_context.jsonl)."""

    id: str
    prompt_hash: str


class Prediction(Answer):
    """A system's answer to a formatted row, with likelihoods (data/predictions/SYSTEM.jsonl).

    `answers_hash` identifies the texts that the likelihoods belong to (`hash_answers`).
    """

    id: str
    group: str
    pair: str | None
    prompt_hash: str
    prompt_tokens: int
    answers_hash: str
    passages: list[int]
    likelihood: Likelihoods | None


class ThoughtfulPrediction(Prediction):
    """An answer after thoughts, which are cut off.

    It has no likelihoods; `generated_tokens` includes the thoughts.
    """

    thoughts: str


def seed_system(seed: int) -> str:
    """The name of the model that was fine-tuned with one of `sft.seeds`."""
    return f"{SEED_PREFIX}{seed}"


def right_answers(row: Mapping[str, Any]) -> list[str]:
    """The right answers of a clean or formatted row; the first one is trained on."""
    return [row["positive"], *row["also_right"]]


def hash_answers(positive: str, negative: str | None) -> str:
    """16 hexadecimal digits that identify a row's two answers."""
    return hashlib.sha256(f"{positive}\x1f{negative}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ScoredRow:
    """The metrics of a test row by system (data/predictions/scores.jsonl).

    Systems are zeroshot, sft, the others and the baselines. A metric that does not apply to a row
    or a system is left out.
    """

    id: str
    group: str
    pair: str | None
    systems: dict[str, dict[str, float]]

    def to_record(self) -> dict[str, Any]:
        """The row as JSON, with the systems beside id, group and pair."""
        return {"id": self.id, "group": self.group, "pair": self.pair, **self.systems}

    @property
    def seeds(self) -> list[str]:
        """The names of the fine-tuned model, one for each seed that it was trained with."""
        return [name for name in self.systems if name == SFT or name.startswith(SEED_PREFIX)]

    @property
    def tuned(self) -> dict[str, float]:
        """The fine-tuned model's metrics: means over the seeds that it was trained with."""
        seeds = [self.systems[name] for name in self.seeds]
        return {
            metric: mean(scores[metric] for scores in seeds)
            for metric in self.systems[SFT]
            if all(metric in scores for scores in seeds)
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ScoredRow":
        """The row that `to_record` wrote."""
        systems = {name: dict(value) for name, value in record.items() if isinstance(value, dict)}
        return cls(str(record["id"]), str(record["group"]), record["pair"], systems)

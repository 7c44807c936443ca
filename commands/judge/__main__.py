"""Ask a language model which answers are better: python -m commands.judge MODEL

Shows it the pairs of reports/review.html, each in both orders, through an OpenAI-compatible server
(OPENAI_BASE_URL, and OPENAI_API_KEY if it needs one). Writes the votes to
data/votes/judge-MODEL.json, which `evaluate` counts apart from people's. This is no stage of
dvc.yaml: `dvc repro` sends nothing to a server. An interrupted run continues where it stopped.
"""

import argparse
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from commands.judge.asking import INSTRUCTIONS, TEMPERATURE, Judge, build_request, read_verdict
from library.corpus.passages import passages_in_prompt
from library.entry import run_main
from library.errors import InputError
from library.files import read_json, write_text
from library.formatted import read_contexts, read_formatted
from library.params import Params, load_params
from library.paths import REVIEW_KEY_PATH, TEST_PATH, VOTES_DIR
from library.records import FormattedRow
from library.verdict.judges import (
    JudgeFile,
    JudgeVote,
    Prices,
    hash_pair,
    load_judge_file,
    tally_judge,
)
from library.verdict.written import read_answers

log = logging.getLogger(__name__)

Answers = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Question:
    """One request: a row, and the systems whose answers are shown as A and B."""

    row: str
    kind: Literal["pair", "catch"]
    left: str
    right: str


def list_questions(
    items: Mapping[str, Mapping[str, str]],
    rows: Sequence[FormattedRow],
    answers: Answers,
    systems: Sequence[str],
    every_row: bool,
) -> Iterator[Question]:
    """The questions to ask: the review's pairs in both orders, its identical answers once, and with
    `every_row` the pairs of all other rows whose answers differ.

    Raises InputError if the review is about other rows.
    """
    known = {row["id"] for row in rows}
    asked = set()
    for item in items.values():
        if item["row"] not in known:
            raise InputError(
                f"{REVIEW_KEY_PATH}: row {item['row']!r} is no test row; run `dvc repro review`"
            )
        if item["kind"] == "catch":
            yield Question(item["row"], "catch", item["x"], item["x"])
        elif item["kind"] == "pair":
            asked.add(item["row"])
            yield from _both_orders(item["row"], systems)
    if every_row:
        one, other = (answers[system] for system in systems)
        for row in rows:
            if row["id"] not in asked and one[row["id"]] != other[row["id"]]:
                yield from _both_orders(row["id"], systems)


def _both_orders(row: str, systems: Sequence[str]) -> Iterator[Question]:
    one, other = systems
    yield Question(row, "pair", one, other)
    yield Question(row, "pair", other, one)


def open_file(path: Path, new: JudgeFile, answers: Answers) -> JudgeFile:
    """The earlier file to continue, with only its votes on the present answers; `new` if there is
    none.

    Raises InputError if the file was made with other settings.
    """
    if not path.exists():
        return new
    old = load_judge_file(path)
    fields = ("judge", "host", "temperature", "max_tokens", "instructions", "systems")
    differing = [name for name in fields if getattr(old, name) != getattr(new, name)]
    if differing:
        raise InputError(
            f"{path}: judged with another {', '.join(differing)}; delete the file, or name another "
            "with --name"
        )
    kept = [vote for vote in old.votes if vote.answers == hash_pair(vote.row, answers, new.systems)]
    if len(kept) < len(old.votes):
        log.warning(
            "%s: %d replies are about earlier answers; asking again",
            path,
            len(old.votes) - len(kept),
        )
    return new.model_copy(update={"votes": kept, "prices": new.prices or old.prices})


def save(path: Path, file: JudgeFile) -> None:
    """Write a judge's file."""
    write_text(path, file.model_dump_json(indent=1) + "\n")


def show_passages(
    rows: Sequence[FormattedRow], wanted: set[str], params: Params
) -> dict[str, list[str]]:
    """The passages that the systems were given, by row."""
    contexts = read_contexts(wanted)
    return {
        row["id"]: passages_in_prompt(row, contexts[row["id"]], params.format.passage_characters)
        for row in rows
        if row["id"] in wanted
    }


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.judge", description=__doc__.partition(":")[0]
    )
    parser.add_argument("model", help="the model's name on the server")
    parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL"))
    parser.add_argument(
        "--all", action="store_true", help="judge every test row, not only the review's"
    )
    parser.add_argument("--name", help="name of the file: data/votes/judge-NAME.json")
    parser.add_argument(
        "--max-tokens", type=int, default=512, help="limit of a reply, thinking included"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for a reply")
    parser.add_argument("--input-price", type=float, help="price of a million input tokens")
    parser.add_argument("--output-price", type=float, help="price of a million output tokens")
    arguments = parser.parse_args()
    if (arguments.input_price is None) != (arguments.output_price is None):
        parser.error("--input-price and --output-price belong together: give both")
    return arguments


def main() -> None:
    """Ask all questions without a reply yet, and save each reply at once."""
    arguments, params = read_arguments(), load_params()
    if not arguments.base_url:
        raise InputError(
            "which server? Set OPENAI_BASE_URL or --base-url, such as http://localhost:11434/v1 "
            "(Ollama) or http://localhost:8000/v1 (vLLM)"
        )
    for path, stage in ((TEST_PATH, "format"), (REVIEW_KEY_PATH, "review")):
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `dvc repro {stage}`")
    key, systems = read_json(REVIEW_KEY_PATH), params.review.systems
    if key["systems"] != systems:
        raise InputError(f"{REVIEW_KEY_PATH}: not of review.systems; run `dvc repro review`")
    judge = Judge(
        arguments.base_url,
        arguments.model,
        os.environ.get("OPENAI_API_KEY"),
        arguments.max_tokens,
        arguments.timeout,
    )
    if os.environ.get("OPENAI_API_KEY") and not judge.is_private:
        log.warning("the key goes to %s unencrypted; use https", judge.host)
    answers, rows = read_answers(systems), read_formatted("test")
    prices = (
        Prices(input=arguments.input_price, output=arguments.output_price)
        if arguments.input_price is not None
        else None
    )
    path = VOTES_DIR / f"judge-{_slug(arguments.name or arguments.model)}.json"
    new = JudgeFile(
        judge=arguments.model,
        host=judge.host,
        temperature=TEMPERATURE,
        max_tokens=arguments.max_tokens,
        instructions=INSTRUCTIONS,
        systems=systems,
        prices=prices,
        votes=[],
    )
    file = open_file(path, new, answers)
    done = {(vote.row, vote.kind, vote.left) for vote in file.votes}
    questions = [
        question
        for question in list_questions(key["items"], rows, answers, systems, arguments.all)
        if (question.row, question.kind, question.left) not in done
    ]
    log.info("%s: %d of %d replies are there", path, len(done), len(done) + len(questions))
    passages = show_passages(rows, {question.row for question in questions}, params)
    asked = {row["id"]: row["question"] for row in rows}
    if file.votes:
        save(path, file)  # drops outdated votes and sets the new prices
    for question in tqdm(questions, desc="judging", unit="reply", disable=None):
        first, second = (answers[side][question.row] for side in (question.left, question.right))
        reply = judge.ask(build_request(asked[question.row], passages[question.row], first, second))
        vote = JudgeVote(
            row=question.row,
            kind=question.kind,
            left=question.left,
            choice=read_verdict(reply.text),
            answers=hash_pair(question.row, answers, systems),
            reply=reply.text,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        file = file.model_copy(update={"votes": [*file.votes, vote]})
        save(path, file)
    tally = tally_judge(file, answers, systems[1])
    log.info(
        "%s at %s: %d replies, %d unclear; run `dvc repro report`",
        file.judge,
        file.host,
        tally.replies,
        tally.unclear,
    )


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"


if __name__ == "__main__":
    run_main(main)

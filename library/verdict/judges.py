"""Read and count a language model's votes: the files that `commands.judge` wrote.

They are stored beside people's votes but never counted among them. A judge sees each pair in both
orders, so that a preference for a side is not mistaken for a preference for a system.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from library.errors import InputError
from library.files import read_json
from library.params import EvaluateParams
from library.records import ScoredRow
from library.verdict.votes import (
    MODEL_MARK,
    Strict,
    compare_with_even,
    count_votes,
    count_wins,
    describe_win_rate,
    measure_alpha,
    measure_share,
    read_votes,
    tally_votes,
)

log = logging.getLogger(__name__)


class JudgeVote(Strict):
    """One reply. The judge saw the answer of the system `left` as A and the other's as B, or
    `left`'s on both sides (`catch`).

    `choice` is "unclear" if `reply` has no verdict. `answers` is the hash of `hash_pair`, which
    tells whether the answers are still the same. Tokens are the server's count, None without one.
    """

    row: str
    kind: Literal["pair", "catch"]
    left: str
    choice: Literal["A", "B", "tie", "unclear"]
    answers: str
    reply: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Prices(Strict):
    """The price of a million tokens, in any currency."""

    input: float
    output: float


class JudgeFile(Strict):
    """The replies of one model. `host` is its server's address; the API key is never saved."""

    judge: str
    host: str
    temperature: float
    max_tokens: int
    instructions: str
    systems: list[str]
    prices: Prices | None
    votes: list[JudgeVote]


def hash_pair(row: str, answers: Mapping[str, Mapping[str, str]], systems: Sequence[str]) -> str:
    """A hash of two systems' answers to a row, to tell whether a vote is about the present answers.

    Sixteen hexadecimal digits, the same for both orders of `systems`. `answers` are by system and
    row id.
    """
    texts = [answers[system].get(row) for system in sorted(systems)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def load_judge_file(path: Path) -> JudgeFile:
    """Read a file that `commands.judge` wrote. Raises InputError if it is none."""
    return JudgeFile.load(path, "`make judge` wrote")


def read_judge_files(folder: Path, systems: Sequence[str]) -> dict[str, JudgeFile]:
    """Read a folder's judge files that are about these two systems, by name: NAME of
    judge-NAME.json. The log names the others.

    Raises InputError if one is not what `commands.judge` writes, or if two have the same name.
    """
    files: dict[str, JudgeFile] = {}
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if not isinstance(content, dict) or MODEL_MARK not in content:
            continue
        file = load_judge_file(path)
        if sorted(file.systems) != sorted(systems):
            log.warning(
                "%s: about %s, review.systems are %s; not counted",
                path,
                " and ".join(file.systems),
                " and ".join(systems),
            )
            continue
        name = path.stem.removeprefix("judge-")
        if name in files:
            raise InputError(f"{path}: a second file of the name {name!r}; rename one")
        asked = [(vote.row, vote.kind, vote.left) for vote in file.votes]
        if len(set(asked)) < len(asked):
            raise InputError(f"{path}: votes twice on one pair in one order")
        files[name] = file
    return files


@dataclass
class JudgeTally:
    """Counts of a judge's votes that are about the present answers.

    `outcomes` has, for each row judged in both orders, 1 if both chose the candidate's answer, 0 if
    both chose the other, else ½, a tie. `first_picked` has, for each decided reply on a pair,
    whether it chose the answer shown first; `followed_side`, for each row, whether both orders
    chose the same side; `equal`, for each pair of identical answers, whether it was called a tie.
    """

    outcomes: dict[str, float] = field(default_factory=dict)
    first_picked: list[bool] = field(default_factory=list)
    followed_side: list[bool] = field(default_factory=list)
    equal: list[bool] = field(default_factory=list)
    replies: int = 0
    unclear: int = 0
    outdated: int = 0


def tally_judge(
    file: JudgeFile, answers: Mapping[str, Mapping[str, str]], candidate: str
) -> JudgeTally:
    """Count a judge's replies from the candidate's view; `answers` are by system and row id."""
    tally = JudgeTally()
    by_row: dict[str, list[JudgeVote]] = {}
    for vote in file.votes:
        if vote.answers != hash_pair(vote.row, answers, file.systems):
            tally.outdated += 1
            continue
        tally.replies += 1
        if vote.choice == "unclear":
            tally.unclear += 1
        elif vote.kind == "catch":
            tally.equal.append(vote.choice == "tie")
        else:
            by_row.setdefault(vote.row, []).append(vote)
            if vote.choice != "tie":
                tally.first_picked.append(vote.choice == "A")
    for row, votes in by_row.items():
        if len(votes) == 2:
            choices = {vote.choice for vote in votes}
            tally.followed_side.append(len(choices) == 1 and "tie" not in choices)
            chosen = {_outcome(vote, candidate) for vote in votes}
            tally.outcomes[row] = chosen.pop() if len(chosen) == 1 else 0.5
    return tally


def _outcome(vote: JudgeVote, candidate: str) -> float:
    if vote.choice == "tie":
        return 0.5
    return float((vote.left == candidate) == (vote.choice == "A"))


def count_folder(
    folder: Path,
    key: Mapping[str, Any],
    scored: Mapping[str, ScoredRow],
    better: Mapping[str, int],
    predictions: Mapping[str, Mapping[str, Any]],
    params: EvaluateParams,
) -> dict[str, Any]:
    """Count all files of a folder: people's as `votes`, and models', if any, as `judges` by name.

    `votes` is the result of `count_votes` with the number of files of other reviews. `key` is the
    review's, whose systems are judged; `predictions` are by system and row id.
    """
    systems = key["systems"]
    files, refused = read_votes(folder, key)
    for line in refused:
        log.warning("%s", line)
    tally = tally_votes(files, key)
    votes = count_votes(tally, systems, scored, better, params)
    answers = {
        system: {row: record["prediction"] for row, record in predictions[system].items()}
        for system in systems
    }
    judged = {
        name: count_judge(file, answers, systems[1], tally.means, scored, params)
        for name, file in read_judge_files(folder, systems).items()
    }
    counted = {"votes": {**votes, "files_of_other_reviews": len(refused)}}
    return {**counted, "judges": judged} if judged else counted


def count_judge(
    file: JudgeFile,
    answers: Mapping[str, Mapping[str, str]],
    candidate: str,
    people: Mapping[str, float],
    scored: Mapping[str, ScoredRow],
    params: EvaluateParams,
) -> dict[str, Any]:
    """The numbers of one judge, with its model. `people` are people's mean outcomes by row.

    Rows of a group are not independent, so `p` is from swapping the systems group by group, not
    from a sign test. `followed_side` is the share of rows whose choice followed the side; at random
    it is one half. `people` in the result has the number of rows that people voted on, too, the
    share on which both agree, and their Krippendorff's alpha.
    """
    tally = tally_judge(file, answers, candidate)
    numbers: dict[str, Any] = {
        "model": file.judge,
        "replies": tally.replies,
        "unclear": tally.unclear,
        "outdated": tally.outdated,
        "rows": len(tally.outcomes),
        **_count_tokens(file),
    }
    for name, seen in (
        ("first_pick", tally.first_picked),
        ("followed_side", tally.followed_side),
    ):
        if seen:
            numbers |= measure_share(name, sum(seen), len(seen), params.confidence)
    if tally.equal:
        numbers["identical_called_equal"] = mean(tally.equal)
    if tally.outcomes:
        rate = compare_with_even(tally.outcomes, scored, params)
        numbers |= {**count_wins(tally.outcomes), **describe_win_rate(rate), "p": rate.p}
    numbers["people"] = compare_with_people(tally.outcomes, people, params)
    return numbers


def compare_with_people(
    judged: Mapping[str, float], people: Mapping[str, float], params: EvaluateParams
) -> dict[str, float]:
    """How far a judge agrees with people on the rows that both voted on, as one rater with another:
    by which answer was chosen, or neither.
    """
    both = sorted(judged.keys() & people.keys())
    numbers: dict[str, float] = {"rows": len(both)}
    if both:
        numbers["same"] = mean(_winner(judged[row]) == _winner(people[row]) for row in both)
        labels = [
            (rater, row, _winner(means[row]))
            for row in both
            for rater, means in (("judge", judged), ("people", people))
        ]
        numbers |= measure_alpha(labels, params)
    return numbers


def _winner(value: float) -> str:
    return "neither" if value == 0.5 else "candidate" if value > 0.5 else "baseline"


def _count_tokens(file: JudgeFile) -> dict[str, float]:
    """Tokens and cost of all replies for which the server counted tokens; empty if none."""
    counted = [
        (vote.prompt_tokens, vote.completion_tokens)
        for vote in file.votes
        if vote.prompt_tokens is not None and vote.completion_tokens is not None
    ]
    if not counted:
        return {}
    prompt, completion = (sum(tokens) for tokens in zip(*counted, strict=True))
    numbers: dict[str, float] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if file.prices is not None:
        cost = prompt * file.prices.input + completion * file.prices.output
        numbers["cost"] = cost / 1_000_000
    return numbers

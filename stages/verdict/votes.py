"""People's votes: files from the review page, read back and counted. Knows the key that says whose answer was which."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from nltk.metrics.agreement import AnnotationTask
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import binomtest

from stages.run import InputError
from stages.verdict.statistics import compare

Answer = Literal["x", "y"]
GRADES = ("yes", "partly", "no")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Vote(_Strict):
    """One pair as one rater saw it: `x` and `y` are the page's names for its two answers, `left` the one shown as A."""

    item: str
    left: Answer
    choice: Literal["x", "y", "both good", "both bad"]
    correct: dict[Answer, Literal["yes", "partly", "no"]]
    unsupported: dict[Answer, bool]
    comment: str


class VoteFile(_Strict):
    """What one rater saved. `revised` are items voted on again after their reference was shown: no longer blind."""

    review: str
    rater: str
    votes: list[Vote]
    revised: list[str]


def read_votes(folder: Path, key: Mapping[str, Any]) -> tuple[list[VoteFile], list[str]]:
    """The files of a folder that belong to the review of `key`, by name; and for each that does not, a line that says so.

    Raises InputError, naming the file, where one of this review is not what the page saves, names an item that the review does not
    have or the same twice, or where a rater has two files.
    """
    files: dict[str, VoteFile] = {}
    refused = []
    for path in sorted(folder.glob("*.json")):
        try:
            review = json.loads(path.read_bytes()).get("review", key["review"])
        except (ValueError, AttributeError, RecursionError):
            review = key["review"]  # to be refused below, with the reason
        if review != key["review"]:
            refused.append(f"{path}: of another review ({review}, this one is {key['review']}); not counted")
            continue
        try:
            file = VoteFile.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{path}: not a file that the review page saved: {where}{': ' if where else ''}{first['msg']}"
            ) from error
        if not re.fullmatch(r"[A-Za-z0-9_-]+", file.rater):
            raise InputError(f"{path}: rater {file.rater!r}: expected letters, digits, - and _")
        if file.rater in files:
            raise InputError(f"{path}: a second file of the rater {file.rater!r}")
        named = Counter(vote.item for vote in file.votes)
        for item in file.revised:
            if item not in key["items"]:
                raise InputError(f"{path}: revised item {item!r}, which the review does not have")
        for item, times in named.items():
            if item not in key["items"]:
                raise InputError(f"{path}: votes on item {item!r}, which the review does not have")
            if times > 1:
                raise InputError(f"{path}: votes {times} times on item {item!r}")
        for vote in file.votes:
            if vote.correct.keys() != {"x", "y"} or vote.unsupported.keys() != {"x", "y"}:
                raise InputError(f"{path}: item {vote.item!r}: expected a mark for x and for y")
        files[file.rater] = file
    return list(files.values()), refused


def outcome(vote: Vote, systems: Mapping[str, Any]) -> float:
    """1 where the fine-tuned answer was chosen, 0 where the zero-shot one was, one half for a tie."""
    return 0.5 if vote.choice not in ("x", "y") else float(systems[vote.choice] == "sft")


def krippendorff_alpha(labels: Sequence[tuple[str, str, str]]) -> float | None:
    """Nominal alpha of labels given as (rater, unit, label): 1 is agreement, 0 what chance would give. Krippendorff, 2011.

    None where no unit has two raters, or all labels are the same one: then nothing tells agreement from chance.
    """
    raters = Counter(unit for _, unit, _ in labels)
    several = [label for label in labels if raters[label[1]] > 1]
    if len({label for _, _, label in several}) < 2:
        return None
    return float(AnnotationTask(data=several).alpha())


def count_votes(
    files: Sequence[VoteFile],
    key: Mapping[str, Any],
    scored: Mapping[str, Mapping[str, Any]],
    better: Mapping[str, int],
    draws: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """What the votes say, as finite numbers; those that can't be said are left out. Votes that were revised are not counted.

    A row that several raters voted on counts once, with their mean: above one half it is a win of the fine-tuned answer. Of wins
    and losses: share of wins with Wilson's interval, and the sign test. Of all rows: `win_rate`, ties as halves, with a bootstrap
    over groups. `scored` are rows by id as evaluate writes them: how often each metric's sign agrees with people's, where they
    decided. `better` has by metric 1 where more is better and −1 where less is.
    """
    items = key["items"]
    first: dict[str, list[float]] = {}  # by row, of pairs seen for the first time
    labels: list[tuple[str, str, str]] = []
    lefts, again, caught = [], [], []
    correct = {system: Counter[str]() for system in ("zeroshot", "sft")}
    unsupported: dict[str, list[bool]] = {"zeroshot": [], "sft": []}
    for file in files:
        said = {vote.item: vote for vote in file.votes}
        for vote in file.votes:
            item = items[vote.item]
            if vote.item in file.revised:
                continue
            value = outcome(vote, item)
            if item["kind"] == "catch":
                caught.append(value == 0.5)
                continue
            if vote.choice in ("x", "y"):
                lefts.append(vote.choice == vote.left)
            if item["kind"] == "repeat":
                if item["of"] in said and item["of"] not in file.revised:
                    before = said[item["of"]]
                    again.append(vote.choice == before.choice)
                continue
            first.setdefault(item["row"], []).append(value)
            labels.append((file.rater, item["row"], str(value)))
            for answer in ("x", "y"):
                correct[item[answer]][vote.correct[answer]] += 1
                unsupported[item[answer]].append(vote.unsupported[answer])
    numbers: dict[str, Any] = {"raters": len(files), "rows": len(first), "revised": sum(len(file.revised) for file in files)}
    if not first:
        return numbers
    means = {row: mean(values) for row, values in first.items()}
    wins, losses = (sum(sign * (value - 0.5) > 0 for value in means.values()) for sign in (1, -1))
    numbers |= {"votes": len(labels), "wins": wins, "losses": losses, "ties": len(means) - wins - losses}
    if wins + losses:
        numbers |= _share("wins_share", wins, wins + losses, confidence)
        numbers["p"] = float(binomtest(wins, wins + losses).pvalue)
    rate = compare([0.5] * len(means), list(means.values()), [scored[row]["group"] for row in means], draws, confidence, seed)
    numbers["win_rate"] = rate.sft
    if rate.low < rate.high < math.inf:  # votes that are all alike have no spread to tell an interval from
        numbers |= {"win_rate_low": max(0.0, 0.5 + rate.low), "win_rate_high": min(1.0, 0.5 + rate.high)}
    if lefts:
        numbers |= _share("left_pick", sum(lefts), len(lefts), confidence)
    for name, values in (("self_agreement", again), ("identical_called_equal", caught)):
        if values:
            numbers[name] = mean(values)
    if (alpha := krippendorff_alpha(labels)) is not None:
        numbers["alpha"] = alpha
    for system in ("zeroshot", "sft"):
        numbers[f"correct_{system}"] = {grade: correct[system][grade] / correct[system].total() for grade in GRADES}
        numbers[f"unsupported_{system}"] = mean(unsupported[system])
    numbers["agreement"] = _agreement(means, scored, better)
    return numbers


def _share(name: str, successes: int, total: int, confidence: float) -> dict[str, float]:
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return {name: successes / total, f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def _agreement(
    means: Mapping[str, float], scored: Mapping[str, Mapping[str, Any]], better: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """By metric, of the rows that people decided, how often its difference has their sign; no difference counts half."""
    agreed: dict[str, list[float]] = {}
    for row, value in means.items():
        if value == 0.5:
            continue
        before, after = scored[row]["zeroshot"], scored[row]["sft"]
        for name in better.keys() & before.keys() & after.keys():
            gain = better[name] * (after[name] - before[name])
            agreed.setdefault(name, []).append(0.5 if gain == 0 else float((gain > 0) == (value > 0.5)))
    return {name: {"share": mean(values), "n": len(values)} for name, values in sorted(agreed.items())}

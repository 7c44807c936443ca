"""Read and count people's votes: the files that the review page saved.

The review's key says whose answer was which.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal, Self

import numpy as np
from nltk.metrics.agreement import AnnotationTask
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import binomtest

from library.errors import InputError
from library.params import EvaluateParams
from library.records import ScoredRow
from library.validation import find_problems
from library.verdict.statistics import Comparison, compare

Answer = Literal["x", "y"]
GRADES = ("yes", "partly", "no")
MODEL_MARK = "judge"  # the key that only a model's file has
ALPHA_DRAWS = 2_000  # a draw of 1,000 labels takes a few milliseconds
LEAST_DEFINED = 0.95  # of the draws must have an alpha, else the interval would be biased


class Strict(BaseModel):
    """A record in data/votes/. Unknown keys are refused, and no value is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def load(cls, path: Path, writer: str) -> Self:
        """Read a file. Raises InputError if it is invalid: "not a file that WRITER", and why."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = find_problems(error, cls)[0]
            where = f"{first.key}: " if first.key else ""
            raise InputError(
                f"{path}: not a file that {writer}: {where}{first.describe()}"
            ) from error


class Vote(Strict):
    """One rater's vote on one pair. `x` and `y` are the page's names for the two answers, `left` is
    the one shown as A.
    """

    item: str
    left: Answer
    choice: Literal["x", "y", "both good", "both bad"]
    correct: dict[Answer, Literal["yes", "partly", "no"]]
    unsupported: dict[Answer, bool]
    comment: str


class VoteFile(Strict):
    """The votes that one rater saved.

    `revised` are items voted on again after the reference was shown: these are no longer blind.
    """

    review: str
    rater: str
    votes: list[Vote]
    revised: list[str]


def read_votes(folder: Path, key: Mapping[str, Any]) -> tuple[list[VoteFile], list[str]]:
    """Read a folder's files that belong to the review of `key`, in order of name; for each file of
    another review, return a line that says so. Models' files are left to `library.verdict.judges`.

    Raises InputError, naming the file, if one of this review is not what the page saves, names an
    unknown item or one item twice, or if a rater has two files.
    """
    files: dict[str, VoteFile] = {}
    refused = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            review = content.get("review", key["review"])
            if MODEL_MARK in content:
                continue
        except (ValueError, AttributeError, RecursionError):
            review = key["review"]  # refused below, with the reason
        if review != key["review"]:
            refused.append(
                f"{path}: of another review ({review}, this one is {key['review']}); not counted"
            )
            continue
        file = VoteFile.load(path, "the review page saved")
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


def outcome(vote: Vote, systems: Mapping[str, Any], candidate: str) -> float:
    """1 if the candidate's answer was chosen, 0 if the other was, one half for a tie."""
    return 0.5 if vote.choice not in ("x", "y") else float(systems[vote.choice] == candidate)


def krippendorff_alpha(labels: Sequence[tuple[str, str, str]]) -> float | None:
    """Nominal alpha of labels given as (rater, unit, label): 1 is full agreement, 0 is chance.
    Krippendorff, 2011.

    None if no unit has two raters, or if all labels are the same: then agreement can't be told from
    chance.
    """
    raters = Counter(unit for _, unit, _ in labels)
    several = [label for label in labels if raters[label[1]] > 1]
    if len({label for _, _, label in several}) < 2:
        return None
    return float(AnnotationTask(data=several).alpha())


def measure_alpha(
    labels: Sequence[tuple[str, str, str]], params: EvaluateParams
) -> dict[str, float]:
    """`alpha` of labels by `krippendorff_alpha`, between `alpha_low` and `alpha_high`: a percentile
    bootstrap over the units with several raters. Empty if there is no alpha; without an interval if
    too many draws have none.
    """
    if (alpha := krippendorff_alpha(labels)) is None:
        return {}
    by_unit: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for rater, unit, label in labels:
        by_unit[unit].append((rater, label))
    units = [by_unit[unit] for unit in sorted(by_unit) if len(by_unit[unit]) > 1]
    drawn = np.random.default_rng(params.seed).integers(
        len(units), size=(min(params.draws, ALPHA_DRAWS), len(units))
    )
    alphas = []
    for draw in drawn:
        again = [(r, str(at), label) for at, index in enumerate(draw) for r, label in units[index]]
        if (value := krippendorff_alpha(again)) is not None:
            alphas.append(value)
    if len(alphas) < LEAST_DEFINED * len(drawn):
        return {"alpha": alpha}
    tails = [(1 - params.confidence) / 2, (1 + params.confidence) / 2]
    low, high = map(float, np.quantile(alphas, tails))
    return {"alpha": alpha, "alpha_low": low, "alpha_high": high}


@dataclass
class Tally:
    """The raters' votes by kind of item. Of the `revised` votes only the number is kept.

    `first` has the outcomes by row of pairs seen for the first time, `labels` the same as (rater,
    row, outcome). `left_picked` has, for each choice, whether it was the left answer; `repeated`,
    for each repeated pair, whether both votes agree; `equal`, for each pair of identical answers,
    whether it was called a tie. `correct` and `unsupported` are by system.
    """

    first: dict[str, list[float]] = field(default_factory=dict)
    labels: list[tuple[str, str, str]] = field(default_factory=list)
    left_picked: list[bool] = field(default_factory=list)
    repeated: list[bool] = field(default_factory=list)
    equal: list[bool] = field(default_factory=list)
    correct: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    unsupported: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    raters: int = 0
    revised: int = 0

    @property
    def means(self) -> dict[str, float]:
        """The mean outcome by row."""
        return {row: mean(outcomes) for row, outcomes in self.first.items()}


def tally_votes(files: Sequence[VoteFile], key: Mapping[str, Any]) -> Tally:
    """Sort every rater's votes by the kind of their item."""
    tally = Tally(raters=len(files), revised=sum(len(file.revised) for file in files))
    _, candidate = key["systems"]
    for file in files:
        blind = {vote.item: vote for vote in file.votes if vote.item not in file.revised}
        for vote in blind.values():
            item = key["items"][vote.item]
            value = outcome(vote, item, candidate)
            if item["kind"] == "catch":
                tally.equal.append(value == 0.5)
                continue
            if vote.choice in ("x", "y"):
                tally.left_picked.append(vote.choice == vote.left)
            if item["kind"] == "repeat":
                if item["of"] in blind:
                    tally.repeated.append(vote.choice == blind[item["of"]].choice)
                continue
            tally.first.setdefault(item["row"], []).append(value)
            tally.labels.append((file.rater, item["row"], str(value)))
            for answer in ("x", "y"):
                tally.correct[item[answer]][vote.correct[answer]] += 1
                tally.unsupported[item[answer]].append(vote.unsupported[answer])
    return tally


def count_votes(
    tally: Tally,
    systems: Sequence[str],
    scored: Mapping[str, ScoredRow],
    better: Mapping[str, int],
    params: EvaluateParams,
) -> dict[str, Any]:
    """The results of the votes as finite numbers; undefined ones are left out.

    A row that several raters voted on counts once, with their mean: above one half, the second of
    the two systems wins. From wins and losses come the share of wins with Wilson's interval, and
    the sign test; from all rows `win_rate`, ties as halves, with a bootstrap over groups. `scored`
    are rows by id, to count how often each metric agrees with people on the rows that they decided.
    `better` has, by metric, 1 if more is better and −1 if less is.
    """
    means = tally.means
    numbers: dict[str, Any] = {
        "raters": tally.raters,
        "rows": len(means),
        "revised": tally.revised,
    }
    if not means:
        return numbers
    numbers["votes"] = len(tally.labels)
    numbers |= _count_outcomes(means, scored, params)
    if tally.left_picked:
        picked = tally.left_picked
        numbers |= measure_share("left_pick", sum(picked), len(picked), params.confidence)
    if tally.repeated:
        numbers["self_agreement"] = mean(tally.repeated)
    if tally.equal:
        numbers["identical_called_equal"] = mean(tally.equal)
    numbers |= measure_alpha(tally.labels, params)
    for system in systems:
        marks = tally.correct[system]
        numbers[f"correct_{system}"] = {grade: marks[grade] / marks.total() for grade in GRADES}
        numbers[f"unsupported_{system}"] = mean(tally.unsupported[system])
    numbers["agreement"] = _agreement(means, scored, better, systems)
    return numbers


def _count_outcomes(
    means: Mapping[str, float], scored: Mapping[str, ScoredRow], params: EvaluateParams
) -> dict[str, float]:
    numbers = count_wins(means)
    wins, decided = numbers["wins"], numbers["wins"] + numbers["losses"]
    shares: dict[str, float] = {}
    if decided:
        shares = measure_share("wins_share", wins, decided, params.confidence)
        shares["p"] = float(binomtest(wins, decided).pvalue)
    return {**numbers, **shares, **describe_win_rate(compare_with_even(means, scored, params))}


def count_wins(means: Mapping[str, float]) -> dict[str, int]:
    """Rows whose mean outcome is above one half, below, and one half."""
    wins, losses = (sum(sign * (value - 0.5) > 0 for value in means.values()) for sign in (1, -1))
    return {"wins": wins, "losses": losses, "ties": len(means) - wins - losses}


def compare_with_even(
    means: Mapping[str, float], scored: Mapping[str, ScoredRow], params: EvaluateParams
) -> Comparison:
    """Mean outcomes by row against one half, over the groups of the rows."""
    return compare(
        [0.5] * len(means),
        list(means.values()),
        [scored[row].group for row in means],
        params.draws,
        params.confidence,
        params.seed,
    )


def describe_win_rate(rate: Comparison) -> dict[str, float]:
    """`win_rate`, with its interval unless all votes are alike: then there is no spread to estimate
    it from.
    """
    numbers = {"win_rate": rate.candidate}
    if rate.low < rate.high < math.inf:
        numbers["win_rate_low"] = max(0.0, 0.5 + rate.low)
        numbers["win_rate_high"] = min(1.0, 0.5 + rate.high)
    return numbers


def measure_share(name: str, successes: int, total: int, confidence: float) -> dict[str, float]:
    """The share of `successes` in `total`, with Wilson's interval."""
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return {
        name: successes / total,
        f"{name}_low": float(interval.low),
        f"{name}_high": float(interval.high),
    }


def _agreement(
    means: Mapping[str, float],
    scored: Mapping[str, ScoredRow],
    better: Mapping[str, int],
    systems: Sequence[str],
) -> dict[str, dict[str, float]]:
    """By metric, how often its difference has the sign of people's decision.

    No difference counts half.
    """
    agreed: dict[str, list[float]] = {}
    for row, value in means.items():
        if value == 0.5:
            continue
        before, after = (scored[row].systems[system] for system in systems)
        for name in better.keys() & before.keys() & after.keys():
            gain = better[name] * (after[name] - before[name])
            agreed.setdefault(name, []).append(
                0.5 if gain == 0 else float((gain > 0) == (value > 0.5))
            )
    return {
        name: {"share": mean(values), "n": len(values)} for name, values in sorted(agreed.items())
    }

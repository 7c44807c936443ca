"""People's votes: files from the review page, read back and counted.

Knows the key that says whose answer was which.
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
from library.verdict.statistics import Comparison, compare

Answer = Literal["x", "y"]
GRADES = ("yes", "partly", "no")
MODEL_MARK = "judge"  # the key that a model's file has and a person's has not
ALPHA_DRAWS = 2_000  # a tenth of a millisecond for each label of ten
LEAST_DEFINED = 0.95  # of the draws: with fewer, an interval would be of other draws than it says


class Strict(BaseModel):
    """What is saved in data/votes/: each key is known, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def load(cls, path: Path, writer: str) -> Self:
        """Read a file. Raises InputError where it is none: "not a file that WRITER", and why."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{path}: not a file that {writer}: {where}{': ' if where else ''}{first['msg']}"
            ) from error


class Vote(Strict):
    """One pair as one rater saw it: `x` and `y` are the page's names for its two answers, `left`
    the one shown as A.
    """

    item: str
    left: Answer
    choice: Literal["x", "y", "both good", "both bad"]
    correct: dict[Answer, Literal["yes", "partly", "no"]]
    unsupported: dict[Answer, bool]
    comment: str


class VoteFile(Strict):
    """What one rater saved.

    `revised` are items voted on again after their reference was shown: no longer blind.
    """

    review: str
    rater: str
    votes: list[Vote]
    revised: list[str]


def read_votes(folder: Path, key: Mapping[str, Any]) -> tuple[list[VoteFile], list[str]]:
    """The files of a folder that belong to the review of `key`, by name; and for each that does
    not, a line that says so. What a model judged, as `library.verdict.judges` reads it, is left
    out.

    Raises InputError, naming the file, where one of this review is not what the page saves, names
    an item that the review does not have or the same twice, or where a rater has two files.
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
            review = key["review"]  # to be refused below, with the reason
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
    """1 where the candidate's answer was chosen, 0 where the other was, one half for a tie."""
    return 0.5 if vote.choice not in ("x", "y") else float(systems[vote.choice] == candidate)


def krippendorff_alpha(labels: Sequence[tuple[str, str, str]]) -> float | None:
    """Nominal alpha of labels given as (rater, unit, label): 1 is agreement, 0 what chance would
    give. Krippendorff, 2011.

    None where no unit has two raters, or all labels are the same one: then nothing tells agreement
    from chance.
    """
    raters = Counter(unit for _, unit, _ in labels)
    several = [label for label in labels if raters[label[1]] > 1]
    if len({label for _, _, label in several}) < 2:
        return None
    return float(AnnotationTask(data=several).alpha())


def measure_alpha(
    labels: Sequence[tuple[str, str, str]], params: EvaluateParams
) -> dict[str, float]:
    """`alpha` of labels, as `krippendorff_alpha` has it, between `alpha_low` and `alpha_high`: a
    percentile bootstrap over the units with several raters. Empty where there is no alpha; without
    interval where the units drawn too often say nothing.
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
    """What raters said, before anything is counted. Of the votes that were `revised` there is the
    number alone.

    `first` are outcomes by row, of pairs seen for the first time, and `labels` the same as (rater,
    row, outcome). `left_picked` says of each choice whether it was the left answer, `repeated` of
    each pair that came again whether it was voted on alike, `equal` of identical answers whether
    they were called so. Marks are by system.
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
    """Every rater's votes, told apart by the kind of their item."""
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
    """What the votes say, as finite numbers; those that can't be said are left out.

    A row that several raters voted on counts once, with their mean: above one half it is a win of
    the second of the two systems. Of wins and losses: share of wins with Wilson's interval, and
    the sign test. Of all rows: `win_rate`, ties as halves, with a bootstrap over groups. `scored`
    are rows by id: how often each metric's sign agrees with people's, where they decided. `better`
    has by metric 1 where more is better and −1 where less is.
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
    """`win_rate`, with its interval where the votes are not all alike: then they have no spread to
    tell it from.
    """
    numbers = {"win_rate": rate.candidate}
    if rate.low < rate.high < math.inf:
        numbers["win_rate_low"] = max(0.0, 0.5 + rate.low)
        numbers["win_rate_high"] = min(1.0, 0.5 + rate.high)
    return numbers


def measure_share(name: str, successes: int, total: int, confidence: float) -> dict[str, float]:
    """A share of `total`, with Wilson's interval."""
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
    """By metric, how often its difference has the sign of what people decided.

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

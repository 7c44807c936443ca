"""What people and language models said of two systems' answers, and how many votes show a
preference.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from library.pages.rendering import plural
from library.pages.statements import Statement, format_p, system_name
from library.verdict.statistics import POWER, count_decisions

# true shares of the decided pairs: how many votes show them?
PREFERRED = (0.6, 0.65, 0.7, 0.75, 0.8)
COIN = 0.5  # how often a random choice follows the side when the sides are swapped
JUDGES_NOTE = (
    "Each pair was judged in both orders. A system that is chosen both times wins; anything else "
    "is a tie. A language model's preference is not a person's, and is no part of the verdict."
)


def votes_statement(metrics: Mapping[str, Any], systems: Sequence[str]) -> Statement:
    """What people said in blind votes on two systems' answers."""
    baseline, candidate = map(system_name, systems)
    votes = metrics["votes"]
    others = votes["files_of_other_reviews"]
    skipped = ""
    if others:
        files = f"{others} file{'s are' if others > 1 else ' is'}"
        skipped = f" {files} of another review: the answers have changed since."
    if not votes["rows"]:
        return Statement(
            "Nobody has voted on these answers yet",
            ": reports/review.html is the page for it; files go to data/votes/." + skipped,
        )
    said = [
        f", {baseline} in {votes['losses']}, neither in {votes['ties']} "
        f"({plural(votes['raters'], 'rater')}). Ties as halves, that is {votes['win_rate']:.0%}"
    ]
    if "win_rate_low" in votes:
        said.append(f" ({votes['win_rate_low']:.0%} to {votes['win_rate_high']:.0%})")
    if "wins_share" in votes:
        said.append(
            f"; of the {votes['wins'] + votes['losses']} decided, {votes['wins_share']:.0%} "
            f"({votes['wins_share_low']:.0%} to {votes['wins_share_high']:.0%}, sign test "
            f"{format_p(votes['p'])})"
        )
    said.append(".")
    if "left_pick" in votes:
        said.append(
            f" The left one was picked in {votes['left_pick']:.0%} ({votes['left_pick_low']:.0%} "
            f"to {votes['left_pick_high']:.0%})."
        )
    if "self_agreement" in votes:
        said.append(
            " Pairs shown again with sides swapped were voted on alike in "
            f"{votes['self_agreement']:.0%}."
        )
    if "identical_called_equal" in votes:
        share = f"{votes['identical_called_equal']:.0%}"
        said.append(f" Identical answers were called equal in {share}.")
    if "alpha" in votes:
        said.append(f" Krippendorff's alpha between raters is {format_alpha(votes)}.")
    if votes["revised"]:
        said.append(f" Not counted: {votes['revised']} changed after the reference was shown.")
    claim = f"People chose {candidate} in {votes['wins']} of {votes['rows']} pairs"
    return Statement(claim, "".join(said) + skipped)


def format_alpha(agreement: Mapping[str, Any]) -> str:
    """Krippendorff's alpha, with its interval if there is one."""
    alpha = f"{agreement['alpha']:.2f}"
    if "alpha_low" not in agreement:
        return alpha
    return f"{alpha} ({agreement['alpha_low']:.2f} to {agreement['alpha_high']:.2f})"


def judges_statements(metrics: Mapping[str, Any], systems: Sequence[str]) -> list[Statement]:
    """What language models said of two systems' answers, and how far to trust each."""
    return [
        _judge_statement(name, judged, systems)
        for name, judged in metrics.get("judges", {}).items()
    ]


def _judge_statement(name: str, judged: Mapping[str, Any], systems: Sequence[str]) -> Statement:
    baseline, candidate = map(system_name, systems)
    named = name if name == judged["model"] else f"{name} ({judged['model']})"
    shown = re.sub(r"[^A-Za-z0-9./:@_ ()-]", "?", named)  # safe in Markdown and HTML
    left_out = _left_out_replies(judged)
    if not judged["rows"]:
        return Statement(f"{shown} judged no pair in both orders", f".{left_out}")
    said = [
        f", {baseline} in {judged['losses']}, neither in {judged['ties']}. Ties as halves, that is "
        f"{judged['win_rate']:.0%}"
    ]
    if "win_rate_low" in judged:
        said.append(f" ({judged['win_rate_low']:.0%} to {judged['win_rate_high']:.0%})")
    said.append(f", {format_p(judged['p'])}.")
    if "first_pick" in judged:
        said.append(
            f" Of two answers it chose the one shown first in {judged['first_pick']:.0%} "
            f"({judged['first_pick_low']:.0%} to {judged['first_pick_high']:.0%})."
        )
    followed = judged["followed_side"]
    said.append(
        f" With the sides swapped, its choice followed the side in {followed:.0%} of the pairs "
        f"({judged['followed_side_low']:.0%} to {judged['followed_side_high']:.0%})"
    )
    if followed >= COIN:
        said.append(": a coin does so in half of them, so do not rely on this judge.")
    else:
        said.append(", which then count as ties." if followed else ".")
    if "identical_called_equal" in judged:
        share = f"{judged['identical_called_equal']:.0%}"
        said.append(f" It called identical answers equal in {share}.")
    claim = f"{shown}, a language model, preferred {candidate} in {judged['wins']} of "
    return Statement(
        f"{claim}{judged['rows']} pairs", "".join(said) + _backing_sentence(judged) + left_out
    )


def _backing_sentence(judged: Mapping[str, Any]) -> str:
    people = judged["people"]
    if not people["rows"]:
        return " No person voted on these pairs, so nothing shows that people would agree with it."
    said = f" It agrees with people on {people['same']:.0%} of {plural(people['rows'], 'pair')}"
    if "alpha" in people:
        said += f", Krippendorff's alpha {format_alpha(people)}"
    unvoted = judged["rows"] - people["rows"]
    return f"{said}." + (f" No person voted on the other {unvoted}." if unvoted else "")


def _left_out_replies(judged: Mapping[str, Any]) -> str:
    said = f" {judged['unclear']:,} of {judged['replies']:,} replies had no verdict."
    if judged["outdated"]:
        said += f" {judged['outdated']} more are about earlier answers: run make judge again."
    if "prompt_tokens" in judged:
        tokens = f"{judged['prompt_tokens']:,} tokens read, {judged['completion_tokens']:,} written"
        said += f" {tokens}" + (f", cost {judged['cost']:.3g}." if "cost" in judged else ".")
    return said


def votes_needed(votes: Mapping[str, Any], confidence: float) -> list[tuple[float, int, int, int]]:
    """Rows of: a true share of the decided pairs, how many decided pairs show it, how many pairs
    that takes if ties stay as frequent, and how many of these have no vote yet.
    """
    decided, pairs = votes.get("wins", 0) + votes.get("losses", 0), votes["rows"]
    rows = []
    for share in PREFERRED:
        needed = count_decisions(share, confidence)
        every = math.ceil(needed * pairs / decided) if decided else needed
        rows.append((share, needed, every, max(0, every - pairs)))
    return rows


def votes_needed_sentence(confidence: float) -> str:
    """How to read `votes_needed`."""
    return (
        f"Found by the sign test with a chance of {POWER:.0%}, at {confidence:.0%} confidence. A "
        "pair counts once, however many people vote on it: more pairs (review.pairs, at most one "
        "of each test group) show smaller differences, more raters show how far people agree."
    )

"""Split rows into train, validation and test by whole groups, close to the wanted shares."""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from library.corpus.groups import (
    Tie,
    Ties,
    compared_context,
    count_ties,
    count_words,
    drop_instructions,
    group_rows,
    hash_text,
    list_ties,
    tie_asked,
)
from library.corpus.near_duplicates import find_near_duplicates, sketch
from library.errors import InputError
from library.params import Shares, SplitParams
from library.records import SPLITS, CleanRow, right_answers

MOST_OFF = 0.25  # how far a split may be off, as a part of its share
# If all of five groups differ in the same direction, 2 of the 2^5 swaps are as extreme: p = 0.06. A
# verdict at 95% needs six groups.
LEAST_TEST_GROUPS = 6
SEEDS_TRIED, GROUPS_DRAWN = 1000, 100_000
# Tried in this order where no seed works with the wanted shares: more test, then more validation
# too. With few groups, six test groups are a larger part of the rows.
OTHER_SHARES = (
    Shares(train=0.55, validation=0.1, test=0.35),
    Shares(train=0.5, validation=0.15, test=0.35),
    Shares(train=0.45, validation=0.15, test=0.4),
)
SHOWN_TIES, SHOWN_CHARACTERS = 3, 60


@dataclass(frozen=True)
class Split:
    """The group and the split of each row, by row id, and what ties the largest group.

    `common` lists what most of its rows share, with counts; `texts` has these texts by key.
    """

    groups: Mapping[str, str]
    splits: Mapping[str, str]
    largest: int
    common: Sequence[tuple[Tie, int]]
    texts: Mapping[str, str]

    def count(self) -> dict[str, tuple[int, int]]:
        """The number of rows and groups of each split."""
        rows = Counter(self.splits.values())
        members: dict[str, set[str]] = defaultdict(set)
        for row, split in self.splits.items():
            members[split].add(self.groups[row])
        return {split: (rows[split], len(members[split])) for split in SPLITS}

    def describe_largest(self) -> str:
        """A description of the largest group."""
        shared = "; ".join(
            f"the {tie.kind} {_shorten(self.texts.get(tie.key, tie.key))} ties {rows}"
            for tie, rows in self.common
        )
        tied = shared or "contexts that are nearly the same tie them" * (self.largest > 1)
        return f"the largest group has {self.largest} of {len(self.groups)} rows" + (
            f": {tied}" if tied else ""
        )


def find_ties(rows: Iterable[CleanRow], params: SplitParams) -> Ties:
    """Everything that ties rows, near duplicates of contexts included if they count."""
    ties = {}
    contexts = {}
    texts: dict[str, str] = {}
    compared: dict[str, str] = {}

    def key(text: str) -> str:
        made = hash_text(text)
        texts.setdefault(made, text)
        return made

    for row in rows:
        answers = {key(text): count_words(text) for text in right_answers(row)}
        for part in (row["query"], *(turn["content"] for turn in row["turns"])):
            for line in (part, *part.splitlines()):
                key(line)
        context = key(row["anchor"]) if row["anchor"] else ""
        contexts[row["id"]] = row["context_id"]
        turns = tie_asked(row["turns"], row["query"])
        ties[row["id"]] = list_ties(context, key(row["query"]), answers, params, turns)
        if text := compared_context(row["anchor"], row["query"]):
            compared.setdefault(hash_text(text), text)
    near = params.near_duplicate_contexts
    sketches = {made: sketch(text) for made, text in compared.items()} if near else {}
    return Ties(drop_instructions(ties), contexts, find_near_duplicates(sketches), texts)


def make_split(ties: Ties, params: SplitParams) -> Split:
    """Group and split rows, by id, over what ties them."""
    groups = group_rows(ties)
    members: dict[str, list[str]] = defaultdict(list)
    for row, group in groups.items():
        members[group].append(row)
    largest = max(members.values(), key=lambda rows: (len(rows), min(rows)), default=[])
    return Split(
        groups,
        split_groups(groups, params.shares, params.seed),
        len(largest),
        count_ties([ties.rows[row] for row in largest])[:SHOWN_TIES],
        ties.texts,
    )


def split_groups(groups: Mapping[str, str], shares: Shares, seed: int) -> dict[str, str]:
    """Map each row id to a split, by the hash of its group's name and the seed only.

    Neither the order of rows nor other groups matter: rows added later move none, and other shares
    of train and validation leave test as it is. The shares are only approached, the closer the more
    groups there are.
    """
    return {row: _draw(group, shares, seed) for row, group in groups.items()}


def _draw(group: str, shares: Shares, seed: int) -> str:
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    at = int.from_bytes(digest[:8]) / 2**64
    if at >= 1 - shares.test:
        return "test"
    return "train" if at < shares.train else "validation"


def find_faults(counts: Mapping[str, tuple[int, int]], asked: Mapping[str, float]) -> list[str]:
    """How splits miss what was asked for, as sentences.

    A split misses its share by more than a quarter, or test has fewer groups than a verdict needs.
    `counts` are rows and groups by split, `asked` the shares.
    """
    total = sum(rows for rows, _ in counts.values()) or 1
    faults = []
    for split in SPLITS:
        achieved = counts[split][0] / total
        if abs(achieved - asked[split]) > MOST_OFF * asked[split]:
            faults.append(
                f"{split} has {achieved:.1%} of the rows where {asked[split]:.0%} are asked"
            )
    if (groups := counts["test"][1]) < LEAST_TEST_GROUPS:
        faults.append(
            f"test has {groups} group{'s' * (groups != 1)} where a verdict needs "
            f"{LEAST_TEST_GROUPS}"
        )
    return faults


def find_seed(groups: Mapping[str, str], shares: Shares) -> int | None:
    """The first seed from 0 with which no split misses its share; None if none is found.

    It tries a thousand seeds, or as many as make 100,000 draws. A seed is given up at the first
    group that makes a split too large; as the largest are drawn first, that is soon.
    """
    asked = shares.model_dump()
    sizes = Counter(groups.values()).most_common()
    for seed in range(min(SEEDS_TRIED, 1 + GROUPS_DRAWN // max(1, len(sizes)))):
        rows, names = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        for group, size in sizes:
            split = _draw(group, shares, seed)
            rows[split] += size
            names[split] += 1
            if rows[split] / len(groups) - asked[split] > MOST_OFF * asked[split]:
                break
        else:
            counts = {split: (rows[split], names[split]) for split in SPLITS}
            if not find_faults(counts, asked):
                return seed
    return None


def count_least_groups(choices: Iterable[Shares]) -> int:
    """The fewest groups of equal size that can meet any of these shares."""
    wanted = [shares.model_dump() for shares in choices]
    return next(
        groups
        for groups in itertools.count(LEAST_TEST_GROUPS + 2)
        for test in range(LEAST_TEST_GROUPS, groups - 1)
        for validation in range(1, groups - test)
        for asked in wanted
        if not find_faults(
            {
                "train": (groups - test - validation,) * 2,
                "validation": (validation,) * 2,
                "test": (test,) * 2,
            },
            asked,
        )
    )


def check_split(split: Split, ties: Ties, params: SplitParams) -> list[str]:
    """How the split misses what was asked for; empty if it does not.

    Raises InputError, with what ties most rows and the commands that fix it, unless
    `on_missed_shares` is `continue`; and always if a split has no row. If no command fixes it, the
    error says how many groups are needed.
    """
    counts = split.count()
    faults = find_faults(counts, params.shares.model_dump())
    empty = any(rows == 0 for rows, _ in counts.values())
    if not faults or (params.on_missed_shares == "continue" and not empty):
        return faults
    remedies = _find_remedies(ties, params)
    needed = "" if remedies else f"\n  {_describe_need(split, params)}"
    if not empty:
        remedies.append(
            ("go on all the same, and the report says so", {"on_missed_shares": "continue"})
        )
    raise InputError(
        f"{'; '.join(faults)}; {split.describe_largest()}.{needed}"
        + "".join(
            f"\n  {what}: dvc exp run "
            + " ".join(f"-S split.{name}={value}" for name, value in values.items())
            for what, values in remedies
        )
    )


def _describe_need(split: Split, params: SplitParams) -> str:
    least = count_least_groups((params.shares, *OTHER_SHARES))
    groups = len(set(split.groups.values()))
    if groups >= least:
        has = f"the {groups} groups here are too unequal"
    else:
        has = f"there {'is' if groups == 1 else 'are'} {groups}"
    return (
        "More rows, of other contexts and answers, would mend it: at least "
        f"{least} groups of equal size are needed, and {has}."
    )


def _find_remedies(ties: Ties, params: SplitParams) -> list[tuple[str, dict[str, Any]]]:
    """Changes of `split` that fix the shares, each with its effect.

    Other shares are looked for only where nothing better was found. What is advised depends on the
    names and sizes of the groups alone.
    """
    tried: list[tuple[str, dict[str, Any], Ties]] = [("draw groups by another seed", {}, ties)]
    longest = max((tie.words for tied in ties.rows.values() for tie in tied), default=0)
    if longest >= params.same_answer_words:
        words = {"same_answer_words": longest + 1}
        apart = {row: [tie for tie in tied if not tie.words] for row, tied in ties.rows.items()}
        shared = replace(ties, rows=apart)
        kinds = {tie.kind for tied in ties.rows.values() for tie in tied if tie.words}
        what = f"let the same {' or '.join(sorted(kinds))} stand in several splits"
        if kinds - {"answer"}:
            what += ", so that training sees what test rows are asked about"
        tried.append((what, words, shared))
    if ties.same:
        near = {"near_duplicate_contexts": "false"}
        what = "let contexts that are nearly the same stand in several"
        tried.append((what, near, replace(ties, same=())))
    found: list[tuple[str, dict[str, Any]]] = []
    for what, values, tied in tried:
        groups = group_rows(tied)
        seed = find_seed(groups, params.shares)
        if seed is not None:
            found.append((what, values | {"seed": seed}))
            if not values:
                break  # no more is needed
        elif not found and (other := _find_shares(groups, params.shares)):
            found.append((f"{what}, with other shares", values | other))
    return found


def _find_shares(groups: Mapping[str, str], asked: Shares) -> dict[str, Any] | None:
    """The first other shares that a seed meets, with that seed, as changes of `split`."""
    for shares in OTHER_SHARES:
        seed = find_seed(groups, shares)
        if seed is not None:
            before = asked.model_dump()
            return {
                f"shares.{name}": value
                for name, value in shares.model_dump().items()
                if value != before[name]
            } | {"seed": seed}
    return None


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…")

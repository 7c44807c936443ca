"""Read the clean rows by split, split as for the language model."""

import logging
from dataclasses import dataclass
from typing import cast

from library.corpus.groups import find_given_away, pair_rows
from library.corpus.splitting import check_split, find_ties, make_split
from library.errors import InputError
from library.files import read_jsonl
from library.params import SplitParams
from library.paths import CLEAN_ROWS_PATH
from library.records import SPLITS, CleanRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupedRows:
    """Rows by split, and the group of each by id."""

    splits: dict[str, list[CleanRow]]
    groups: dict[str, str]


def read_split_rows(params: SplitParams) -> GroupedRows:
    """Read and split data/clean/rows.jsonl.

    Validation and test rows lose a wrong answer that is right in a train row, because training
    gives it away. Raises InputError as `check_split` does.
    """
    rows = {row["id"]: cast(CleanRow, row) for row in read_jsonl(CLEAN_ROWS_PATH)}
    ties = find_ties(rows.values(), params)
    split = make_split(ties, params)
    try:
        faults = check_split(split, ties, params)
    except InputError as error:  # its commands are for the language model's pipeline
        said = str(error).replace("dvc exp run ", "dvc exp run embedding/dvc.yaml ")
        raise InputError(said) from error
    for fault in faults:
        log.warning("%s (split.on_missed_shares: continue)", fault)
    by_split: dict[str, list[CleanRow]] = {name: [] for name in SPLITS}
    for key, row in rows.items():
        by_split[split.splits[key]].append(row)
    for name in ("validation", "test"):
        asked = by_split[name]
        # contradicting rows make no pair, since they ask the same question
        partners = pair_rows([row for row in asked if row["contradicts"] is None])
        given_away = find_given_away(by_split["train"], asked, partners)
        if given_away:
            log.info(
                "%d %s rows lose their wrong answer, because it is right in training",
                len(given_away),
                name,
            )
        by_split[name] = [
            {**row, "negative": None} if row["id"] in given_away else row for row in asked
        ]
    return GroupedRows(by_split, dict(split.groups))


def ask(row: CleanRow) -> str:
    """A row's question, with the conversation before it."""
    earlier = [turn["content"] for turn in row["turns"] if turn["role"] == "user"]
    return "\n".join([*earlier, row["query"]])

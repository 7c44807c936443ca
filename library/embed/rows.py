"""The clean rows by split, as the language model's are split: by their texts alone."""

from dataclasses import dataclass
from typing import cast

from library.corpus.splitting import check_split, find_ties, make_split
from library.files import read_jsonl
from library.params import SplitParams
from library.paths import CLEAN_ROWS_PATH
from library.records import SPLITS, CleanRow


@dataclass(frozen=True)
class GroupedRows:
    """Rows by split, and the group of each by its id."""

    splits: dict[str, list[CleanRow]]
    groups: dict[str, str]


def read_split_rows(params: SplitParams) -> GroupedRows:
    """data/clean/rows.jsonl, split. Raises InputError where `check_split` does."""
    rows = {row["id"]: cast(CleanRow, row) for row in read_jsonl(CLEAN_ROWS_PATH)}
    ties = find_ties(rows.values(), params)
    split = make_split(ties, params)
    check_split(split, ties, params)
    by_split: dict[str, list[CleanRow]] = {name: [] for name in SPLITS}
    for key, row in rows.items():
        by_split[split.splits[key]].append(row)
    return GroupedRows(by_split, dict(split.groups))

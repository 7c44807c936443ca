"""Split the clean rows by group into train, validation and test, and build the prompts.

Reads data/clean/rows.jsonl, the base model's tokenizer and prompts/NAME.jinja, where
`format.prompt` is NAME. Writes metrics/format.json and data/formatted/: train.jsonl,
validation.jsonl, test.jsonl, rejected.jsonl, groups.json (what ties the largest group) and
train_sample.jsonl (train rows that the models answer too, to show overfitting).
"""

import logging
from typing import Any, cast

from library.corpus.groups import check_overlap, find_given_away, pair_rows
from library.corpus.rows import check_rejected_share
from library.corpus.splitting import check_split, find_ties, make_split
from library.embed.retrieving import ranker_of_rows
from library.entry import run_main
from library.errors import InputError
from library.files import read_jsonl, write_json, write_jsonl
from library.llm.architectures import count_positions
from library.llm.chat_template import load_tokenizer
from library.llm.formatting import (
    complete_row,
    describe_split,
    format_rows,
    log_shares,
    usual_sentences,
    without_room,
)
from library.llm.lengths import advise_on_rows
from library.llm.prompts import load_prompt, reads_passages
from library.params import load_params
from library.paths import (
    BASE_DIR,
    CLEAN_ROWS_PATH,
    FORMATTED_DIR,
    GROUPS_PATH,
    SPLITS_PATH,
    formatted_path,
    prompt_path,
)
from library.records import SPLITS, CleanRow

log = logging.getLogger(__name__)

MANY_WITHOUT, SOME_REJECTED = 0.1, 0.01  # of the test rows, and of all


def main() -> None:
    """Format the clean rows; fail if too many do not fit, or a split misses its share."""
    params = load_params()
    template = load_prompt(prompt_path(params.format.prompt))
    tokenizer = load_tokenizer(BASE_DIR)
    positions = count_positions(BASE_DIR)
    rows = {row["id"]: cast(CleanRow, row) for row in read_jsonl(CLEAN_ROWS_PATH)}

    def advise(*without: CleanRow) -> str:
        return advise_on_rows(rows, tokenizer, template, params.format, positions, without)

    if positions is not None and params.format.max_length > positions:
        raise InputError(
            f"params.yaml: format.max_length: {params.format.max_length} is beyond the model's "
            f"{positions} positions{advise()}"
        )
    ties = find_ties(rows.values(), params.split)
    split = make_split(ties, params.split)
    log.info("%d groups; %s", len(set(split.groups.values())), split.describe_largest())
    for fault in check_split(split, ties, params.split):
        log.warning("%s (split.on_missed_shares: continue)", fault)
    check_overlap(split.splits, ties)
    answer_sentences = usual_sentences(rows, split)
    template = load_prompt(prompt_path(params.format.prompt), answer_sentences)

    formatted, rejected = format_rows(
        *(rows.values(), split, tokenizer, template, params.format, positions),
        ranker_of_rows(params.format, rows.values()),
    )
    rejected = [{**record, "file": params.data.path} for record in rejected]
    write_jsonl(FORMATTED_DIR / "rejected.jsonl", rejected)
    try:
        check_rejected_share(rejected, len(rows), params.clean.max_rejected_share)
        for name in SPLITS:
            if not formatted[name]:
                raise InputError(f"no row is left in {name}: {len(rejected)} rows do not fit")
    except InputError as error:
        too_long = any(" tokens" in record["reason"] for record in rejected)
        raise InputError(f"{error}{advise() if too_long else ''}") from error

    # both rows of a pair must be asked; rows that contradict make none: they ask the same question
    asked = [rows[made["id"]] for name in SPLITS for made in formatted[name]]
    partners = pair_rows([row for row in asked if row["contradicts"] is None])
    given_away = find_given_away(formatted["train"], asked, partners)
    metrics: dict[str, Any] = {
        "rejected": len(rejected),
        "groups": len(set(split.groups.values())),
        "largest_group": split.largest,
        "answer_sentences": answer_sentences,
    }
    for name, records in formatted.items():
        records = [complete_row(made, partners, given_away) for made in records]
        write_jsonl(formatted_path(name), records)
        share = getattr(params.split.shares, name)
        metrics[name] = describe_split(records, len(asked), share, given_away, template)
        log_shares(name, metrics[name])
        if name == "train":
            short = [made for made in records if not positions or made["tokens"] <= positions]
            write_jsonl(formatted_path("train_sample"), short[: params.format.train_sample])
    write_json(GROUPS_PATH, {"largest": split.describe_largest()})
    write_json(SPLITS_PATH, metrics)
    without = [rows[made["id"]] for made in without_room(formatted["test"], template)]
    if not reads_passages(template):
        log.info("prompts/%s.jinja leaves the passages out", params.format.prompt)
    elif len(without) > MANY_WITHOUT * len(formatted["test"]):
        log.warning("%d test prompts have no room for a passage%s", len(without), advise(*without))
    elif len(rejected) > SOME_REJECTED * len(rows):
        log.warning("%d of %d rows are rejected%s", len(rejected), len(rows), advise())
    log.info("%s: %d rows as prompts", FORMATTED_DIR, len(asked))


if __name__ == "__main__":
    run_main(main)

"""Split the clean rows by group and turn each into the prompt that the model will be asked with.

Reads data/clean/rows.jsonl, the base model's tokenizer and prompts/NAME.jinja, where
`format.prompt` is NAME. Writes data/formatted/: train.jsonl, validation.jsonl, test.jsonl,
rejected.jsonl, and train_sample.jsonl with those train rows that the models are asked, too, so that
over-fitting shows; and metrics/format.json.
"""

import logging
from typing import Any, cast

from tqdm import tqdm

from library.corpus.groups import check_overlap, group_rows, pair_rows, split_groups
from library.corpus.rows import check_rejected_share
from library.entry import run_main
from library.errors import InputError
from library.files import read_jsonl, write_json, write_jsonl
from library.llm.base_checks import count_positions
from library.llm.chat_template import load_tokenizer
from library.llm.formatting import describe_split, format_row
from library.llm.prompts import load_prompt, reads_passages
from library.params import load_params
from library.paths import (
    BASE_DIR,
    CLEAN_ROWS_PATH,
    FORMATTED_DIR,
    SPLITS_PATH,
    formatted_path,
    prompt_path,
)
from library.records import SPLITS, CleanRow, FormattedRow, RejectedRow

log = logging.getLogger(__name__)


def main() -> None:
    """Format the clean rows.

    Fails where too many do not fit, groups are too few, or a text stands in two splits.
    """
    params = load_params()
    template = load_prompt(prompt_path(params.format.prompt))
    tokenizer = load_tokenizer(BASE_DIR)
    positions = count_positions(BASE_DIR)
    if positions is not None and params.format.max_length > positions:
        raise InputError(
            f"params.yaml: format.max_length: {params.format.max_length} is beyond the model's "
            f"{positions} positions"
        )

    rows = {row["id"]: cast(CleanRow, row) for row in read_jsonl(CLEAN_ROWS_PATH)}
    texts = {
        key: [text for text in (row["anchor"], row["positive"], row["negative"]) if text]
        for key, row in rows.items()
    }
    groups = group_rows(texts)
    splits = split_groups(groups, params.split.shares, params.split.seed)
    texts_by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for key, split in splits.items():
        texts_by_split[split] += texts[key]
    check_overlap(texts_by_split)

    formatted: dict[str, list[FormattedRow]] = {split: [] for split in SPLITS}
    rejected: list[RejectedRow] = []
    for key, row in tqdm(sorted(rows.items()), desc="format", unit="row", mininterval=2):
        split, place = splits[key], row["place"]
        try:
            made = format_row(
                row, split, groups[key], tokenizer, template, params.format, positions
            )
        except InputError as error:
            log.info("rejected %s: %s", place, error)
            reason = str(error)
            rejected.append({"id": key, "file": params.data.path, "place": place, "reason": reason})
        else:
            formatted[split].append(made)
    write_jsonl(FORMATTED_DIR / "rejected.jsonl", rejected)
    check_rejected_share(rejected, len(rows), params.clean.max_rejected_share)
    for split in SPLITS:
        if not formatted[split]:
            raise InputError(
                f"no row is left in {split}: {len(rejected)} of {len(rows)} rows don't fit"
            )

    # a pair counts where both of its rows are asked, which being of one group they are in the same
    # split; rows that contradict each other are none: nothing in their questions could decide
    asked = [rows[made["id"]] for split in SPLITS for made in formatted[split]]
    partners = pair_rows([row for row in asked if row["contradicts"] is None])
    metrics: dict[str, Any] = {"rejected": len(rejected), "groups": len(set(groups.values()))}
    for split, records in formatted.items():
        for made in records:
            made["pair"] = partners.get(made["id"])
        write_jsonl(formatted_path(split), records)
        metrics[split] = describe_split(records)
    # rows are in the order of their ids, which are drawn from their text
    short = [row for row in formatted["train"] if positions is None or row["tokens"] <= positions]
    write_jsonl(formatted_path("train_sample"), short[: params.format.train_sample])
    write_json(SPLITS_PATH, metrics)
    log.info(", ".join(f"{split}: {metrics[split]['rows']} rows" for split in SPLITS))
    if not reads_passages(template):
        log.info(
            "prompts/%s.jinja leaves the passages out: the model is asked without them",
            params.format.prompt,
        )
        return
    for split in SPLITS:
        without, total = metrics[split]["without_passages"], metrics[split]["rows"]
        if without:
            log.warning(
                "%s: %d of %d prompts hold no passage: question and answer leave no room for one; "
                "raise format.max_length",
                *(split, without, total),
            )


if __name__ == "__main__":
    run_main(main)

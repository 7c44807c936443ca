"""Clean the raw rows, and reject those that cannot be used, each with a reason.

Reads the file that `data.path` names. Writes metrics/clean.json and data/clean/: rows.jsonl,
rejected.jsonl and changes.jsonl.
"""

import json
import logging
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from library.corpus.cleaning import FEATURES, clean_row, find_rejected
from library.corpus.rows import advise_on_contexts, check_rejected_share
from library.corpus.shapes import UNANSWERABLE
from library.corpus.table import log_several_wrong, map_table, read_table
from library.entry import run_main
from library.errors import InputError
from library.files import open_atomic, to_line, write_json, write_jsonl
from library.params import load_params
from library.paths import CLEAN_DIR, CLEAN_ROWS_PATH, CLEANING_PATH
from library.progress import SECONDS_BETWEEN_UPDATES

log = logging.getLogger(__name__)

SHOWN_REJECTED = 10


def main() -> None:
    """Clean the rows of `data.path`; fail if more than `clean.max_rejected_share` are rejected."""
    params = load_params()
    path = Path(params.data.path)
    rules = [name for name, on in params.clean.rules if on]
    # Windows cannot remove a memory-mapped file: it leaves that to the system
    with tempfile.TemporaryDirectory(prefix="clean-", ignore_cleanup_errors=True) as cache:
        shape, raw = read_table(path, params.data, params.clean.nothing, Path(cache))
        log.info("%s: %s", path, shape.describe())
        log_several_wrong(sum(number > 1 for number in raw["wrong"]))
        table = map_table(raw, clean_row, FEATURES, rules=rules, columns=shape.columns)
        problems, contradictions = find_rejected(
            table.remove_columns(["line", "changes", "counts"]),
            params.clean.on_contradiction == "drop",
        )
        rejected = [
            {"file": str(path), "place": place, "id": key, "reason": problems[index]}
            for index, (place, key) in enumerate(zip(table["place"], table["id"], strict=True))
            if index in problems
        ]
        unanswerable = sum(record["reason"] == UNANSWERABLE for record in rejected)
        if unanswerable:
            log.info("%d unanswerable questions are left out", unanswerable)
        for record in rejected[:SHOWN_REJECTED]:
            log.info("rejected %s: %s", record["place"], record["reason"])
        if len(rejected) > SHOWN_REJECTED:
            log.info("%d rows rejected in all: data/clean/rejected.jsonl lists them", len(rejected))
        write_jsonl(CLEAN_DIR / "rejected.jsonl", rejected)
        try:
            check_rejected_share(
                [record for record in rejected if record["reason"] != UNANSWERABLE],
                len(table) - unanswerable,
                params.clean.max_rejected_share,
            )
        except InputError as error:
            raise InputError(f"{error}{advise_on_contexts(shape, raw['anchor'])}") from error
        changed: Counter[str] = Counter()
        with_negative = 0
        with (
            open_atomic(CLEAN_ROWS_PATH) as rows,
            open_atomic(CLEAN_DIR / "changes.jsonl") as changes,
        ):
            for index, row in enumerate(
                tqdm(table, desc="clean", unit="row", mininterval=SECONDS_BETWEEN_UPDATES)
            ):
                if index in problems:
                    continue
                other = contradictions.get(row["id"])
                line = row["line"]
                if other:
                    line = to_line({**json.loads(line), "contradicts": other})
                rows.write(line)
                changes.write(row["changes"])
                changed.update(json.loads(row["counts"]))
                with_negative += row["negative_key"] is not None
    metrics = {
        "rows": len(table),
        "kept": len(table) - len(rejected),
        "rejected": len(rejected),
        "unanswerable": unanswerable,
        "rejected_share": round(len(rejected) / len(table), 6),
        "with_negative": with_negative,
        "contradictory": len(contradictions),
        "changes": {name: changed[name] for name in (*rules, "nothing")},
    }
    write_json(CLEANING_PATH, metrics)
    log.info(
        "%s: kept %d of %d rows, made %d changes",
        *(CLEAN_ROWS_PATH, metrics["kept"], len(table), changed.total()),
    )


if __name__ == "__main__":
    run_main(main)

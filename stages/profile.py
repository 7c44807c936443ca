"""Profile the raw rows: lengths, defects, shared texts, contradictions, and what fits the model.

Reads the file that `data.path` names, the base model's tokenizer and the prompt template. Writes
metrics/profile.json and reports/profile.html.
"""

import logging
import tempfile
from pathlib import Path

import pandas as pd
from datasets import Dataset

from library.corpus.profiling import count_defects, describe_lengths, describe_rows, forecast_window
from library.corpus.rows import FIELDS
from library.corpus.table import log_several_wrong, map_table, read_table
from library.entry import run_main
from library.files import write_json, write_text
from library.llm.architectures import count_positions
from library.llm.chat_template import load_tokenizer, prompt_ids
from library.llm.lengths import RowLengths, advise_lengths
from library.llm.prompts import build_messages, load_prompt
from library.llm.row_measurements import FEATURES, measure_row
from library.pages.profile import ProfileData, render_profile
from library.params import load_params
from library.paths import BASE_DIR, PROFILE_PATH, prompt_path

log = logging.getLogger(__name__)

WINDOWS = (384, 1024, 2048, 4096, 8192)  # tokens
# limits of the page's table, for the browser and for this stage's memory
SHOWN_ROWS, SHOWN_CHARACTERS = 1000, 30_000


def shown_rows(raw: Dataset) -> pd.DataFrame:
    """The first rows, texts shortened, for the table of the page."""
    rows = raw.select(range(min(len(raw), SHOWN_ROWS))).select_columns(list(FIELDS))
    return pd.DataFrame(
        {name: pd.Series(rows[name]).str.slice(stop=SHOWN_CHARACTERS) for name in rows.column_names}
    )


def main() -> None:
    """Profile the rows of `data.path`."""
    params = load_params()
    path = Path(params.data.path)
    with tempfile.TemporaryDirectory(prefix="profile-", ignore_cleanup_errors=True) as cache_dir:
        shape, raw = read_table(path, params.data, params.clean.nothing, Path(cache_dir))
        log.info("%s: %s", path, shape.describe())
        table = list(map_table(raw, measure_row, FEATURES, base_dir=BASE_DIR))
        shown = shown_rows(raw)
    profile, examples = describe_rows(table, params.split)
    lengths = {
        unit: pd.DataFrame(
            {field: [row[f"{field}_{unit}"] for row in table] for field in FIELDS}, dtype="float64"
        )
        for unit in ("characters", "tokens")
    }
    profile["columns"] = {
        field: {
            "missing": int(lengths["characters"][field].isna().sum()),
            "distinct": len({row[f"{field}_key"] for row in table} - {None}),
            **{unit: describe_lengths(frame[field].dropna()) for unit, frame in lengths.items()},
        }
        for field in FIELDS
    }
    profile["defects"], defects = count_defects(table)
    template = load_prompt(prompt_path(params.format.prompt))
    overhead = len(prompt_ids(load_tokenizer(BASE_DIR), build_messages(template, [], "")))
    usable = [row["problem"] is None for row in table]
    asked = lengths["tokens"].loc[usable, ["anchor", "query", "positive"]].fillna(0)
    reserve = params.format.max_new_tokens
    profile["forecast"] = {
        str(window): forecast_window(asked, overhead, reserve, window)
        for window in sorted({*WINDOWS, params.format.max_length})
    }
    advice = advise_lengths(
        (
            RowLengths(
                overhead + row["query_tokens"] + row["turns_tokens"],
                overhead + row["query_tokens"] + row["turns_tokens"] + (row["anchor_tokens"] or 0),
                row["positive_tokens"] + 1,  # the end of the turn
                max(row["positive_tokens"], row["negative_tokens"] or 0) + 1,
            )
            for row in table
            if row["problem"] is None
        ),
        count_positions(BASE_DIR),
    )
    profile["lengths_taking"] = {f"{entry.share:.0%}": entry._asdict() for entry in advice}
    profile["answers_beyond_max_new_tokens"] = int((asked["positive"] >= reserve).sum())
    write_json(PROFILE_PATH, profile)
    page = render_profile(
        ProfileData(
            path=path,
            columns=shape.columns,
            advice=[entry._asdict() | {"command": entry.command()} for entry in advice],
            format=params.format.model_dump(),
            rules=[name for name, on in params.clean.rules if on],
            profile=profile,
            examples=examples,
            defects=defects,
            tokens=lengths["tokens"],
            rows=shown,
        )
    )
    log_several_wrong(profile.get("several_wrong", 0))
    page_path = Path("reports/profile.html")
    write_text(page_path, page)
    log.info(
        "%s: %d rows in %d groups",
        *(page_path, profile["rows"], profile["groups"]["count"]),
    )


if __name__ == "__main__":
    run_main(main)

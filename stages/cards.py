"""Write a model card and a data card, to publish with the adapter and the rows.

Reads the metrics, artifacts/base/manifest.json, data/predictions/sft_model.json and the raw rows.
Writes reports/model_card.md and reports/data_card.md.
"""

import logging
from pathlib import Path

from library.corpus.reading import find_file_shape
from library.entry import run_main
from library.files import hash_file, read_json, write_text
from library.pages.cards import read_model_facts, render_card, render_data_card
from library.params import load_params
from library.paths import CLEANING_PATH, PROFILE_PATH, answerer_path

log = logging.getLogger(__name__)


def main() -> None:
    """Write both cards."""
    params = load_params()
    facts = read_model_facts(params)
    profile, cleaning = read_json(PROFILE_PATH), read_json(CLEANING_PATH)
    path = Path(params.data.path)
    columns = find_file_shape(path, params.data).columns
    write_text(
        Path("reports/model_card.md"),
        render_card(facts, {"measured": read_json(answerer_path("sft"))}),
    )
    write_text(
        Path("reports/data_card.md"),
        render_data_card(profile, cleaning, facts.splits, params, columns, hash_file(path)),
    )
    log.info("reports/model_card.md and reports/data_card.md are written")


if __name__ == "__main__":
    run_main(main)

"""Write down what the model and the data are, for whoever meets them without this project.

Reads the metrics, artifacts/base/manifest.json, data/predictions/device.json and the raw rows' file. Writes reports/model_card.md
and reports/data_card.md.
"""

import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.corpus.rows import write_text
from stages.params import load_model_file, load_params
from stages.run import run_stage
from stages.verdict.card import render_card, render_data_card
from stages.verdict.report import PACKAGES

log = logging.getLogger(__name__)


def read(path: str) -> Any:
    """A JSON file that an earlier stage wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def main() -> None:
    """Write both cards."""
    params = load_params()
    splits = read("metrics/format.json")
    model_card = render_card(
        read("metrics/evaluation.json"),
        read("artifacts/base/manifest.json"),
        splits,
        params,
        load_model_file(params.model).quantization,
        {"measured": read("data/predictions/device.json")},
        Path(f"prompts/{params.format.prompt}.jinja").read_text(encoding="utf-8"),
        {name: version(name) for name in PACKAGES},
    )
    with Path(params.data.path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    data_card = render_data_card(read("metrics/profile.json"), read("metrics/clean.json"), splits, params, sha256)
    write_text(Path("reports/model_card.md"), model_card)
    write_text(Path("reports/data_card.md"), data_card)
    log.info("reports/model_card.md and data_card.md are written")


if __name__ == "__main__":
    run_stage(main)

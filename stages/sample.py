"""Generate the rows of the default run.

Writes data/sample/patents.json: 499 questions about 398 invented patents, in the shape of the
reference data set. standin/sample_rows.py says how they are made.
"""

import json
import logging
from pathlib import Path

from library.entry import run_main
from library.files import write_text
from library.params import load_params
from standin.sample_rows import make_rows

log = logging.getLogger(__name__)


def main(out_path: Path = Path("data/sample/patents.json")) -> None:
    """Write the rows as a JSON array."""
    rows, planted = make_rows(load_params().sample.seed)
    write_text(out_path, json.dumps(rows, indent=1) + "\n")
    defects = sum(counts.total() for counts in planted.values())
    log.info(
        "%s: %d rows, with %d defects as in real texts for clean to repair",
        *(out_path, len(rows), defects),
    )


if __name__ == "__main__":
    run_main(main)

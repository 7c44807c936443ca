"""Write the embedded default data, in the reference data set's shape.

499 generated questions over 398 invented patents: see standin/sample_rows.py. Writes
data/sample/patents.json.
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
    log.info("%s: %d rows", out_path, len(rows))
    total = sum(counts.total() for counts in planted.values())
    log.info(
        "%d defects of real texts are planted in it, for profile to count and clean to mend", total
    )


if __name__ == "__main__":
    run_main(main)

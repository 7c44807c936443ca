"""Download a data set from the Hugging Face Hub at a pinned commit, as a Parquet file in data/raw/.

    python -m commands.fetch owner/name data/raw/name.parquet --revision COMMIT --split train

Track the file with `dvc add`. Instead of owner/name, a folder with data files works too and needs
no revision. No code of the data set's author is run.
"""

import argparse
import logging
import re
import tempfile
from pathlib import Path

from datasets import (
    Dataset,
    disable_progress_bars,
    get_dataset_config_names,
    load_dataset,
)
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from library.entry import run_main
from library.errors import InputError

log = logging.getLogger(__name__)


def fetch(source: str, revision: str | None, split: str, config: str | None, out_path: Path) -> int:
    """Write one split of a data set as Parquet and return its number of rows.

    Raises InputError if the data set cannot be loaded, or if one on the Hub is not pinned to a
    commit.
    """
    local = Path(source).is_dir()
    if not local and not (revision and re.fullmatch(r"[0-9a-f]{40}", revision)):
        raise InputError(
            f"--revision {revision or 'is missing'}: expected a commit of 40 hexadecimal digits, "
            "because branches and tags can move"
        )
    if out_path.suffix != ".parquet":
        raise InputError(f"{out_path}: expected a name that ends in .parquet")
    revision = None if local else revision
    try:
        configs = get_dataset_config_names(source, revision)
        if config is None and len(configs) > 1:
            raise InputError(f"{source}: --config is missing; choose one of: {', '.join(configs)}")
        data = load_dataset(source, config, split=split, revision=revision)
    except (DatasetNotFoundError, DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{source}, split {split}: {error}") from error
    assert isinstance(data, Dataset)
    try:
        out_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out_path}: {error}") from error
    with tempfile.TemporaryDirectory(dir=out_path.parent) as folder:
        complete = Path(folder) / out_path.name
        data.to_parquet(complete)
        complete.replace(out_path)
    return len(data)


def main() -> None:
    """Fetch the data set given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.fetch",
        description="Download a data set from the Hugging Face Hub as a Parquet file.",
    )
    parser.add_argument("source", help="owner/name on the Hub, or a folder with data files")
    parser.add_argument("out_path", type=Path, help="such as data/raw/name.parquet")
    parser.add_argument("--revision", help="the commit, 40 hexadecimal digits")
    parser.add_argument("--split", default="train")
    parser.add_argument("--config", help="the configuration, if the data set has several")
    options = parser.parse_args()
    disable_progress_bars()
    rows = fetch(options.source, options.revision, options.split, options.config, options.out_path)
    log.info("%s: %d rows; track it with: dvc add %s", options.out_path, rows, options.out_path)


if __name__ == "__main__":
    run_main(main)

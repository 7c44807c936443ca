"""Make the base model ready: every file there, checked and on record, and its tokenizer able to ask.

Reads models/NAME.yaml, where `model` in params.yaml is NAME. Writes artifacts/base/: manifest.json, config.json and the
tokenizer. This is the only stage that may use the network.
"""

import logging
import shutil

from stages.corpus.rows import write_json
from stages.llm.manifest import find_folder, make_manifest
from stages.llm.prompts import BASE_DIR, load_tokenizer
from stages.params import load_model_file, load_params
from stages.run import run_stage

log = logging.getLogger(__name__)


def main() -> None:
    """Prepare the base model that params.yaml names."""
    name = load_params().model
    manifest = make_manifest(load_model_file(name))
    folder = find_folder(manifest["source"])
    tokenizer = load_tokenizer(folder)
    shutil.rmtree(BASE_DIR, ignore_errors=True)
    tokenizer.save_pretrained(BASE_DIR)
    shutil.copyfile(folder / "config.json", BASE_DIR / "config.json")
    write_json(BASE_DIR / "manifest.json", manifest)
    size = sum(file["bytes"] for file in manifest["files"].values())
    log.info("%s: %d files, %.1f MB", name, len(manifest["files"]), size / 1e6)


if __name__ == "__main__":
    run_stage(main)

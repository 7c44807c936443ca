"""Make the base model ready: every file checked and on record, and its tokenizer able to ask.

Reads models/NAME.yaml, where `model` in params.yaml is NAME. Writes artifacts/base/: manifest.json,
config.json and the tokenizer. This is the only stage that may use the network.
"""

import logging
import shutil
from pathlib import Path

from library.entry import run_main
from library.errors import InputError
from library.files import read_json, write_json
from library.llm.chat_template import load_tokenizer
from library.llm.manifest import find_model_folder, make_manifest
from library.params import HubModel, ModelConfig, load_model_file, load_params
from library.paths import BASE_DIR, MANIFEST_PATH

log = logging.getLogger(__name__)


def check_config(expected: ModelConfig, config_path: Path, name: str) -> None:
    """Raise InputError where the model file `name` says another `config` than config.json."""
    actual = read_json(config_path)
    for key, value in expected.model_dump().items():
        if actual.get(key) != value:
            raise InputError(
                f"{name}: config.{key}: {value}, but the model's config.json has {actual.get(key)}"
            )


def main() -> None:
    """Prepare the base model that params.yaml names."""
    name = load_params().model
    model_file = load_model_file(name)
    manifest = make_manifest(model_file)
    folder = find_model_folder(manifest["source"])
    if isinstance(model_file, HubModel) and model_file.config is not None:
        check_config(model_file.config, folder / "config.json", f"models/{name}.yaml")
    tokenizer = load_tokenizer(folder)
    shutil.rmtree(BASE_DIR, ignore_errors=True)
    tokenizer.save_pretrained(BASE_DIR)
    shutil.copyfile(folder / "config.json", BASE_DIR / "config.json")
    write_json(MANIFEST_PATH, manifest)
    size = sum(file["bytes"] for file in manifest["files"].values())
    log.info("%s: %d files, %.1f MB", name, len(manifest["files"]), size / 1e6)


if __name__ == "__main__":
    run_main(main)

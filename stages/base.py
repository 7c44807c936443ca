"""Make the base model ready: every file checked and on record, and the model tried on one row.

Reads models/NAME/, where `model` in params.yaml is NAME. Writes artifacts/base/: manifest.json,
config.json, and the tokenizer with its chat template adapted. This is the only stage that may use
the network.
"""

import logging
import shutil

from library.entry import run_main
from library.errors import InputError
from library.files import write_json
from library.llm.adapted_template import adapt_template
from library.llm.base_checks import (
    check_config,
    check_files,
    check_quantization,
    check_vocabulary,
    load_config,
)
from library.llm.chat_template import load_tokenizer
from library.llm.manifest import find_model_folder, make_manifest, source_name
from library.llm.trial import try_model
from library.params import HubModel, load_model_file, load_params
from library.paths import BASE_DIR, MANIFEST_PATH, model_path

log = logging.getLogger(__name__)


def main() -> None:
    """Prepare the base model that params.yaml names."""
    params = load_params()
    name = params.model
    model_file = load_model_file(name)
    manifest = make_manifest(model_file)
    folder = find_model_folder(manifest["source"])
    source = source_name(manifest["source"])
    if quantized := manifest["source"].get("quantized"):
        log.warning("%s was quantized to %s before: what that lost stays lost", source, quantized)
    config = load_config(folder, source)
    if isinstance(model_file, HubModel) and model_file.config is not None:
        check_config(model_file.config, config, str(model_path(name)))
    check_quantization(config, model_file.quantization, source)
    check_files(folder, config)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(config, tokenizer, source)
    try:
        for change in adapt_template(tokenizer, model_file.chat_template_kwargs):
            log.info("%s: in its chat template %s", source, change)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    shutil.rmtree(BASE_DIR, ignore_errors=True)
    tokenizer.save_pretrained(BASE_DIR)
    shutil.copyfile(folder / "config.json", BASE_DIR / "config.json")
    write_json(MANIFEST_PATH, manifest)
    try:
        try_model(model_file, params.sft, source)
    except BaseException:  # whatever ends it, Ctrl-C too: no base is left that was not tried
        shutil.rmtree(BASE_DIR)
        raise
    size = sum(file["bytes"] for file in manifest["files"].values())
    log.info("%s: %d files, %.1f MB", name, len(manifest["files"]), size / 1e6)


if __name__ == "__main__":
    run_main(main)

"""A base model made ready in a folder: checked, on record, its tokenizer adapted, and tried."""

import logging
import shutil
from pathlib import Path

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
from library.params import HubModel, SftParams, load_model_file
from library.paths import model_path

log = logging.getLogger(__name__)


def prepare_base(name: str, base_dir: Path, sft: SftParams) -> None:
    """Write manifest.json, config.json and the adapted tokenizer of the model `name` to a folder.

    Raises InputError, and leaves no folder, where it can't be a base.
    """
    model_file = load_model_file(name)
    manifest = make_manifest(model_file)
    folder = find_model_folder(manifest["source"])
    source = source_name(manifest["source"])
    if quantized := manifest["source"].get("quantized"):
        log.warning(
            "%s had been quantized to %s: the precision that this lost stays lost",
            source,
            quantized,
        )
    config = load_config(folder, source)
    if isinstance(model_file, HubModel) and model_file.config is not None:
        check_config(model_file.config, config, str(model_path(name)))
    check_quantization(config, model_file.quantization, source)
    check_files(folder, config)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(config, tokenizer, source)
    try:
        for change in adapt_template(tokenizer, model_file.chat_template_kwargs):
            log.info("%s: chat template: %s", source, change)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    shutil.rmtree(base_dir, ignore_errors=True)
    tokenizer.save_pretrained(base_dir)
    shutil.copyfile(folder / "config.json", base_dir / "config.json")
    write_json(base_dir / "manifest.json", manifest)
    try:
        try_model(base_dir, model_file, sft, source)
    except BaseException:  # whatever ends it, Ctrl-C too: no base is left that was not tried
        shutil.rmtree(base_dir)
        raise
    size = sum(file["bytes"] for file in manifest["files"].values())
    log.info(
        "%s: %s is ready, %d files with %.1f MB",
        *(base_dir, name, len(manifest["files"]), size / 1e6),
    )

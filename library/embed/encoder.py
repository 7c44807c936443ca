"""An embedding model with its authors' pooling, prompts and maximum length."""

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
from safetensors import safe_open
from transformers import PreTrainedModel
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
from library.llm.devices import pick_device, pick_dtype
from library.llm.memory.measuring import explain_out_of_memory
from library.llm.quantizing import keep_weights_unpacked, nf4_config

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # no pickles, no code, no other formats


def find_folder(model: AnyEmbeddingModel) -> Path:
    """The folder of a model's files; downloads those of the Hub that are not cached.

    Raises InputError if they cannot be had, or are not safetensors.
    """
    if isinstance(model, PackagedEmbeddingModel):
        name, _, inner = model.folder.partition("/")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"embed.model: needs the package {model.package}, which is not installed: "
                f"pip install --constraint requirements.lock {model.package}"
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
                f"embed.model: {model.id} at {model.revision} cannot be downloaded and is not in "
                f"the cache: {describe_error(error)}. Without a network: -S embed.model=minilm, or "
                "a folder of your own (path and sha256 in its file)"
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
        raise InputError(
            f"embed.model: {weights[0]} has the SHA-256 {found}, not the one of its file in "
            "models/embedding/; if you replaced it on purpose, set sha256 to the new one"
        )
    return folder


def load_encoder(model: EmbeddingModel, folder: Path) -> Any:
    """Load a folder's weights as a SentenceTransformer with the prompts `query` and `document`.

    Pooling and length come from the model's file, not from the folder, and no code of the folder
    runs. Raises InputError if the library is missing, the model cannot be loaded, or weights are
    missing, which transformers would fill with random numbers.
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
    device = pick_device()
    weights: dict[str, Any] = {
        "dtype": torch.float32
        if device.type == "cpu" or model.dtype == "float32"
        else pick_dtype(device),
        "use_safetensors": True,
    }
    if model.quantization == "nf4":
        weights |= {
            "quantization_config": nf4_config(pick_dtype(device)),
            "device_map": {"": device},
        }
    try:
        with explain_out_of_memory(device, "choose a smaller embed.model"):
            transformer = Transformer(
                str(folder),
                max_seq_length=model.max_length,
                model_kwargs=loading | weights,
                config_kwargs=loading,
                processor_kwargs=loading,
            )
            check_length(transformer.auto_model, model.max_length)
            check_weights(transformer.auto_model, folder)
            transformer.auto_model.config.use_cache = False
            keep_weights_unpacked(transformer.auto_model)
            if not model.is_causal:
                see_both_ways(transformer.auto_model)
            encoder = SentenceTransformer(
                modules=[
                    transformer,
                    Pooling(
                        transformer.get_embedding_dimension(),
                        model.pooling,
                        include_prompt=model.include_prompt,
                    ),
                    Normalize(),
                ],
                device=str(device),
                prompts={"query": model.query_prompt, "document": model.document_prompt},
            )
    except InputError:
        raise
    except Exception as error:  # any kind: the files are broken
        raise InputError(f"embed.model: {folder}: {describe_error(error)}") from error
    return encoder


def see_both_ways(model: PreTrainedModel) -> None:
    """Let each token of a decoder attend to later tokens, as GritLM embeds; encoders already do.

    If transformers makes a mask, it reads the config. Without a mask, a flag of the attention
    layers decides.
    """
    model.config.is_causal = False
    model.config.sliding_window = None
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Raise InputError if a model has fewer positions than its file's `max_length`."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and model.config.model_type in OFFSET_POSITIONS:
        positions -= 2  # the first ones are kept for padding
    if positions is not None and max_length > positions:
        raise InputError(
            f"embed.model: max_length: {max_length} in its file in models/embedding/, but the "
            f"model has {positions} positions"
        )


def check_weights(model: PreTrainedModel, folder: Path) -> None:
    """Raise InputError if a folder lacks weights of a model, which would be filled with random
    numbers.

    Poolers are skipped; a mixture's experts and gate have other names in files.
    """
    stored: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= set(file.keys())
    ends = {".".join(name.split(".")[at:]) for name in stored for at in range(3)}
    missing = [
        name
        for name, _ in model.named_parameters()
        if name not in ends and not any(part in name for part in ("pooler", ".experts.", ".gate."))
    ]
    if missing:
        raise InputError(
            f"embed.model: {folder}: {len(missing)} weights are missing in its files, such as "
            f"{missing[0]}"
        )


def encode(
    encoder: Any,
    texts: Sequence[str],
    kind: Literal["query", "document"],
    name: str,
    batch_size: int = 32,
) -> Vectors:
    """Encode texts as unit vectors, (texts, dimension), float32; `name` is for the log.

    The same text is encoded once.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return np.zeros((0, encoder.get_embedding_dimension()), dtype=np.float32)
    log.info("%s: %d texts", name, len(distinct))
    vectors = encoder.encode(
        distinct,
        prompt_name=kind,
        batch_size=batch_size,
        show_progress_bar=len(distinct) > 100,
    ).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # 16 bits leave lengths of 0.99
    place = {text: at for at, text in enumerate(distinct)}
    found: Vectors = vectors[[place[text] for text in texts]]
    return found


def count_tokens(encoder: Any, text: str, kind: Literal["query", "document"]) -> int:
    """The number of tokens of a whole text as the model sees it, with prompt and special tokens."""
    whole = encoder.tokenizer(encoder.prompts[kind] + text, truncation=False, verbose=False)
    return len(whole["input_ids"])


def count_longest(encoder: Any, queries: Sequence[str], documents: Sequence[str]) -> int:
    """The number of tokens of the longest text, at most the model's longest input."""
    counts = [count_tokens(encoder, text, "query") for text in dict.fromkeys(queries)]
    counts += [count_tokens(encoder, text, "document") for text in dict.fromkeys(documents)]
    return min(max(counts), int(encoder.max_seq_length))


def save_encoder(encoder: Any, model: EmbeddingModel, folder: Path) -> None:
    """Write a tuned model so that sentence-transformers can load it.

    It has no model card, because sentence-transformers' card contains times. An adapter names its
    base as `model` does, not by a local folder.
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

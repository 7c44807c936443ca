"""Load an embedding model if it fits into memory."""

from pathlib import Path
from typing import Any

from library.embed.encoder import find_folder, load_encoder
from library.embed.memory import SHORTEST, plan_encoding
from library.embedding_models import AnyEmbeddingModel, HubEmbeddingModel


def open_encoder(model: AnyEmbeddingModel) -> tuple[Any, Path]:
    """Load a model; returns it and the folder of its files.

    Raises InputError if it is predicted not to fit, before anything is downloaded.
    """
    if isinstance(model, HubEmbeddingModel):
        plan_encoding(model, None, min(SHORTEST, model.max_length))
    folder = find_folder(model)
    plan_encoding(model, folder, min(SHORTEST, model.max_length))
    return load_encoder(model, folder), folder

"""Rank the passages of a prompt: by BM25, or by an embedding model before or after tuning."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from library.corpus.passages import Ranker, rank_passages, split_passages
from library.embed.encoder import Vectors, count_longest, count_tokens, encode, load_encoder
from library.embed.memory import SHORTEST, plan_encoding
from library.embed.opening import open_encoder
from library.embedding_models import AnyEmbeddingModel, parse_embedding_model
from library.errors import InputError
from library.files import hash_file, read_json, write_json
from library.params import FormatParams, Section, validate_values
from library.paths import ADAPTER_WEIGHTS, EMBEDDER_DIR, retriever_path
from library.records import CleanRow

log = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", ADAPTER_WEIGHTS)


class Retriever(Section):
    """A file in retrievers/."""

    model: dict[str, Any] | None
    """The embedding model, as its file in models/embedding/ has it; null is BM25."""
    tuned: str | None
    """The SHA-256 of the weights in artifacts/embedder/; null if the model is not tuned."""


def find_weights(folder: Path) -> Path | None:
    """The weights of a tuned model: all of them, or an adapter's."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def write_retriever(
    name: Literal["embedding", "tuned"], model: AnyEmbeddingModel, folder: Path | None = None
) -> None:
    """Write a file in retrievers/; `folder` is that of a tuned model."""
    weights = None if folder is None else find_weights(folder)
    tuned = None if weights is None else hash_file(weights)
    write_json(retriever_path(name), {"model": model.model_dump(), "tuned": tuned})


class EmbeddingRanker:
    """Rank passages by cosine similarity to the question; ties keep document order.

    Texts that `read` has encoded are not encoded again.
    """

    def __init__(self, encoder: Any, model: AnyEmbeddingModel, folder: Path) -> None:
        self.encoder, self.model, self.folder = encoder, model, folder
        self.asked: dict[str, Vectors] = {}
        self.known: dict[str, Vectors] = {}

    def read(self, questions: Sequence[str], passages: Sequence[str]) -> None:
        """Encode texts; warn of passages that exceed the model's longest input."""
        asked = [text for text in dict.fromkeys(questions) if text not in self.asked]
        read = [text for text in dict.fromkeys(passages) if text not in self.known]
        if not (asked or read):
            return
        at_once = plan_encoding(self.model, self.folder, count_longest(self.encoder, asked, read))
        vectors = encode(self.encoder, asked, "query", "retriever: questions", at_once)
        self.asked |= zip(asked, vectors, strict=True)
        vectors = encode(self.encoder, read, "document", "retriever: passages", at_once)
        self.known |= zip(read, vectors, strict=True)
        limit = self.encoder.max_seq_length
        cut = sum(count_tokens(self.encoder, text, "document") > limit for text in read)
        if cut:
            log.warning(
                "the embedding model sees %d tokens, and ignores the ends of %d of %d passages; "
                "lower format.passage_characters",
                *(limit, cut, len(read)),
            )

    def __call__(self, passages: Sequence[str], question: str) -> list[int]:
        """Indices of the passages, nearest first."""
        if not passages:
            return []
        self.read([question], passages)
        asked = self.asked[question]
        scores = np.array([self.known[text] @ asked for text in passages])
        return [int(index) for index in np.argsort(-scores, kind="stable")]


def ranker_of_rows(params: FormatParams, rows: Iterable[CleanRow]) -> Ranker:
    """The ranker of `format.retriever`, with the texts of all rows encoded at once."""
    rank = load_ranker(params.retriever)
    if isinstance(rank, EmbeddingRanker):
        rows = list(rows)
        contexts = dict.fromkeys(row["anchor"] for row in rows)
        passages = [
            text
            for context in contexts
            for text in split_passages(context, params.passage_characters)
        ]
        rank.read([row["query"] for row in rows], passages)
    return rank


def load_ranker(name: str) -> Ranker:
    """The ranker for `format.retriever: name`.

    Raises InputError if `make embed` has to run first, or if its tuned model has changed since.
    """
    path = retriever_path(name)
    if not path.is_file():
        raise InputError(f"{path}: no such file; format.retriever: {name} needs `make embed` first")
    retriever = validate_values(Retriever, read_json(path), path)
    if retriever.model is None:
        return rank_passages
    model = parse_embedding_model(retriever.model, path)
    if retriever.tuned is None:
        encoder, folder = open_encoder(model)
        return EmbeddingRanker(encoder, model, folder)
    weights = find_weights(EMBEDDER_DIR)
    if weights is None:
        raise InputError(f"{EMBEDDER_DIR}: no tuned embedding model; run `make embed`")
    if hash_file(weights) != retriever.tuned:
        raise InputError(f"{weights}: has changed since {path} was written; run `make embed`")
    if weights.name == ADAPTER_WEIGHTS:
        encoder, folder = open_encoder(model)
        encoder[0].auto_model.load_adapter(str(EMBEDDER_DIR))
        encoder.eval()
    else:
        folder = EMBEDDER_DIR
        plan_encoding(model, folder, min(SHORTEST, model.max_length))
        encoder = load_encoder(model, folder)
    return EmbeddingRanker(encoder, model, folder)

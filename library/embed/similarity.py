"""Similarity in meaning by a sentence embedding model, if `evaluate.embedding_model` names one."""

from collections.abc import Sequence

from library.errors import InputError


def embedding_cosine(
    model: str, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """The cosine of each answer with its most similar reference, in [-1, 1].

    An empty answer has the cosine of an empty text. `model` is a folder that sentence-transformers
    can load, or a name in the Hub's cache: nothing is downloaded, and no code of the model runs.
    Text beyond the model's longest input is ignored. Raises InputError if the library or model is
    missing.
    """
    try:
        # imports torch, so only if needed
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "evaluate.embedding_model needs sentence-transformers: pip install --editable "
            "'.[embedding]'"
        ) from error
    try:
        encoder = SentenceTransformer(model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"params.yaml: evaluate.embedding_model: {model}: no model that can be loaded: {error}"
        ) from error
    flat = [reference for several in references for reference in several]
    made, other = (
        encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        for texts in (answers, flat)
    )
    rest = iter(other)
    return [
        max(float(vector @ next(rest)) for _ in several)
        for vector, several in zip(made, references, strict=True)
    ]

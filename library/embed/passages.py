"""Cut contexts into passages that an embedding model sees whole."""

from typing import Any

from library.corpus.passages import split_passages
from library.embed.encoder import count_tokens

LEAST_CHARACTERS = 20  # shortest cut of a passage: below, a single token can exceed the limit


def cut_context(encoder: Any, context: str, characters: int) -> list[str]:
    """The passages of a context, each with at most `characters` and the model's longest input in
    tokens.

    A passage with more tokens is cut again at half of the characters.
    """
    cut = []
    for passage in split_passages(context, characters):
        too_long = count_tokens(encoder, passage, "document") > encoder.max_seq_length
        if too_long and characters >= 2 * LEAST_CHARACTERS:
            cut += cut_context(encoder, passage, characters // 2)
        else:
            cut.append(passage)
    return cut

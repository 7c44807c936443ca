"""Initial attention heads for a small Qwen2 that look things up.

Without them, a model of three million parameters does not learn within an hour on two cores to find
a part's property among those of other parts; with them it takes minutes (LOG.md). They are only a
starting point: in the end every weight is trained. Elhage et al., A Mathematical Framework for
Transformer Circuits, 2021, describe how such heads work together.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

LAYERS, HEADS = 3, 4  # at least


@torch.no_grad()
def start_with_reading(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set attention heads of the first three layers up to look things up by what a sentence is
    about.

    - Layer 0, head 0 attends to the token before and notes it in directions of its own.
    - Layer 1, heads 0 and 1 look for a place whose note is the present token, and copy what stands
      there (induction heads).
    - Layer 1, head 2 attends to the latest word after a "The", where a sentence names its part, and
      notes it.
    - Layer 2, heads 0 and 1 attend to sentences with the same part in their note, the present one
      excepted, and copy their words.

    The strengths were found by trial: untrained, head 2 puts 0.97 of its attention on the right
    part, and layer 2 three quarters of its on the right sentence.
    """
    config = model.config
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    frequencies = config.rope_parameters["rope_theta"] ** -(torch.arange(size // 2) / (size // 2))
    fast = torch.nonzero(frequencies > 0.1).flatten()  # these tell one position from the next
    # these, some twenty tokens from what is farther
    near = torch.nonzero((frequencies > 0.02) & (frequencies < 0.12)).flatten()
    # these hardly turn within a row: content can be matched on them
    slow = torch.nonzero(frequencies < 0.004).flatten()
    matched = torch.cat([slow, size // 2 + slow])
    # orthogonal directions, (width, size) each: to note the token before and the part in, and two
    # sets in which words are copied
    before, part, *word = (
        torch.linalg.qr(torch.randn(width, width)).Q[:, : HEADS * size].split(size, dim=1)
    )
    embeddings = model.get_input_embeddings().weight
    # training moves them by a hundredth in ten steps, so matches must stand out
    embeddings.mul_(3)
    first, second, third = (layer.self_attn for layer in model.model.layers[:LAYERS])

    def rows(head: int) -> torch.Tensor:
        return torch.arange(head * size, (head + 1) * size)

    def match(
        attention: Any, head: int, query: torch.Tensor, key: torch.Tensor, strength: float
    ) -> None:
        """Let a head attend where the key's directions hold what the query's do, and by nothing
        else.
        """
        for projection, directions in ((attention.q_proj, query), (attention.k_proj, key)):
            projection.weight[rows(head)] = 0
            projection.weight[rows(head)[matched]] = strength * directions.T[: len(matched)]

    def prefer_distance(
        attention: Any, head: int, used: torch.Tensor, distance: int, strength: float
    ) -> None:
        """Add strength × the sum of cos(frequency × (d − distance)) to the scores of the keys d
        tokens back.
        """
        bias = math.sqrt(abs(strength) * math.sqrt(size))
        signed = math.copysign(bias, strength)
        attention.k_proj.bias[rows(head)[used]] = bias
        attention.q_proj.bias[rows(head)[used]] = signed * torch.cos(frequencies[used] * distance)
        attention.q_proj.bias[rows(head)[size // 2 + used]] = -signed * torch.sin(
            frequencies[used] * distance
        )

    def copy(
        attention: Any, head: int, read: torch.Tensor, write: torch.Tensor, strength: float
    ) -> None:
        """Let a head write what it reads of the tokens it attends to."""
        attention.v_proj.weight[rows(head)] = read.T
        attention.o_proj.weight[:, rows(head)] = strength * write

    for projection in (first.q_proj, first.k_proj):
        projection.weight[rows(0)] *= 0.1
    prefer_distance(first, 0, fast, 1, 27 / len(fast))
    copy(first, 0, word[0], before, 0.12)
    for head in (0, 1):
        match(second, head, word[0], before, 2.0)
        copy(second, head, word[head], word[head], 0.18)
        match(third, head, part, part, 1.0)
        prefer_distance(third, head, near, 0, -1.0)
        copy(third, head, word[head], word[head], 0.18)
    for projection in (second.q_proj, second.k_proj):
        projection.weight[rows(2)] = 0
    the = (
        before
        @ word[0].T
        @ sum(embeddings[token] for ids in tokenizer(["The", " The"]).input_ids for token in ids)
    )
    second.q_proj.bias[rows(2)[slow]] = 1
    second.k_proj.weight[rows(2)[slow]] = the / the.norm()
    prefer_distance(second, 2, near, 0, 2.0)
    copy(second, 2, word[0], part, 0.3)

"""The typed recipe of the built-in model."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from library.params import Count, Section, Seed, Share, validate


class Recipe(Section):
    """How the built-in model is trained; see standin/pretrain.py."""

    seed: Seed
    """First weights, and what every step draws."""
    vocab_size: Annotated[int, Field(ge=300)]
    """Entries of the tokenizer."""
    hidden_size: Count
    """The width of the residual stream."""
    intermediate_size: Count
    """The width of the feed-forward layers."""
    num_hidden_layers: Annotated[int, Field(ge=3)]
    """Layers, of which standin/circuits.py sets up the first three."""
    num_attention_heads: Annotated[int, Field(ge=4)]
    """Heads in a layer, of which it sets up four."""
    rope_theta: Annotated[float, Field(gt=0)]
    """The base of the rotary position embedding."""
    max_position_embeddings: Count
    """The longest row in tokens."""
    row_tokens: Count
    """Tokens of a row in training."""
    rows_per_step: Count
    """Rows of an optimizer step."""
    steps: Count
    """Optimizer steps."""
    hold_steps: Annotated[int, Field(ge=0)]
    """The first of these, in which what it starts with is held."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The largest learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Steps in which it rises."""
    torch_compile: bool
    """Whether the model is compiled, which takes a C++ compiler."""
    chat_share: Share
    """The share of rows that begin with a chat."""
    text_share: Share
    """The share that begin with description text."""
    other_weight: Annotated[float, Field(gt=0, le=1)]
    """What a token that is not of an answer weighs in the loss."""


def load_recipe(path: Path) -> Recipe:
    """Read the recipe of the built-in model."""
    return validate(Recipe, path)

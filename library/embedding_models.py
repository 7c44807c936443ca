"""models/embedding/NAME.yaml as typed, validated objects."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from library.errors import InputError
from library.params import Count, Name, Section, read_yaml, validate_values
from library.paths import EMBEDDING_MODELS_DIR


class EncoderConfig(Section):
    """The values of an embedding model's config.json that its memory depends on."""

    model_type: Name
    """The architecture, as transformers names it."""
    hidden_size: Count
    """The width of the residual stream."""
    intermediate_size: Count
    """The width of the feed-forward layers."""
    num_hidden_layers: Count
    """How many layers there are."""
    num_attention_heads: Count
    """Heads of queries in a layer."""
    num_key_value_heads: Count | None
    """Heads of keys and values, or null where there are as many."""
    num_local_experts: Count | None
    """Feed-forward parts of which a token takes some, or null where there is one."""
    vocab_size: Count
    """Rows of the embedding."""


class EmbeddingModel(Section):
    """The values in the file of every embedding model."""

    dtype: Literal["float32", "bfloat16"]
    """What its weights are loaded in on CUDA; on a CPU it is float32. Training all weights takes
    float32."""
    quantization: Literal["nf4", "none"]
    """`nf4` keeps its linear layers in 4 bits, by bitsandbytes; `embed.lora` then trains."""
    gradient_checkpointing: bool
    """Whether training keeps one tensor for each layer and computes the rest again."""
    is_causal: bool
    """Whether a token sees those before it alone; false gives a decoder attention both ways."""
    pooling: Literal["mean", "cls", "lasttoken"]
    """How the tokens' vectors become one."""
    include_prompt: bool
    """Whether the prompt's tokens are pooled with the text's."""
    max_length: Count
    """The longest input in tokens, special ones and prompt counted: passages are no longer."""
    query_prompt: str
    """What its makers put before a question."""
    document_prompt: str
    """What its makers put before a passage or an answer."""
    learning_rate: Annotated[float, Field(gt=0)]
    """`embed.learning_rate`, where that is null."""
    license: str
    """As its makers name it."""


class HubEmbeddingModel(EmbeddingModel):
    """A model on the Hub, pinned to a commit."""

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """OWNER/NAME on the hub."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """The commit, 40 hexadecimal digits."""
    pickle: Annotated[str, Field(pattern=r"^[\w.-]+\.bin$")] | None
    """Where its weights are a pickle alone, that file: it is converted once; else null."""
    config: EncoderConfig
    """As in its config.json, so that its memory is known before it is downloaded."""


class PackagedEmbeddingModel(EmbeddingModel):
    """A model whose files come in a Python package, without a download."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """The package on PyPI."""
    folder: str
    """Where in it they are, beginning with the name that it is imported by."""


class LocalEmbeddingModel(EmbeddingModel):
    """A model in a folder of your own."""

    path: str
    """The folder, absolute or seen from the project's."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """That of its model.safetensors: DVC does not watch the folder, but this number."""


AnyEmbeddingModel = HubEmbeddingModel | PackagedEmbeddingModel | LocalEmbeddingModel


def trains_whole(model: EmbeddingModel) -> bool:
    """Whether all weights can be trained: AdamW's small steps are lost in 16 bits, and impossible
    in 4.
    """
    return model.quantization == "none" and model.dtype == "float32"


def list_embedding_models(models_dir: Path = EMBEDDING_MODELS_DIR) -> list[str]:
    """The names of all embedding models."""
    return sorted(path.stem for path in models_dir.glob("*.yaml"))


def load_embedding_model_file(
    name: str, models_dir: Path = EMBEDDING_MODELS_DIR
) -> AnyEmbeddingModel:
    """Read models/embedding/NAME.yaml. Raises InputError if it is missing or invalid."""
    path = models_dir / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(list_embedding_models(models_dir))
        raise InputError(f"params.yaml: embed.model: {path} does not exist; there are: {known}")
    return parse_embedding_model(read_yaml(path), path)


def parse_embedding_model(values: dict[str, Any], path: Path) -> AnyEmbeddingModel:
    """Validate the values of the file `path`: a Hub model if it has `id`, a package if it has
    `package`.

    Otherwise it is a folder. Raises InputError if the values are invalid.
    """
    kinds: dict[str, type[AnyEmbeddingModel]] = {
        "id": HubEmbeddingModel,
        "package": PackagedEmbeddingModel,
    }
    kind = next((kind for key, kind in kinds.items() if key in values), LocalEmbeddingModel)
    return validate_values(kind, values, path)

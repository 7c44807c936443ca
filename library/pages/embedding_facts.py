"""Facts about an embedding model, by name: what it is, how it was tuned, what it was asked."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from library.embedding_models import (
    AnyEmbeddingModel,
    HubEmbeddingModel,
    PackagedEmbeddingModel,
)
from library.pages.embedding_statements import memory_sentence
from library.params import LoraParams, Params

POOLING = {
    "mean": "the mean of the tokens' vectors",
    "cls": "the first token's vector",
    "lasttoken": "the last token's vector",
}


def describe_base(model: AnyEmbeddingModel) -> str:
    """The base model, by its YAML file. For a local folder: its name, not its path."""
    if isinstance(model, HubEmbeddingModel):
        return f"{model.id} at revision {model.revision}"
    if isinstance(model, PackagedEmbeddingModel):
        return f"{model.folder} of the Python package {model.package}"
    return (
        f"a folder named {PurePath(model.path).name}, whose model.safetensors has the SHA-256 "
        f"{model.sha256}"
    )


def describe_adapter(lora: LoraParams | None) -> str:
    """What was tuned: all weights, or an adapter."""
    if lora is None:
        return "all weights"
    layers = lora.target_modules
    return (
        f"a LoRA adapter (r={lora.r}, lora_alpha={lora.lora_alpha}, lora_dropout="
        f"{lora.lora_dropout:g}, target_modules="
        f"{layers if isinstance(layers, str) else ', '.join(layers)})"
    )


def gather_facts(
    params: Params,
    model: AnyEmbeddingModel,
    rows: Mapping[str, int],
    texts: Mapping[str, Any],
    memory: Mapping[str, Any],
) -> dict[str, str]:
    """Collect what the numbers are about. `rows` has the count of rows by split, `texts` is
    data/rankings/texts.json, `memory` reports/embed_memory.json. No path on this machine is among
    the facts.
    """
    embed = params.embed
    passages = sum(map(len, texts["passages"].values()))
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    looked_for = [f"{len(texts['answers']):,} answers"]
    if passages:
        looked_for.insert(
            0,
            f"{passages:,} passages ({len(texts['passages']):,} contexts, cut at "
            f"{embed.passage_characters:,} characters)",
        )
    prompts = {"questions": model.query_prompt, "passages and answers": model.document_prompt}
    said = [f"“{prompt.strip()}” before {kind}" for kind, prompt in prompts.items() if prompt]
    rate = embed.learning_rate or model.learning_rate
    return {
        "model": f"{embed.model}: {describe_base(model)}; licence {model.license}",
        "input": f"{model.max_length:,} tokens at most; {POOLING[model.pooling]}, scaled to "
        "length 1",
        "prompts": "; ".join(said) or "none",
        "data": f"{PurePath(params.data.path).name}: {counts} rows",
        "looked for": " and ".join(looked_for),
        "tuned": describe_adapter(embed.lora)
        + (" on weights in 4 bits (NF4)" if model.quantization == "nf4" else ""),
        "trained on": "each question with its answer, with the wrong answer if there is one, and "
        "with the passage of its context that is most like question and answer; "
        "MultipleNegativesRankingLoss",
        "training": f"num_train_epochs {embed.num_train_epochs:g}, batch_size {embed.batch_size}, "
        f"learning_rate {rate:g}, warmup_steps {embed.warmup_steps:g}, weight_decay "
        f"{embed.weight_decay:g}, seed {embed.seed}; the weights of the best validation nDCG@10 "
        "were kept",
        "memory of training": f"{memory_sentence(memory)}; on {memory['device']}",
    }

"""The card of a tuned embedding model, for readers who do not have this project."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from library.embedding_models import (
    AnyEmbeddingModel,
    HubEmbeddingModel,
    PackagedEmbeddingModel,
)
from library.pages.cards import fence, to_yaml
from library.pages.embedding_facts import describe_base
from library.pages.embedding_statements import (
    TASKS,
    markdown_tables,
    result_statements,
    tasks_with_numbers,
    unseen_sentences,
)
from library.pages.statements import escape
from library.params import Params

HUB_LICENSES = ("apache-2.0", "mit", "gemma", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0")
QUERY, DOCUMENT = "Of what is the valve made?", "The valve is made of brass."


def front_matter(model: AnyEmbeddingModel, adapter: bool) -> str:
    """The metadata that a hub reads. The base model is named if it comes from a hub, the licence if
    the hub knows it.
    """
    license = model.license.lower()
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "license": license if license in HUB_LICENSES else "other",
    }
    if license not in HUB_LICENSES:
        fields["license_name"] = model.license
    if isinstance(model, HubEmbeddingModel):
        fields |= {
            "base_model": model.id,
            "base_model_relation": "adapter" if adapter else "finetune",
        }
    tags = ["sentence-transformers", "feature-extraction", "retrieval"]
    return to_yaml(fields | {"tags": [*tags, *(["lora"] if adapter else [])]})


def load_and_search() -> str:
    """Python that loads the folder and compares a question with a passage."""
    return f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer("artifacts/embedder")  # or wherever the folder lies
questions = model.encode([{json.dumps(QUERY)}], prompt_name="query")
passages = model.encode([{json.dumps(DOCUMENT)}], prompt_name="document")
print(model.similarity(questions, passages))"""


def adapter_sentence(model: AnyEmbeddingModel) -> str:
    """What an adapter needs to be loaded."""
    where = ""
    if isinstance(model, PackagedEmbeddingModel):
        where = f": put the path of {escape(model.folder)} in your site-packages there"
    return (
        "It is an adapter: loading it needs the base model, which `base_model_name_or_path` in "
        f"`adapter_config.json` names{where}. "
    )


def render_embedding_card(
    metrics: Mapping[str, Any],
    params: Params,
    model: AnyEmbeddingModel,
    facts: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """The card as Markdown with YAML front matter; `facts` are the report's. No path on this
    machine goes into it.
    """
    adapter, confidence = params.embed.lora is not None, params.evaluate.confidence
    statements = result_statements(metrics, params.embed.primary, confidence)
    prompts = to_yaml({"query": model.query_prompt, "document": model.document_prompt})
    made_of = {
        "base model": f"{describe_base(model)}; licence: {model.license}, which applies to this "
        "model, too",
        **{name: facts[name] for name in ("data", "tuned", "trained on", "training")},
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    asked = {
        "input": f"{facts['input']}; what is longer is cut off",
        "similarity": "cosine",
        "passages": f"of at most {params.embed.passage_characters:,} characters, cut at ends of "
        "sentences: longer ones were not measured",
    }
    tasks = (f"{task.title}: {task.about}" for _, task in tasks_with_numbers(metrics))
    limits = [
        f"All numbers are about {metrics['n']:,} test questions in {metrics['groups']:,} groups, "
        f"this split (seed {params.split.seed}) and this training (seed {params.embed.seed}). "
        "Other texts and other kinds of questions were not measured.",
        unseen_sentences(metrics, model.max_length),
        "The search was among the test rows' texts; among more texts, the right one is harder to "
        "find.",
    ]
    if metrics["verdict"] == 0:
        limits.append(
            "“No evidence” does not mean that tuning changed nothing: these rows can't tell the "
            "change from chance."
        )
    paragraphs: Sequence[str] = [
        f"---\n{front_matter(model, adapter)}\n---",
        "# An embedding model fine-tuned to find what answers a question",
        *map(str, statements),
        "## What it is made of",
        "\n".join(f"- {name}: {escape(text)}" for name, text in made_of.items()),
        "## How to use it",
        (adapter_sentence(model) if adapter else "")
        + "Questions and texts take their own prompts, which are saved with the model:",
        fence(prompts, "yaml"),
        fence(load_and_search(), "python"),
        "\n".join(f"- {name}: {escape(text)}" for name, text in asked.items()),
        "## What was measured",
        f"The base model as it is (zero-shot) against fine-tuned and BM25, intervals at "
        f"{confidence:.0%}. The verdict is about “{TASKS[params.embed.primary].title}”.",
        markdown_tables(metrics, params.embed.primary),
        "\n".join(f"- {line}" for line in tasks),
        "Intervals and p go by whole groups of rows that share a text, not by rows. p (Holm) "
        "is corrected over all claims but the primary one.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits),
    ]
    return "\n\n".join(paragraphs) + "\n"

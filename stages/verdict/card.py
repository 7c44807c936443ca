"""Cards: of the adapter or of what is shipped (what it was made of, how to ask it, what was measured), and of the data."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML

from stages.params import Params
from stages.verdict.report import (
    contradiction_sentence,
    escape,
    knowledge_sentence,
    render_table,
    said_interval,
    style_sentence,
    title,
)

# Nothing is escaped on the way: this is Markdown. The template itself says where text of the user's stands.
_cards = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def fence(text: str, language: str = "") -> str:
    """Text as a Markdown code block, between more backticks in a row than it holds itself."""
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order."""
    yaml = YAML()
    yaml.width = 10_000  # a text is not folded
    stream = io.StringIO()
    yaml.dump(dict(value), stream)
    return stream.getvalue().rstrip()


def front_matter(source: Mapping[str, str], library: str) -> str:
    """What a hub reads of a card. The base model is named where it is one of a hub."""
    fields: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    if "id" in source:
        fields |= {"base_model": source["id"], "base_model_relation": "finetune" if library == "transformers" else "adapter"}
    return to_yaml(fields | {"tags": ["lora", "sft", "trl", "question-answering"]})


def describe_base(manifest: Mapping[str, Any]) -> str:
    """The base model and its revision; of a folder its name, and the hashes of its weights, but not where it lies."""
    source = manifest["source"]
    if "id" in source:
        return f"[{source['id']}](https://huggingface.co/{source['id']}) at revision {source['revision']}"
    weights = [f"{escape(name)} {file['sha256']}" for name, file in manifest["files"].items() if name.endswith(".safetensors")]
    return f"a model folder named {escape(PurePath(source['path']).name)}, with the SHA-256 of {', '.join(weights)}"


def shipped_sentence(shipped: Mapping[str, Any]) -> str:
    """Is what is shipped worse than what was measured? `shipped` is what `compare_shipped` of the export makes."""
    metrics = shipped["metrics"]
    worse, better = ([title(name) for name, result in metrics.items() if result["verdict"] == verdict] for verdict in (-1, 1))
    others = f" By {', '.join(better)} it is better." if better else ""
    same = f" {shipped['same']} of {shipped['n']} answers are the same word for word."
    if worse:
        return f"**What is shipped is worse than what was measured**, by {', '.join(worse)}.{others}{same}"
    result = metrics["rouge_l"]
    return (
        "**There is no evidence that what is shipped is worse than what was measured**: ROUGE-L went from "
        f"{result['zeroshot']:.3f} to {result['sft']:.3f} ({result['delta']:+.3f}, interval {said_interval(result)}).{others}{same}"
    )


def shipped_table(shipped: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The adapter's metrics beside those of the merged model, as a Markdown table; zero-shot ones are from the evaluation."""
    lines = [
        "| metric | zero-shot | adapter, as measured | merged, as shipped | change | interval | p (Holm) | n |",
        "|---|--:|--:|--:|--:|:-:|--:|--:|",
    ]
    for name, row in shipped["metrics"].items():
        lines.append(
            f"| {title(name)} | {metrics[name]['zeroshot']:.3f} | {row['zeroshot']:.3f} | {row['sft']:.3f} | {row['delta']:+.3f} | "
            f"{said_interval(row)} | {row['p_holm']:.4f} | {row['n']} |"
        )
    return "\n".join(lines)


def render_card(
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    splits: Mapping[str, Any],
    params: Params,
    quantization: str,
    devices: Mapping[str, Mapping[str, str]],
    prompt: str,
    versions: Mapping[str, str],
    shipped: Mapping[str, Any] | None = None,
    messages: Sequence[Mapping[str, str]] = (),
) -> str:
    """The model's card as Markdown with YAML front matter: of the adapter, or of the merged model where one was `shipped`.

    `splits` is metrics/format.json, `devices` what computed the `measured` and the `shipped` answers, `prompt` the template's own
    text and `messages` what it makes of two passages and a question. No path of this machine's goes into it.
    """
    return _cards.get_template("card.md.jinja").render(
        front_matter=front_matter(manifest["source"], "transformers" if shipped else "peft"),
        base=describe_base(manifest),
        data=escape(PurePath(params.data.path).name),
        splits={name: splits[name] for name in ("train", "validation", "test")},
        groups=splits["groups"],
        rules=[name for name, on in params.clean.rules if on],
        params=params,
        budget=params.format.max_length - params.format.max_new_tokens,
        quantization={"nf4": "4 bits (NF4)", "none": "16 bits, or 32 on a CPU"}[quantization],
        sft=fence(to_yaml(params.sft.model_dump()), "yaml"),
        prompt=fence(prompt, "jinja"),
        messages=fence(load_and_ask(messages, params.format.max_new_tokens), "python"),
        sentences=[style_sentence(metrics, params.evaluate.primary), knowledge_sentence(metrics, params.evaluate.confidence)],
        contradictions=contradiction_sentence(metrics, params.evaluate.primary),
        table=render_table(metrics, params.evaluate.primary),
        verdict=metrics["verdict"],
        with_passages=metrics["with_passages"],
        shipped_sentence=shipped_sentence(shipped) if shipped else "",
        shipped_table=shipped_table(shipped, metrics) if shipped else "",
        devices={name: f"{device['dtype']} on {escape(device['device'])}" for name, device in devices.items()},
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )


def render_data_card(
    profile: Mapping[str, Any], cleaning: Mapping[str, Any], splits: Mapping[str, Any], params: Params, sha256: str
) -> str:
    """The data's card as Markdown, from metrics/profile.json, clean.json and format.json and the file's SHA-256."""
    return _cards.get_template("data_card.md.jinja").render(
        name=escape(PurePath(params.data.path).name),
        sha256=sha256,
        profile=profile,
        cleaning=cleaning,
        splits={name: splits[name] for name in ("train", "validation", "test")},
        groups=splits["groups"],
        beyond=splits["rejected"],
        params=params,
        columns={field: escape(column or "none") for field, column in params.data.columns.model_dump().items()},
        off=[name.replace("_", " ") for name, on in params.clean.rules if not on],
    )


def load_and_ask(messages: Sequence[Mapping[str, str]], max_new_tokens: int) -> str:
    """Python that loads the folder with transformers and asks it: the same prompt, the same greedy answer."""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this card lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
messages = {json.dumps(messages, indent=4, ensure_ascii=False)}
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens={max_new_tokens})
answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer)"""

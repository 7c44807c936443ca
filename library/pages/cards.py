"""The model card (what it was made of, how to ask it, what was measured) of the adapter or of the
merged model that is shipped, and the data card.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML

from library.files import read_json
from library.pages.rendering import TEMPLATES_DIR
from library.pages.statements import (
    RETRIEVERS,
    Statement,
    contradiction_sentence,
    dpo_statements,
    escape,
    evaluation_of,
    format_interval,
    render_table,
    result_statements,
    room_statement,
    split_statement,
    system_name,
    title,
)
from library.params import Params, load_model_file
from library.paths import EVALUATION_PATH, MANIFEST_PATH, SPLITS_PATH, prompt_path
from library.records import DPO, SFT, SPLITS, Computation, Message
from library.versions import package_versions

QUANTIZATIONS = {"nf4": "4 bits (NF4)", "none": "16 bits, or 32 on a CPU"}

# No autoescaping: this is Markdown. The user's texts are escaped or fenced before they get here.
_cards = Environment(
    loader=FileSystemLoader(TEMPLATES_DIR),
    autoescape=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def fence(text: str, language: str = "") -> str:
    """Text as a Markdown code block, fenced by more backticks in a row than it contains."""
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as YAML, in the order of its keys."""
    yaml = YAML()
    yaml.width = 10_000  # a text is not folded
    stream = io.StringIO()
    yaml.dump(dict(value), stream)
    return stream.getvalue().rstrip()


def front_matter(source: Mapping[str, str], library: str, system: str = SFT) -> str:
    """The metadata that a hub reads. The base model is named if it comes from a hub."""
    fields: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    if "id" in source:
        fields |= {
            "base_model": source["id"],
            "base_model_relation": "finetune" if library == "transformers" else "adapter",
        }
    trained = [SFT] if system == SFT else [SFT, system]
    return to_yaml(fields | {"tags": ["lora", *trained, "trl", "question-answering"]})


def describe_base(manifest: Mapping[str, Any]) -> str:
    """The base model and its revision. For a local folder: its name and the hashes of its weights,
    not its path.
    """
    source = manifest["source"]
    if "id" in source:
        return (
            f"[{source['id']}](https://huggingface.co/{source['id']}) at revision "
            f"{source['revision']}"
        )
    weights = [
        f"{escape(name)} {file['sha256']}"
        for name, file in manifest["files"].items()
        if name.endswith(".safetensors")
    ]
    name = escape(PurePath(source["path"]).name)
    kind = f"a model folder named {name}"
    if "quantized" in source:
        kind = f"a GGUF file named {name}, unpacked, which was quantized to {source['quantized']}"
    return f"{kind}, with the SHA-256 of {', '.join(weights)}"


def shipped_statement(shipped: Mapping[str, Any]) -> Statement:
    """Is what is shipped worse than what was measured?

    `shipped` is the result of `compare_shipped` in the export.
    """
    metrics = shipped["metrics"]
    worse, better = (
        [title(name) for name, result in metrics.items() if result["verdict"] == verdict]
        for verdict in (-1, 1)
    )
    others = f" By {', '.join(better)} it is better." if better else ""
    same = f" {shipped['same']} of {shipped['n']} answers are the same word for word."
    if worse:
        return Statement(
            "What is shipped is worse than what was measured",
            f", by {', '.join(worse)}.{others}{same}",
        )
    result = metrics["rouge_l"]
    return Statement(
        "There is no evidence that what is shipped is worse than what was measured",
        f": ROUGE-L went from {result['adapter']:.3f} to {result['merged']:.3f} "
        f"({result['delta']:+.3f}, interval {format_interval(result)}).{others}{same}",
    )


def shipped_table(shipped: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The adapter's metrics beside the merged model's, as a Markdown table.

    Zero-shot ones are from the evaluation.
    """
    lines = [
        "| metric | zero-shot | adapter, as measured | merged, as shipped | change | interval | p "
        "(Holm) | n |",
        "|---|--:|--:|--:|--:|:-:|--:|--:|",
    ]
    for name, row in shipped["metrics"].items():
        lines.append(
            f"| {title(name)} | {metrics[name]['zeroshot']:.3f} | {row['adapter']:.3f} | "
            f"{row['merged']:.3f} | {row['delta']:+.3f} | {format_interval(row)} | "
            f"{row['p_holm']:.4f} | {row['n']} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class ModelFacts:
    """What a model was made of and how it scored: all of a card but the devices that answered.

    `metrics` is metrics/evaluation.json, `splits` metrics/format.json, `prompt` the template's
    text, `versions` the packages' versions, `system` sft or dpo.
    """

    params: Params
    quantization: str
    metrics: Mapping[str, Any]
    manifest: Mapping[str, Any]
    splits: Mapping[str, Any]
    prompt: str
    versions: Mapping[str, str]
    system: str = SFT

    @property
    def own_metrics(self) -> Mapping[str, Any]:
        """The part of `metrics` that compares this system with zero-shot."""
        return evaluation_of(self.metrics, self.system, self.params.evaluate.primary)

    @property
    def statements(self) -> list[Statement]:
        """What the evaluation says about this system."""
        say = dpo_statements if self.system == DPO else result_statements
        how = self.params.evaluate
        return say(self.metrics, how.primary, how.confidence)


def read_model_facts(params: Params, system: str = SFT) -> ModelFacts:
    """Read the facts of the model that the pipeline made last, by sft or dpo."""
    return ModelFacts(
        params=params,
        quantization=load_model_file(params.model).quantization,
        metrics=read_json(EVALUATION_PATH),
        manifest=read_json(MANIFEST_PATH),
        splits=read_json(SPLITS_PATH),
        prompt=prompt_path(params.format.prompt).read_text(encoding="utf-8"),
        versions=package_versions(),
        system=system,
    )


def render_card(
    facts: ModelFacts,
    devices: Mapping[str, Computation],
    shipped: Mapping[str, Any] | None = None,
    messages: Sequence[Message] = (),
) -> str:
    """The model's card as Markdown with YAML front matter.

    It describes the merged model if one was `shipped`, else the adapter. `devices` computed the
    `measured` and the `shipped` answers, `messages` are the template's for two passages and a
    question. No path on this machine goes into it.
    """
    params, metrics, primary = facts.params, facts.own_metrics, facts.params.evaluate.primary
    training = params.sft.model_dump()
    if facts.system == DPO:
        training = {"sft": training, "dpo": params.dpo.model_dump()}
    return _cards.get_template("card.md.jinja").render(
        retriever=RETRIEVERS[params.format.retriever],
        front_matter=front_matter(
            facts.manifest["source"], "transformers" if shipped else "peft", facts.system
        ),
        after_dpo=facts.system == DPO,
        beside_dpo=facts.system != DPO and DPO in facts.metrics.get("others", {}),
        system=system_name(facts.system),
        base=describe_base(facts.manifest),
        data=escape(PurePath(params.data.path).name),
        splits={name: facts.splits[name] for name in SPLITS},
        groups=facts.splits["groups"],
        rules=[name for name, on in params.clean.rules if on],
        params=params,
        budget=params.format.max_length - params.format.max_new_tokens,
        quantization=QUANTIZATIONS[facts.quantization],
        training=fence(to_yaml(training), "yaml"),
        prompt=fence(facts.prompt, "jinja"),
        messages=fence(load_and_ask(messages, params.format.max_new_tokens), "python"),
        warnings=[
            statement
            for statement in (
                split_statement({name: facts.splits[name] for name in SPLITS}),
                room_statement(facts.splits["test"], params.format),
            )
            if statement is not None
        ],
        statements=facts.statements,
        contradictions=contradiction_sentence(metrics, primary, facts.system),
        table=render_table(metrics, primary, facts.system),
        verdict=metrics["verdict"],
        with_passages=metrics["with_passages"],
        shipped=shipped_statement(shipped) if shipped else "",
        shipped_table=shipped_table(shipped, metrics) if shipped else "",
        devices={
            name: f"{device['dtype']} on {escape(device['device'])}"
            for name, device in devices.items()
        },
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    )


def render_data_card(
    profile: Mapping[str, Any],
    cleaning: Mapping[str, Any],
    splits: Mapping[str, Any],
    params: Params,
    columns: Mapping[str, str | None],
    sha256: str,
) -> str:
    """The data card as Markdown, from the metrics of profile, clean and format.

    `columns` and `sha256` describe the data file.
    """
    return _cards.get_template("data_card.md.jinja").render(
        name=escape(PurePath(params.data.path).name),
        sha256=sha256,
        profile=profile,
        cleaning=cleaning,
        splits={name: splits[name] for name in SPLITS},
        groups=splits["groups"],
        beyond=splits["rejected"],
        params=params,
        columns={field: escape(column or "none") for field, column in columns.items()},
        off=[name.replace("_", " ") for name, on in params.clean.rules if not on],
    )


def load_and_ask(messages: Sequence[Message], max_new_tokens: int) -> str:
    """Python that loads the folder with transformers and asks it.

    It uses the same prompt and gives the same greedy answer.
    """
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this card lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
messages = {json.dumps(messages, indent=4, ensure_ascii=False)}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens={max_new_tokens})
answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer)"""

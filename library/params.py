"""params.yaml and models/*/model.yaml as typed, validated objects.

YAML is read by the rules of version 1.2 (ruamel), in which `1e-4` is a number. No parameter has a
default here: the files set every value.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from library.errors import InputError
from library.paths import MODELS_DIR, PARAMS_PATH, model_path
from library.records import BASELINES, DPO, FEW_SHOT, SYSTEMS, THINKING
from library.validation import find_problems

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")]


# null in params.yaml: the model's file sets these
MODEL_DEFAULTS = (("sft", "learning_rate"), ("format", "max_length"), ("format", "max_new_tokens"))


class Section(BaseModel):
    """A part of a file in which every key must be known and every value have its type."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


S = TypeVar("S", bound=Section)


class Columns(Section):
    """The user's names for a row's fields."""

    anchor: str | None
    """The column of the context that holds the answer; null if there is none. A dotted path reaches
    into nested columns, such as answers.text; the same holds for the other columns."""
    query: str
    """The column of the question."""
    positive: str
    """The column of the right answer."""
    negative: str | None
    """The column of a wrong answer; null if there is none."""

    @model_validator(mode="after")
    def _differ(self) -> "Columns":
        names = [
            name
            for name in (self.anchor, self.query, self.positive, self.negative)
            if name is not None
        ]
        if len(set(names)) < len(names):
            raise ValueError(f"each field needs a column of its own, not {', '.join(names)}")
        return self


class DataParams(Section):
    """`data`: the raw rows."""

    path: str
    """The file of raw rows: .json, .jsonl, .csv, .tsv or .parquet, each also as .gz."""
    encoding: Literal["utf-8", "windows-1252"]
    """The file's text encoding."""
    columns: Columns
    """The file's names for the four fields."""


class SampleParams(Section):
    """`sample`: the generated rows of the default run."""

    seed: Seed
    """Which inventions are generated."""


class Rules(Section):
    """`clean.rules`: each on or off; see library/corpus/cleaning_rules.py."""

    escaped_unicode: bool
    r"""A literal \u2122 becomes its character."""
    mojibake: bool
    """UTF-8 that was read as Windows-1252 is repaired."""
    html_entities: bool
    """&amp; becomes &."""
    unicode_nfc: bool
    """A letter and its accent become one character."""
    invisible_characters: bool
    """Soft hyphens, zero widths, invisible operators and control characters go."""
    paragraph_numbers: bool
    """[0001] before a paragraph goes."""
    figure_references: bool
    """(FIG. 2) in brackets goes."""
    list_letters: bool
    """(a) goes."""
    trademark_signs: bool
    """™ and ® go."""
    odd_spaces: bool
    """Tabs, no-break spaces and runs of blanks become one blank, but not in code and tables."""
    space_before_punctuation: bool
    """The blank before a comma, semicolon or full stop goes."""
    stray_comma: bool
    """A question's end in ?, becomes ?."""
    outer_whitespace: bool
    """White space around a text goes."""


class CleanParams(Section):
    """`clean`."""

    max_rejected_share: Share
    """The share of rows that may be unusable before a stage stops."""
    nothing: list[str]
    """Texts that count as empty: such a question, answer or context rejects the row, such a wrong
    answer is ignored."""
    on_contradiction: Literal["keep", "drop"]
    """Whether rows that contradict another are kept and flagged, or dropped."""
    rules: Rules
    """Which cleaning rules are on."""


class Shares(Section):
    """`split.shares`: they add up to 1."""

    train: Annotated[float, Field(gt=0, lt=1)]
    """The share of rows to train on."""
    validation: Annotated[float, Field(gt=0, lt=1)]
    """The share that selects the checkpoint and stops training."""
    test: Annotated[float, Field(gt=0, lt=1)]
    """The held-out share, used only for the verdict."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> "Shares":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test must add up to 1, not {total:g}")
        return self


class SplitParams(Section):
    """`split`."""

    seed: Seed
    """Which groups go to which split."""
    shares: Shares
    """The wanted sizes of the splits; whole groups are drawn, so they are only approached."""
    same_answer_words: Count
    """Rows with the same right answer are one group if it has at least so many words."""
    near_duplicate_contexts: bool
    """Whether rows with nearly the same context are one group."""
    on_missed_shares: Literal["stop", "continue"]
    """What happens if a split misses its share by more than a quarter, or test is too small."""


class FormatParams(Section):
    """`format`."""

    prompt: Name
    """The template of the prompt: a file in prompts/."""
    max_length: Annotated[int, Field(ge=16)]
    """Tokens of prompt and answer together."""
    max_new_tokens: Count
    """Tokens of these that are reserved for the answer."""
    passage_characters: Annotated[int, Field(ge=50)]
    """The longest passage, in characters, that a context is cut into."""
    retriever: Literal["bm25", "embedding", "tuned"]
    """What ranks a context's passages for a question: BM25, `embed.model` untuned, or tuned by
    `make embed`. A file in retrievers/ says which model that is."""
    train_sample: Count
    """How many train rows the models answer, too."""

    @model_validator(mode="after")
    def _leaves_room(self) -> "FormatParams":
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) must be below max_length "
                f"({self.max_length}); models/NAME/model.yaml sets those that are null here"
            )
        return self


class LoraParams(Section):
    """`sft.lora`, as PEFT's LoraConfig takes it."""

    r: Count
    """The adapter's rank."""
    lora_alpha: Count
    """The adapter's scale, multiplied by its rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    """The dropout of the adapter's inputs in training."""
    target_modules: Annotated[list[Name], Field(min_length=1)] | Literal["all-linear"]
    """The linear layers that get an adapter, by name."""


class SftLoraParams(LoraParams):
    """`sft.lora`: the same, and what variants of LoRA change."""

    use_rslora: bool
    """Whether the adapter is scaled by lora_alpha over the square root of r, instead of over r."""
    use_dora: bool
    """Whether each adapted layer's size is trained apart from its direction, as in DoRA."""
    init_lora_weights: bool | str
    """The adapter's first weights: true for PEFT's own, gaussian, or pissa for the base model's
    largest singular values; pissa_niter_4 finds those faster."""

    @model_validator(mode="before")
    @classmethod
    def _trains_no_module_whole(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("modules_to_save") is not None:
            raise ValueError(
                "modules_to_save is not offered: 4-bit layers can't be trained whole, a copy of a "
                "tied embedding or output head is lost in merging, and norms pull a 16-bit "
                "model's activations into float32; name layers in target_modules, or raise r"
            )
        return values

    @field_validator("init_lora_weights")
    @classmethod
    def _is_offered(cls, value: bool | str) -> bool | str:
        if value is True or re.fullmatch(r"gaussian|pissa(_niter_[1-9]\d*)?", str(value)):
            return value
        raise ValueError(
            f"expected true, gaussian, pissa or pissa_niter_4 (any number), not {value!r}: false "
            "begins with another model than the base, and PEFT's other ways need data first or "
            "change weights that are kept in 4 bits"
        )

    @model_validator(mode="after")
    def _go_together(self) -> "SftLoraParams":
        if self.use_dora and self.starts_from_weights:
            raise ValueError(
                "use_dora: true and init_lora_weights: pissa exclude each other: DoRA measures "
                "weights that PiSSA takes apart; choose one"
            )
        if self.use_dora and self.lora_dropout:
            raise ValueError(
                "use_dora: true with lora_dropout: PEFT then keeps every adapted layer's weights "
                "in 16 or 32 bits; set lora_dropout to 0"
            )
        return self

    @property
    def starts_from_weights(self) -> bool:
        """Whether the adapter takes over a part of the base's weights, which then lack it."""
        return str(self.init_lora_weights).startswith("pissa")


class SftParams(Section):
    """`sft`, under the names of transformers' TrainingArguments."""

    seed: Seed
    """The seed of the adapter's initial weights and of the order of rows."""
    seeds: list[Seed]
    """Seeds to train and answer with, too, so that the verdict covers training; `seed` counts once
    whether it is among them or not."""
    train_fraction: Annotated[float, Field(gt=0, le=1)]
    """The share of the train groups that is trained on; smaller shares are inside larger ones."""
    num_train_epochs: Annotated[float, Field(gt=0)]
    """How often every train row is seen."""
    effective_batch_size: Count
    """Rows per optimizer step, whatever batch size fits the device."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The highest learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    """How the learning rate falls from there."""
    warmup_steps: Annotated[float, Field(ge=0)]
    """Steps in which the learning rate rises; below 1, a share of all steps."""
    weight_decay: Annotated[float, Field(ge=0)]
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """The norm to which larger gradients are clipped."""
    eval_steps: Count
    """Steps between two evaluations on the validation rows."""
    early_stopping_patience: Count
    """Evaluations without a lower loss after which training stops."""
    lora: SftLoraParams
    """The adapter."""

    @property
    def more_seeds(self) -> list[int]:
        """The seeds beside `seed`, in their order."""
        return [seed for seed in self.seeds if seed != self.seed]

    @model_validator(mode="after")
    def _names_each_seed_once(self) -> "SftParams":
        for seed in self.seeds:
            if self.seeds.count(seed) > 1:
                raise ValueError(f"seeds: {seed} is named twice")
        return self


class DpoParams(Section):
    """`dpo`, under the names of TRL's DPOConfig: training that goes on from the adapter of sft, on
    right answers against wrong ones.
    """

    num_train_epochs: Annotated[float, Field(ge=0)]
    """How often every train row with a wrong answer is seen; 0: off."""
    beta: Annotated[float, Field(gt=0)]
    """How closely the model is held to the fine-tuned one: the larger, the closer."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The largest learning rate; it falls linearly to 0."""
    effective_batch_size: Count
    """Rows with a right and a wrong answer per optimizer step."""
    seed: Seed
    """The order of the rows."""


Primary = Literal[
    "rouge_l",
    "chrf",
    "token_f1",
    "number_f1",
    "bits_per_byte",
    "pair_matching",
    "contrastive",
    "embedding_cosine",
]


OF_LIKELIHOODS = ("bits_per_byte", "pair_matching", "contrastive")


class EvaluateParams(Section):
    """`evaluate`."""

    primary: Primary
    """The metric that the verdict is about, named before the run."""
    seed: Seed
    """The seed of the bootstrap and of the swap test."""
    draws: Annotated[int, Field(ge=1000)]
    """How many draws and swaps; with too few, corrected p-values cannot be small."""
    few_shot: Annotated[int, Field(ge=0)]
    """Train rows in the prompt of a further system, the base model; 0 turns it off."""
    thinking_tokens: Annotated[int, Field(ge=0)]
    """Tokens that a further system, the base model with thinking on, may think before its answer;
    0 turns it off."""
    rivals: list[Name]
    """Other models to ask zero-shot, by their folders in models/."""
    general_text: str
    """A text of paragraphs unrelated to the rows, to measure forgetting."""
    embedding_model: str | None
    """A folder with a sentence-transformers model for one more metric, or null."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    """The confidence of intervals and verdict."""

    @model_validator(mode="after")
    def _names_each_system_once(self) -> "EvaluateParams":
        reserved = [*SYSTEMS, FEW_SHOT, THINKING, DPO, *BASELINES]
        names = [*reserved, *self.rivals]
        if len(set(names)) < len(names):
            raise ValueError(f"rivals: each once, and none named {', '.join(reserved)}")
        return self

    @model_validator(mode="after")
    def _judges_answers_after_thoughts(self) -> "EvaluateParams":
        if self.thinking_tokens and self.primary in OF_LIKELIHOODS:
            raise ValueError(
                f"primary: {self.primary} needs likelihoods, which answers after thoughts "
                "(thinking_tokens) do not have; choose a metric of answers, such as rouge_l"
            )
        return self


def list_others(params: EvaluateParams) -> list[str]:
    """The systems that `others` asks, by name."""
    own = {FEW_SHOT: params.few_shot, THINKING: params.thinking_tokens}
    return [*(system for system, count in own.items() if count), *params.rivals]


class ReviewParams(Section):
    """`review`: the page for blind votes."""

    seed: Seed
    """Which rows are voted on, and whose answer is on which side."""
    systems: Annotated[list[Name], Field(min_length=2, max_length=2)]
    """The two systems whose answers are shown; people choose the second one or not."""
    pairs: Count
    """How many pairs of answers are shown."""
    repeats: Annotated[int, Field(ge=0)]
    """How many come again at the end with sides swapped."""
    catch_trials: Annotated[int, Field(ge=0)]
    """How many have the same answer on both sides."""

    @model_validator(mode="after")
    def _repeats_pairs(self) -> "ReviewParams":
        if self.repeats > self.pairs:
            raise ValueError(f"repeats ({self.repeats}) must not be more than pairs ({self.pairs})")
        return self

    @model_validator(mode="after")
    def _differ(self) -> "ReviewParams":
        if self.systems[0] == self.systems[1]:
            raise ValueError(f"systems: two different ones, not {self.systems[0]} twice")
        return self


class EmbedParams(Section):
    """`embed`: the same rows for an embedding model, by `make embed`."""

    model: Name
    """A file in models/embedding/."""
    passage_characters: Annotated[int, Field(ge=50)]
    """The longest passage that a context is cut into; what the model can't see whole is cut more
    finely."""
    seed: Seed
    """The order of the rows, and an adapter's first weights."""
    num_train_epochs: Annotated[float, Field(gt=0)]
    """How often every train row is seen."""
    batch_size: Annotated[int, Field(ge=2)]
    """Questions that are told from each other's texts at once; no two share a group or a text."""
    mini_batch_size: Count | None
    """How many of these are in memory at once, or null for as many as fit; the result is the same
    up to rounding."""
    learning_rate: Annotated[float, Field(gt=0)] | None
    """The largest learning rate, or null for that of the model's file."""
    warmup_steps: Annotated[float, Field(ge=0)]
    """Steps in which the learning rate rises; below 1, a share of all steps."""
    weight_decay: Annotated[float, Field(ge=0)]
    """AdamW's weight decay."""
    eval_steps: Count
    """Steps between two evaluations on the validation rows."""
    early_stopping_patience: Count
    """Evaluations in a row without a better nDCG that end training."""
    lora: LoraParams | None
    """An adapter in place of all weights, or null."""
    primary: Literal["passage", "context", "answer"]
    """What is looked for in the task whose nDCG@10 the verdict is about, named before the run."""


class Params(Section):
    """params.yaml."""

    model: Name
    """The base model: a folder in models/."""
    data: DataParams
    """The raw rows."""
    sample: SampleParams
    """The embedded default data."""
    clean: CleanParams
    """What cleaning does."""
    split: SplitParams
    """How rows are split."""
    format: FormatParams
    """How the model is asked."""
    sft: SftParams
    """How it is fine-tuned."""
    dpo: DpoParams
    """How the fine-tuned model is trained on by preferences."""
    review: ReviewParams
    """The page for blind votes."""
    evaluate: EvaluateParams
    """How answers are judged."""
    embed: EmbedParams
    """What `make embed` does."""

    @model_validator(mode="after")
    def _reviews_what_is_asked(self) -> "Params":
        asked = [*SYSTEMS, *list_others(self.evaluate)]
        if self.dpo.num_train_epochs:
            asked.append(DPO)
        for system in self.review.systems:
            if system not in asked:
                raise ValueError(
                    f"review.systems: {system} is not asked: choose of {', '.join(asked)}, or "
                    "set evaluate.few_shot, evaluate.thinking_tokens, evaluate.rivals or "
                    "dpo.num_train_epochs"
                )
        return self


class ModelFile(Section):
    """The values in the model.yaml of every model."""

    quantization: Literal["nf4", "none"]
    """4 bits (NF4), or as published."""
    gradient_checkpointing: bool | Literal["auto"]
    """Whether training computes activations again to save memory; auto: only if they do not fit."""
    chat_template_kwargs: Mapping[str, str | bool | int | float]
    """Values of the chat template's variables; thinking is off without being named."""
    learning_rate: Annotated[float, Field(gt=0)]
    """`sft.learning_rate`, where that is null."""
    max_length: Annotated[int, Field(ge=16)]
    """`format.max_length`, where that is null."""
    max_new_tokens: Count
    """`format.max_new_tokens`, where that is null."""


class ModelConfig(Section):
    """The values of a model's config.json that its memory depends on."""

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
    num_key_value_heads: Count
    """Heads of keys and values in a layer."""
    head_dim: Count | None
    """The width of a head, or null where it is the model's width by its heads."""
    vocab_size: Count
    """Rows of the embedding."""
    tie_word_embeddings: bool
    """Whether the output head is the embedding."""


class HubModel(ModelFile):
    """A model on the Hub, pinned to a commit, since branches and tags can move."""

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """OWNER/NAME on the hub."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """The commit, 40 hexadecimal digits."""
    config: ModelConfig | None
    """As in its config.json, so that its memory is known before it is downloaded, or null."""


class LocalModel(ModelFile):
    """A model whose files, or links to them, are beside its model.yaml."""

    folder: str
    """That folder, which the file itself does not name."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """That of its model.safetensors, or null where it need not be checked."""


class GgufModel(ModelFile):
    """A GGUF file, the format of Ollama and LM Studio."""

    path: Annotated[str, Field(pattern=r"\.gguf$")]
    """The file; in model.yaml from the folder that it lies in, or absolute."""


AnyModel = HubModel | LocalModel | GgufModel


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file with a mapping at its top level. Raises InputError naming file and line
    otherwise.
    """
    try:
        loaded = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, not a file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error
    except YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: expected a mapping of names to values")
    return loaded


def validate(section: type[S], path: Path) -> S:
    """Read a YAML file as a section.

    Raises InputError naming file and key of every value that is unknown, missing or not allowed.
    """
    return validate_values(section, read_yaml(path), path)


def validate_values(section: type[S], values: Mapping[str, Any], path: Path) -> S:
    """Validate values that were read from the file; the same errors as `validate`."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = []
        for problem in find_problems(error, section):
            where = f"{path}: {problem.key}" if problem.key else str(path)
            command = problem.command() if path.name == PARAMS_PATH.name else ""
            problems.append(f"{where}: {problem.describe()}{command}")
        raise InputError("\n".join(problems)) from error


def load_params(path: Path = PARAMS_PATH) -> Params:
    """Read and check every parameter.

    Raises InputError naming each one that is unknown, missing or out of range.
    """
    params = validate_values(Params, read_values(path), path)
    for rival in params.evaluate.rivals:
        load_model_file(rival, path.parent / MODELS_DIR, "evaluate.rivals")
    return params


def read_values(path: Path = PARAMS_PATH) -> dict[str, Any]:
    """params.yaml as it stands, except that null MODEL_DEFAULTS are replaced by the model file's
    values.

    Raises InputError if that file is needed and cannot be read.
    """
    values = read_yaml(path)
    for section, name in MODEL_DEFAULTS:
        group, model = values.get(section), values.get("model")
        # a model's name that is no text, such as 3, is looked for, too
        if isinstance(group, dict) and group.get(name, ...) is None and "model" in values:
            group[name] = getattr(load_model_file(str(model), path.parent / MODELS_DIR), name)
    return values


def load_model_file(name: str, models_dir: Path = MODELS_DIR, key: str = "model") -> AnyModel:
    """Read models/NAME/model.yaml; `key` of params.yaml names it.

    It is a Hub model if it has `id`, a GGUF file if `path` names one, and otherwise the folder it
    is in. Raises InputError if it is missing, or if a Hub model has weights beside it.
    """
    folder = models_dir / name
    path = folder / model_path(name).name
    if not path.is_file():
        known = ", ".join(list_models(models_dir))
        raise InputError(f"params.yaml: {key}: {path} does not exist; there are: {known}")
    values = read_yaml(path)
    if "id" in values:
        weights = next(folder.glob("*.safetensors"), None)
        if weights is not None:
            raise InputError(f"{path}: names a Hub model, but {weights} is beside it; remove one")
        return validate_values(HubModel, values, path)
    if str(values.get("path")).endswith(".gguf"):
        return validate_values(
            GgufModel, values | {"path": (folder / values["path"]).as_posix()}, path
        )
    if "path" in values:
        raise InputError(
            f"{path}: path: unknown parameter; link the files instead, so that DVC watches them: "
            f"ln -s {values['path']}/* {folder}/"
        )
    return validate_values(LocalModel, values | {"folder": folder.as_posix()}, path)


def list_models(models_dir: Path = MODELS_DIR) -> list[str]:
    """The names of all models that `model` in params.yaml can name."""
    return sorted(path.parent.name for path in models_dir.glob("*/model.yaml"))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as a flat one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

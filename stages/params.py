"""params.yaml, models/*.yaml and the embedded model's recipe as typed, validated objects.

YAML is read by 1.2 rules (ruamel), under which `1e-4` is a number. No parameter has a default here: the files say every value.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.run import InputError

PARAMS_PATH = Path("params.yaml")
MODELS_DIR = Path("models")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


class Columns(Section):
    anchor: str
    query: str
    positive: str
    negative: str | None

    @model_validator(mode="after")
    def _differ(self) -> "Columns":
        names = [name for name in (self.anchor, self.query, self.positive, self.negative) if name is not None]
        if len(set(names)) < len(names):
            raise ValueError(f"each field needs a column of its own, not {', '.join(names)}")
        return self


class DataParams(Section):
    path: str
    columns: Columns


class SampleParams(Section):
    seed: Seed


class Rules(Section):
    escaped_unicode: bool
    mojibake: bool
    html_entities: bool
    unicode_nfc: bool
    invisible_characters: bool
    paragraph_numbers: bool
    figure_references: bool
    list_letters: bool
    trademark_signs: bool
    odd_spaces: bool
    space_before_punctuation: bool
    stray_comma: bool
    outer_whitespace: bool


class CleanParams(Section):
    max_rejected_share: Share
    on_contradiction: Literal["keep", "drop"]
    rules: Rules


class Shares(Section):
    train: Annotated[float, Field(gt=0, lt=1)]
    validation: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _sum_to_one(self) -> "Shares":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test must add up to 1, not {total:g}")
        return self


class SplitParams(Section):
    seed: Seed
    shares: Shares


class FormatParams(Section):
    prompt: Name
    max_length: Annotated[int, Field(ge=16)]
    max_new_tokens: Count
    passage_characters: Annotated[int, Field(ge=50)]
    train_sample: Count

    @model_validator(mode="after")
    def _leaves_room(self) -> "FormatParams":
        if self.max_new_tokens >= self.max_length:
            raise ValueError(f"max_new_tokens ({self.max_new_tokens}) must be below max_length ({self.max_length})")
        return self


class LoraParams(Section):
    r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[list[Name], Field(min_length=1)] | Literal["all-linear"]


class SftParams(Section):
    seed: Seed
    num_train_epochs: Annotated[float, Field(gt=0)]
    effective_batch_size: Count
    learning_rate: Annotated[float, Field(gt=0)]
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    eval_steps: Count
    early_stopping_patience: Count
    lora: LoraParams


Primary = Literal["rouge_l", "chrf", "token_f1", "bits_per_byte", "pair_matching", "contrastive", "embedding_cosine"]


class EvaluateParams(Section):
    primary: Primary
    seed: Seed
    draws: Annotated[int, Field(ge=1000)]  # below, the corrected p-values can't be small
    embedding_model: str | None
    confidence: Annotated[float, Field(gt=0, lt=1)]


class ReviewParams(Section):
    seed: Seed
    pairs: Count
    repeats: Annotated[int, Field(ge=0)]
    catch_trials: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _repeats_pairs(self) -> "ReviewParams":
        if self.repeats > self.pairs:
            raise ValueError(f"repeats ({self.repeats}) must not be more than pairs ({self.pairs})")
        return self


class Params(Section):
    model: Name
    data: DataParams
    sample: SampleParams
    clean: CleanParams
    split: SplitParams
    format: FormatParams
    sft: SftParams
    review: ReviewParams
    evaluate: EvaluateParams


class ModelFile(Section):
    quantization: Literal["nf4", "none"]
    gradient_checkpointing: bool


class ModelConfig(Section):
    """What a model's memory follows from, as its config.json says it."""

    model_type: Name
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    vocab_size: Count
    tie_word_embeddings: bool


class HubModel(ModelFile):
    """A model of a hub, pinned to a commit: a branch or tag can move, and with it the result."""

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    config: ModelConfig | None


class LocalModel(ModelFile):
    """A model folder on this disk; `sha256` is that of its model.safetensors, or null where it need not be checked."""

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None


class Recipe(Section):
    """How the embedded model is trained; see stages/llm/pretrain.py."""

    seed: Seed
    vocab_size: Annotated[int, Field(ge=300)]
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[int, Field(ge=3)]  # stages/llm/circuits.py sets up these
    num_attention_heads: Annotated[int, Field(ge=4)]
    rope_theta: Annotated[float, Field(gt=0)]
    max_position_embeddings: Count
    row_tokens: Count
    rows_per_step: Count
    steps: Count
    hold_steps: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)]
    torch_compile: bool
    chat_share: Share
    text_share: Share
    other_weight: Annotated[float, Field(gt=0, le=1)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping. Raises InputError naming file and line otherwise."""
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
    """A YAML file as a section. Raises InputError naming file and key of every value that is unknown, missing or not allowed."""
    values = read_yaml(path)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
            if problem["type"] == "extra_forbidden":
                problems.append(f"{path}: {key}: unknown parameter")
            elif problem["type"] == "missing":
                problems.append(f"{path}: {key}: missing")
            else:
                problems.append(f"{path}: {key}: {problem['msg']}, got {problem['input']!r}")
        raise InputError("\n".join(problems)) from error


def load_params(path: Path = PARAMS_PATH) -> Params:
    """Read and check every parameter. Raises InputError naming each one that is unknown, missing or out of range."""
    return validate(Params, path)


def load_model_file(name: str, models_dir: Path = MODELS_DIR) -> HubModel | LocalModel:
    """Read models/NAME.yaml: a hub model where it has an `id`, a folder where it has a `path`."""
    path = models_dir / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in models_dir.glob("*.yaml")))
        raise InputError(f"params.yaml: model: {path} does not exist; there are: {known}")
    return validate(HubModel, path) if "id" in read_yaml(path) else validate(LocalModel, path)


def load_recipe(path: Path) -> Recipe:
    """Read the recipe of the embedded model."""
    return validate(Recipe, path)

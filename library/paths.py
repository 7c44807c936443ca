"""The paths of all files, relative to the project's folder."""

from pathlib import Path

from library.records import DPO, SFT, SYSTEMS

PARAMS_PATH = Path("params.yaml")
PIPELINE_PATH = Path("dvc.yaml")
EMBEDDING_PIPELINE_PATH = Path("embedding/dvc.yaml")
LOCK_PATH = Path("dvc.lock")
EMBEDDING_LOCK_PATH = Path("embedding/dvc.lock")

MODELS_DIR = Path("models")
EMBEDDING_MODELS_DIR = MODELS_DIR / "embedding"
PROMPTS_DIR = Path("prompts")

CLEAN_DIR = Path("data/clean")
CLEAN_ROWS_PATH = CLEAN_DIR / "rows.jsonl"
FORMATTED_DIR = Path("data/formatted")
TEST_PATH = FORMATTED_DIR / "test.jsonl"
GROUPS_PATH = FORMATTED_DIR / "groups.json"
PREDICTIONS_DIR = Path("data/predictions")
SCORES_PATH = PREDICTIONS_DIR / "scores.jsonl"
VOTES_DIR = Path("data/votes")

BASE_DIR = Path("artifacts/base")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_RECORD = "made.json"  # beside them: what the adapter was trained on
MANIFEST_PATH = BASE_DIR / "manifest.json"
ADAPTER_DIR = Path("artifacts/adapter")
MERGED_DIR = Path("artifacts/merged")
DPO_DIR = Path("artifacts/dpo")  # off.json alone if dpo is off
DPO_ADAPTER_DIR = DPO_DIR / "adapter"
ADAPTER_DIRS = {SFT: ADAPTER_DIR, DPO: DPO_ADAPTER_DIR}  # by system
DPO_HISTORY_PATH = DPO_DIR / "history.csv"
DPO_MEMORY_PATH = DPO_DIR / "memory.json"
GGUF_DIR = Path("artifacts/gguf")  # the same as one file, if llama.cpp's converter is available

PROFILE_PATH = Path("metrics/profile.json")
CLEANING_PATH = Path("metrics/clean.json")
SPLITS_PATH = Path("metrics/format.json")
EVALUATION_PATH = Path("metrics/evaluation.json")

HISTORY_PATH = Path("reports/sft_history.csv")
MEMORY_PATH = Path("reports/sft_memory.json")
COSTS_PATH = Path("reports/costs.json")  # not a stage's output, because it differs each time
REVIEW_KEY_PATH = Path("reports/review_key.json")

OTHERS_PATH = PREDICTIONS_DIR / "others" / "systems.json"  # their names
SEEDS_PATH = PREDICTIONS_DIR / "seeds" / "seeds.json"  # their names
DPO_PATH = PREDICTIONS_DIR / "dpo" / "systems.json"  # the same for dpo: one name or none

RANKINGS_DIR = Path("data/rankings")  # of embedding models, by system
RANKED_TEXTS_PATH = RANKINGS_DIR / "texts.json"
RETRIEVERS_DIR = Path("retrievers")  # rankers of passages, by name
EMBEDDER_DIR = Path("artifacts/embedder")
EMBED_HISTORY_PATH = Path("reports/embed_history.csv")
EMBED_MEMORY_PATH = Path("reports/embed_memory.json")
EMBEDDING_PATH = Path("metrics/embedding.json")

CHECKPOINTS_DIR = Path("checkpoints")  # progress of killed stages, outside all outputs
RIVALS_DIR = CHECKPOINTS_DIR / "rivals"  # other prepared base models
HASHES_PATH = CHECKPOINTS_DIR / "hashes.json"  # of large files, so that none is read twice


def other_name(system: str) -> str:
    """The name under which `predictions_path` and `answerer_path` know a further system: a rival,
    few-shot, thinking or dpo.
    """
    return f"dpo/{system}" if system == DPO else f"others/{system}"


def answers_name(system: str) -> str:
    """What `predictions_path` and `answerer_path` know any system but a seed by."""
    return system if system in SYSTEMS else other_name(system)


def seed_name(system: str) -> str:
    """What `predictions_path` and `answerer_path` know the model of one of `sft.seeds` by."""
    return f"seeds/{system}"


def model_path(name: str) -> Path:
    """The file of a base model: models/NAME/model.yaml."""
    return MODELS_DIR / name / "model.yaml"


def prompt_path(name: str) -> Path:
    """A prompt template: prompts/NAME.jinja."""
    return PROMPTS_DIR / f"{name}.jinja"


def retriever_path(name: str) -> Path:
    """The file that says which embedding model ranks passages if `format.retriever` is `name`."""
    return RETRIEVERS_DIR / f"{name}.json"


def rankings_path(system: str) -> Path:
    """A system's rankings of the test texts."""
    return RANKINGS_DIR / f"{system}.jsonl"


def formatted_path(name: str) -> Path:
    """The formatted rows of a split, or of `train_sample`."""
    return FORMATTED_DIR / f"{name}.jsonl"


def answerer_path(system: str) -> Path:
    """Which weights gave a system's answers, and what computed them."""
    return PREDICTIONS_DIR / f"{system}_model.json"


def predictions_path(name: str) -> Path:
    """A system's answers to the test rows; to some train rows if the name ends in `_train`."""
    return PREDICTIONS_DIR / f"{name}.jsonl"

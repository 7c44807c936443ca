"""A tiny model made on the spot, and a project folder of its own for each test that runs stages."""

import gc
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run on all cores already
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"  # or each dvc command starts a process that reports itself

import pytest
from hypothesis import settings
from ruamel.yaml import YAML

from library.corpus.groups import context_id
from library.corpus.splitting import Split, find_faults, split_groups
from library.files import hash_adapter, hash_base, hash_file, write_json, write_jsonl, write_text
from library.params import EvaluateParams, Shares
from library.records import hash_answers
from standin.recipe import load_recipe
from standin.sample_rows import short_rows

# no deadline: the machine may be busy; derandomized: CI fails on a change, not on a draw
settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What the published templates are made of; real tokenizers have each as one token.
MARKUP = (
    "<|im_start|> <|im_end|> <|endoftext|> <bos> <eos> <start_of_turn> <end_of_turn> <turn|> "
    "<|turn> <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|end|> <|user|> "
    "<|assistant|> <|system|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|START_RESPONSE|> "
    "<|END_RESPONSE|> <|return|> <|start|> <|message|> <|channel|> <|User|> </s> <s> [INST] [/INST]"
).split()
# turned down, and without anything that takes a model
EVALUATE = EvaluateParams(
    primary="rouge_l",
    seed=7,
    draws=1000,
    few_shot=0,
    thinking_tokens=0,
    rivals=[],
    general_text="data/general/plain.txt",
    embedding_model=None,
    confidence=0.95,
)


def edit_yaml(path: Path, /, **changes):
    """Set dotted keys of a YAML file, as `dvc exp run -S` does; `__` stands for a dot."""
    yaml = YAML()
    path = Path(path)
    loaded = yaml.load(path)
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        section = loaded
        for parent in parents:
            section = section[parent]
        section[key] = value
    yaml.dump(loaded, path)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    """A three-layer model by the embedded model's own recipe, trained for a few steps."""
    from standin.pretrain import train

    folder = tmp_path_factory.mktemp("tiny")
    recipe = load_recipe(ROOT / "models/tiny/recipe.yaml").model_copy(
        update={
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "row_tokens": 512,
            "rows_per_step": 2,
            "steps": 3,
            "hold_steps": 1,
            "warmup_steps": 1,
            "torch_compile": False,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train(recipe, folder / "model", folder / "state")
    # the trainer collects garbage often, each time through all that the libraries hold for good
    gc.freeze()
    return folder / "model"


@pytest.fixture
def tokenizer(tiny_dir):
    """A tokenizer to which each sign of the published templates is one token."""
    from library.llm.chat_template import load_tokenizer

    loaded = load_tokenizer(tiny_dir)
    known = loaded.get_vocab()
    loaded.add_special_tokens(
        {"additional_special_tokens": [mark for mark in MARKUP if mark not in known]}
    )
    loaded.add_tokens(["<think>", "</think>"])
    loaded.bos_token = "<bos>"
    return loaded


@pytest.fixture
def context(tmp_path):
    """A browser with an empty profile that keeps what a page stores; every request beyond files
    fails the test.
    """
    from playwright.sync_api import sync_playwright

    requests = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "browser",
            executable_path=CHROMIUM,
            args=["--no-sandbox"],
            accept_downloads=True,
        )
        browser.on("request", lambda request: requests.append(request.url))
        yield browser
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "blob:"))] == []


def copy_code(folder):
    """Copy the packages that stages are made of, as dvc.yaml's deps name them."""
    for package in ("library", "stages", "standin"):
        shutil.copytree(
            ROOT / package, Path(folder) / package, ignore=shutil.ignore_patterns("__pycache__")
        )


def copy_params(folder="."):
    """Copy params.yaml and what it names into a project folder: every model's model.yaml, without
    any weights, BM25 as a retriever, and the general text.
    """
    shutil.copy(ROOT / "params.yaml", folder)
    (Path(folder) / "retrievers").mkdir()
    shutil.copy(ROOT / "retrievers/bm25.json", Path(folder) / "retrievers")
    shutil.copytree(ROOT / "data/general", Path(folder) / "data/general")
    for path in (ROOT / "models").glob("*/model.yaml"):
        target = Path(folder) / "models" / path.parent.name
        target.mkdir(parents=True)
        shutil.copy(path, target)


def link_model(model_dir, folder="models/local"):
    """Link a model's files beside a model.yaml, in place of those that are there."""
    for path in Path(model_dir).iterdir():
        link = Path(folder) / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)


SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}


def find_split_seed(accept, *files):
    """The first `split.seed` by which the rows of each file are split as `accept` wants it, which
    is given the rows and groups of each split. No text but their context ties these rows.
    """

    def count(rows, seed):
        groups = {at: context_id(row["anchor"], row["query"]) for at, row in enumerate(rows)}
        splits = split_groups(groups, Shares(**SHARES), seed)
        return Split(groups, splits, 0, [], {}).count()

    return next(seed for seed in range(10_000) if all(accept(count(rows, seed)) for rows in files))


def make_rows(count, seed=1):
    """Short rows in the reference shape, as a new project begins with."""
    return short_rows(count, seed)


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_dir):
    """A project folder with the shipped parameters, turned down, 24 short rows and the tiny model;
    the working directory.
    """
    shutil.copytree(ROOT / "prompts", tmp_path / "prompts")
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text(json.dumps(make_rows(24)))
    edit_yaml(
        Path("params.yaml"),
        model="local",
        data__path="rows.json",
        split__shares=SHARES,
        split__seed=find_split_seed(lambda counts: not find_faults(counts, SHARES), make_rows(24)),
        split__on_missed_shares="continue",  # where a test changes these
        format__max_length=512,
        format__max_new_tokens=128,
        sft__num_train_epochs=1.0,
        sft__effective_batch_size=4,
        sft__eval_steps=2,
        sft__warmup_steps=0,
        evaluate__draws=1000,
        format__train_sample=4,
        review__pairs=4,
        review__repeats=1,
        review__catch_trials=1,
    )
    link_model(tiny_dir)
    return tmp_path


BASE = {
    "source": {"path": "models/x"},
    "files": {"model.safetensors": {"bytes": 1, "sha256": "ab"}},
}


def hash_files(*names):
    """The hashes of the files of answers, as SYSTEM_model.json has them."""
    return {name: hash_file(Path(f"data/predictions/{name}.jsonl")) for name in names}


def write_answers(system, records):
    """Replace a system's answers to the test rows as if it had written them."""
    write_jsonl(Path(f"data/predictions/{system}.jsonl"), records)
    record_answers()


def record_answers():
    """Have the answers and train rows that are there stand in SYSTEM_model.json and made.json."""
    for path in Path("data/predictions").glob("*_model.json"):
        record = json.loads(path.read_text())
        write_json(path, record | {"answers": hash_files(*record["answers"])})
    adapter = Path("artifacts/adapter")
    rows = {"train": hash_file(Path("data/formatted/train.jsonl"))}
    write_json(adapter / "made.json", {"adapter": hash_adapter(adapter), "rows": rows})


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Writes, in a project folder without a model, all that `review` and `evaluate` read: two
    systems' answers, by hand.

    Fine-tuning copies the reference, zero-shot says something else. `hostile` are texts by index
    that stand in every field.
    """
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    edit_yaml("params.yaml", evaluate__draws=1000, format__passage_characters=50)

    def write(rows=4, hostile=None, review=None):
        for name, value in (review or {}).items():
            edit_yaml("params.yaml", **{f"review__{name}": value})
        context = "The pump is made of steel. It weighs 12 kg."
        formatted, clean = [], []
        for index in range(rows):
            mean = (hostile or {}).get(index, "")
            clean.append({"id": f"r{index}", "anchor": f"{context} {mean}".strip()})
            formatted.append(
                {
                    "id": f"r{index}",
                    "group": f"g{index}",
                    "pair": None,
                    "contradicts": None,
                    "prompt_hash": "h",
                    "prompt_hash_no_context": "n",
                    "messages": [{"role": "user", "content": context}],
                    "passages": [0],
                    "best_passage": context,
                    "question": f"<img src=x> | *why* `r`? {mean}".strip(),
                    "positive": f"the tuned answer {index} {mean}".strip(),
                    "also_right": [],
                    "negative": None,
                }
            )
        predictions = {}
        for system in ("zeroshot", "sft", "no_context"):
            predictions[system] = [
                {
                    "id": row["id"],
                    "group": row["group"],
                    "pair": row["pair"],
                    "answers_hash": hash_answers(row["positive"], row["negative"]),
                    "prompt_hash": "n" if system == "no_context" else "h",
                    "prediction": row["positive"]
                    if system == "sft"
                    else f"something else {row['id']}",
                    "finish_reason": "stop",
                    "likelihood": {
                        "positive": {"question": {"sum": -8.0, "tokens": 3, "bytes": 12}},
                        "negative": None,
                    },
                }
                for row in formatted
            ]
        adapter = Path("artifacts/adapter/adapter_model.safetensors")
        write_text(adapter, "weights")
        write_text(adapter.with_name("adapter_config.json"), "{}")
        answerer = {"base": hash_base(BASE), "device": "CPU", "dtype": "float32"}
        split = {
            "rows": rows,
            "groups": max(rows, 6),
            "share": 0.333333,
            "asked_share": 0.333333,
            "negatives_given_away": 0,
            "pairs": 0,
            "trimmed_share": 0.5,
            "prompt_tokens_mean": 9.5,
            "prompt_tokens_max": 12,
        }
        split |= {"answer_tokens_mean": 4.0, "answer_tokens_max": 5}
        for path, records in {
            "data/clean/rows": clean,
            "data/formatted/test": formatted,
            "data/formatted/train": formatted,
            "data/formatted/train_sample": formatted[:2],
            **{f"data/predictions/{system}": records for system, records in predictions.items()},
            **{
                f"data/predictions/{system}_train": predictions[system][:2]
                for system in ("zeroshot", "sft")
            },
        }.items():
            write_jsonl(Path(f"{path}.jsonl"), records)
        for system, nats in (("zeroshot", -50.0), ("sft", -60.0)):
            paragraphs = [{"sum": nats - at, "tokens": 20, "bytes": 100} for at in range(8)]
            write_jsonl(Path(f"data/predictions/{system}_general.jsonl"), paragraphs)
        for path, value in {
            "artifacts/base/manifest.json": BASE,
            "artifacts/adapter/base.json": BASE,
            "data/predictions/others/systems.json": {"systems": []},
            "data/predictions/seeds/seeds.json": {"seeds": []},
            "data/predictions/dpo/systems.json": {"systems": []},
            "data/predictions/zeroshot_model.json": answerer
            | {
                "adapter": None,
                "answers": hash_files(
                    "zeroshot", "zeroshot_train", "zeroshot_general", "no_context"
                ),
            },
            "artifacts/adapter/made.json": {
                "adapter": hash_adapter(adapter.parent),
                "rows": {"train": hash_file(Path("data/formatted/train.jsonl"))},
            },
            "data/predictions/sft_model.json": answerer
            | {
                "adapter": hash_adapter(adapter.parent),
                "answers": hash_files("sft", "sft_train", "sft_general"),
            },
            "reports/sft_memory.json": {
                "device": "CPU",
                "gradient_checkpointing": False,
                "incidents": [],
                "longest": {"length": 370, "answer": 131},
                "measured": {"train": 1399, "answer": 12},
                "per_device_train_batch_size": 4,
                "predicted": {"peak": 1393},
                "processes": 1,
            },
            "data/formatted/groups.json": {"largest": "the largest group has 1 of 4 rows"},
            "metrics/format.json": dict.fromkeys(("train", "validation", "test"), split),
        }.items():
            write_json(Path(path), value)
        Path("data/votes").mkdir()
        write_text(
            Path("reports/sft_history.csv"),
            "step,loss,eval_loss\n1,2.5,\n2,,1.5\n2,2.0,\n4,1.0,1.25\n",
        )
        return predictions

    return write


def wide_config():
    """A config wider than the tiny model's, so that tensors decide what a step takes."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "qwen2",
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=4000,
        tie_word_embeddings=True,
    )

"""A tiny model made on the spot, and a project folder of its own for each test that runs stages."""

import json
import os
import random
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run on all cores already
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings
from ruamel.yaml import YAML

from stages.corpus import inventions
from stages.params import load_recipe

# no deadline: the machine may be busy; derandomized: CI fails on a change, not on a draw
settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")

ROOT = Path(__file__).parent.parent


def edit_yaml(path: Path, /, **changes):
    """Set dotted keys of a YAML file, as `dvc exp run -S` does; double underscores stand for dots."""
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
    from stages.llm.pretrain import train

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
    return folder / "model"


def make_rows(count, seed=1):
    """Short rows in the reference shape: every second description has a pair of rows that swap their answers."""
    rng = random.Random(seed)
    rows = []
    for title in rng.sample(inventions.titles("sample"), count):
        invention = inventions.invent(rng, title)
        anchor = "\n\n".join(inventions.fact_paragraphs(rng, invention))
        asked = [rng.sample(invention.facts[aspect], 1) for aspect in rng.sample(inventions.ASPECTS, 2)]
        answers = [inventions.plain_answer(invention, facts) for facts in asked]
        if len(rows) % 3 == 0:
            for facts, positive, negative in zip(asked, answers, reversed(answers), strict=True):
                query = inventions.question(rng, invention, facts)
                rows.append({"anchor": anchor, "query": query, "positive": positive, "negative": negative})
        else:
            wrong = inventions.plain_answer(invention, inventions.contradict(rng, invention, asked[0]))
            query = inventions.question(rng, invention, asked[0])
            rows.append({"anchor": anchor, "query": query, "positive": answers[0], "negative": wrong})
    return rows[:count]


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_dir):
    """A project folder with the shipped parameters, turned down, 24 short rows and the tiny model; the working directory."""
    for folder in ("prompts", "models"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("tiny", "local"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text(json.dumps(make_rows(24)))
    edit_yaml(
        Path("params.yaml"),
        model="local",
        data__path="rows.json",
        split__shares={"train": 0.5, "validation": 0.2, "test": 0.3},
        format__max_length=512,
        format__max_new_tokens=128,
        sft__num_train_epochs=1.0,
        sft__effective_batch_size=4,
        sft__eval_steps=2,
        sft__warmup_steps=0,
        evaluate__draws=200,
    )
    edit_yaml(Path("models/local.yaml"), path=str(tiny_dir))
    return tmp_path

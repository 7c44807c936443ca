import shutil
from pathlib import Path

import pytest
from conftest import ROOT, edit_yaml

from library.errors import InputError
from library.llm.prompts import load_prompt
from library.params import HubModel, list_models, load_model_file, load_params
from standin.recipe import load_recipe


@pytest.fixture
def params_path(tmp_path):
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def test_every_shipped_file_is_valid():
    params = load_params(ROOT / "params.yaml")
    names = set(list_models(ROOT / "models"))
    assert names == {
        "tiny",
        "local",
        *(f"qwen2.5-{size}-instruct" for size in ("0.5b", "1.5b", "3b", "7b")),
    }
    models = [load_model_file(name, ROOT / "models") for name in sorted(names)]
    assert sum(isinstance(model, HubModel) for model in models) == 4
    for path in (ROOT / "prompts").glob("*.jinja"):
        load_prompt(path)
    load_recipe(ROOT / "models/tiny/recipe.yaml")
    assert load_prompt(ROOT / f"prompts/{params.format.prompt}.jinja")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft__learning_rat": 1e-3}, r"params\.yaml: sft\.learning_rat: unknown parameter"),
        ({"sft__learning_rate": "fast"}, r"sft\.learning_rate: .*valid number.*'fast'"),
        ({"sft__learning_rate": float("inf")}, r"sft\.learning_rate: .*finite number"),
        (
            {"data__columns__negative": "positive"},
            r"data\.columns: .*a column of its own, not anchor, query, positive, positive",
        ),
        ({"sft__learning_rate": 0}, r"sft\.learning_rate: .*greater than 0, got 0"),
        ({"sft__lora__target_modules": []}, r"sft\.lora\.target_modules.*at least 1 item"),
        ({"sft__lora__r": 1.5}, r"sft\.lora\.r: .*integer.*got 1\.5"),
        (
            {"format__max_new_tokens": 400},
            r"max_new_tokens \(400\) must be below max_length \(384\)",
        ),
        ({"split__shares__test": 0.5}, r"must add up to 1, not 1\.25"),
        ({"evaluate__primary": "vibes"}, r"evaluate\.primary: .*'rouge_l'.*got 'vibes'"),
        ({"format__prompt": "../secret"}, r"format\.prompt"),
        ({"clean__rules__html_entities": "yes please"}, r"clean\.rules\.html_entities"),
    ],
)
def test_a_bad_parameter_is_named_with_its_value(params_path, changes, message):
    edit_yaml(params_path, **changes)
    with pytest.raises(InputError, match=message):
        load_params(params_path)


def test_every_problem_is_named_at_once(params_path):
    edit_yaml(params_path, sft__seed=-1, evaluate__draws=1)
    with pytest.raises(InputError, match=r"(?s)sft\.seed.*evaluate\.draws"):
        load_params(params_path)


def test_scientific_notation_is_a_number_as_dvc_writes_it(params_path):
    params_path.write_text(
        params_path.read_text().replace("learning_rate: 2.0e-3", "learning_rate: 5e-05")
    )
    assert load_params(params_path).sft.learning_rate == 0.00005


def test_a_missing_parameter_and_a_file_that_is_not_yaml_are_errors(params_path):
    params_path.write_text("model: tiny\n")
    with pytest.raises(InputError, match=r"params\.yaml: data: missing"):
        load_params(params_path)
    params_path.write_text("model: [tiny\n")
    with pytest.raises(InputError, match=r"(?s)params\.yaml: not YAML: .*line"):
        load_params(params_path)


def test_a_model_file_that_does_not_exist_is_an_error_that_lists_those_that_do(tmp_path):
    shutil.copytree(ROOT / "models/local", tmp_path / "local")
    with pytest.raises(
        InputError, match=r"model: .*gpt/model\.yaml does not exist; there are: local"
    ):
        load_model_file("gpt", tmp_path)


@pytest.mark.parametrize("revision", ["main", "v1.0", "7ae5576"])
def test_a_branch_tag_or_short_commit_is_refused(tmp_path, revision):
    path = shutil.copytree(ROOT / "models/qwen2.5-0.5b-instruct", tmp_path / "hub") / "model.yaml"
    edit_yaml(path, revision=revision)
    with pytest.raises(InputError, match=rf"hub/model\.yaml: revision: .*'{revision}'"):
        load_model_file("hub", tmp_path)


def test_a_prompt_that_does_not_exist_or_lacks_a_block_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"no such prompt template; there are: answer, original, question"
    ):
        load_prompt(ROOT / "prompts/poem.jinja")
    (tmp_path / "half.jinja").write_text("{% block user %}{% endblock %}")
    with pytest.raises(InputError, match="needs the block system"):
        load_prompt(tmp_path / "half.jinja")
    (tmp_path / "bad.jinja").write_text("{% block user %}")
    with pytest.raises(InputError, match=r"bad\.jinja: "):
        load_prompt(tmp_path / "bad.jinja")

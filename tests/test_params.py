import shutil
from pathlib import Path

import pytest
from conftest import ROOT, edit_yaml
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from library.errors import InputError
from library.llm.memory.formula import Adapter
from library.llm.memory.planning import load_sizes
from library.llm.prompts import load_prompt
from library.params import HubModel, list_models, load_model_file, load_params
from standin.recipe import load_recipe


@pytest.fixture
def params_path(tmp_path):
    shutil.copytree(ROOT / "models/tiny", tmp_path / "models/tiny")
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def test_every_shipped_file_is_valid():
    params = load_params(ROOT / "params.yaml")
    names = set(list_models(ROOT / "models"))
    assert names == {
        "tiny",
        "local",
        *(f"qwen2.5-{size}-instruct" for size in ("0.5b", "1.5b", "3b", "7b")),
        *(f"smollm2-{size}-instruct" for size in ("135m", "360m", "1.7b")),
        *("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b-instruct-2507"),
        *(f"llama-3.2-{size}-instruct" for size in ("1b", "3b")),
        *(f"gemma-3-{size}-it" for size in ("270m", "1b")),
    }
    models = [load_model_file(name, ROOT / "models") for name in sorted(names)]
    assert sum(isinstance(model, HubModel) for model in models) == 14
    for path in (ROOT / "prompts").glob("*.jinja"):
        load_prompt(path)
    load_recipe(ROOT / "models/tiny/recipe.yaml")
    assert load_prompt(ROOT / f"prompts/{params.format.prompt}.jinja")


def test_what_is_null_is_the_models_own_unless_it_is_set(params_path):
    params = load_params(params_path)
    own = load_model_file("tiny", params_path.parent / "models")
    assert (params.sft.learning_rate, params.format.max_length, params.format.max_new_tokens) == (
        own.learning_rate,
        own.max_length,
        own.max_new_tokens,
    )
    edit_yaml(params_path, sft__learning_rate=1e-5, format__max_length=500)
    changed = load_params(params_path)
    assert (changed.sft.learning_rate, changed.format.max_length) == (1e-5, 500)
    assert changed.format.max_new_tokens == own.max_new_tokens
    edit_yaml(params_path, format__train_sample=None)
    with pytest.raises(
        InputError, match=r"format\.train_sample: .*integer of at least 1, got null"
    ):
        load_params(params_path)


def test_people_vote_on_two_systems_that_are_asked(params_path):
    edit_yaml(params_path, review__systems=["few_shot", "sft"])
    message = r"review\.systems: few_shot is not asked: choose of zeroshot, sft, or set evaluate\."
    with pytest.raises(InputError, match=message):
        load_params(params_path)
    edit_yaml(params_path, evaluate__few_shot=2)
    assert load_params(params_path).review.systems == ["few_shot", "sft"]
    edit_yaml(params_path, review__systems=["sft", "sft"])
    with pytest.raises(InputError, match="systems: two different ones, not sft twice"):
        load_params(params_path)


# parameters of each model whose config is known beforehand, as its makers count them
PARAMETERS = {
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b-instruct": 1_711_376_384,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b-instruct-2507": 4_022_468_096,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "llama-3.2-3b-instruct": 3_212_749_824,
    "gemma-3-270m-it": 268_098_176,
    "gemma-3-1b-it": 999_885_952,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_a_models_config_makes_as_many_parameters_as_it_has(name, parameters):
    sizes = load_sizes(load_model_file(name, ROOT / "models"), Adapter(16, "all-linear"))
    assert sizes.linear + sizes.other == parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sft__learning_rat": 1e-3},
            "sft.learning_rat: unknown parameter; did you mean learning_rate?",
        ),
        (
            {"sft__learning_rate": "fast"},
            "sft.learning_rate: expected a number above 0, got 'fast'; "
            "set it: dvc exp run -S sft.learning_rate=VALUE",
        ),
        ({"sft__learning_rate": float("inf")}, "expected a number above 0, got inf; set it"),
        ({"sft__learning_rate": 0}, "sft.learning_rate: expected a number above 0, got 0;"),
        ({"sft__num_train_epochs": "3"}, "got '3'; set it: dvc exp run -S sft.num_train_epochs=3"),
        (
            {"data__columns__negative": "positive"},
            "data.columns: each field needs a column of its own, not anchor, query, positive, "
            "positive",
        ),
        ({"sft__lora__r": 1.5}, "sft.lora.r: expected an integer of at least 1, got 1.5; set it"),
        ({"sft__lora__lora_dropout": 1}, "a number of at least 0 and below 1, got 1; set it"),
        ({"sft__seed": -1}, "sft.seed: expected an integer from 0 to 2147483647, got -1; set it"),
        (
            {"sft__lora__target_modules": "q_proj"},
            "expected all-linear or a list of at least 1, each a name (letters, digits, dots, "
            "hyphens, underscores), got 'q_proj'; "
            "set it: dvc exp run -S 'sft.lora.target_modules=[q_proj]'",
        ),
        ({"sft__lora__target_modules": ["a", 1]}, "target_modules: item 2: expected a name (let"),
        ({"sft__seeds": 7}, "got 7; set it: dvc exp run -S 'sft.seeds=[7]'"),
        ({"clean__nothing": [None]}, "clean.nothing: item 1: expected a text, got null;"),
        (
            {"embed__lora": True},
            "embed.lora: expected null or the keys r, lora_alpha, lora_dropout, target_modules, "
            "got true; set it: dvc exp run -S embed.lora=null",
        ),
        ({"embed__lora": {"r": 8}}, "embed.lora.lora_alpha: missing, expected an integer of at "),
        (
            {
                "embed__lora": {
                    **{"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_dora": True},
                    "target_modules": "all-linear",
                }
            },
            "embed.lora.use_dora: unknown parameter; known here: r, lora_alpha, lora_dropout, tar",
        ),
        ({"sft__lora": None}, "sft.lora: expected the keys r, lora_alpha, lora_dropout, target_"),
        (
            {"format__max_new_tokens": 400},
            "max_new_tokens (400) must be below max_length (384)",
        ),
        ({"split__shares__test": 0.5}, "must add up to 1, not 1.25"),
        ({"evaluate__primary": "vibes"}, "evaluate.primary: expected one of rouge_l, chrf, "),
        ({"evaluate__primary": "rouge"}, "set it: dvc exp run -S evaluate.primary=rouge_l"),
        ({"format__prompt": "../secret"}, "format.prompt: expected a name (letters, digits, dots"),
        (
            {"clean__rules__html_entities": "yes"},
            "clean.rules.html_entities: expected true or false, got 'yes'; "
            "set it: dvc exp run -S clean.rules.html_entities=true",
        ),
        ({"model": 3}, "model: "),
    ],
)
def test_a_bad_parameter_is_named_with_its_value(params_path, changes, message):
    edit_yaml(params_path, **changes)
    with pytest.raises(InputError) as error:
        load_params(params_path)
    assert len(str(error.value).splitlines()) == (3 if "missing" in message else 1)
    assert message in str(error.value)


def test_every_problem_is_named_at_once(params_path):
    edit_yaml(params_path, sft__seed=-1, evaluate__draws=1)
    with pytest.raises(InputError, match=r"(?s)sft\.seed.*evaluate\.draws"):
        load_params(params_path)


def test_scientific_notation_is_a_number_as_dvc_writes_it(params_path):
    params_path.write_text(
        params_path.read_text().replace("learning_rate: null", "learning_rate: 5e-05")
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
    said = rf"hub/model\.yaml: revision: expected a commit, 40 hex.* got '{revision}'$"
    with pytest.raises(InputError, match=said):
        load_model_file("hub", tmp_path)


def test_a_prompt_that_does_not_exist_or_lacks_a_block_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"no such prompt template; there are: answer, brief, original, question"
    ):
        load_prompt(ROOT / "prompts/poem.jinja")
    (tmp_path / "half.jinja").write_text("{% block user %}{% endblock %}")
    with pytest.raises(InputError, match="needs the block system"):
        load_prompt(tmp_path / "half.jinja")
    (tmp_path / "bad.jinja").write_text("{% block user %}")
    with pytest.raises(InputError, match=r"bad\.jinja: "):
        load_prompt(tmp_path / "bad.jinja")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rivals": ["qwen3-0.6b", "qwen3-0.6b"]}, "rivals: each once, and none named zeroshot"),
        ({"rivals": ["thinking"]}, "rivals: each once, and none named zeroshot, sft, few_shot"),
        ({"rivals": ["gold"]}, "rivals: each once, and none named .*gold"),
        ({"rivals": ["nosuch"]}, r"evaluate\.rivals: .*models/nosuch/model\.yaml does not exist"),
        (
            {"thinking_tokens": 64, "primary": "contrastive"},
            r"primary: contrastive needs likelihoods, which answers after thoughts",
        ),
    ],
)
def test_systems_that_can_not_be_judged_are_refused(params_path, changes, message):
    edit_yaml(params_path, **{f"evaluate__{name}": value for name, value in changes.items()})
    with pytest.raises(InputError, match=message):
        load_params(params_path)


def test_a_seed_that_is_named_twice_is_refused_by_its_number(params_path):
    edit_yaml(params_path, sft__seeds=[7, 8, 8])
    with pytest.raises(InputError, match=r"sft: .*seeds: 8 is named twice"):
        load_params(params_path)


@pytest.mark.parametrize(
    ("key", "some"),
    [("sft.seeds", "[1,2]"), ("evaluate.rivals", "[tiny]"), ("clean.nothing", "[x]")],
)
def test_a_list_can_be_filled_by_dvc_and_emptied_again(tmp_path, key, some):
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    for value in (some, "[]", some):
        apply_overrides(path, [f"{key}={value}"])
    section, name = key.split(".")
    text = path.read_text(encoding="utf-8")
    assert len(YAML(typ="safe").load(text)[section][name]) == some.count(",") + 1

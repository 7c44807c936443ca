from conftest import ROOT

from library.pages.cards import front_matter, render_data_card
from library.params import load_params


def test_names_from_the_user_break_no_card():
    column = {"characters": {"median": 300.0, "max": 900.0}, "missing": 0, "distinct": 24}
    profile = {"rows": 24, "columns": dict.fromkeys(("anchor", "query", "positive"), column)}
    cleaning = {"changes": {"odd_spaces": 3}, "rejected": 1, "contradictory": 0}
    split = {
        "rows": 7,
        "groups": 5,
        "pairs": 1,
        "trimmed_share": 0.5,
        "answer_tokens_mean": 30.5,
        "answer_tokens_max": 40,
    }
    splits = {"groups": 15, "rejected": 0, **dict.fromkeys(("train", "validation", "test"), split)}
    params = load_params(ROOT / "params.yaml")
    columns = params.data.columns.model_copy(
        update={"query": "<img src=x>|**q**", "negative": None}
    )
    data = params.data.model_copy(
        update={"path": "data/raw/`x` <b>|[a](javascript:1).json", "columns": columns}
    )
    card = render_data_card(
        *(profile, cleaning, splits, params.model_copy(update={"data": data})),
        columns.model_dump(),
        "0" * 64,
    )
    assert "<img" not in card
    assert "<b>" not in card
    assert "[a](javascript" not in card
    assert "negative is none" in card
    assert "7 test rows in 5 groups" in card


def test_a_hubs_fields_name_the_base_only_where_the_hub_has_it():
    assert "base_model" not in front_matter({"path": "models/mine"}, "peft")
    assert "base_model: a/b\nbase_model_relation: adapter" in front_matter({"id": "a/b"}, "peft")

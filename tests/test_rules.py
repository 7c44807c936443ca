import re
import time
import unicodedata
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.corpus import cleaning_rules
from library.corpus.cleaning_rules import RULES, clean_text, find_defects

MARKS = [
    "&amp;",
    "&",
    "amp;",
    "&lt;",
    "&#8217;",
    "&#x26;",
    "lt;",
    "\u200b",
    "\u00ad",
    "\u2062",
    "\u00a0",
    "\\u2122",
    "\\u",
    "â€",
    "™",
]
SIGNS = [
    "â€",
    "™",
    "[0001] ",
    "[",
    "0001] A",
    "(FIG. 2)",
    " (FIG. 2",
    " and 3)",
    "(a) ",
    "(",
    "Ã©",
    "Â",
    "Â°",
    "\u0301",
    "\u0323",
    "\u00ad",
    "\x96",
    "\x0c",
    "[3001] ",
    "Å²",
    "see ",
    "Fig. 2)",
]
PIECES = st.sampled_from(
    [
        *MARKS,
        *SIGNS,
        "  ",
        " ,",
        "?,",
        "\n",
        "é",
        "e\u0301",
        "µ",
        "Ω",
        "x²",
        "10 mm",
        "Word",
        ".",
        " .",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join))


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("escaped_unicode", r"Brand\u2122 at 20 \u00b0C, \ud83d\ude00", "Brand™ at 20 °C, 😀"),
        (
            "escaped_unicode",
            r"C:\users \u12 \ud83d alone \u0000",
            r"C:\users \u12 \ud83d alone \u0000",
        ),
        ("mojibake", "doesnâ€™t, 20 Â°C, naÃ¯ve, Î¼m", "doesn’t, 20 °C, naïve, μm"),
        ("mojibake", "SÃO PAULO, Âge, «Été», Ω, ¾", "SÃO PAULO, Âge, «Été», Ω, ¾"),
        ("mojibake", "90 Å² ± 5 Å±0.5 Å, Ø½ inch", "90 Å² ± 5 Å±0.5 Å, Ø½ inch"),
        ("mojibake", "Ð¼Ð¾Ñ‚Ð¾Ñ€ Å›wiatÅ‚a ãƒ\x9dãƒ³ãƒ—", "мотор światła ポンプ"),
        ("mojibake", "10\x9620 mm doesn\x92t", "10–20 mm doesn’t"),
        ("html_entities", "a &amp; b &lt; c &#8217;", "a & b < c ’"),
        ("html_entities", "a &amp;amp;lt; b &#0; &#xD800;", "a < b &#0; &#xD800;"),
        ("html_entities", "a?b&param=1 &nosuch; &ltx;", "a?b&param=1 &nosuch; &ltx;"),
        ("unicode_nfc", "e\u0301 a\u0323\u0301", "é ạ́"),
        ("invisible_characters", "a\u2062b\u200bc\u00add\u2066e\u2069", "abcde"),
        ("invisible_characters", "0.5\u00ad1.0 mm", "0.5\u00ad1.0 mm"),
        (
            "paragraph_numbers",
            "[0001] The pump. [0002] A valve. see paragraph [0001] below",
            "The pump. A valve. see paragraph [0001] below",
        ),
        (
            "invisible_characters",
            "a\u200db \u200cx می\u200cخواهم 👩\u200d👧 \ufeff",
            "ab x می\u200cخواهم 👩\u200d👧 ",
        ),
        (
            "paragraph_numbers",
            "x[0001] A, [12] B, [2004] C, [0003] c",
            "x[0001] A, [12] B, [2004] C, [0003] c",
        ),
        ("paragraph_numbers", "[0001] 本発明。 [0002] μm", "本発明。 μm"),
        ("paragraph_numbers", "FIELD [0001] A pump. [0002] A valve", "FIELD A pump. A valve"),
        *(
            ("paragraph_numbers", text, text)
            for text in (
                "siehe Absatz [0032] Die Pumpe",
                "단락 [0032] 참조",
                "参见 [0032] 段",
                "जैसा कि [0032] में बताया",
            )
        ),
        *(("invisible_characters", text, text) for text in ("5\u206412", "1\u206312", "5\u200b6")),
        *(("mojibake", text, text) for text in ("«ALEMÃ»", "“IRMÃ”", "MANHÃ®", "AMANHÃ–", "ROSÉ°")),
        ("mojibake", "MÃ¼ller, DÃ‰JÃ€ vu", "Müller, DÉJÀ vu"),
        (
            "paragraph_numbers",
            "See [0032] FIG. 2, according to [0032] DNA is",
            "See [0032] FIG. 2, according to [0032] DNA is",
        ),
        (
            "paragraph_numbers",
            "see paragraph [0032]\n\nThe pump.\n\n[0033]\nA",
            "see paragraph [0032]\n\nThe pump.\n\n\nA",
        ),
        (
            "paragraph_numbers",
            "in which: [0036] [0036]FIG. 1 is, [0037] [0038] are",
            "in which: FIG. 1 is, [0037] [0038] are",
        ),
        (
            "figure_references",
            "the pump (FIG. 2), the valve ( Fig. 3 ) and (see FIGS. 3A and 3B, FIG. 4), as FIG. 5 "
            "shows",
            "the pump, the valve and, as FIG. 5 shows",
        ),
        ("figure_references", "the pump (2) (FIG)", "the pump (2) (FIG)"),
        (
            "list_letters",
            "steps: (a) mixing, (b) heating f(x) 2(a)",
            "steps: mixing, heating f(x) 2(a)",
        ),
        ("trademark_signs", "Teflon™ by DuPont®", "Teflon by DuPont"),
        ("odd_spaces", "a\u00a0b   c\td\x0ce", "a b c d e"),
        ("odd_spaces", "a\tb", "a b"),
        ("space_before_punctuation", "A scale , like it .", "A scale, like it."),
        ("space_before_punctuation", "A scale ; and more", "A scale; and more"),
        (
            "space_before_punctuation",
            "about .5 mm, HCl . H2O, on . . . the",
            "about .5 mm, HCl . H2O, on . . . the",
        ),
        ("stray_comma", "Why is it so?,\n", "Why is it so?\n"),
        ("stray_comma", "Why?, he asked", "Why?, he asked"),
        ("outer_whitespace", "\n a \n\n", "a"),
    ],
)
def test_each_rule_does_what_it_says(rule, before, after):
    assert RULES[rule].apply(before)[0] == after
    assert bool(RULES[rule].apply(before)[1]) == (before != after)


def test_a_number_after_an_abbreviation_of_another_script_is_no_number_in_the_margin():
    kept = "как указано, см. [0032] Выше"
    assert clean_text(kept, RULES)[0] == kept
    assert clean_text("Насос. [0032] Клапан. [0033] Вал", RULES)[0] == "Насос. Клапан. Вал"


def test_an_entity_that_another_rule_completes_is_found():
    text, found = clean_text("&a\u200bmp;lt; x", RULES)
    assert text == "< x"
    assert {name: finding.count for name, finding in found.items()} == {
        "invisible_characters": 1,
        "html_entities": 1,
    }


def test_a_finding_shows_the_first_place_and_counts_all():
    text = "The first twenty characters and more: a &amp; b, c &amp; d, e & f &nosuch; g"
    finding = RULES["html_entities"].apply(text)[1]
    assert (finding.count, finding.before, finding.after) == (
        2,
        "racters and more: a &amp; b, c &amp; d, e & f",
        "racters and more: a & b, c &amp; d, e & f",
    )


def test_a_rule_that_is_off_changes_nothing():
    assert clean_text("a &amp; b\u200b", []) == ("a &amp; b\u200b", {})


def test_a_hundred_thousand_stacked_marks_are_left_alone_in_no_time():
    text = "a" + "\u0301\u0323" * 50_000
    assert clean_text(text, RULES) == (text, {})


RUNS = [
    "a" + "\n" * 60_000 + "b ",
    "a" + " " * 60_000 + "b ",
    "\u200d" * 100_000,
    "&" + "amp;" * 20_000,
    "Ã©" * 50_000,
    "[0001] " * 20_000,
]


@pytest.mark.parametrize("text", RUNS, ids=range(len(RUNS)))
def test_long_runs_take_time_in_proportion(text):
    began = time.process_time()
    clean_text(text, RULES)
    find_defects(text)
    assert time.process_time() - began < 2


@given(TEXTS)
def test_cleaning_twice_is_cleaning_once(text):
    once, _ = clean_text(text, RULES)
    assert clean_text(once, RULES) == (once, {})
    assert not find_defects(once)


@given(
    st.lists(
        st.one_of(
            PIECES,
            st.sampled_from([". The", "a. Th", "a", "T", "he", ". ", "u200", "\\u000", "FIG. 3)"]),
        ),
        max_size=16,
    ).map("".join)
)
def test_cleaning_by_sentences_is_cleaning_the_whole_text(text):
    def counts(cleaned):
        return cleaned[0], {name: finding.count for name, finding in cleaned[1].items()}

    by_sentences = counts(clean_text(text, RULES))
    with mock.patch.object(cleaning_rules, "_BREAK", re.compile("(?!)")):
        assert by_sentences == counts(clean_text(text, RULES))


@given(TEXTS)
def test_what_a_rule_is_not_asked_to_look_for_is_not_there(text):
    for name, rule in RULES.items():
        if not rule.suspect(text):
            assert all(
                rule.substitute(match[0]) == match[0]
                for pattern in rule.patterns
                for match in pattern.finditer(text)
            ), name


WORDS = [
    "Å²",
    "5Å±0.5",
    "Ø½",
    "word",
    "10",
    "mm",
    "µm",
    "Ω",
    "x²",
    "H₂O",
    "3.5",
    "naïve",
    "(2)",
    "[7]",
    "FIG. 2",
    "±5",
    "½",
    "αβ",
    "10⁻³",
]


@given(st.lists(st.sampled_from(WORDS), max_size=8))
def test_words_numbers_units_and_greek_letters_are_never_changed(words):
    for glue in (" ", "\u00a0", " \u200b", "\t", "  "):
        cleaned, _ = clean_text(glue.join(words), RULES)
        assert cleaned == " ".join(words)


LAYOUTS = {
    "python": "def area(r):\n    if r < 0:\n        raise ValueError('a  b')\n    return r ** 2",
    "indented python": "    x = 1\n    y = 2",
    "python after a sentence": "Use this:\n\n```python\nx = 'a  b'\n```\nIt prints.  Then it ends.",
    "makefile": "all: a.o\n\tcc -o all  a.o\n\trm a.o",
    "yaml": "a:\n  - b\n  - c:  d",
    "columns": "Name    Age\nAlice   30\nBob     4",
    "markdown": "| Name  | Age |\n|-------|-----|\n| Alice |  30 |",
    "command": "git add .",
    "commands": "Type this:\n```\ngit add .\n```",
    "french": "Est-il fait ? Oui ; il dit : « non »",
    "cells": "Name\tAge\nAlice\t30",
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_code_and_tables_keep_their_blanks(text):
    assert clean_text(text, RULES) == (text, {})
    assert clean_text(f"\n\n{text}\n", RULES)[0] == text
    assert not find_defects(text)


def test_blanks_of_prose_go_whatever_lines_it_has():
    text = "The pump  is new.  It runs.\nThe valve is.  Old and worn"
    assert clean_text(text, RULES)[0] == "The pump is new. It runs.\nThe valve is. Old and worn"


@pytest.mark.parametrize(
    "text",
    [
        "[1897] AC 22",
        "Salomon v Salomon [1897] AC 22; Foakes v Beer [1884] UKHL 1",
        "They held so. [1897] AC 22 is the leading case.",
        "[1897] AC 22\n[1892] 1 QB 256\n[1893] Ch 12",
        "Cases:\n[1897] AC 22\n[1899] AC 7",
        "[1843] Dickens wrote it.\n[1844] Another one.",
    ],
)
def test_a_year_is_no_number_in_the_margin(text):
    assert clean_text(text, RULES) == (text, {})


def test_numbers_in_the_margin_go_beyond_a_thousand_where_they_ascend():
    text = (
        "It is new. [0998] The pump is steel. [1000] FIG. 1 shows it. [1002] A valve, see [1001]."
    )
    cleaned = "It is new. The pump is steel. FIG. 1 shows it. A valve, see [1001]."
    assert clean_text(text, RULES)[0] == cleaned


# what each rule may take away, as README says it
CLASSES = {
    "invisible_characters": (
        r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+"
    ),
    "paragraph_numbers": r"(\[\d{4}\]\s*){1,2}",
    "figure_references": r" \([^()]*F[Ii][Gg][^()]*\d[A-Za-z]? ?\)",
    "list_letters": r"\([a-z]\) ",
    "trademark_signs": "[™℠®]",
    "odd_spaces": r"\s+",
    "outer_whitespace": r"\s+",
}


@given(TEXTS)
def test_what_a_rule_takes_away_is_of_its_own_class(text):
    for name, allowed in CLASSES.items():
        rule = RULES[name]
        for pattern in rule.patterns:
            for match in pattern.finditer(text):
                if rule.substitute(match[0]) != match[0]:
                    assert re.fullmatch(allowed, match[0]), name


TYPOGRAPHY = {
    "invisible_characters",
    "odd_spaces",
    "space_before_punctuation",
    "stray_comma",
    "outer_whitespace",
}


@given(TEXTS)
def test_no_word_character_is_lost_by_the_rules_of_typography(text):
    cleaned, _ = clean_text(text, TYPOGRAPHY)
    assert re.findall(r"\w", cleaned) == re.findall(r"\w", text)


@given(st.text(st.characters(categories=["L", "N", "Zs"])))
def test_letters_and_numbers_of_any_script_are_kept(text):
    text = unicodedata.normalize("NFC", text)
    kept = "".join(text.split())
    found = clean_text(text, RULES)
    assert "mojibake" in found[1] or "".join(found[0].split()) == kept

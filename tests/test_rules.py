import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.rules import RULES, clean_text, count_defects

MARKS = ["&amp;", "&", "amp;", "&lt;", "&#8217;", "&#x26;", "lt;", "\u200b", "\u00ad", "\u2062", "\u00a0"]
PIECES = st.sampled_from([*MARKS, "  ", " ,", "?,", "\n", "é", "e\u0301", "µ", "Ω", "x²", "10 mm", "word", ".", " ."])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join))


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("html_entities", "a &amp; b &lt; c &#8217;", "a & b < c ’"),
        ("html_entities", "a?b&param=1 &nosuch; &ltx;", "a?b&param=1 &nosuch; &ltx;"),
        ("unicode_nfc", "e\u0301", "é"),
        ("invisible_characters", "a\u2062b\u200bc\u00add", "abcd"),
        ("odd_spaces", "a\u00a0b   c\td", "a b c d"),
        ("space_before_punctuation", "a scale , like it .", "a scale, like it."),
        ("space_before_punctuation", "about .5 mm", "about .5 mm"),
        ("stray_comma", "Why is it so?,\n", "Why is it so?\n"),
        ("stray_comma", "Why?, he asked", "Why?, he asked"),
        ("outer_whitespace", "\n a \n\n", "a"),
    ],
)
def test_each_rule_does_what_it_says(rule, before, after):
    assert RULES[rule](before)[0] == after
    assert bool(RULES[rule](before)[1]) == (before != after)


def test_an_entity_that_another_rule_completes_is_found():
    text, counts = clean_text("&a\u200bmp;lt; x", RULES)
    assert text == "< x"
    assert counts == {"invisible_characters": 1, "html_entities": 2}


def test_a_rule_that_is_off_changes_nothing():
    assert clean_text("a &amp; b\u200b", []) == ("a &amp; b\u200b", {})


@given(TEXTS)
def test_cleaning_twice_is_cleaning_once(text):
    once, _ = clean_text(text, RULES)
    assert clean_text(once, RULES) == (once, {})
    assert not count_defects(once)


WORDS = ["word", "10", "mm", "µm", "Ω", "x²", "H₂O", "3.5", "naïve", "(a)", "[0001]", "FIG. 2"]


@given(st.lists(st.sampled_from(WORDS), max_size=8))
def test_words_numbers_units_and_greek_letters_are_never_changed(words):
    for glue in (" ", "\u00a0", " \u200b", "\t"):
        cleaned, _ = clean_text(glue.join(words), RULES)
        assert cleaned == " ".join(words)


@given(TEXTS)
def test_no_word_character_is_lost_where_there_are_no_entities(text):
    text = unicodedata.normalize("NFC", text.replace("&", ""))
    cleaned, _ = clean_text(text, RULES)
    assert re.findall(r"\w", cleaned) == re.findall(r"\w", text)

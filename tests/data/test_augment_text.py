"""Edits of single texts: deterministic, never empty, nothing protected touched."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial

import pytest
import regex
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from align.data.augment import (
    counterfactual,
    deletion,
    insertion,
    keeps_protected,
    ocr,
    protected,
    punctuation,
    read_thesaurus,
    shuffle,
    swap,
    synonyms,
    typos,
)
from align.data.augment.noise import CONFUSIONS, NEIGHBOURS
from align.data.augment.protect import WORD, prose
from align.errors import DataError

BOOK = {"big": ("large", "great"), "dog": ("hound",), "runs": ("sprints",)}
EDITS = {
    "synonyms": partial(synonyms, thesaurus=BOOK, rate=0.5),
    "insertion": partial(insertion, rate=0.5),
    "insertion of synonyms": partial(insertion, thesaurus=BOOK, rate=0.5),
    "deletion": partial(deletion, rate=0.5),
    "swap": partial(swap, rate=0.5),
    "punctuation": partial(punctuation, rate=0.5),
    "typos": partial(typos, rate=0.5),
    "ocr": partial(ocr, rate=0.9),
    "shuffle": shuffle,
    "counterfactual": lambda text, draw: counterfactual([("dog", "cat"), ("he", "she")])(text),
}
PROTECTED = (
    "```python\nbig = dog(1)\n```",
    "`dog runs`",
    "https://big.dog/runs?he=she",
    "me@dog.org",
    "<|im_start|>",
    "<b>",
    "{name}",
    "42",
    "$1,300.50",
    "gpt2",
    "3/4",
    "<<8*5=40>>",
)
plain = st.sampled_from(
    [
        "The",
        "big",
        "dog",
        "runs",
        "home.",
        "Is",
        "he",
        "mad?",
        "Yes!",
        "modern",
        "clear,",
        "早上好。",
    ]
)
pieces = st.one_of(plain, plain, st.sampled_from(PROTECTED))
texts = st.lists(st.tuples(pieces, st.sampled_from([" ", " ", " ", "\n", "\n\n"])), min_size=1).map(
    lambda parts: "".join(piece + gap for piece, gap in parts)
)
seeds = st.integers(0, 2**32)
# No limits of time: a loaded machine is no failure.
unhurried = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
every_edit = pytest.mark.parametrize("name", EDITS)


@every_edit
@unhurried
@given(text=texts, seed=seeds)
def test_an_edit_is_a_function_of_text_and_seed_and_leaves_something(name, text, seed):
    made = EDITS[name](text, random.Random(seed))
    assert made == EDITS[name](text, random.Random(seed))
    assert made.strip()


@every_edit
@unhurried
@given(text=texts, seed=seeds)
def test_protected_pieces_are_all_there(name, text, seed):
    made = EDITS[name](text, random.Random(seed))
    for piece in PROTECTED:
        assert made.count(piece) >= text.count(piece), piece
    # Except that whole sentences move, they are also in their order.
    if name not in ("shuffle", "counterfactual"):
        found = [text[a:b].strip(".,;:!?") for a, b in protected(text)]
        rest = made
        for piece in found:
            assert piece in rest
            rest = rest.partition(piece)[2]


@every_edit
def test_every_edit_changes_something(name):
    text = "The big dog runs home. Is he mad? A modern man was clear."
    made = {EDITS[name](text, random.Random(seed)) for seed in range(20)}
    assert made - {text}


@unhurried
@given(text=st.text(max_size=200), seed=seeds, name=st.sampled_from(sorted(EDITS)))
def test_any_text_of_any_script_survives(text, seed, name):
    made = EDITS[name](text, random.Random(seed))
    assert bool(made.strip()) == bool(text.strip())
    assert keeps_protected(text, text)


@unhurried
@given(text=texts, seed=seeds)
@example(text="The \u65e9\u4e0a\u597d\u3002 The ", seed=1)
@example(text="\u65e9\u4e0a\u597d\u3002The end", seed=1)
def test_what_each_edit_keeps(text, seed):
    def bag(value: str) -> Counter[str]:
        return Counter(value[a:b].casefold() for s in prose(value) for a, b in _spans(value, s))

    before = bag(text)
    assert bag(swap(text, random.Random(seed), 0.5)) == before
    assert bag(shuffle(text, random.Random(seed))) == before
    assert bag(punctuation(text, random.Random(seed))) == before  # AEDA: words stay, in order
    assert not bag(deletion(text, random.Random(seed), 0.5)) - before
    assert not before - bag(insertion(text, random.Random(seed), None, 0.5))


def _spans(text: str, span: tuple[int, int]) -> list[tuple[int, int]]:
    return [match.span() for match in WORD.finditer(text, *span)]


def test_the_amount_follows_the_rate():
    text = "word " * 2000
    draw = random.Random(0)
    left = deletion(text, draw, 0.1).count("word")
    assert 1720 < left < 1880  # 1800 expected, standard deviation 13
    changed = sum(a != "word" for a in typos(text, draw, 0.05).split())
    assert 250 < changed < 480  # 1 - 0.95^4 of 2000 is 371
    book = {"word": ("term",)}
    assert synonyms(text, draw, book, 0.25).count("term") == 500
    assert insertion(text, draw, book, 0.25).count("term") == 500
    marks = sum(c in ".,;:!?" for c in punctuation(text, draw, 0.3))
    assert 1 <= marks <= 600


def test_protection_can_be_asked_away():
    assert protected("a `b` 1") == [(2, 5), (6, 7)]
    assert protected("a `b` 1", ["numbers"]) == [(6, 7)]
    code = "```\nvalue = compute\n```"
    assert typos(code, random.Random(0), 1.0) == code
    assert typos(code, random.Random(0), 1.0, protect=["urls"]) != code


def test_synonyms_keep_the_case_and_know_only_whole_words():
    draw = random.Random(0)
    assert synonyms("Dog DOG dog dogs", draw, {"dog": ("hound",)}, 1.0) == "Hound HOUND hound dogs"


def test_words_that_change_places_do_not_run_together():
    """Found by hypothesis: two words in the places of two neighbouring characters became one."""
    text = "The The 早上好。 早上好。 The The "
    for seed in range(30):
        made = swap(text, random.Random(seed), 0.5)
        assert made.count("The") == made.split().count("The") == 4


def test_typos_are_neighbours_on_the_layout():
    assert set(NEIGHBOURS["qwerty"]["g"]) == set("ftyhbv")
    assert "y" in NEIGHBOURS["qwertz"]["x"]
    assert "y" not in NEIGHBOURS["qwerty"]["x"]
    assert typos("it", random.Random(0), 1.0) != ""
    made = typos("слово", random.Random(3), 1.0)  # no key of the layout: no Latin letter appears
    assert not regex.search(r"[a-z]", made)


def test_ocr_makes_no_digits_and_only_known_confusions():
    assert not any(c.isdigit() for pair in CONFUSIONS for side in pair for c in side)
    assert ocr("m", random.Random(0), 1.0) in ("rn", "nn")
    assert ocr("xxx", random.Random(0), 1.0) == "xxx"


def test_shuffle_leaves_lists_code_and_paragraphs_where_they_are():
    text = "One here. Two there. Three.\n\n- A first. A second.\n```\nx. y. z.\n```\n1. B. C.\nEnd."
    for seed in range(10):
        made = shuffle(text, random.Random(seed))
        assert made.split("\n")[1:] == text.split("\n")[1:]
        sentences = made.split("\n")[0].replace(". ", ".|").split("|")
        assert sorted(sentences) == ["One here.", "Three.", "Two there."]


class TestCounterfactual:
    def test_both_directions_whole_words_case_kept(self):
        exchange = counterfactual([("he", "she"), ("man", "woman"), ("John", "Mary")])
        text = "He saw the man; SHE is no human, said John. `he` john"
        assert exchange(text) == "She saw the woman; HE is no human, said Mary. `he` mary"

    @unhurried
    @given(text=texts)
    def test_twice_is_nothing(self, text):
        exchange = counterfactual([("he", "she"), ("dog", "cat"), ("The", "A")])
        assert exchange(exchange(text)) == text

    def test_a_word_with_two_partners_is_refused_by_name(self):
        with pytest.raises(ValueError, match="'her' is in 2 places"):
            counterfactual([("him", "her"), ("his", "her")])

    @pytest.mark.data
    def test_winogender(self, shared_data):
        """Sentences that differ in a pronoun's gender alone become each other."""
        import gzip

        with gzip.open(shared_data / "winogender.jsonl.gz", "rt") as stream:
            rows = [json.loads(line) for line in stream]
        sentences = {value for row in rows for value in row.values() if isinstance(value, str)}
        exchange = counterfactual([("he", "she")])
        pairs = [s for s in sentences if regex.search(r"\b(he|she)\b", s)]
        pairs = [s for s in pairs if not regex.search(r"\b(his|him|her|hers)\b", s)]
        assert len(pairs) > 100
        assert all(exchange(s) in sentences for s in pairs)


class TestThesaurus:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.json", '{"Big": ["large", "great"], "dog": ["hound"]}'),
            ("a.csv", 'Big,large,great\n\ndog,"hound"\n'),
            ("a.tsv", "Big\tlarge\tgreat\ndog\thound\n"),
        ],
    )
    def test_formats(self, write, name, text):
        assert read_thesaurus(write(name, text)) == {"big": ("large", "great"), "dog": ("hound",)}

    def test_sets_stand_for_each_other(self, write):
        found = read_thesaurus(write("a.txt", "big, large\nlarge, wide\n"))
        assert found == {"big": ("large",), "large": ("big", "wide"), "wide": ("large",)}

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", '["big"]', "expected an object"),
            ("a.json", '{"big": "large"}', "'big' has 'large'"),
            ("a.json", "{", "cannot be read"),
            ("a.csv", "big,large\ndog\n", "a.csv:2: 'dog' has no synonym"),
            ("a.csv", "big,Big\n", "holds no synonyms"),
            ("a.md", "big", "expected .json"),
        ],
    )
    def test_what_is_wrong_is_named(self, write, name, text, message):
        with pytest.raises(DataError, match=message):
            read_thesaurus(write(name, text))
        with pytest.raises(DataError, match="no such file"):
            read_thesaurus("nowhere.json")

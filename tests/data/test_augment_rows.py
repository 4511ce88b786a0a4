"""Rows made from rows: lineage, labels, order, splits, and what is left out and counted."""

from __future__ import annotations

import gzip
import json
import random
from itertools import islice

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.config.sections import DataSection
from align.data import load_splits
from align.data.augment import augment
from align.data.augment.labels import _REASONS, FIELDS, allowed, default_fields, refusal
from align.data.augment.lineage import fingerprint
from align.errors import ConfigError, DataError
from align.processes import processes

WORDS = ["every", "quick", "brown", "fox", "jumps", "over", "some", "lazy"]
WORDS += ["dog", "while", "nobody", "looks", "at", "the", "moon"]
NOISE = [
    {"kind": "typos", "rate": 0.2},
    {"kind": "ocr", "rate": 0.3},
    {"kind": "punctuation"},
    {"kind": "deletion", "rate": 0.2},
    {"kind": "swap"},
    {"kind": "insertion"},
]


def sentence(number: int) -> str:
    return " ".join(random.Random(number).sample(WORDS, 9)) + f" {number}?"


def pairs(count: int) -> list[dict]:
    return [
        {"prompt": sentence(n), "chosen": f"{sentence(n)} yes", "rejected": f"{sentence(n)} no"}
        for n in range(count)
    ]


def made_of(data: Dataset) -> list[dict]:
    return [row for row in data if row["lineage"]]


def as_set(data: Dataset) -> set[str]:
    """Made rows with their lineage, but for where the origin stood."""
    rows = made_of(data)
    for row in rows:
        for step in row["lineage"]["steps"]:
            step["where"] = ""
    return {json.dumps(row, sort_keys=True) for row in rows}


@given(
    st.permutations(range(30)),
    st.sampled_from(NOISE),
    st.integers(0, 5),
    st.integers(1, 3),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_neither_order_nor_company_changes_what_is_made(order, entry, seed, copies):
    rows = pairs(30)
    entry = entry | {"seed": seed, "share": 0.5, "copies": copies}
    whole, _ = augment(rows, [entry], "preference")
    turned, _ = augment([rows[i] for i in order], [entry], "preference")
    assert as_set(whole) == as_set(turned)
    parts = [augment([rows[i] for i in order[k::2]], [entry], "preference")[0] for k in (0, 1)]
    assert as_set(whole) == as_set(parts[0]) | as_set(parts[1])  # two workers, half the rows each


@pytest.mark.parametrize("entry", NOISE, ids=lambda entry: entry["kind"])
def test_made_rows_say_where_they_come_from_and_keep_their_labels(entry):
    rows = [row | {"margin": 0.5 + n} for n, row in enumerate(pairs(20))]
    data, (report,) = augment(rows, [entry | {"seed": 3, "copies": 2}], "preference")
    assert report.made == len(made_of(data)) > 20
    assert [row["lineage"] for row in data][:20] == [None] * 20
    by_id = {fingerprint(row): row for row in rows}
    for row in made_of(data):
        lineage = row["lineage"]
        (step,) = lineage["steps"]
        origin = by_id[lineage["origin"]]
        assert step["parent"] == lineage["origin"]
        assert lineage["key"] == origin["prompt"]
        assert step["where"] == f"row {rows.index(origin) + 1}"
        assert (step["transform"], step["seed"], step["copy"] in (0, 1)) == (entry["kind"], 3, True)
        options = json.loads(step["options"])
        assert options["fields"] == ["prompt"]
        assert options["protect"] == ["code", "urls", "markup", "numbers"]
        assert {k: row[k] for k in ("chosen", "rejected", "margin")} == {
            k: origin[k] for k in ("chosen", "rejected", "margin")
        }
        assert row["prompt"] != origin["prompt"]
        assert row["prompt"].split()[-1] == origin["prompt"].split()[-1]  # its number


def test_seeds_and_shares():
    rows = pairs(400)
    one, (report,) = augment(rows, [{"kind": "typos", "seed": 1, "share": 0.2}], "preference")
    other, _ = augment(rows, [{"kind": "typos", "seed": 2, "share": 0.2}], "preference")
    assert as_set(one) != as_set(other)
    assert 50 < report.rows < 110
    again, _ = augment(rows, [{"kind": "typos", "seed": 1, "share": 0.5}], "preference")
    first = {row["lineage"]["origin"] for row in made_of(one)}
    assert first <= {row["lineage"]["origin"] for row in made_of(again)}  # a larger share adds


def test_a_second_round_remembers_the_first_origin():
    rows = pairs(5)
    first, _ = augment(rows, [{"kind": "typos", "rate": 0.3}], "preference")
    second, _ = augment(first, [{"kind": "swap"}], "preference")
    deep = [row for row in made_of(second) if len(row["lineage"]["steps"]) == 2]
    assert len(deep) == 5
    for row in deep:
        assert [s["transform"] for s in row["lineage"]["steps"]] == ["typos", "swap"]
        assert row["lineage"]["key"] in {r["prompt"] for r in rows}


class TestLabels:
    def test_what_is_claimed(self):
        """The table of docs/augmentation.md."""
        assert allowed("same", "preference") == ("prompt", "chosen", "rejected", "answers")
        assert allowed("noisy", "preference") == ("prompt", "rejected", "answers")
        assert allowed("lossy", "preference") == ("prompt", "rejected")
        assert allowed("turned", "preference") == ("all",)
        assert allowed("same", "sft") == ("prompt", "completion", "text")
        assert allowed("noisy", "sft") == allowed("lossy", "sft") == ("prompt",)
        assert allowed("noisy", "ranking") == ("prompt", "answers")
        assert allowed("lossy", "ranking") == allowed("same", "steps") == ("prompt",)
        assert allowed("noisy", "rating") == ("prompt",)
        assert all(field in sum(FIELDS.values(), ()) for _, field in _REASONS)
        for kind in FIELDS:
            for effect in ("same", "noisy", "lossy", "turned"):
                defaults = default_fields(effect, kind)
                assert [f for f in defaults if refusal(effect, f, kind)] == []

    def test_fields_are_refused_by_name_all_at_once(self, write):
        entries = [
            {"kind": "typos", "fields": ["chosen", "text"]},
            {"kind": "synonyms", "thesaurus": "nowhere.json"},
            {"kind": "counterfactual", "pairs": [["a", "b"], ["c", "b"]], "fields": "prompt"},
            {"kind": "contextual", "model": "./nowhere"},
            {"kind": "generated", "model": "./nowhere", "count": 3},
        ]
        with pytest.raises(ConfigError) as error:
            augment(pairs(2), entries, "preference")
        where = [problem.where for problem in error.value.problems]
        assert where == [
            "augment.0.typos.fields",
            "augment.0.typos.fields",
            "augment.1.synonyms",
            "augment.2.counterfactual.fields",
            "augment.2.counterfactual",
            "augment.3.contextual.model",
            "augment.4.generated.kind",
            "augment.4.generated.model",
        ]
        text = str(error.value)
        assert "chosen: a chosen answer that is made worse may no longer be the better one" in text
        assert "of preference rows it may change: prompt, rejected, answers." in text
        assert "'b' is in 2 places" in text

    @pytest.mark.parametrize("column", [{"margin": 0.5}, {"soft_label": 0.7}])
    def test_a_strength_does_not_survive_one_sided_noise(self, column):
        rows = [row | column for row in pairs(3)]
        entry = {"kind": "typos", "fields": "rejected"}
        with pytest.raises(DataError, match=f"row 1 has a {next(iter(column))}"):
            augment(rows, [entry], "preference")
        neutral = [row | {"margin": 0.0} for row in pairs(3)]  # says nothing of how much
        assert augment(neutral, [entry], "preference")[1][0].made == 3
        both = entry | {"fields": "answers", "rate": 0.2}
        data, _ = augment(rows, [both], "preference")
        for row in made_of(data):
            assert row["prompt"] in {r["prompt"] for r in rows}
            assert row["chosen"] not in {r["chosen"] for r in rows}

    def test_answers_that_become_equal_are_left_out(self, write):
        book = write("book.json", '{"big": ["large"]}')
        row = {"prompt": "which", "chosen": "big", "rejected": "large"}
        entry = {"kind": "synonyms", "fields": "chosen", "thesaurus": str(book)}
        data, (report,) = augment([row], [entry], "preference")
        assert (report.made, report.equal) == (0, 1)
        assert len(data) == 1

    def test_a_counterfactual_turns_the_whole_row(self):
        row = {
            "prompt": [
                {"role": "system", "content": "She helps."},
                {"role": "user", "content": "Is he in?"},
            ],
            "chosen": [{"role": "assistant", "content": "He is."}],
            "rejected": [{"role": "assistant", "content": "Ask him."}],
        }
        entry = {"kind": "counterfactual", "pairs": [["he", "she"], ["him", "her"]]}
        data, _ = augment([row], [entry], "preference")
        made = data[1]
        assert [turn["content"] for turn in made["prompt"]] == ["He helps.", "Is she in?"]
        assert made["chosen"][0]["content"] == "She is."
        assert made["rejected"][0]["content"] == "Ask her."

    def test_of_a_conversation_the_user_turns_change(self):
        turns = [("system", "Be kind and brief."), ("user", "Tell me some long story please")]
        turns += [("assistant", "Once upon a time there was"), ("user", "Please continue it then")]
        prompt = [{"role": role, "content": text} for role, text in turns]
        data, _ = augment([{"prompt": prompt}], [{"kind": "typos", "rate": 0.4}], "prompts")
        made = data[1]["prompt"]
        changed = [a["content"] != b["content"] for a, b in zip(made, prompt, strict=True)]
        assert changed == [False, True, False, True]


class TestLeftOut:
    def test_held_out_prompts_are_never_made(self):
        rows = [{"prompt": "is he tall 1"}, {"prompt": "is he short 2"}]
        entry = {"kind": "counterfactual", "pairs": [["he", "she"]]}
        held = [{"prompt": "Is  SHE tall 1"}]
        data, (report,) = augment(rows, [entry], "prompts", held_out=held)
        assert data["prompt"] == ["is he tall 1", "is he short 2", "is she short 2"]
        assert (report.made, report.leaks) == (1, 1)

    def test_repetitions_and_rows_without_a_change_are_counted(self):
        rows = [{"prompt": "is he in"}, {"prompt": "is she in"}, {"prompt": "nobody"}]
        entry = {"kind": "counterfactual", "pairs": [["he", "she"]]}
        _, (report,) = augment(rows, [entry], "prompts")
        assert (report.rows, report.made, report.repeats, report.unchanged) == (3, 0, 2, 1)

    def test_replace_takes_the_place_of_the_origin(self):
        rows = [{"prompt": sentence(n)} for n in range(40)]
        entry = {"kind": "typos", "rate": 0.3, "share": 0.5, "mode": "replace"}
        data, (report,) = augment(rows, [entry], "prompts")
        assert len(data) == 40
        assert report.made == len(made_of(data)) > 5
        gone = {row["lineage"]["key"] for row in made_of(data)}
        assert not gone & set(data["prompt"])


class TestStage:
    def test_the_training_split_alone_is_augmented(self, write, tmp_path):
        path = write("pairs.jsonl", pairs(200))
        entries = [{"kind": "typos", "share": 0.5, "seed": 1}, {"kind": "swap", "share": 0.1}]
        section = {"train": str(path), "validation_fraction": 0.2, "test_fraction": 0.1}
        plain = load_splits(DataSection(**section), "preference")
        aside = tmp_path / "run" / "quarantine.jsonl"
        both = DataSection(**section, augment=entries)
        splits = load_splits(both, "preference", quarantine=aside)
        assert splits.validation.to_list() == plain.validation.to_list()
        assert splits.test.to_list() == plain.test.to_list()
        count = len(plain.train)
        assert splits.train.to_list()[:count] == plain.train.to_list()
        assert splits.train.column_names == plain.train.column_names
        card = splits.card.as_dict()
        made = [entry["made"] for entry in card["augmented"]]
        assert len(splits.train) == card["splits"]["train"] == count + sum(made)
        assert card["prompts"]["train"] == plain.card.prompts["train"]  # of origins
        assert card["augmented"][0]["options"] == entries[0]
        lines = (tmp_path / "run" / "augmented.jsonl").read_text().splitlines()
        assert [json.loads(line)["prompt"] for line in lines] == splits.train["prompt"][count:]
        assert all(json.loads(line)["lineage"]["steps"] for line in lines)
        from rich.console import Console

        console = Console(width=160, record=True, file=(tmp_path / "x").open("w"))
        console.print(splits.card.render())
        assert "Augmentation (training rows)" in console.export_text()

    def test_rows_of_one_origin_stay_on_one_side(self, write):
        """Written to a file and read again, a made row goes where its origin goes."""
        rows = pairs(120)
        data, _ = augment(rows, [{"kind": "typos", "rate": 0.3, "copies": 2}], "preference")
        path = write("made.jsonl", data.to_list())
        section = DataSection(train=str(path), validation_fraction=0.3, test_fraction=0.2)
        splits = load_splits(section, "preference")
        alone = write("alone.jsonl", rows)
        before = load_splits(section.model_copy(update={"train": _source(alone)}), "preference")
        lineage = {row["prompt"]: row["lineage"]["key"] for row in made_of(data)}
        moved = 0
        for name in ("train", "validation", "test"):
            part, origins = getattr(splits, name), set(getattr(before, name)["prompt"])
            assert {lineage.get(prompt, prompt) for prompt in part["prompt"]} == origins
            moved += len(part)
        assert moved == len(data)

    def test_prompts_of_a_file_carry_no_lineage_to_rewards(self, write):
        data, _ = augment([{"prompt": sentence(1), "answer": "7"}], NOISE[:1], "prompts")
        path = write("made.jsonl", data.to_list())
        splits = load_splits(DataSection(train=str(path), validation_fraction=0.0), "prompts")
        assert splits.train.column_names == ["prompt", "answer"]
        assert splits.train["answer"] == ["7", "7"]

    def test_a_column_of_that_name_that_is_none_of_ours_stays(self, write):
        path = write("x.jsonl", [{"prompt": "a b", "lineage": "from a book"}])
        splits = load_splits(DataSection(train=str(path), validation_fraction=0.0), "prompts")
        assert splits.train["lineage"] == ["from a book"]

    def test_several_processes_may_not_each_ask_a_model(self, write, monkeypatch):
        path = write("x.jsonl", pairs(3))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert processes() == 2
        entry = {"kind": "paraphrase", "url": "http://127.0.0.1:9/v1", "model": "m"}
        with pytest.raises(ConfigError, match="2 processes would each ask the model"):
            load_splits(DataSection(train=str(path), augment=[entry]), "preference")


def _source(path) -> list:
    return DataSection(train=str(path)).train


@pytest.mark.data
def test_real_rows(shared_data):
    """GSM8K and HH: numbers, code and calculator marks of real texts survive every noise."""
    with gzip.open(shared_data / "gsm8k.jsonl.gz", "rt") as stream:
        questions = [json.loads(line)["question"] for line in islice(stream, 150)]
    rows = [{"prompt": question} for question in questions]
    data, reports = augment(rows, NOISE, "prompts")
    assert all(report.made > 140 for report in reports)
    for row in made_of(data):
        numbers = [_digits(w) for w in row["lineage"]["key"].split() if _digits(w)]
        assert [_digits(w) for w in row["prompt"].split() if _digits(w)] == numbers
    path = shared_data / "hh_harmless.jsonl.gz"
    section = DataSection(
        train={"path": str(path), "limit": 200},
        bad_rows="quarantine",
        augment=[{"kind": "typos", "seed": 1, "share": 0.5}, {"kind": "ocr", "fields": "answers"}],
    )
    splits = load_splits(section, "preference")
    assert all(entry["made"] > 50 for entry in splits.card.augmented)
    assert all(row["chosen"] != row["rejected"] for row in splits.train)


def _digits(word: str) -> str:
    return "".join(c for c in word if c.isdigit())

"""`load_splits` as a stage calls it: policies for bad rows, leaks, weights, and the card's sums."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from align.config.sections import DataSection
from align.data import DataCard, load_splits, prompt_key
from align.errors import DataError


def section(**values) -> DataSection:
    return DataSection(**{"validation_fraction": 0.0, "deduplicate": "none"} | values)


def pairs(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": p, "completion": f"An answer to {p}"} for p in prompts]


def fails(kind: str, **values) -> str:
    with pytest.raises(DataError) as error:
        load_splits(section(**values), kind)
    return str(error.value)


def check_sums(card: DataCard) -> None:
    """Every row that was read is somewhere."""
    for source in card.sources:
        parts = (source.bad, source.left_out, source.exact_duplicates, source.near_duplicates)
        assert source.read == sum(parts) + source.leaks + source.unused + source.used
    assert sum(source.used for source in card.sources) == card.rows_used
    assert sum(card.reasons.values()) == card.count("bad")
    json.dumps(card.as_dict())


class TestBadRows:
    LINES = (
        '{"prompt": "a", "completion": "b"}\n'
        '{"prompt": "a", "completion": \n'
        '{"prompt": "a"}\n'
        '{"prompt": "a", "completion": ""}\n'
        '{"prompt": "c", "completion": "d"}\n'
    )

    def test_strict_names_file_line_and_reason(self, write):
        path = write("x.jsonl", self.LINES)
        message = fails("sft", train=str(path))
        assert message.startswith("3 of 5 rows cannot be used:\n")
        assert f"{path}:2: invalid JSON (Expecting value at column 31)" in message
        assert f"{path}:3: completion is missing (expected text or a list of messages)" in message
        assert f"{path}:4: completion is empty" in message
        assert message.endswith("set data.bad_rows=quarantine to keep them aside and go on.")

    def test_strict_says_how_many_more(self, write):
        path = write("x.jsonl", [{"text": "a"}] + [{"text": ""}] * 12)
        message = fails("sft", train=str(path))
        assert message.count("text is empty") == 5
        assert "... and 7 more" in message

    def test_quarantine_keeps_them_with_the_reason(self, write, tmp_path):
        path, aside = write("x.jsonl.gz", self.LINES), tmp_path / "run" / "quarantine.jsonl"
        splits = load_splits(
            section(train=str(path), bad_rows="quarantine"), "sft", quarantine=aside
        )
        assert splits.train["completion"] == ["b", "d"]
        kept = [json.loads(line) for line in aside.read_text().splitlines()]
        assert [item["where"] for item in kept] == [f"{path}:{line}" for line in (2, 3, 4)]
        assert kept[0]["row"] == '{"prompt": "a", "completion": '
        assert kept[1]["row"] == {"prompt": "a"}
        assert splits.card.quarantine == str(aside)
        assert splits.card.reasons == {
            "invalid JSON": 1,
            "completion is missing": 1,
            "completion is empty": 1,
        }
        check_sums(splits.card)

    def test_no_file_without_bad_rows(self, write, tmp_path):
        path = write("x.jsonl", pairs("a"))
        values = section(train=str(path), bad_rows="quarantine")
        card = load_splits(values, "sft", quarantine=tmp_path / "q.jsonl").card
        assert card.quarantine is None
        assert not (tmp_path / "q.jsonl").exists()

    def test_only_the_first_process_writes(self, write, tmp_path, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        path = write("x.jsonl", self.LINES)
        values = section(train=str(path), bad_rows="quarantine")
        load_splits(values, "sft", quarantine=tmp_path / "q.jsonl")
        assert not (tmp_path / "q.jsonl").exists()

    def test_equal_answers_are_counted_as_ties(self, write):
        rows = [
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            {"prompt": "a", "chosen": "b", "rejected": "c"},
        ]
        path = write("x.jsonl", rows)
        assert f"{path}:1: chosen equals rejected" in fails("preference", train=str(path))
        values = section(train=str(path), bad_rows="quarantine")
        assert load_splits(values, "preference").card.ties == 1


class TestEmpty:
    @pytest.mark.parametrize(
        ("name", "text"), [("x.jsonl", ""), ("x.json", "[]"), ("x.csv", "a\n")]
    )
    def test_file(self, write, name, text):
        assert "holds no rows" in fails("sft", train=str(write(name, text)))

    def test_all_rows_bad(self, write):
        path = write("x.jsonl", [{"text": ""}] * 3)
        message = fails("sft", train=str(path), bad_rows="quarantine")
        assert "no row is left for train: 3 read, 3 bad (text is empty: 3)" in message

    def test_all_rows_unreadable(self, write):
        path = write("x.jsonl", "oops\n")
        message = fails("sft", train=str(path), bad_rows="quarantine", system_prompt="Hi.")
        assert "1 read, 1 bad (invalid JSON: 1)" in message

    def test_one_source_of_two(self, write):
        good, bad = write("good.jsonl", pairs("a")), write("bad.jsonl", [{"text": ""}])
        message = fails("sft", train=[str(good), str(bad)], bad_rows="quarantine")
        assert f"{bad}: no row is left for train: 1 read, 1 bad" in message

    def test_a_source_that_only_repeats_another_is_a_warning(self, write):
        a, b = write("a.jsonl", pairs("a", "b")), write("b.jsonl", pairs("A"))
        splits = load_splits(section(train=[str(a), str(b)], deduplicate="exact"), "sft")
        assert sorted(splits.train["prompt"]) == ["a", "b"]
        assert splits.card.warnings == [f"{b}: gives no row to train: 1 read, 1 exact duplicates."]

    def test_all_rows_leak(self, write):
        train, held = write("a.jsonl", pairs("a", "b")), write("b.jsonl", pairs("A ", "b"))
        message = fails("sft", train=str(train), test=str(held))
        assert "no row is left for train: 2 read, 2 in held-out sources" in message

    def test_all_rows_held_out(self, write):
        path = write("x.jsonl", pairs("a"))
        message = fails("sft", train=str(path), validation_fraction=0.999)
        assert "no training row is left: 1 read, 1 in validation" in message

    def test_an_empty_validation_split_is_none_with_a_warning(self, write):
        path = write("x.jsonl", pairs("a", "b"))
        splits = load_splits(section(train=str(path), validation_fraction=0.01), "sft")
        assert splits.validation is None
        assert "the validation split is empty: 0.01 of 2 rows" in splits.card.warnings[0]


class TestSplits:
    def test_one_prompt_lands_alike_in_every_stage(self, write):
        prompts = [f"Why is {i} odd?" for i in range(1, 600, 2)]
        plain = write("sft.jsonl", pairs(*prompts))
        chats = [
            {
                "chosen": f"\n\nHuman: {p.upper()}\n\nAssistant: a",
                "rejected": f"\n\nHuman: {p}\n\nAssistant: b",
            }
            for p in reversed(prompts)
        ]
        for row in chats:
            row["rejected"] = row["chosen"][:-1] + "b"
        preferences = write("preferences.jsonl", chats)
        only = write("prompts.csv", "prompt,answer\n" + "".join(f'"{p}",x\n' for p in prompts[:90]))
        where: dict[str, set[str]] = {}
        kinds = {"sft": plain, "preference": preferences, "prompts": only}
        for kind, path in kinds.items():
            values = section(
                train=str(path),
                validation_fraction=0.2,
                test_fraction=0.1,
                system_prompt="Think." if kind == "sft" else None,
            )
            splits = load_splits(values, kind)
            for name in ("train", "validation", "test"):
                for prompt in getattr(splits, name)["prompt"]:
                    where.setdefault(prompt_key(prompt), set()).add(name)
        assert len(where) == 300
        assert all(len(names) == 1 for names in where.values())

    def test_given_sources_win_and_leaks_leave_train(self, write):
        train = write("train.jsonl", pairs(*"abcdefgh"))
        validation = write("validation.jsonl", pairs("A", "x", "y"))
        test = write("test.jsonl", pairs("b", "y"))
        values = section(
            train=str(train), validation=str(validation), test=str(test), validation_fraction=0.5
        )
        splits = load_splits(values, "sft")
        assert splits.train["prompt"] == list("cdefgh")
        assert splits.validation["prompt"] == ["A", "x"]  # y is in test
        assert splits.test["prompt"] == ["b", "y"]
        assert [source.leaks for source in splits.card.sources] == [2, 1, 0]
        check_sums(splits.card)

    def test_given_validation_beside_a_test_fraction(self, write):
        train = write("train.jsonl", pairs(*(f"p {i}" for i in range(200))))
        validation = write("validation.jsonl", pairs("p 1", "q"))
        values = section(
            train=str(train),
            validation=str(validation),
            validation_fraction=0.9,
            test_fraction=0.2,
        )
        splits = load_splits(values, "sft")
        assert splits.validation["prompt"] == ["p 1", "q"]
        assert len(splits.train) + len(splits.test) == 199
        assert 20 < len(splits.test) < 60


class TestSources:
    def test_weights_and_the_card(self, write):
        big = write("big.jsonl", pairs(*(f"big {i}" for i in range(300))))
        small = write("small.jsonl", pairs(*(f"small {i}" for i in range(50))))
        sources = [{"path": str(big), "weight": 3}, {"path": str(small), "weight": 1}]
        splits = load_splits(section(train=sources), "sft")
        assert len(splits.train) == 200
        assert sum(p.startswith("small") for p in splits.train["prompt"]) == 50
        assert [source.share for source in splits.card.sources] == [0.75, 0.25]
        assert [source.unused for source in splits.card.sources] == [150, 0]
        assert "150 of 300 rows are unused" in splits.card.warnings[0]
        check_sums(splits.card)

    def test_without_weights_every_row_is_used(self, write):
        big, small = write("big.jsonl", pairs(*"abcdefgh")), write("small.jsonl", pairs("i"))
        splits = load_splits(section(train=[str(big), str(small)]), "sft")
        assert len(splits.train) == 9
        assert splits.card.warnings == []

    def test_two_formats_in_one_mixture(self, write):
        a = write("a.jsonl", pairs("a"))
        b = write("b.csv", "question,chosen,rejected\nb,yes,no\n")
        sources = [str(a), {"path": str(b), "columns": {"prompt": "question"}}]
        splits = load_splits(section(train=sources), "sft")
        assert sorted(splits.train["completion"]) == ["An answer to a", "yes"]
        assert [s.format for s in splits.card.sources] == ["prompt-completion", "preference"]

    def test_conversations_do_not_mix_with_plain_text(self, write):
        plain = write("plain.jsonl", pairs("a"))
        chat = write(
            "chat.jsonl", [{"prompt": [{"role": "user", "content": "b"}], "completion": "c"}]
        )
        message = fails("sft", train=[str(plain), str(chat)])
        assert f"{plain}:1 is plain text, but {chat}:1 is a conversation" in message
        values = section(train=[str(plain), str(chat)], system_prompt="Be kind.")
        assert len(load_splits(values, "sft").train) == 2

    def test_a_format_that_cannot_serve(self, write):
        path = write("x.jsonl", [{"text": "a"}])
        message = fails("preference", train=str(path))
        assert "text data cannot serve 'preference', which needs a chosen and" in message
        assert "formats: preference, hh." in message
        message = fails("sft", train=str(path), system_prompt="Hi.")
        assert "text has no conversation that data.system_prompt could begin" in message

    def test_a_given_format_overrules_the_guess(self, write):
        rows = [{"messages": [{"role": "user", "content": "a"}], "prompt": "b", "completion": "c"}]
        path = write("x.jsonl", rows)
        source = {"path": str(path), "format": "messages"}
        prompts = load_splits(section(train=source), "prompts").train
        assert prompts[0]["prompt"] == [{"role": "user", "content": "a"}]

    def test_margins_missing_in_one_source_change_nothing_there(self, write):
        base = {"chosen": "x", "rejected": "y"}
        a = write("a.jsonl", [{"prompt": "a", "margin": 2, **base}])
        b = write("b.jsonl", [{"prompt": "b", "weight": 0.5, **base}])
        train = load_splits(section(train=[str(a), str(b)]), "preference").train
        rows = {row["prompt"]: (row["margin"], row["weight"]) for row in train}
        assert rows == {"a": (2.0, 1.0), "b": (0.0, 0.5)}

    def test_further_columns_reach_prompts_as_they_are(self, write):
        a = write("a.jsonl", [{"prompt": "a", "answer": "1"}, {"prompt": "b", "level": 2}])
        b = write("b.jsonl", [{"prompt": "c", "level": 0.5, "answer": None}])
        train = load_splits(section(train=[str(a), str(b)]), "prompts").train
        rows = {row["prompt"]: (row["answer"], row["level"]) for row in train}
        assert rows == {"a": ("1", None), "b": (None, 2), "c": (None, 0.5)}

    def test_a_further_column_of_several_types(self, write):
        rows = [{"prompt": str(i), "answer": str(i)} for i in range(3)]
        a = write("a.jsonl", rows)
        b = write("b.jsonl", [{"prompt": "c", "answer": {"value": 1}}, {"prompt": "d"}])
        message = fails("prompts", train=[str(a), str(b)])
        assert f"{b}:1: answer has another type (an object, where most rows have text)" in message
        values = section(train=[str(a), str(b)], bad_rows="quarantine")
        splits = load_splits(values, "prompts")
        assert sorted(splits.train["prompt"]) == ["0", "1", "2", "d"]
        check_sums(splits.card)

    def test_a_column_no_table_can_hold(self, write):
        path = write("x.jsonl", [{"prompt": "a", "answer": 2**70}])
        message = fails("prompts", train=str(path))
        assert "the columns prompt, answer cannot be put in one table" in message

    def test_limit(self, write):
        source = {"path": str(write("x.jsonl", pairs(*"abc"))), "limit": 2}
        assert load_splits(section(train=source), "sft").train["prompt"] == ["a", "b"]

    def test_duplicates(self, write):
        long = " ".join(f"word{i}" for i in range(60))
        rows = pairs("a", "A ", "b") + [{"prompt": "c", "completion": long + x} for x in ("", " z")]
        path = write("x.jsonl", rows)
        counts = {}
        for mode in ("none", "exact", "near"):
            card = load_splits(section(train=str(path), deduplicate=mode), "sft").card
            check_sums(card)
            counts[mode] = (card.count("exact_duplicates"), card.count("near_duplicates"))
        assert counts == {"none": (0, 0), "exact": (1, 0), "near": (1, 1)}


class TestCard:
    def test_printed(self, write, tmp_path):
        path = write("x.jsonl", [*pairs("a", "A", "b"), {"prompt": "c"}])
        values = section(train=str(path), deduplicate="exact", bad_rows="quarantine")
        card = load_splits(values, "sft", quarantine=tmp_path / "q.jsonl").card
        console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(card.render())
        text = console.export_text()
        for part in ("x.jsonl", "exact dup.", "completion is missing", "bad rows are kept in"):
            assert part in text
        assert "near dup." not in text  # nothing but zeros there

    def test_as_dict(self, write):
        path = write("x.jsonl", pairs("a", "b"))
        record = load_splits(section(train=str(path)), "sft").card.as_dict()
        assert record["totals"]["read"] == record["totals"]["used"] == 2
        assert record["splits"] == {"train": 2}
        assert record["options"]["split_seed"] == 0
        assert record["sources"][0]["sha256"]


def test_loading_twice_gives_the_same(write):
    rows, more = pairs(*(f"p {i % 40}" for i in range(80))), pairs(*map(str, range(90)))
    paths = [str(write("a.jsonl", rows)), str(write("b.jsonl", more))]
    values = section(train=paths, validation_fraction=0.2, deduplicate="exact")
    one, two = load_splits(values, "sft"), load_splits(values, "sft")
    assert one.train.to_list() == two.train.to_list()
    assert one.card.as_dict() == two.card.as_dict()

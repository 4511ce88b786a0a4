"""Rewards for form, and texts that try to hang or break the parsers."""

from __future__ import annotations

import time

import pytest

from reward.errors import RewardError
from reward.verify.formats import JSONSchemaReward, RegexReward, json_format

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
}


def ask(reward, *completions, **columns):
    return reward(["p"] * len(completions), list(completions), **columns)


def test_json():
    good = ['{"a": [1, null]}', "3", ' "x"\n', '```json\n{"a": 1}\n```', "```\n[]\n```"]
    bad = ["", "{a: 1}", "{} {}", "so: {}", "NaN", '{"a": Infinity}', "```json\n{}", "[1,]"]
    assert ask(json_format, *good) == [1.0] * len(good)
    assert ask(json_format, *bad) == [0.0] * len(bad)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 300 + "]" * 300, "9" * 10_000, '{"a":' * 5000 + "1" + "}" * 5000]
)
def test_json_that_would_break_a_parser(text):
    assert ask(json_format, text) == [0.0]
    assert ask(JSONSchemaReward(SCHEMA), text) == [0.0]


def test_a_schema():
    reward = JSONSchemaReward(SCHEMA, invalid=0.2)
    assert ask(reward, '{"age": 3}', '{"age": -1}', "{}", "age 3") == [1.0, 0.2, 0.2, 0.0]
    rows = JSONSchemaReward(column="schema")
    schemas = ['{"type": "string"}', {"type": "array"}]
    assert ask(rows, '"x"', '"x"', schema=schemas) == [1.0, 0.0]


def test_a_reference_elsewhere_is_not_fetched(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("went to the network"))
    reward = JSONSchemaReward({"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(RewardError, match=r"not fetched.*127\.0\.0\.1"):
        ask(reward, "{}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a schema or a column"),
        ({"schema": SCHEMA, "column": "s"}, "either a schema or a column"),
        ({"schema": {"type": "objekt"}}, "no JSON schema: 'objekt'"),
    ],
)
def test_schemas_that_are_none(arguments, message):
    with pytest.raises(RewardError, match=message):
        JSONSchemaReward(**arguments)


def test_a_pattern():
    reward = RegexReward(r"<think>.+</think>\s*<answer>\d+</answer>")
    good = "<think>\nwell\n</think>\n<answer>4</answer>\n"
    assert ask(reward, good, good + "more", "<answer>4</answer>") == [1.0, 0.0, 0.0]
    assert ask(RegexReward(r"\d+", whole=False), "it is 4", "four") == [1.0, 0.0]
    with pytest.raises(RewardError, match=r"'\(' is no pattern"):
        RegexReward("(")


def test_a_pattern_that_would_take_for_ever_does_not_match():
    started = time.monotonic()
    evil = RegexReward(r"(a|aa|a?a)+$", seconds=0.3)
    assert ask(evil, "a" * 5000 + "b", "aa") == [0.0, 1.0]
    assert time.monotonic() - started < 30

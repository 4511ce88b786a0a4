"""Rewards for form, and texts that try to hang or break the parsers."""

from __future__ import annotations

import re
import socket
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


def test_a_reference_elsewhere_is_not_fetched():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        with pytest.raises(RewardError, match=rf"not fetched.*{re.escape(url)}"):
            ask(JSONSchemaReward({"$ref": url}), "{}")
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()


EVIL = "^(a+)+$"


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": EVIL},
        {"items": {"pattern": EVIL}},
        {"patternProperties": {EVIL: {}}, "type": "object"},
        {"patternProperties": {EVIL: {}}, "additionalProperties": False},
        {"patternProperties": {EVIL: {}}, "unevaluatedProperties": False},
        {"propertyNames": {"pattern": EVIL}},
        {"allOf": [{"$schema": "http://json-schema.org/draft-07/schema#", "pattern": EVIL}]},
    ],
)
def test_a_schema_whose_pattern_would_take_for_ever_scores_nothing(schema):
    """Not 0.2: whether the text fits is not known."""
    reward = JSONSchemaReward(schema, invalid=0.2, seconds=1)
    evil = "a" * 50 + "!"
    text = {"items": f'["{evil}"]', "pattern": f'"{evil}"', "allOf": f'"{evil}"'}
    started = time.monotonic()
    assert ask(reward, text.get(next(iter(schema)), f'{{"{evil}": 1}}')) == [0.0]
    assert time.monotonic() - started < 120
    reward._worker.seconds = 60
    assert ask(reward, '{"b": "c"}') in ([1.0], [0.2])  # the next text is answered


TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "anyOf": [
                {"type": "integer"},
                {"properties": {"next": {"allOf": [{"$ref": "#/$defs/tree"}]}}, "type": "object"},
            ]
        }
    },
}


def test_a_recursive_schema_on_a_deep_text():
    def nested(levels, inside):
        return '{"next":' * levels + inside + "}" * levels

    reward = JSONSchemaReward(TREE, invalid=0.2, seconds=60)
    assert ask(reward, nested(199, "1"), nested(199, '"x"'), nested(300, "1")) == [1.0, 0.2, 0.0]
    endless = JSONSchemaReward({"$ref": "#"}, invalid=0.2, seconds=60)
    assert ask(endless, "1") == [0.0]
    process = endless._worker.process
    assert ask(endless, "2") == [0.0]
    assert endless._worker.process is process is not None  # no new one for each text


def test_a_recursive_schema_that_doubles_with_each_level_is_given_up():
    """Each alternative reads what is inside before it sees that its `op` is another."""
    either = [{"properties": {"in": {"$ref": "#"}, "op": {"const": op}}} for op in "+-*"]
    reward = JSONSchemaReward({"anyOf": either}, seconds=1)
    text = '{"in":' * 60 + '{"op": "x"}' + ', "op": "*"}' * 60
    started = time.monotonic()
    assert ask(reward, text) == [0.0]
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a schema or a column"),
        ({"schema": SCHEMA, "column": "s"}, "either a schema or a column"),
        ({"schema": {"type": "objekt"}}, "no JSON schema: 'objekt'"),
        ({"schema": {"pattern": "("}}, r"no JSON schema: '\(' is not a 'regex'"),
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


def test_of_an_episode_the_last_message_counts():
    episode = [
        {"role": "assistant", "content": "let me look"},
        {"role": "tool", "content": '{"found": 3}'},
        {"role": "assistant", "content": '{"answer": 3}'},
    ]
    reward = JSONSchemaReward({"type": "object", "required": ["answer"]})
    assert ask(reward, episode, episode[:2], "{}") == [1.0, 0.0, 0.0]

"""The section on self-training: rounds, decisions, the end, and hostile text."""

from __future__ import annotations

import json

import pytest

from align.report import build_report

EVIL = "<script>alert(1)</script>"


def made(number, value, gain=None, promoted=True, why="the start", **more):
    held = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 200}
    given = gain and {"value": gain, "low": gain - 0.03, "high": gain + 0.03, "level": 0.983}
    return {"round": number, "value": held, "gain": given, "promoted": promoted, "why": why} | more


POLICY = {
    "status": "stopped",
    "why": ["gain: the last round was not promoted"],
    "next": "",
    "settings": {"method": "star", "kind": "policy", "gate": "gain"},
    "in_use": 1,
    "rounds": [
        made(0, 0.4),
        made(
            1,
            0.6,
            0.2,
            why="the gain's interval lies above 0",
            harvest={"drawn": 400, "kept": 120, "threshold": 1.0, "hinted": 7, "earlier": 30}
            | {"usable": 390},
            examples=[{"prompt": EVIL, "answers": ["2+2=4"], "why": "score 1"}],
        ),
        made(2, 0.61, 0.01, promoted=False, why="the gain's interval holds 0"),
        {"round": 3, "value": None, "gain": None, "promoted": False, "why": "nothing to train on"},
    ],
}
PAIRS = {
    "status": "waiting",
    "why": [],
    "next": "round 2: people are to check 3 of 4 pairs",
    "settings": {"method": "preferences", "kind": "preferences", "gate": "not_worse"},
    "in_use": 0,
    "rounds": [
        made(0, 0.7),
        made(
            1,
            0.71,
            0.01,
            promoted=False,
            why="it may lose more than 0.01",
            harvest={
                "pairs": 900,
                "tau": 0.95,
                "confident": 400,
                "sure": 300,
                "different": 200,
                "kept": 150,
                "audits": [{"round": 1, "right": 9, "answered": 10, "low": 0.6, "high": 0.98}],
            },
        ),
    ],
}


@pytest.fixture
def page(tmp_path):
    """`page(story)`: the report of a run with this story."""

    def build(story) -> str:
        run = tmp_path / "run"
        run.mkdir()
        record = {"schema": 1, "stage": "selftrain", "status": "completed", "seed": 0, "name": "r"}
        (run / "run.json").write_text(json.dumps(record))
        (run / "config.yaml").write_text("stage: selftrain\n")
        (run / "selftrain.json").write_text(json.dumps(story))
        return build_report([run], tmp_path / "report.html").read_text()

    return build


def test_a_policy_s_rounds(page):
    html = page(POLICY)
    for words in (
        '<a href="#selftrain">Self-training</a>',
        "STaR: trained on its own right answers.",
        "gain: the last round was not promoted",
        "In use: round 1",
        "120 of 400 answers, reward 1 or more, 7 with a hint, 10 cut off or empty; "
        "30 of earlier rounds",
        "yes: the gain&#39;s interval lies above 0",
        "no: nothing to train on",
        "Score of each round",
    ):
        assert words in html, words
    assert EVIL not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_a_reward_model_s_rounds_and_its_people(page):
    html = page(PAIRS)
    for words in (
        "Waiting for people.",
        "people are to check 3 of 4 pairs",
        "150 of 900 pairs above 95% (400 sure, 300 unanimous, 200 different)",
        "round 1: 9 of 10 [60%, 98%]",
        "allows little loss",
        "Accuracy of each round",
    ):
        assert words in html, words


@pytest.mark.parametrize(
    "story",
    [
        {"status": 3, "why": "x", "rounds": "none", "settings": []},
        {"rounds": [{"round": "one", "value": 3, "gain": [], "examples": [1], "harvest": "x"}]},
        {"rounds": [made(0, 0.5) | {"examples": [{"answers": "x"}], "harvest": {"audits": [3]}}]},
    ],
)
def test_a_damaged_story_makes_a_page_all_the_same(story, page):
    html = page({"why": []} | story)
    assert "Not finished." in html

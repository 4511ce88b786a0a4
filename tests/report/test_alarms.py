"""Alarms on the page: their evidence, their curves, and what was watched where none was raised."""

from __future__ import annotations

import json

import pytest

from align.report.alarms import distance_chart, gather_alarms, title_of
from align.report.charts import draw
from align.report.collect import read_run
from align.report.families import Lineage
from align.report.notices import find_notices
from align.run import append_jsonl
from align.signals import Alarm, Sign

HACKED = Alarm(
    "reward_hacking",
    90,
    "critical",
    "Since step 40 reward/mean rose <fast>, while gold/quality fell.",
    (
        Sign("reward/mean", 40, 1.0, 1.7, 0.6, 0.8),
        Sign("gold/quality", 40, 0.9, 0.2, -0.9, -0.5),
        Sign("never/logged", 40, 0.0, 1.0),
    ),
)
WATCHED = {"watched": {"reward_hacking": ["reward/mean", "gold/quality"]}, "stopped": None}


@pytest.fixture
def hacked(pipeline, edit):
    """A PPO run whose gold fell after the middle."""
    folder = pipeline()["ppo"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["gold/quality"] = 1 - abs(row["step"] / 120 - 0.4)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edit(folder / "run.json", signals=WATCHED)
    return folder


def test_an_alarm_is_shown_with_its_evidence_and_curves(hacked, page):
    append_jsonl(hacked / "alarms.jsonl", HACKED.as_dict())
    shown = page(hacked)
    section = shown.source.split('<section id="alarms"')[1].split('<section id="training"')[0]
    assert "reward/mean rose &lt;fast&gt;, while gold/quality fell" in section
    assert "Reward hacking" in section
    assert '<article class="alarm critical">' in section
    assert "evidence since step" in section
    assert section.count('class="mark"') == 2 * 2  # since and step, in both logged metrics
    assert "[−0.900, −0.500]" in section
    assert "<code>never/logged</code>" in section
    assert 'data-figure="alarm.gold/quality"' in section
    assert '<a href="#alarms">Alarms <span class="count">1</span></a>' in shown.source


def test_a_mark_stands_where_the_alarm_was_raised(hacked):
    append_jsonl(hacked / "alarms.jsonl", HACKED.as_dict())
    chart = gather_alarms([read_run(hacked)]).raised[0].evidence[0].chart
    drawn = str(draw(chart))
    across = lambda step: 44 + (step - 1) / 119 * (340 - 8 - 44)  # noqa: E731
    for step in (40, 90):
        assert f'class="mark" x1="{round(across(step), 1):g}"' in drawn


def test_that_nothing_was_raised_is_said_with_what_was_watched(hacked, page):
    shown = page(hacked)
    section = shown.source.split('<section id="alarms"')[1]
    assert "No alarm was raised. That says something only of what was watched" in section
    assert "Reward hacking: <code>reward/mean</code>, <code>gold/quality</code>" in section


def test_runs_without_signals_have_no_section(pipeline, page):
    assert 'id="alarms"' not in page(pipeline()["ppo"]).source


def test_alarms_are_among_the_warnings_and_the_early_end_among_the_notes(hacked, edit):
    append_jsonl(hacked / "alarms.jsonl", HACKED.as_dict())
    edit(hacked / "run.json", signals=WATCHED | {"stopped": "stopped at step 90: enough"})
    notices = find_notices([read_run(hacked)], [], Lineage(), [])
    assert {notice.where for notice in notices} >= {"PPO, seed 1"}
    messages = {
        level: [n.message for n in notices if n.level == level] for level in ("warning", "note")
    }
    assert f"Alarm, reward hacking: {HACKED.message}" in messages["warning"]
    assert "Training ended early: stopped at step 90: enough" in messages["note"]


def test_the_early_end_is_in_the_section(hacked, page, edit):
    edit(hacked / "run.json", signals=WATCHED | {"stopped": "stopped at step 90: enough"})
    section = page(hacked).source.split('<section id="alarms"')[1]
    assert "Training ended early: stopped at step 90: enough" in section


def test_odd_alarms_are_survived(hacked, page):
    with (hacked / "alarms.jsonl").open("a") as stream:
        stream.write('{"name": 3, "step": "x", "evidence": [1, {"metric": null}]}\nnonsense\n{}\n')
    shown = page(hacked)
    assert "alarms.jsonl: 1 line could not be read" in shown.source


def test_the_gravest_comes_first(hacked):
    mild = Alarm("dead_critic", 10, "warning", "none", ())
    append_jsonl(hacked / "alarms.jsonl", mild.as_dict())
    append_jsonl(hacked / "alarms.jsonl", HACKED.as_dict())
    raised = gather_alarms([read_run(hacked)]).raised
    assert [one.severity for one in raised] == ["critical", "warning"]


def test_gold_is_drawn_against_distance(hacked, page):
    run = read_run(hacked)
    chart = distance_chart(run, "gold/quality")
    reward, gold = chart.lines
    assert list(reward.steps) == sorted(reward.steps)
    assert len(reward.steps) == 12
    last = run.series["kl/reference"].values[-10:]
    assert max(reward.steps) == pytest.approx((sum(last) / 10) ** 0.5, rel=0.05)
    assert max(gold.values) > gold.last + 0.2  # it turned
    drawn = str(draw(chart))
    assert 'data-across="√KL"' in drawn
    assert "at √KL" in drawn
    assert "Over-optimisation" in page(hacked).source


@pytest.mark.parametrize(
    ("name", "title"),
    [("reward_hacking", "Reward hacking"), ("kl_runaway", "KL runaway"), ("", "")],
)
def test_titles(name, title):
    assert title_of(name) == title


CURVE = {
    "name": "best of n",
    "d": [0.0, 1.0, 2.0],
    "units": 100,
    "proxy": [0.0, 1.0, 2.0],
    "gold": [0.0, 0.5, 0.25],
    "gold_half_width": [0.1, 0.1, 0.2],
}


def test_measured_curves_are_drawn_with_their_intervals(pipeline, page):
    odd = [CURVE | {"gold": [1.0]}, CURVE | {"d": [0, None, 1]}, {}]
    shown = page(pipeline()["ppo"], summary={"overoptimisation": [CURVE, *odd]})
    section = shown.source.split('<section id="alarms"')[1].split('<section id="training"')[0]
    assert section.count('class="plot"') == 1
    assert "No alarm was raised" not in section  # nothing was watched
    assert "best of n: gold and reward against distance" in section
    assert 'data-label="gold, low end of 95%" data-x="0:1:3" data-y="-0.1,0.4,0.05"' in section
    assert "over 100 prompts or seeds" in section

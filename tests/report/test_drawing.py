"""Curves, scales and the layout of the pipeline."""

from __future__ import annotations

import itertools
import re

import pytest

from align.report.charts import Chart, Line, draw
from align.report.collect import Series, collect
from align.report.curves import mean_series, stage_curves, thin
from align.report.evidence import Estimate
from align.report.families import make_families
from align.report.forest import forest_row, outcome_bar, place
from align.report.layout import Link, lay_out
from align.report.svg import Scale, padded_range, tag, tick_label, ticks
from align.report.values import duration, figure, percent, percent_interval, probability, shown


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.13, 0.88, [0.2, 0.4, 0.6, 0.8]),
        (-3, 97, [0, 20, 40, 60, 80]),
        (1, 120, [20, 40, 60, 80, 100, 120]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-9, 3.7e-5, 0.021, 1, 47, 9.99e3, 1.3e8])
def test_there_are_three_to_six_ticks_inside_any_range(scale):
    for low, width in itertools.product((-1.7, 0.0, 0.31), (0.4, 1.0, 2.3)):
        found = ticks(low * scale, (low + width) * scale)
        assert 2 <= len(found) <= 6
        assert low * scale - 1e-6 * scale <= found[0] < found[-1] <= (low + width + 1e-6) * scale


def test_tick_labels():
    assert tick_label(0.05, 0.05) == "0.05"
    assert tick_label(1500, 500) == "1.5k"
    assert tick_label(2000, 500) == "2k"
    assert tick_label(2e-5, 1e-5) == "2e-5"
    assert tick_label(-34, 2) == "−34"


def test_a_constant_series_has_a_range():
    for value in (0.0, 3.0, -2e-12):
        low, high = padded_range([value, value])
        assert low < value < high


def test_attributes_and_text_are_escaped():
    assert str(tag("text", "a < b", data_x='"><script>')) == (
        '<text data-x="&#34;&gt;&lt;script&gt;">a &lt; b</text>'
    )


def test_thinning_keeps_the_extremes_and_the_ends():
    values = [0.1 * (index % 7) for index in range(5000)]
    values[1234], values[4321] = 99.0, -99.0
    steps, kept = thin(Series("loss", list(range(5000)), values), 100)
    assert len(steps) <= 100
    assert (steps[0], steps[-1]) == (0, 4999)
    assert dict(zip(steps, kept, strict=True))[1234] == 99.0
    assert min(kept) == -99.0
    assert steps == sorted(set(steps))


def test_the_mean_is_over_steps_that_all_seeds_have():
    a = Series("loss", [1, 2, 3], [1.0, 2.0, 3.0])
    b = Series("loss", [2, 3, 4], [4.0, 5.0, 6.0])
    mean = mean_series([a, b])
    assert (mean.steps, mean.values) == ([2, 3], [3.0, 4.0])
    assert mean_series([a]) is None
    assert mean_series([a, Series("loss", [9], [1.0])]) is None


def test_points_lie_where_the_values_are():
    line = Line("seed 1", [0, 5, 10], [0.0, 1.0, 0.5], "hue-sft", 0, "run", 0.5)
    svg = draw(Chart("x", "X", "", None, [line]))
    left, right, top, bottom, first, last, low, high = map(
        float, re.search(r'data-box="\[(.*?)\]"', svg)[1].split(",")
    )
    points = re.search(r'points="(.*?)"', svg)[1].split()
    across, down = Scale(first, last, left, right), Scale(low, high, bottom, top)
    assert points == [f"{across(x):g},{down(y):g}" for x, y in ((0, 0), (5, 1), (10, 0.5))]
    assert 'data-x="0:5:3"' in svg
    assert 'data-y="0,1,0.5"' in svg


def test_a_single_point_is_drawn_as_a_dot():
    line = Line("seed 1", [3], [0.25], "hue-sft", 0, "run", 0.25)
    svg = draw(Chart("x", "X", "", 0.5, [line]))
    assert svg.count("<circle") == 1


def test_curves_of_a_stage(pipeline, tmp_path):
    for seed in (1, 2, 3):
        pipeline(seed=seed)
    families = make_families(collect([tmp_path / "runs"]))
    stage = stage_curves("dpo", [f for f in families if f.stage == "dpo"], 400)
    by_key = {chart.key: chart for chart in stage.main}
    assert list(by_key)[:3] == ["loss", "rewards/margins", "rewards/accuracies"]
    kinds = [line.kind for line in by_key["loss"].lines]
    assert kinds == ["faint"] * 3 + ["mean"] + ["held-out"] * 3
    assert not stage.thinned
    assert [key for _, key, _ in stage.totals] == [
        "train_runtime",
        "train_loss",
        "train_samples_per_second",
    ]
    drawn = {chart.key for group in stage.groups for chart in group.charts} | set(by_key)
    logged = {key for run in families[0].runs for key in run.series} - {"loss"}
    assert {"learning_rate", "speed/tokens_per_second", "rewards/chosen"} <= drawn
    assert "eval_loss" in logged
    assert not any(key.startswith("eval_") for key in drawn)
    titles = [group.title for group in stage.groups]
    assert titles == ["Optimisation", "Implicit rewards", "Speed"]


def test_forest_places():
    assert place(0) == "4.00%"
    assert place(0.5) == "50.00%"
    assert place(1.7) == "96.00%"
    svg = forest_row(Estimate(0.75, 0.6, 1.2, dots=(("seed 1", 0.7),)), "hue-ppo", "PPO")
    assert f'x1="{place(0.6)}"' in svg
    assert 'aria-label="PPO: 75%, 95% interval 60% to 120%, seeds 70%"' in svg
    assert svg.count('class="interval"') == 2  # the line and one cap: the other end goes on


def test_outcome_bar_adds_up():
    widths = re.findall(r'width="([\d.]+)%" class', outcome_bar(6, 3, 1, "hue-ppo"))
    assert [float(width) for width in widths] == [60, 10, 30]
    assert outcome_bar(0, 0, 0, "hue-ppo") == ""


def test_boxes_do_not_overlap_and_arrows_pass_between_them():
    sizes = dict.fromkeys(("base", "sft", "reward", "dpo", "ppo", "evaluate"), (170.0, 100.0))
    links = [
        Link("base", "sft", "model"),
        Link("sft", "reward", "model"),
        Link("sft", "dpo", "model"),
        Link("sft", "ppo", "model"),
        Link("reward", "ppo", "reward"),
        Link("sft", "evaluate", "model"),
        Link("dpo", "evaluate", "model"),
        Link("ppo", "evaluate", "model"),
    ]
    layout = lay_out(sizes, links, 40, 16)
    start = {name: layout.spots[name].along for name in sizes}
    assert start["base"] < start["sft"] < start["reward"] < start["ppo"] < start["evaluate"]
    assert start["dpo"] == start["ppo"]
    ways = [spot for spot in layout.spots.values() if spot.waypoint]
    assert len(ways) == 2  # from SFT past the reward model, and on past DPO and PPO
    for a, b in itertools.combinations(layout.spots.values(), 2):
        if a.along == b.along:
            assert abs(a.beside - b.beside) >= (a.breadth + b.breadth) / 2 + 16 - 1e-6
    for spot in layout.spots.values():
        assert spot.beside - spot.breadth / 2 >= -1e-6
        assert spot.beside + spot.breadth / 2 <= layout.breadth + 1e-6
    ends = {(piece.source.split("\n")[0], piece.target.split("\n")[0]) for piece in layout.links}
    assert {(link.source, link.target) for link in links} - ends == {
        ("sft", "dpo"), ("sft", "ppo"), ("sft", "evaluate")
    } - ends  # fmt: skip


def test_a_cycle_in_broken_records_ends():
    links = [Link("a", "b", "model"), Link("b", "a", "model")]
    assert set(lay_out({"a": (10, 10), "b": (10, 10)}, links, 5, 5).spots) >= {"a", "b"}


def test_numbers_for_people():
    assert [percent(x) for x in (0.781, 0.4962, 0.5, 0.997, 1.0)] == [
        "78%",
        "49.6%",
        "50%",
        "99.7%",
        "100%",
    ]
    assert percent_interval(0.7099, 1.04) == "[71, 100]"
    numbers = (1.23456, 0.012345, 12345.6, 3e-6, 0.0, 200, 123.456)
    assert [figure(x) for x in numbers] == ["1.23", "0.0123", "12,346", "3.0e-6", "0", "200", "123"]
    assert [duration(x) for x in (48.2, 72, 11100)] == ["48 s", "1 min 12 s", "3 h 05 min"]
    assert [probability(p) for p in (1e-9, 0.0321, 0.51)] == ["< 0.001", "0.032", "0.51"]
    assert shown(0.78125, "percent", "rate") == (
        '<data value="0.78125" title="0.78125" data-figure="rate">78%</data>'
    )
    assert "–" in shown(None)

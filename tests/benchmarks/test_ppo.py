"""What the PPO benchmark makes of its runs; the runs themselves take half an hour."""

from __future__ import annotations

import gzip
import json

import pytest

from benchmarks.align_ppo import texts_of
from benchmarks.ppo import agreement, read_prompts, with_phases


def run(seconds, generation, scoring, optimisation):
    phases = {"generation": generation, "scoring": scoring, "optimisation": optimisation}
    return {"seconds": seconds, "peak_mb": 100.0, "rewards": [0.0]} | phases


def test_phases_are_medians_and_ratios_above_one_when_ours_needs_less():
    pairs = [
        (run(10, 2, 3, 5), run(40, 4, 6, 30)),
        (run(12, 2, 4, 6), run(36, 2, 6, 28)),
        (run(90, 9, 9, 72), run(44, 6, 6, 32)),
    ]
    found = with_phases(pairs)
    assert found["ratio"] == 40 / 12
    assert found["phases"]["optimisation"] == {"ours": 6, "peer": 30, "ratio": 5.0}
    assert found["phases"]["generation"]["ratio"] == 2.0


RISING = [[0.0, 0.1, 0.5, 0.9, 1.0], [0.1, 0.2, 0.5, 0.9, 1.1], [0.0, 0.2, 0.6, 0.8, 1.0]]


def test_curves_agree_when_their_ends_overlap_and_both_rise():
    found = agreement({"ours": RISING, "peer": [[r + 0.02 for r in run] for run in RISING]})
    assert found["ends_overlap"]
    assert found["both_rise"]
    assert len(found["ours"]["curve"]) == 5
    assert found["ours"]["curve"][2]["value"] == pytest.approx(1.6 / 3)
    assert found["ours"]["end"]["value"] == pytest.approx(3.1 / 3)
    assert found["ours"]["rise"]["value"] == pytest.approx(3.0 / 3)


@pytest.mark.parametrize(
    ("peer", "overlap", "rise"),
    [
        ([[r + 5 for r in run] for run in RISING], False, True),
        ([[1.0, 1.0, 1.0, 1.0, end] for end in (1.0, 1.05, 1.1)], True, False),
    ],
)
def test_curves_that_part_or_do_not_rise_are_told(peer, overlap, rise):
    for sides in ({"ours": RISING, "peer": peer}, {"ours": peer, "peer": RISING}):
        found = agreement(sides)
        assert (found["ends_overlap"], found["both_rise"]) == (overlap, rise)


def test_prompts_are_dialogues_up_to_their_last_answer(tmp_path):
    talk = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a pen?\n\nAssistant:"
    rows = [{"chosen": talk + " no"}, {"chosen": "nobody answers"}]
    with gzip.open(tmp_path / "hh.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert read_prompts(tmp_path / "hh.jsonl.gz") == [talk]


def test_both_sides_see_the_same_ids_or_nothing_runs(tiny_tokenizer):
    ids = tiny_tokenizer("Where is my order?")["input_ids"]
    assert texts_of([ids], tiny_tokenizer) == ["Where is my order?"]
    half = tiny_tokenizer("\N{SNOWMAN}")["input_ids"][:1]  # a byte of it
    with pytest.raises(RuntimeError, match="not tokenised to its own ids"):
        texts_of([ids, half], tiny_tokenizer)

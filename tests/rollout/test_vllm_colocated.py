"""vLLM in the process that trains: `colocated_script.py` runs it once, these tests read it."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]  # the first run installs vLLM


def agrees(found) -> bool:
    return (
        found["same"]
        and found["gap"] < 1e-3
        and found["finished"][0] == found["finished"][1]
        and found["lengths"][0] == found["lengths"][1]
    )


def test_greedy_is_transformers_after_every_synchronisation(colocated):
    assert colocated["problems"] == []
    assert [agrees(sync) for sync in colocated["syncs"]] == [True] * 3
    assert [sync["version"] for sync in colocated["syncs"]] == [1, 2, 3]
    assert all(sync["metrics"]["rollout/probe_gap"] < 1e-4 for sync in colocated["syncs"])
    finished = colocated["syncs"][0]["finished"][0]
    assert finished[0] == finished[1]  # greedy twins
    assert colocated["syncs"][0]["name"] == list("aabbccdd")


def test_log_probabilities_are_those_of_the_temperature(colocated):
    assert colocated["gap"] < 1e-3
    assert colocated["gap_elsewhere"] > 1e-2


def test_groups_lie_side_by_side_and_differ(colocated):
    assert colocated["prompts"][:4] == ["Where is"] * 3 + ["Thank you, that"]
    assert colocated["distinct_in_groups"] > 0.9


def test_completions_end_where_they_say(colocated):
    assert 0 < colocated["share_finished"] < 1
    assert colocated["finished_is_last"]
    assert colocated["full_unless_finished"]
    assert [a <= b for a, b in zip(colocated["lengths"], [3, 1, 5], strict=True)] == [True] * 3
    assert "240 tokens" in colocated["too_long"]
    assert "ModelError" in colocated["too_long"]
    assert "no prompts" in colocated["no_prompt"]


def test_seeds_repeat_draws(colocated):
    assert colocated["repeats"]
    assert colocated["global"] == [True, True]  # new draws, which a seeded generator repeats


def test_starting_vllm_leaves_the_process_as_it_was(colocated):
    assert colocated["undisturbed"]
    assert colocated["threads"][0] == colocated["threads"][1]


def test_adapters_are_merged_and_the_base_stays_bit_for_bit(colocated):
    assert agrees(colocated["adapter"])
    assert agrees(colocated["adapter_moved"])
    assert colocated["bit_for_bit"]


def test_stale_weights_and_stale_caches_are_found(colocated):
    assert "version 6 did not arrive" in colocated["stale_weights"]
    assert "policy [" in colocated["stale_weights"]
    assert "engine [" in colocated["stale_weights"]
    assert "prefix cache" in colocated["stale_cache"]
    assert agrees(colocated["mended"])


def test_tied_embeddings_follow(colocated):
    assert agrees(colocated["tied"])


def test_sleep_is_refused_on_a_cpu(colocated):
    assert "cannot sleep on a CPU" in colocated["sleep"]
    assert "closed" in colocated["closed"]

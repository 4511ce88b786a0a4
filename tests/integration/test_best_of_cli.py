"""From prompts to the best of n, and from there to `align sft`."""

from __future__ import annotations

import json


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_best_of_n_is_sft_data(stage, cli, world, tmp_path):
    stage("ppo")  # writes tiny_rewards.py
    every, best = tmp_path / "every.jsonl", tmp_path / "best.jsonl"
    common = [
        "generate",
        world.model,
        "-f",
        world.prompts,
        "--max-new-tokens",
        8,
        "--seed",
        3,
        "--raw",
    ]
    assert cli(*common, "-n", 4, "-o", every).code == 0
    reward = ["--reward", "tiny_rewards:length"]
    result = cli(*common, "--best-of", 4, *reward, "-o", best)
    assert result.code == 0, result.text
    drawn, kept = read(every), read(best)
    assert len(drawn) == 4 * len(kept) == 4 * 28
    for number, row in enumerate(kept):
        rivals = [len(one["completion"]) / 10 for one in drawn[4 * number : 4 * number + 4]]
        assert row["score"] == max(rivals)
        assert (row["best_of"], row["place"]) == (4, drawn[4 * number]["place"])
        assert row["completion"] == drawn[4 * number + row["sample"]]["completion"]

    result = cli(*common, "--best-of", 4, *reward, "--keep", 0.5, "-o", best, "--overwrite")
    assert result.code == 0, result.text
    half = read(best)
    assert len(half) == 14
    worst = min(row["score"] for row in half)
    assert sum(row["score"] > worst for row in kept) < 14

    result = cli(*stage("sft", f"data.train={best}"))
    assert result.code == 0, result.text


def test_a_reward_model_chooses_and_poor_answers_are_left_out(cli, world, reward_model, tmp_path):
    out = tmp_path / "best.jsonl"
    common = ["generate", world.model, "Where is it?", "Hello", "--max-new-tokens", 8]
    common += ["--best-of", 3, "--reward", reward_model, "-o", out]
    assert cli(*common).code == 0
    assert len(read(out)) == 2
    assert cli(*common, "--min-score", 1e9, "--overwrite").code == 0
    assert read(out) == []


def test_best_of_without_a_reward_is_refused(cli, world):
    result = cli("generate", world.model, "Hello", "--best-of", 3)
    assert result.code == 2
    assert "--reward" in result.text

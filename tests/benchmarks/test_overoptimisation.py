"""The experiment end to end at a size that says nothing, and its summary on made-up figures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import yaml

from benchmarks import overoptimisation
from benchmarks.overoptimisation import GOLD, PPO, TINY, Scale, curves, main, run_seed, summarise


def made(seed, turns=True):
    """One seed's figures: best-of-n chosen by quality plus a heavy-tailed trick, PPO that turns."""
    generator = np.random.default_rng(seed)
    quality = generator.normal(size=(30, 64))
    trick = generator.exponential(size=(30, 64)) ** 2
    metrics = [
        {
            "step": at,
            "kl/reference": 0.01 * at**2,
            "reward/mean": at / 80,
            GOLD: float(np.interp(at, [0, 40, 80], [0, 1, 0.2 if turns else 1.2]))
            + 0.02 * generator.normal(),
        }
        for at in range(80)
    ]
    alarm = {"name": "reward_hacking", "severity": "critical", "step": 60}
    arm = {"metrics": metrics, "alarms": [alarm] if turns else []}
    return {
        "seed": seed,
        "best_of": {
            "one": (quality + trick).tolist(),
            "mean": (quality + trick / 2).tolist(),
            "bound": quality.tolist(),
            "gold": (quality - trick / 3).tolist(),
        },
        "ppo": {name: arm if "one" in name else arm | {"alarms": []} for name in PPO},
    }


def test_the_summary_tells_a_turn_from_none():
    found = summarise([made(seed) for seed in range(3)], blocks=8)
    for name in ("turnover", "turnover_over_rollouts"):
        assert found["ppo one"][name]["found"]
    assert found["ppo one"]["alarms"] == [[("reward_hacking", "critical", 60)]] * 3
    assert found["ppo bound"]["alarms"] == [[]] * 3
    assert found["ppo one"]["fit"]["law"] == "rl"
    assert found["best_of one"]["fit"]["law"] == "best_of_n"
    assert [curve["name"] for curve in found["overoptimisation"]][:1] == ["best of n, one model"]
    steady = summarise([made(seed, turns=False) for seed in range(3)], blocks=8)
    assert not steady["ppo one"]["turnover"]["found"]
    assert json.dumps(found)


def test_best_of_n_is_over_the_prompts_of_all_seeds_and_doubling_n():
    found = curves([made(0), made(1)], blocks=4)
    assert found["best_of one"].gold.shape == (60, 7)  # n = 1, 2, ... 64
    gold = found["best_of bound"].gold.mean(axis=0)
    assert gold[-1] > gold[0]  # chosen by quality itself
    assert found["ppo one"].gold.shape == (2, 4)


def test_a_finished_seed_is_read_and_not_repeated(tmp_path):
    kept = made(5) | {"scale": vars(TINY), "members": [], "seconds": {}}
    (tmp_path / "figures.json").write_text(json.dumps(kept))
    assert run_seed(tmp_path, 5, TINY) == kept
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
    with pytest.raises(SystemExit, match="another --folder, or the same settings"):
        run_seed(tmp_path, 5, Scale())


ARMS = ("one_kl", "mean")  # of the run; the others are put together of the same parts


@pytest.mark.slow
def test_end_to_end(tmp_path, monkeypatch):
    folder, figures = tmp_path / "runs", tmp_path / "figures.json"
    arguments = ["--tiny", "--seeds", "0", "--blocks", "4", "--folder", folder, "--json", figures]
    monkeypatch.setattr(sys, "argv", ["overoptimisation", *map(str, arguments)])
    monkeypatch.setattr(overoptimisation, "PPO", {arm: PPO[arm] for arm in ARMS})
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    main()
    found = json.loads(figures.read_text())
    (seed,) = found["seeds"]
    assert np.shape(seed["best_of"]["gold"]) == (TINY.prompts, TINY.draws)
    best_of = {name: np.array(scores) for name, scores in seed["best_of"].items()}
    assert (best_of["bound"] < best_of["mean"]).all()
    for arm in ARMS:
        logged = seed["ppo"][arm]["metrics"]
        assert len(logged) == TINY.updates
        assert logged[0]["kl/reference"] == pytest.approx(0, abs=1e-4)
        assert all(GOLD in row for row in logged)
    assert "reward/disagreement" in seed["ppo"]["mean"]["metrics"][0]
    for arm in ARMS:
        settings = yaml.safe_load((folder / "seed-0" / arm / "ppo" / "config.yaml").read_text())
        trained_on = settings["reward"][0]
        assert (trained_on["ensemble"] is None) == (arm == "one_kl")
        assert trained_on["mode"] == ("mean" if arm == "mean" else "lower_bound")  # the default
        assert settings["trainer"]["kl_coef"] == (TINY.kl_coef if arm.endswith("_kl") else 0)
    assert {len(curve["d"]) for curve in found["overoptimisation"]} == {3, 4}
    page = (folder / "report.html").read_text()
    assert "best of n, lower bound: gold and reward against distance" in page

    # What was cut off is made again, and nothing else.
    path = folder / "seed-0" / "figures.json"
    kept = json.loads(path.read_text())
    del kept["ppo"]["mean"]
    path.write_text(json.dumps(kept))
    runs = {arm: (folder / "seed-0" / arm / "ppo" / "run.json") for arm in ARMS}
    before = {arm: run.stat().st_mtime_ns for arm, run in runs.items()}
    again = run_seed(folder / "seed-0", 0, TINY)
    assert {arm: run.stat().st_mtime_ns > before[arm] for arm, run in runs.items()} == {
        "one_kl": False,
        "mean": True,
    }
    assert again["ppo"]["one_kl"] == kept["ppo"]["one_kl"]
    assert len(again["ppo"]["mean"]["metrics"]) == TINY.updates

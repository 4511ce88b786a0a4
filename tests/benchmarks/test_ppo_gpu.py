"""The GPU script on the CPU: figures from the lines that a run logged, and a real small run."""

import argparse
import json

import pytest

from benchmarks import ppo_gpu
from benchmarks.ppo import DATA


def test_figures_leave_out_the_first_update_and_count_its_tokens_once():
    given = argparse.Namespace(updates=3, batch=10, cpu=True)
    logged = []
    for update in range(3):
        slow = 100.0 if update == 0 else 1.0
        logged += [
            {
                "rollout/length_mean": 20.0,
                "num_tokens": 500 * (update + 1),
                "speed/generation_seconds": 2.0 * slow,
                "speed/scoring_seconds": 1.0 * slow,
                "speed/training_seconds": 3.0 * slow,
            },
            {"num_tokens": 500 * (update + 1), "speed/training_seconds": 2.0 * slow},
        ]
    found = ppo_gpu.figures(logged, given, None)
    assert found["update_seconds"] == 8.0
    assert found["training_seconds"] == 5.0
    assert found["drawn_tokens_per_second"] == 100.0
    assert found["trained_tokens_per_second"] == 100.0


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        ppo_gpu.main(["--json", str(tmp_path / "out.json")])
    assert "there is no GPU here; --cpu" in capsys.readouterr().err


@pytest.mark.skipif(not DATA.exists(), reason="shared/data is not here")
def test_a_small_run_on_the_cpu(tmp_path):
    small = {"--model": "llama-1m", "--vocabulary": 300, "--updates": 2, "--batch": 8}
    small |= {"--minibatch": 4, "--tokens": 4, "--longest": 64, "--engine": "transformers"}
    options = [str(word) for pair in small.items() for word in pair]
    ppo_gpu.main(["--json", str(tmp_path / "out.json"), "--cpu", *options])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["engine"] == "transformers"
    figures = found["figures"]
    parts = sum(figures[f"{name}_seconds"] for name in ppo_gpu.PHASES)
    assert figures["update_seconds"] == pytest.approx(parts)
    assert all(value > 0 for value in figures.values())

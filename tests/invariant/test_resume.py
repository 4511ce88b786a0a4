"""N steps = k steps, a signal, and N - k more: bit for bit, for every stage."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.engine.checkpoint import MANIFEST, list_checkpoints, newest_valid
from align.errors import Interrupted, RewardError
from align.run import open_run

REWARD = """
def courteous(prompts, completions, **columns):
    return [float(sum(c[-1]["content"].count(x) for x in "aeiou")) for c in completions]
"""
COMMON = ["trainer.learning_rate=1e-3", "tracking.report_to=[none]", "trainer.logging_steps=1"]
COMMON.append("model.prefix_sharing=on")  # auto finds batches this small not worth it
OFFLINE = [
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.max_steps=8",  # 24 rows less the held-out ones: a second epoch begins on the way
    "trainer.max_length=96",
    "data.validation_fraction=0.1",
]
EXTRA = {
    "sft": ["guards=[{type: ewc, strength: 10.0, samples: 4, data: DATA}]"],
    "reward": ["normalisation.prompts=4", "normalisation.max_new_tokens=8"],
    "dpo": [],
    "kto": [],
    "ppo": [
        "trainer.total_episodes=24",
        "trainer.rollout_batch_size=8",
        "trainer.per_device_train_batch_size=2",
        "trainer.gradient_accumulation_steps=2",
        "trainer.ppo_epochs=2",  # 4 optimizer steps on each of 3 experiences
        "trainer.kl_controller=adaptive",
        "trainer.kl_horizon=100",
        "reward=[{function: 'courteous_words:courteous'}]",
        "rollout.max_new_tokens=8",
    ],
}
EXTRA["online_dpo"] = [
    "trainer.total_episodes=48",
    "trainer.rollout_batch_size=16",
    "trainer.group_size=4",
    "trainer.per_device_train_batch_size=2",
    "trainer.dpo_epochs=2",  # 8 optimizer steps on each of 3 experiences
    "reward=[{function: 'courteous_words:courteous'}]",
    "rollout.max_new_tokens=8",
]
ON_POLICY = ("ppo", "online_dpo")
KIND = {"sft": "sft", **dict.fromkeys(("reward", "dpo", "kto"), "preference")} | dict.fromkeys(
    ON_POLICY, "prompts"
)


@pytest.fixture
def launch(tmp_path, policy_dir, data_files, monkeypatch):
    (tmp_path / "courteous_words.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(stage: str, name: str, *overrides: str, resume: bool = False) -> Path:
        file = str(data_files[KIND[stage]])
        given = [f"run.dir={tmp_path / name}", f"model.path={policy_dir}", f"data.train={file}"]
        given += COMMON + (OFFLINE if stage not in ON_POLICY else [])
        given += [item.replace("DATA", file) for item in EXTRA[stage]] + list(overrides)
        config = load_config(STAGES[stage], None, given)
        module = importlib.import_module(f"align.stages.{stage}")
        with open_run(config, resume=resume) as opened:
            module.run(config, opened, resume=resume)
        return tmp_path / name

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = load_file(run / "model" / "model.safetensors")
    if (run / "value").is_dir():
        found |= load_file(run / "value" / "value.safetensors")
    return found


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("stage", "stop"),
    [("sft", 3), ("reward", 6), ("dpo", 3), ("kto", 5), ("ppo", 6), ("online_dpo", 11)],
)
def test_a_stopped_and_resumed_run_is_the_same_run(launch, signal_at, stage, stop):
    straight = launch(stage, "straight")
    with signal_at(stop), pytest.raises(Interrupted, match="SIGTERM"):
        launch(stage, "stopped")
    stopped = Path("stopped").resolve()
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert not (stopped / "model").exists()
    checkpoint, passed = newest_valid(stopped / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint.name, passed) == (f"checkpoint-{stop}", [])
    launch(stage, "stopped", resume=True)
    assert same(straight, stopped)
    # the negative control: weights do depend on what was trained
    shorter = launch(stage, "shorter", f"trainer.max_steps={stop}")
    assert not same(straight, shorter)


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_reference_that_moves_goes_on_where_it_was(launch, signal_at, stage):
    moving = ["trainer.sync_ref_model=true", "trainer.ref_model_sync_steps=1"]
    straight = launch(stage, "straight", *moving)
    with signal_at(3), pytest.raises(Interrupted, match="SIGTERM"):
        launch(stage, "stopped", *moving)
    launch(stage, "stopped", *moving, resume=True)
    assert same(straight, Path("stopped").resolve())
    assert not same(straight, launch(stage, "still"))  # it does move


def test_a_signal_inside_the_reward_function_stops_ppo_within_an_experience(launch, tmp_path):
    straight = launch("ppo", "straight")
    calls = tmp_path / "calls"
    (tmp_path / "stopping_words.py").write_text(
        "import os, signal\n"
        + REWARD
        + "\n\nN = [0]\n\n\ndef courteous_and_stop(prompts, completions, **columns):\n"
        "    N[0] += 1\n"
        f"    if N[0] == 3 and not os.path.exists({str(calls)!r}):\n"  # samples, 1st, 2nd update
        f"        open({str(calls)!r}, 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return courteous(prompts, completions)\n"
    )
    reward = "reward=[{function: 'stopping_words:courteous_and_stop'}]"
    with pytest.raises(Interrupted):
        launch("ppo", "stopped", reward)
    assert list_checkpoints(Path("stopped/checkpoints"))[0].name == "checkpoint-5"
    launch("ppo", "stopped", reward, resume=True)
    assert same(straight, Path("stopped"))


@pytest.mark.parametrize("stage", ON_POLICY)
def test_what_was_trained_is_saved_when_a_reward_fails(launch, tmp_path, stage):
    """As a reward server that dies does: between two updates, without a checkpoint due."""
    straight = launch(stage, "straight")
    broken = tmp_path / "broken"
    (tmp_path / f"failing_{stage}.py").write_text(  # each its own: modules stay imported
        "import os\n"
        + REWARD
        + "\n\nN = [0]\n\n\ndef courteous_or_gone(prompts, completions, **columns):\n"
        "    N[0] += 1\n"
        f"    if N[0] == 4 and not os.path.exists({str(broken)!r}):\n"  # samples, two updates
        f"        open({str(broken)!r}, 'w').close()\n"
        "        raise ConnectionError('the reward server is gone')\n"
        "    return courteous(prompts, completions)\n"
    )
    reward = f"reward=[{{function: 'failing_{stage}:courteous_or_gone'}}]"
    late = [reward, "trainer.save_steps=500"]
    with pytest.raises(RewardError, match="the reward server is gone") as caught:
        launch(stage, "stopped", *late)
    (saved,) = list_checkpoints(Path("stopped/checkpoints"))
    assert saved.name == {"ppo": "checkpoint-8", "online_dpo": "checkpoint-16"}[stage]
    assert saved.name in caught.value.__notes__[0]
    assert "--resume" in caught.value.__notes__[0]
    launch(stage, "stopped", *late, resume=True)
    assert same(straight, Path("stopped"))
    broken.unlink()
    sys.modules[f"failing_{stage}"].N[0] = 0
    with pytest.raises(RewardError) as caught:  # the checkpoint was there already
        launch(stage, "every", reward, "trainer.save_steps=1")
    assert f"{saved.name} was saved" in caught.value.__notes__[0]


def test_a_reward_that_fails_on_the_last_samples_takes_no_model_away(launch, tmp_path):
    straight = launch("ppo", "straight")
    (tmp_path / "failing_last.py").write_text(
        REWARD + "\n\nN = [0]\n\n\ndef fails_last(prompts, completions, **columns):\n"
        "    N[0] += 1\n"
        "    if N[0] == 5:\n"  # samples, three updates, samples
        "        raise ConnectionError('the reward server is gone')\n"
        "    return courteous(prompts, completions)\n"
    )
    with pytest.raises(RewardError, match="the reward server is gone"):
        launch("ppo", "failed", "reward=[{function: 'failing_last:fails_last'}]")
    assert same(straight, Path("failed"))


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_resuming_after_the_last_step_trains_no_further(launch, stage):
    done = launch(stage, "done")
    before = weights(done)
    for file in [*(done / "model").iterdir(), done / "run.json"]:  # as if it had died while saving
        if file.name != "run.json":
            file.unlink()
    launch(stage, "done", resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(done).items())
    steps = json.loads((done / "run.json").read_text())["results"]["steps"]
    assert steps == (8 if stage == "sft" else 12)


def test_a_damaged_newest_checkpoint_is_passed_over(launch):
    straight = launch("sft", "run", "trainer.save_steps=3", "trainer.save_total_limit=4")
    before = weights(straight)
    newest = list_checkpoints(straight / "checkpoints")[0]
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(bytes(content))
    launch("sft", "run", "trainer.save_steps=3", "trainer.save_total_limit=4", resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(straight).items())
    record = json.loads((straight / "run.json").read_text())
    assert any("SHA-256" in warning for warning in record["warnings"])
    assert (newest / MANIFEST).is_file()

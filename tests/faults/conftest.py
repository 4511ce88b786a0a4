"""What whole-command tests share: one tiny model, small data, and the command line in process.

Nothing is downloaded. The fixtures are made once a session; tests that spoil a model copy it.
tests/integration/conftest.py takes the same fixtures from here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
THINGS = ["a lamp", "a chair", "the red door", "my order", "a parcel", "the bill", "an account"]
PLACES = ["in Oslo", "at home", "on the roof", "by the sea"]
QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}

REWARDS = """
def length(prompts, completions, **columns):
    return [len(text) / 10 for text in completions]

def place(prompts, completions, place, **columns):
    return [1.0 if where in text else 0.0 for where, text in zip(place, completions)]

def raises(prompts, completions, **columns):
    raise KeyError("score")

def short(prompts, completions, **columns):
    return [1.0]

def nan(prompts, completions, **columns):
    return [float("nan")] * len(completions)

def none(prompts, completions, **columns):
    return [None] * len(completions)

def one_number(prompts, completions, **columns):
    return 1.0

def wants_gold(prompts, completions, gold, **columns):
    return [1.0 for _ in gold]
"""


@dataclass(frozen=True)
class Finished:
    """How a command ended; `text` is all it printed on one line, as rich may wrap it."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return " ".join((self.out + "\n" + self.err).split())


@dataclass(frozen=True)
class World:
    """A tiny model and data files beside each other."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def prefs(self) -> Path:
        return self.folder / "prefs.jsonl"

    @property
    def thumbs(self) -> Path:
        return self.folder / "thumbs.jsonl"

    @property
    def sft(self) -> Path:
        return self.folder / "sft.jsonl"

    @property
    def chat(self) -> Path:
        return self.folder / "chat.jsonl"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"


def rows_of(kind: str) -> list[dict[str, Any]]:
    """28 rows with a prompt each."""
    made: list[dict[str, Any]] = []
    for thing in THINGS:
        for place in PLACES:
            prompt, good = f"Where is {thing} {place}? ", f"It is {place}, please look there."
            turn = [{"role": "user", "content": prompt.strip()}]
            row: dict[str, dict[str, Any]] = {
                "sft": {"prompt": prompt, "completion": good},
                "chat": {"messages": [*turn, {"role": "assistant", "content": good}]},
                "prefs": {"prompt": prompt, "chosen": good, "rejected": f"No {thing} here."},
                "prompts": {"prompt": prompt, "place": place},
                "thumbs": {"prompt": prompt, "completion": good, "label": len(made) % 2 == 0},
            }
            made.append(row[kind])
    return made


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from align.engine.create import create_model

    folder = tmp_path_factory.mktemp("world")
    for kind in ("sft", "chat", "prefs", "prompts", "thumbs"):
        write_jsonl(folder / f"{kind}.jsonl", rows_of(kind))
    create_model(
        LLAMA,
        folder / "model",
        tokenizer_data=[folder / "prefs.jsonl"],
        vocab_size=360,
        chat_template="chatml",
        seed=1,
    )
    return World(folder)


@pytest.fixture(scope="session")
def reward_model(world: World) -> Path:
    """A reward model on the tiny backbone, with statistics, not trained."""
    from align.engine.models import load_reward_start
    from align.engine.tokenizer import load_tokenizer
    from reward.model import Normalisation, write_normalisation

    folder = world.folder / "reward-run" / "model"
    tokenizer = load_tokenizer(world.model)
    model = load_reward_start(world.model, tokenizer, seed=5)
    write_normalisation(model, Normalisation(0.1, 0.5, 8, "model"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hollow_model(world: World) -> Path:
    """The tiny model without its weights: a command that gets as far as loading them fails."""
    folder = world.folder / "hollow"
    shutil.copytree(world.model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def copy_model(world: World, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model that a test may spoil."""

    def copy(name: str = "spoilt") -> Path:
        return Path(shutil.copytree(world.model, tmp_path / name))

    return copy


@pytest.fixture
def spoil() -> Callable[[Path, str, torch.Tensor], None]:
    """`spoil(folder, name, value)`: put another tensor in the place of a model's."""

    def replace(folder: Path, name: str, value: torch.Tensor) -> None:
        file = folder / "model.safetensors"
        save_file(load_file(file) | {name: value}, file, metadata={"format": "pt"})

    return replace


@pytest.fixture
def unreadable(copy_model: Callable[..., Path], spoil: Callable[..., None]) -> Path:
    """A model whose weights are NaN, which loading refuses."""
    folder = copy_model("unreadable")
    spoil(folder, "model.norm.weight", torch.full((32,), float("nan")))
    return folder


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Finished]:
    """Run `align ARGUMENTS` in this process, in a folder of its own."""
    from align.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # a stage sets it; restored afterwards

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Finished(int(code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def stage(world: World, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a quick training stage; `sections` replace whole sections of its file."""

    def arguments(name: str, *overrides: object, **sections: Any) -> list[str]:
        data = {"sft": world.sft, "reward": world.prefs, "dpo": world.prefs, "ppo": world.prompts}
        data["kto"] = world.thumbs
        config: dict[str, Any] = {
            "run": {"dir": str(tmp_path / f"run-{name}"), "seed": 3},
            "model": {"path": str(world.model)},
            "data": {"train": str(data[name]), "validation_fraction": 0.2},
            "trainer": dict(QUICK),
        }
        if name == "reward":
            config["normalisation"] = {"prompts": 4, "max_new_tokens": 8}
        if name == "ppo":
            config["trainer"] = {
                "total_episodes": 8,
                "rollout_batch_size": 4,
                "per_device_train_batch_size": 2,
                "ppo_epochs": 1,
            }
            config["rollout"] = {"max_new_tokens": 8}
            config["reward"] = [{"function": "tiny_rewards:length"}]
        config |= sections
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        (tmp_path / "tiny_rewards.py").write_text(REWARDS, encoding="utf-8")
        return [name, str(file), *map(str, overrides)]

    return arguments


@pytest.fixture(autouse=True)
def forget_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test imports its own reward module: one process runs many commands here."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("tiny_rewards", None)

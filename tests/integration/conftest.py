"""The whole-command fixtures of tests/faults/conftest.py, here too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "faults" / "conftest.py"
spec = importlib.util.spec_from_file_location("command_fixtures", FILE)
assert spec is not None
assert spec.loader is not None
fixtures = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = fixtures  # dataclasses look their module up
spec.loader.exec_module(fixtures)

world, reward_model, hollow_model = fixtures.world, fixtures.reward_model, fixtures.hollow_model
cli, stage, copy_model = fixtures.cli, fixtures.stage, fixtures.copy_model
forget_rewards = fixtures.forget_rewards

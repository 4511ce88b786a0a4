"""examples/tool_environment.py learns: its reward and its use of the tool rise."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "tool_environment.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("tool_environment", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_calculator_computes_and_judges(example):
    world = example.Calculator()
    world.reset(answer="7", prompt=[])
    assert world.step("=3+4").observation == "7"
    assert world.step("=3+x").observation == "error"
    assert world.step("=").observation == "error"
    assert not world.step("=3+4").done
    right, wrong = world.step("7"), world.step("8")
    assert (right.reward, right.done) == (1.0, True)
    assert (wrong.reward, wrong.done) == (0.0, True)


@pytest.mark.slow
def test_the_reward_teaches_the_tool(example):
    history = example.main(updates=24)
    first, last = history[:5], history[-5:]
    gain = [sum(x[i] for x in last) / 5 - sum(x[i] for x in first) / 5 for i in (0, 1)]
    assert gain[0] > 0.1, history  # right answers
    assert gain[1] > 0.1, history  # calls of the tool

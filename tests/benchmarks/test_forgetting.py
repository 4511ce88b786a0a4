"""The comparison of guards on language models: its arms, and which strength is taken."""

from __future__ import annotations

from pathlib import Path

from align.config.stages import ContinualStage
from align.continual.plan import plan
from benchmarks.forgetting import STRENGTHS, arms, best_of_guards, settings


def test_every_arm_is_a_configuration_that_stages_accept(tmp_path: Path):
    names = list(STRENGTHS)
    made = arms(names)
    assert len(made) == 1 + sum(map(len, STRENGTHS.values()))
    rows = settings(str(tmp_path / "rows.jsonl"), 2, 1e-3)
    tasks = [{"name": name, "settings": rows} for name in ("old", "new")]
    config = ContinualStage.model_validate(
        {"model": {"path": "model"}, "tasks": tasks, "arms": made}
    )
    steps = plan(config, tmp_path)
    first, second = ([s for s in steps if s.number == n] for n in (1, 2))
    assert len({step.folder for step in first}) == 1  # all share the first task
    assert len({step.folder for step in second}) == len(made)
    assert {len(step.config.guards) for step in first} == {0}


def figures(forgetting: float, new: float, removed: float) -> dict:
    return {
        "forgetting": {"value": forgetting},
        "new less naive": {"value": new},
        "forgetting removed": {"value": removed},
    }


def test_the_strength_taken_forgets_least_of_those_that_still_learn():
    story = {
        "naive": "naive",
        "arms": {
            "naive": {"figures": {"forgetting": {"value": 1.0}}},
            "ewc-1": {"figures": figures(0.6, -0.01, 0.4)},
            "ewc-10": {"figures": figures(0.3, -0.05, 0.7)},
            "ewc-100": {"figures": figures(0.0, -0.50, 1.0)},  # learns nothing
            "replay-1": {"figures": figures(0.1, -0.02, 0.9)},
        },
    }
    found = best_of_guards(story, 0.08)
    assert found["ewc"]["arm"] == "ewc-10"
    assert not found["ewc"]["goal"]
    assert found["replay"]["goal"]

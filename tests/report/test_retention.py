"""Retention: who came before is what the evaluation says, not who has no growth."""

from __future__ import annotations

from types import SimpleNamespace

from align.report.evidence import Estimate
from align.report.retention import retention_evidence


def evaluation(before):
    losses = {"other": Estimate(9.0), "base": Estimate(1.0), "ppo": Estimate(1.5, 1.4, 1.6)}
    growth = {"ppo": Estimate(0.5, 0.4, 0.6)}
    return SimpleNamespace(
        metrics={"retention_nats": losses, "forgotten_nats": growth},
        models=["other", "base", "ppo"],
        before=before,
        family=SimpleNamespace(label="evaluate"),
    )


def test_a_model_with_other_tokens_is_not_taken_for_the_one_before():
    (found,) = retention_evidence([evaluation("base")])
    assert [row.model for row in found.rows] == ["base", "other", "ppo"]
    first, other, ppo = found.rows
    assert first.before is None
    assert other.before.value == 1.0
    assert other.forgotten is None
    assert (ppo.before.value, ppo.after.value, ppo.forgotten.value) == (1.0, 1.5, 0.5)
    assert found.axis[0] < 0 < 0.6 < found.axis[1]


def test_an_evaluation_without_it_has_no_section():
    bare = SimpleNamespace(metrics={}, models=["a"], before="", family=None)
    assert retention_evidence([bare]) == []

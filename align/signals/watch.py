"""The detectors over one run: what is raised, once, and raised again after it had gone.

No trainer here: `observe` takes a step's metrics and returns new alarms, so that a researcher's own
loop can use it. `align.signals.callback` puts it into a Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from align.signals import hacking, policy, rollouts
from align.signals.history import SEVERITIES, Alarm, History, Severity
from align.signals.limits import Limits

QUIET = 16  # observations without a finding after which an alarm counts as over, at least
KEPT = (
    "reward/",
    "gold/",
    "kl/reference",
    "policy/entropy",
    "value/explained_variance",
    "rollout/",
    "correction/",
)


@dataclass(frozen=True)
class Detector:
    """A rule, and the metrics without which it is blind: one of each group (or a prefix of one)."""

    find: Callable[[History, Limits], Alarm | None]
    needs: tuple[tuple[str, ...], ...]

    def sees(self, history: History) -> list[str]:
        """The metrics it reads in this history; none where a group is missing."""
        groups = [[key for one in group for key in history.named(one)] for group in self.needs]
        return [key for group in groups for key in group] if all(groups) else []


DETECTORS: dict[str, Detector] = {
    "reward_hacking": Detector(
        hacking.reward_hacking,
        (
            (hacking.PROXY,),
            (hacking.GOLD, "reward/disagreement", "rollout/length_mean", "rollout/repetition"),
        ),
    ),
    "kl_runaway": Detector(policy.kl_runaway, ((policy.KL,),)),
    "entropy_collapse": Detector(policy.entropy_collapse, ((policy.ENTROPY,),)),
    "dead_critic": Detector(policy.dead_critic, ((policy.EXPLAINED,),)),
    "stale_rollouts": Detector(rollouts.stale_rollouts, (("rollout/age", "correction/"),)),
    "eos_collapse": Detector(rollouts.eos_collapse, ((rollouts.EOS,),)),
    "length_explosion": Detector(rollouts.length_explosion, ((rollouts.LENGTH,),)),
    "length_collapse": Detector(rollouts.length_collapse, ((rollouts.LENGTH,),)),
    "degenerate_groups": Detector(rollouts.degenerate_groups, ((rollouts.SPREAD,),)),
}


@dataclass
class Active:
    """An alarm that has been raised and is not over."""

    severity: Severity
    patience: int  # observations without a finding that end it
    quiet: int = 0  # such observations so far


@dataclass
class Watch:
    """Feeds detectors and keeps what they raised.

    An alarm is raised once. It is over when it was not found again for as many observations as its
    evidence goes back (16 at least), and may then be raised anew; it is also raised again when it
    becomes critical.
    """

    limits: Limits = field(default_factory=Limits)
    history: History = field(default_factory=History)
    alarms: list[Alarm] = field(default_factory=list)
    active: dict[str, Active] = field(default_factory=dict)

    def observe(self, step: int, metrics: Mapping[str, object]) -> list[Alarm]:
        """Take in one line of metrics; the alarms that it raises."""
        kept = {key: value for key, value in metrics.items() if key.startswith(KEPT)}
        if not kept:
            return []
        self.history.add(step, kept)
        raised = []
        for name, detector in DETECTORS.items():
            alarm = detector.find(self.history, self.limits)
            if self._is_new(name, alarm):
                assert alarm is not None
                raised.append(alarm)
        self.alarms += raised
        return raised

    def watched(self) -> dict[str, list[str]]:
        """Alarms that could have been raised, with the metrics that they were looked for in."""
        return {n: keys for n, one in DETECTORS.items() if (keys := one.sees(self.history))}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: lists, dicts, numbers and strings."""
        return {
            "history": self.history.state_dict(),
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "active": {name: vars(one).copy() for name, one in self.active.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.history.load_state_dict(state["history"])
        self.alarms = [Alarm.from_dict(line) for line in state["alarms"]]
        self.active = {name: Active(**one) for name, one in state["active"].items()}

    def _is_new(self, name: str, alarm: Alarm | None) -> bool:
        known = self.active.get(name)
        if alarm is None:
            if known is not None:
                known.quiet += 1
                if known.quiet >= known.patience:
                    del self.active[name]
            return False
        worse = known is not None and _grade(alarm.severity) > _grade(known.severity)
        severity = alarm.severity if known is None or worse else known.severity
        self.active[name] = Active(severity, max(QUIET, self._span(alarm)))
        return known is None or worse

    def _span(self, alarm: Alarm) -> int:
        """Observations that the evidence goes back."""
        steps = {step for sign in alarm.evidence for step in self.history[sign.metric].steps}
        return sum(alarm.since <= step <= alarm.step for step in steps)


def _grade(severity: Severity) -> int:
    return SEVERITIES.index(severity)

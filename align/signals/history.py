"""What a run has logged so far, and what an alarm is. Values only: nothing is judged here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("warning", "critical")


@dataclass
class Series:
    """One metric: N steps, ascending, with N finite values."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    def last(self, count: int) -> Series:
        """The last `count` points, or all of fewer."""
        return Series(self.steps[-count:], self.values[-count:])

    def first(self, count: int) -> Series:
        """The first `count` points, or all of fewer."""
        return Series(self.steps[:count], self.values[:count])


@dataclass
class History:
    """Metrics by name, as they were logged."""

    series: dict[str, Series] = field(default_factory=dict)

    def add(self, step: int, metrics: Mapping[str, object]) -> None:
        """Append one line of metrics; what is no finite number is left out.

        A step that is logged again replaces what was logged for it.
        """
        for key, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                continue
            known = self.series.setdefault(key, Series())
            while known.steps and known.steps[-1] >= step:
                known.steps.pop()
                known.values.pop()
            known.steps.append(step)
            known.values.append(float(value))

    def __getitem__(self, key: str) -> Series:
        """A metric's points; none where it was never logged."""
        return self.series.get(key, Series())

    def named(self, prefix: str) -> list[str]:
        """Metrics whose name begins so, in alphabetical order."""
        return sorted(key for key in self.series if key.startswith(prefix))

    def state_dict(self) -> dict[str, dict[str, list[Any]]]:
        """What a checkpoint keeps."""
        return {
            key: {"steps": list(one.steps), "values": list(one.values)}
            for key, one in self.series.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Restore `state_dict`."""
        self.series = {
            key: Series(list(one["steps"]), list(one["values"])) for key, one in state.items()
        }


@dataclass(frozen=True)
class Sign:
    """One metric's part in an alarm: where it came from and where it went."""

    metric: str
    since: int  # the step that it is compared from
    before: float
    now: float
    low: float | None = None  # interval of `now - before`, where the rule has one
    high: float | None = None

    @property
    def verb(self) -> str:
        """`rose`, `fell` or `stayed`."""
        return "rose" if self.now > self.before else "fell" if self.now < self.before else "stayed"

    def __str__(self) -> str:
        interval = (
            f" (change within [{self.low:.3g}, {self.high:.3g}])"
            if self.low is not None and self.high is not None
            else ""
        )
        return f"{self.metric} {self.verb} from {self.before:.3g} to {self.now:.3g}{interval}"


@dataclass(frozen=True)
class Alarm:
    """What a detector found at a step. An audit: evidence to look at, not a verdict."""

    name: str
    step: int
    severity: Severity
    message: str  # with the numbers, and what to do
    evidence: tuple[Sign, ...]

    @property
    def since(self) -> int:
        """The earliest step that the evidence goes back to."""
        return min((sign.since for sign in self.evidence), default=self.step)

    def as_dict(self) -> dict[str, Any]:
        """Its line in alarms.jsonl."""
        return {
            "name": self.name,
            "step": self.step,
            "severity": self.severity,
            "message": self.message,
            "since": self.since,
            "evidence": [asdict(sign) | {"verb": sign.verb} for sign in self.evidence],
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Alarm:
        """The alarm of a line in alarms.jsonl."""
        names = ("metric", "since", "before", "now", "low", "high")
        signs = (Sign(**{name: sign[name] for name in names}) for sign in line["evidence"])
        return cls(line["name"], line["step"], line["severity"], line["message"], tuple(signs))

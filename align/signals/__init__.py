"""Signals: alarms with evidence over the metrics of a run, and when to stop early.

Detectors are pure functions of (history, limits). They audit: an alarm says what rose and what
fell, since when and by how much, and is no proof of a cause.
"""

from align.signals.history import Alarm, History, Series, Sign
from align.signals.limits import Limits
from align.signals.stop import StopRules, stop_reason
from align.signals.watch import DETECTORS, Detector, Watch

__all__ = [
    "DETECTORS",
    "Alarm",
    "Detector",
    "History",
    "Limits",
    "Series",
    "Sign",
    "StopRules",
    "Watch",
    "stop_reason",
]

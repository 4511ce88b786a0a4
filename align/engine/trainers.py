"""TRL's trainers with guards and finite checks: a few lines each, no TRL `_method` touched."""

from __future__ import annotations

import trl

from align.engine.guards.base import GuardMixin
from align.engine.monitor import FiniteMixin


class SFTTrainer(FiniteMixin, GuardMixin, trl.SFTTrainer):
    """Supervised fine-tuning."""


class RewardTrainer(FiniteMixin, GuardMixin, trl.RewardTrainer):
    """Bradley-Terry reward modelling."""


class DPOTrainer(FiniteMixin, GuardMixin, trl.DPOTrainer):
    """Direct preference optimisation."""

"""TRL's trainers with guards, finite checks and soft labels; no TRL `_method` is touched."""

from __future__ import annotations

import trl

from align.engine.grouped import AlignNames, ResumableGroups
from align.engine.guards.base import GuardMixin
from align.engine.monitor import FiniteMixin
from align.engine.soft_labels import SoftDPOMixin, SoftRewardMixin


class SFTTrainer(FiniteMixin, GuardMixin, trl.SFTTrainer):
    """Supervised fine-tuning."""


class RewardTrainer(FiniteMixin, GuardMixin, SoftRewardMixin, trl.RewardTrainer):
    """Bradley-Terry reward modelling, on hard or soft labels."""


class DPOTrainer(FiniteMixin, GuardMixin, SoftDPOMixin, trl.DPOTrainer):
    """Direct preference optimisation, on hard or soft labels."""


class GRPOTrainer(FiniteMixin, GuardMixin, ResumableGroups, trl.GRPOTrainer, AlignNames):
    """Group-normalised policy gradient, and the losses TRL has beside it."""


class RLOOTrainer(FiniteMixin, GuardMixin, ResumableGroups, trl.RLOOTrainer, AlignNames):
    """REINFORCE with a leave-one-out baseline."""

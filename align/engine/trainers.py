"""TRL's trainers with guards, finite checks, an order of the rows and soft labels.

No TRL `_method` is touched.
"""

from __future__ import annotations

import trl

from align.engine.finite import FiniteMixin
from align.engine.grouped import AlignNames, ResumableGroups
from align.engine.guards.base import GuardMixin
from align.engine.moving_reference import MovingReference
from align.engine.order import OrderMixin
from align.engine.soft_labels import SoftDPOMixin, SoftRewardMixin
from align.engine.throughput import SpeedMixin


class SFTTrainer(SpeedMixin, FiniteMixin, GuardMixin, OrderMixin, trl.SFTTrainer):
    """Supervised fine-tuning."""


class RewardTrainer(
    SpeedMixin, FiniteMixin, GuardMixin, OrderMixin, SoftRewardMixin, trl.RewardTrainer
):
    """Bradley-Terry reward modelling, on hard or soft labels."""


class DPOTrainer(
    SpeedMixin, FiniteMixin, GuardMixin, MovingReference, OrderMixin, SoftDPOMixin, trl.DPOTrainer
):
    """Direct preference optimisation, on hard or soft labels."""


class KTOTrainer(SpeedMixin, FiniteMixin, GuardMixin, MovingReference, trl.KTOTrainer):
    """Kahneman-Tversky optimisation, on single answers marked good or bad."""


class GRPOTrainer(
    SpeedMixin,
    FiniteMixin,
    GuardMixin,
    MovingReference,
    OrderMixin,
    ResumableGroups,
    trl.GRPOTrainer,
    AlignNames,
):
    """Group-normalised policy gradient, and the losses TRL has beside it."""


class RLOOTrainer(
    SpeedMixin, FiniteMixin, GuardMixin, OrderMixin, ResumableGroups, trl.RLOOTrainer, AlignNames
):
    """REINFORCE with a leave-one-out baseline."""

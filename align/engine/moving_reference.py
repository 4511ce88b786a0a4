"""A reference that follows the policy (TR-DPO's `sync_ref_model`) goes on where it was.

TRL's checkpoints hold the policy alone: a resumed run would start again from the first reference.
Gorbatovski et al. 2024, "Learn your reference model for real good alignment". Leaves out references
that are split over processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MovingReference:
    """Adds the reference to a trainer's checkpoint, where it moves."""

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the trainer's own."""
        above = getattr(super(), "extra_state", dict)
        state: dict[str, Any] = above()
        model = self._moving()
        if model is not None:
            state["reference"] = {k: v.detach().cpu() for k, v in model.state_dict().items()}
        return state

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore `extra_state`, before training begins."""
        above = getattr(super(), "load_extra_state", None)
        if above is not None:
            above(state)
        model = self._moving()
        if model is not None and "reference" in state:
            model.load_state_dict(state["reference"])

    def _moving(self) -> Any:
        trainer: Any = self
        reference = getattr(trainer, "ref_model", None)
        if reference is None or not getattr(trainer.args, "sync_ref_model", False):
            return None
        return trainer.accelerator.unwrap_model(reference)

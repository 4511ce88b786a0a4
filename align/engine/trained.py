"""A module around models, for a Trainer: checkpoints hold what trains, and each tensor once."""

from __future__ import annotations

from typing import Any

from torch import nn


class TrainedModule(nn.Module):
    """What a Trainer of transformers asks of a model that is no `PreTrainedModel`."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Trained tensors and buffers, tied tensors once: what a checkpoint has to hold.

        Frozen weights (the base of an adapter) are not repeated in every checkpoint: a resumed
        run loads them from where the run began.
        """
        full = super().state_dict(*args, **kwargs)
        frozen = {
            n for n, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad
        }
        seen: set[int] = set()
        kept = {}
        for name, tensor in full.items():
            key = tensor.data_ptr()
            if name in frozen or (key and key in seen):
                continue
            seen.add(key)
            kept[name] = tensor
        return kept

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """What `state_dict` leaves out: transformers asks for it when it loads a checkpoint."""
        return sorted(super().state_dict().keys() - self.state_dict().keys())

    def tie_weights(self) -> None:
        """Nothing to do: tied tensors stay one tensor. transformers calls it after loading."""

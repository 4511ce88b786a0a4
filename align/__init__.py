"""Align: from a base model and human judgement to an aligned policy with evidence.

The names of a researcher's own loop can be imported from here; they load when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "TransformersSampler": "align.rollout.transformers",
    "batches": "align.prompts",
    "gae": "align.ppo.advantages",
    "group_center": "align.ppo.advantages",
    "group_normalise": "align.ppo.advantages",
    "load_policy": "align.engine.models",
    "load_prompts": "align.prompts",
    "policy_logprobs": "align.engine.head",
    "policy_loss": "align.ppo.objectives",
    "rloo": "align.ppo.advantages",
    "value_loss": "align.ppo.objectives",
    "whiten": "align.ppo.advantages",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)

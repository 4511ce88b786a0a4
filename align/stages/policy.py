"""Open what preferences are trained on: the policy, its reference, its guards and its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peft
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.stages import DPOStage, KTOStage
from align.engine.guards.base import Guard
from align.engine.models import disable_dropout, freeze, load_causal_lm, peft_config, snapshot
from align.engine.tokenizer import match_embeddings
from align.run import Run, fingerprint
from align.stages.common import model_kwargs
from align.stages.guard_source import Source, step_rows
from align.stages.guards import build_guards
from align.stages.preflight import loading
from align.stages.sft import sft_source


@dataclass(frozen=True)
class Policy:
    """A policy about to be trained on preferences."""

    model: PreTrainedModel
    reference: PreTrainedModel | None  # the start; None: the model without adapter
    source: Source
    guards: list[Guard]
    adapter: peft.PeftConfig | None


def open_policy(
    config: DPOStage | KTOStage, run: Run, tokenizer: PreTrainedTokenizerBase, args: Any
) -> Policy:
    """Load a policy, and note it in the run.

    Raises:
        ModelError: the model cannot be loaded, or a guard does not fit it.
    """
    with loading(config.model.path):
        model = load_causal_lm(config.model.path, **model_kwargs(config.model))
    match_embeddings(model, tokenizer)
    disable_dropout(model)
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    # Taken before freezing and adapters: what the policy is now.
    reference = None if config.peft else snapshot(model)
    freeze(model, config.model.freeze)
    source = sft_source(tokenizer, args.max_length, model.device, step_rows(args))
    guards = build_guards(config.guards, model, source, config.model.path, run)
    adapter = (
        peft_config(config.peft.method, config.peft.kwargs, "CAUSAL_LM") if config.peft else None
    )
    return Policy(model, reference, source, guards, adapter)

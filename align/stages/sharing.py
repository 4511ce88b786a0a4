"""Prefix sharing in a stage: `model.prefix_sharing`, what it found, and what it chose by.

Costs that are measured are kept in the run, so that a resumed run shares the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import nn
from transformers import PreTrainedModel

from align.engine.head import causal_lm, has_virtual_tokens
from align.engine.labelled_head import read_labels_only, read_last_only
from align.engine.prefix import Mode, PrefixSharing, share_prefixes
from align.engine.prefix_cost import Costs
from align.errors import ModelError
from align.processes import first_process
from align.run import Run, write_json
from align.stages.common import console

FILE = "prefix_sharing.json"


def share_in_trl(trainer: Any, mode: Mode, run: Run, *, resume: bool) -> None:
    """Let a TRL trainer's policy or reward model, and its reference, share prefixes.

    Raises:
        ModelError: `on`, and a model cannot.
    """
    reference = getattr(trainer, "ref_model", None)
    models = {"policy": trainer.model, "reference": reference}
    trainer.sharing = share(models, mode, run, resume=resume)
    trained_on = bool(getattr(trainer.args, "entropy_coef", None))  # GRPO's
    for model in (one for one in models.values() if one is not None):  # a compiled one has no truth
        inner = uncompiled(model)
        around = trainer.accelerator.autocast if model is reference else None
        given = {} if around is None else {"around": around}
        if not read_labels_only(inner, entropy_gradient=trained_on, **given):
            read_last_only(inner)


def share(
    models: Mapping[str, nn.Module | None],
    mode: Mode,
    run: Run,
    *,
    resume: bool,
    always: bool = False,
) -> list[PrefixSharing]:
    """Let models share prefixes; says in one line which do not, and why.

    Args:
        models: by name, heads and adapters included; the first gives the costs of all.
        mode: `model.prefix_sharing`.
        run: keeps the costs.
        resume: take those that it keeps.
        always: `auto` shares wherever it is right.

    Returns:
        What was installed, in their order.

    Raises:
        ModelError: `on`, and a model cannot.
    """
    file = run.path / FILE
    costs = None
    if resume and mode == "measured" and file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8")).get("costs")
        costs = Costs(**kept) if kept else None
    found, notes = [], {}
    for name, model in models.items():
        if model is None:
            continue
        if has_virtual_tokens(model):
            notes[name] = "its adapter prepends learnt tokens"
            if mode == "on":
                raise ModelError(
                    f"model.prefix_sharing=on: the {name} cannot share prefixes: {notes[name]}. "
                    "Fix: set model.prefix_sharing=auto."
                )
            continue
        sharing, why = share_prefixes(backbone_of(model), mode, costs, always=always)
        if sharing is not None:
            costs = costs or sharing.costs
            found.append(sharing)
        elif why is not None:
            notes[name] = why
    if notes:
        told = "; ".join(f"{name}: {why}" for name, why in notes.items())
        console.print(f"prefix sharing is off ({told})", highlight=False)
    if first_process():
        write_json(file, {"mode": mode, "plain": notes, "costs": costs and costs.as_dict()})
    return found


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a model with a head; a bare one is itself."""
    inner = uncompiled(model)
    return inner.base_model if isinstance(inner, PreTrainedModel) else inner


def uncompiled(model: nn.Module) -> PreTrainedModel:
    """The transformers model in what accelerate, torch.compile and PEFT put around it."""
    whole = is_compiled_module(model)  # and not layer by layer, where the layers are what runs
    return causal_lm(extract_model_from_parallel(model, keep_torch_compile=not whole))

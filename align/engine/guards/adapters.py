"""An adapter for each task: nothing of an earlier task is touched, and its adapter comes back.

- apart: each task trains a LoRA adapter of its own on the frozen base.
- progressive: earlier adapters stay at work, frozen, beside the new one, so that a task builds on
  what was learnt before it (the idea of Rusu et al. 2016, "Progressive neural networks", with
  adapters as columns, through PEFT's several active adapters).

Which adapter answers is said by the caller, or found by `Router`: the task whose prompts' mean
feature is nearest. Leaves out training: any trainer trains the active adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.errors import ModelError


class TaskAdapters:
    """A base model with one LoRA adapter for each task."""

    def __init__(
        self, base: PreTrainedModel, config: peft.LoraConfig, *, progressive: bool = False
    ):
        """Set up.

        Args:
            base: frozen from now on.
            config: of every adapter.
            progressive: earlier adapters stay at work beside a new one.
        """
        self.base, self.config, self.progressive = base, config, progressive
        self.model: peft.PeftModel | None = None
        self.tasks: list[str] = []

    def begin_task(self, name: str) -> nn.Module:
        """A new adapter, the only one that trains; returns the model to train.

        Raises:
            ModelError: there is a task of that name.
        """
        if name in self.tasks:
            raise ModelError(f"there is a task {name!r} already. Fix: choose another name.")
        if self.model is None:
            self.model = peft.get_peft_model(self.base, self.config, adapter_name=name)
        else:
            self.model.add_adapter(name, self.config)
        self.tasks.append(name)
        self.use(name)
        assert self.model is not None
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_(f".{name}." in f"{key}.")
        return self.model

    def use(self, name: str) -> None:
        """Answer as of a task: with its adapter, or with those up to it where progressive.

        Raises:
            ModelError: there is no such task.
        """
        if name not in self.tasks or self.model is None:
            known = ", ".join(self.tasks) or "none"
            raise ModelError(f"there is no task {name!r}. Fix: use one of {known}.")
        active = self.tasks[: self.tasks.index(name) + 1] if self.progressive else [name]
        flags = {n: p.requires_grad for n, p in self.model.named_parameters()}
        tuner: Any = self.model.base_model
        tuner.set_adapter(active)
        for key, parameter in self.model.named_parameters():  # PEFT makes what is active train
            parameter.requires_grad_(flags[key])

    @contextmanager
    def using(self, name: str) -> Iterator[nn.Module]:
        """Within it the model answers as of a task; afterwards as before."""
        assert self.model is not None
        tuner: Any = self.model.base_model
        before = list(tuner.active_adapters)
        self.use(name)
        try:
            yield self.model
        finally:
            self.use(before[-1])


class Router:
    """Finds the task of a prompt by the nearest mean feature."""

    def __init__(self) -> None:
        self.means: dict[str, Tensor] = {}

    def learn(self, name: str, features: Tensor) -> None:
        """Keep a task's mean; features (N, D) of its prompts, such as mean hidden states."""
        self.means[name] = nn.functional.normalize(features.float(), dim=1).mean(dim=0)

    def route(self, features: Tensor) -> list[str]:
        """The task of each row of (N, D).

        Raises:
            ModelError: no task was learnt.
        """
        if not self.means:
            raise ModelError("the router knows no task. Fix: call `learn` for each.")
        names = list(self.means)
        table = nn.functional.normalize(torch.stack(list(self.means.values())), dim=1)
        near = nn.functional.normalize(features.float(), dim=1) @ table.T
        return [names[place] for place in near.argmax(dim=1).tolist()]

    def state_dict(self) -> dict[str, Any]:
        """The means."""
        return {"means": dict(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.means = dict(state["means"])


def prompt_features(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean last hidden state of each prompt under the bare base, (N, D), without gradient."""
    quiet = getattr(model, "disable_adapter", None)
    with torch.no_grad():
        if quiet is None:
            out = model(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
            )
        else:
            with quiet():
                out = model(
                    input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
                )
    mask = attention_mask[..., None].to(out.hidden_states[-1])
    found: Tensor = (out.hidden_states[-1] * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return found

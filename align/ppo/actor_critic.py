"""Policy and critic as one module, because a Trainer owns one model.

The value of position t is read from the hidden state *before* token t. The critic's backbone is
shared with the policy or separate; its head starts at zero, or from a reward model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.engine.head import (
    at_least_float32,
    causal_lm,
    completion_logprobs,
    has_virtual_tokens,
    spread,
    states_before,
)
from align.engine.models import disable_dropout
from align.engine.trained import TrainedModule
from align.errors import ModelError
from reward.model import load_classifier, read_normalisation
from reward.score import score_head

CRITIC = "value.safetensors"  # in a run's value/


@dataclass
class Evaluation:
    """What one forward pass says of a batch of completions, each (B, A), 0 outside the mask."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class ActorCritic(TrainedModule):
    """A causal language model with a value head on its own or a second backbone, or with none.

    Advantages that need no critic (RLOO, GRPO, REINFORCE++) train a policy with none: its values
    are zeros.
    """

    def __init__(
        self,
        policy: nn.Module,
        value_head: nn.Linear | None,
        value_backbone: nn.Module | None = None,
    ):
        super().__init__()
        self.policy = policy
        self.value_head = value_head
        self.value_backbone = value_backbone

    @property
    def config(self) -> Any:
        """The policy's configuration."""
        return causal_lm(self.policy).config

    @property
    def guarded(self) -> nn.Module:
        """What guards on weights hold: the policy, not the critic."""
        return self.policy

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        mask: Tensor,
        temperature: float = 1.0,
        with_entropy: bool = False,
        detach_values: bool = False,
    ) -> Evaluation:
        """Score a batch of completions.

        Args:
            input_ids: (B, T), prompt left-padded, completion right-padded.
            attention_mask: (B, T).
            mask: (B, A), 1 on completion tokens, which are the last A columns.
            temperature: the sampling temperature.
            with_entropy: whether entropies are computed.
            detach_values: the value loss then leaves a shared backbone alone.
        """
        states, kept = None, mask.bool()
        if not has_virtual_tokens(self.policy):
            backbone = causal_lm(self.policy).base_model
            states = states_before(backbone, input_ids, attention_mask, kept)
        logprobs, entropy = completion_logprobs(
            self.policy, input_ids, attention_mask, mask, temperature, with_entropy, states
        )
        if self.value_head is None:
            return Evaluation(logprobs, entropy, torch.zeros_like(logprobs))
        if self.value_backbone is not None:
            states = states_before(self.value_backbone, input_ids, attention_mask, kept)
        assert states is not None
        before = states.to(self.value_head.weight.dtype)
        if detach_values and self.value_backbone is None:
            before = before.detach()
        flat = at_least_float32(self.value_head(before).squeeze(-1))
        return Evaluation(logprobs, entropy, spread(flat, kept))

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Checkpoint both backbones."""
        self.policy.gradient_checkpointing_enable(**kwargs)  # type: ignore[operator]
        if self.value_backbone is not None:
            self.value_backbone.gradient_checkpointing_enable(**kwargs)  # type: ignore[operator]

    def value_parameters(self) -> list[nn.Parameter]:
        """The critic's own parameters: its head, and its backbone where it has one."""
        own = list(self.value_head.parameters()) if self.value_head is not None else []
        return own + (list(self.value_backbone.parameters()) if self.value_backbone else [])

    def save_value(self, folder: Path) -> None:
        """Write the critic, if any, beside a saved policy, for a later run to continue from."""
        if self.value_head is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"value_head.{k}": v.contiguous() for k, v in self.value_head.state_dict().items()}
        if self.value_backbone is not None:
            backbone = self.value_backbone.state_dict()
            state |= {f"value_backbone.{k}": v.contiguous() for k, v in backbone.items()}
        save_file(state, folder / CRITIC)


def build_actor_critic(
    policy: PreTrainedModel, *, backbone: str = "separate", init: str = "zero"
) -> ActorCritic:
    """Give a policy a critic.

    Args:
        policy: causal language model, a PEFT wrapper included.
        backbone: "shared" reads the policy's hidden states; "separate" copies its backbone (or
            takes the reward model's); "none" is no critic at all.
        init: "zero"; a reward model's directory: the head then starts as its normalised score; or
            the `value/` of an earlier run, whose critic goes on.

    Raises:
        ModelError: virtual-token PEFT with a shared backbone, a reward model of another width, or
            an earlier critic of another kind or shape.
    """
    base = causal_lm(policy)
    if backbone == "none":
        module = ActorCritic(policy, None)
        disable_dropout(module)
        return module
    width = base.config.get_text_config().hidden_size
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if backbone == "shared" and has_virtual_tokens(policy):
        raise ModelError(
            "a shared value backbone cannot see prefix or prompt tuning's virtual tokens. Fix: "
            "set value.backbone=separate."
        )
    critic: nn.Module | None = None
    saved = init != "zero" and (Path(init) / CRITIC).is_file()
    if init != "zero" and not saved:
        classifier = load_classifier(init, dtype=torch.float32)
        _copy_head(classifier, head, init)
        critic = classifier.base_model.requires_grad_(True)  # a merged adapter's is frozen
        if backbone == "shared":
            raise ModelError(
                "value.init from a reward model needs its backbone too. Fix: set "
                "value.backbone=separate."
            )
    elif backbone == "separate":
        critic = _copy_backbone(base)
    if saved:
        _load_critic(Path(init), head, critic)
    module = ActorCritic(policy, head, critic)
    disable_dropout(module)  # a reward model's and LoRA's too: the first ratio must be 1
    return module.to(next(policy.parameters()).device)


def _copy_head(classifier: PreTrainedModel, head: nn.Linear, path: str) -> None:
    score = score_head(classifier)
    assert isinstance(score, nn.Linear)
    if score.in_features != head.in_features:
        raise ModelError(
            f"value.init: {path} is {score.in_features} wide and the policy {head.in_features}. "
            "Fix: use a reward model of the policy's size, or value.init=zero."
        )
    statistics = read_normalisation(classifier)
    mean, std = (statistics.mean, statistics.std) if statistics else (0.0, 1.0)
    with torch.no_grad():
        head.weight.copy_(score.weight.mean(dim=0, keepdim=True) / std)  # of several heads
        bias = score.bias.mean() if score.bias is not None else torch.zeros(1)
        head.bias.copy_((bias - mean) / std)


def _load_critic(folder: Path, head: nn.Linear, backbone: nn.Module | None) -> None:
    modules = {"value_head": head, "value_backbone": backbone}
    state: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    try:
        saved = load_file(folder / CRITIC)
    except SafetensorError as error:
        raise ModelError(
            f"value.init: {folder / CRITIC} is damaged ({error}). Fix: set value.init=zero."
        ) from None
    for key, tensor in saved.items():
        part, _, name = key.partition(".")
        state.setdefault(part, {})[name] = tensor
    if bool(state["value_backbone"]) != (backbone is not None):
        kind = "a separate" if state["value_backbone"] else "a shared"
        raise ModelError(
            f"value.init: the critic in {folder} has {kind} backbone. Fix: set value.backbone to "
            "the same, or value.init=zero."
        )
    try:
        for name, module in modules.items():
            if module is not None:
                module.load_state_dict(state[name])
    except RuntimeError as error:
        raise ModelError(
            f"value.init: the critic in {folder} is not of this policy's shape: {error}. Fix: set "
            "value.init=zero."
        ) from None


def _copy_backbone(base: PreTrainedModel) -> nn.Module:
    """A trainable copy of the backbone without adapters."""
    backbone = copy.deepcopy(base.base_model)
    for name, module in list(backbone.named_modules()):
        if hasattr(module, "base_layer"):  # a PEFT layer: the plain layer below it
            parent = backbone.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.base_layer)
    return backbone.requires_grad_(True)

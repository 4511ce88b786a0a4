"""What `align grpo` and `align rloo` refuse, and the two checks before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.sections import RewardSourceSection
from align.config.stages import GRPOStage, RLOOStage
from align.data.tokens import encode_prompts
from align.engine.head import completion_logprobs
from align.errors import ConfigError, DataError, ModelError, Problem
from align.rollout.base import pad_id, pad_left
from align.stages.peft_checks import VIRTUAL_TOKENS
from align.types import Text

TOLERANCE = 1e-3  # nats per token in float32
CHOICES = {  # TRL looks these up in the first step, after everything is loaded
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
}
OWNED = {
    "reward_weights": "use reward.N.weight, or its schedule.",
    "multi_objective_aggregation": "use reward.N.normalise=group.",
}
UNTRUNCATED = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}


def check_keys(config: GRPOStage | RLOOStage) -> None:
    """Refuse what the `reward` section owns, and adapters that TRL's head would not see.

    Raises:
        ConfigError: with every problem found.
    """
    problems = [
        Problem(f"trainer.{key}", "is set in the `reward` section.", fix)
        for key, fix in OWNED.items()
        if key in config.trainer
    ]
    if config.peft is not None and config.peft.method in VIRTUAL_TOKENS:
        what = f"TRL scores without the virtual tokens of {config.peft.method}."
        problems.append(Problem("peft.method", what, "use lora."))
    if problems:
        raise ConfigError(problems)


def check_options(args: Any, context: int | None, *, peft: bool) -> None:
    """Refuse trainer options that fail, or bias the gradient, only once training has begun.

    Args:
        args: TRL's GRPOConfig or RLOOConfig.
        context: of the model, in tokens; None: unknown.
        peft: whether adapters are trained.

    Raises:
        ConfigError: with every problem found.
    """
    problems = []
    for key, known in CHOICES.items():
        value = getattr(args, key, known[0])
        if value not in known:
            what = f"{value!r} is not known."
            problems.append(Problem(f"trainer.{key}", what, f"use one of {', '.join(known)}."))
    corrected = args.use_vllm and getattr(args, "vllm_importance_sampling_correction", False)
    for key, off in UNTRUNCATED.items():
        given = (args.generation_kwargs or {}).get(key, getattr(args, key))
        if given not in (off, None) and not corrected:
            what = f"{given} changes the distribution, and the gradient is not corrected for it."
            fix = f"leave it at {off}; TRL corrects with use_vllm in GRPO only."
            problems.append(Problem(f"trainer.{key}", what, fix))
    longest = args.max_completion_length
    if longest is None or (context is not None and longest >= context):
        what = f"{longest} leaves no room for a prompt in the model's context of {context}."
        problems.append(Problem("trainer.max_completion_length", what, "set a smaller number."))
    if args.sync_ref_model and (peft or not args.beta):
        what = "there is no reference to move: " + (
            "it is the base of the adapter." if peft else ""
        )
        what += "" if peft else "beta is 0."
        problems.append(Problem("trainer.sync_ref_model", what, "leave it off, or set beta."))
    if problems:
        raise ConfigError(problems)


def check_whole_groups(rewards: Sequence[RewardSourceSection], args: Any) -> None:
    """A process that normalises in groups has to hold them whole; TRL may split one over several.

    Raises:
        ConfigError: naming the rewards.
    """
    own = args.per_device_train_batch_size * args.steps_per_generation
    if args.world_size == 1 or own % args.num_generations == 0:
        return
    what = (
        f"group, but each of {args.world_size} processes has {own} completions, so that groups of "
        f"{args.num_generations} are split."
    )
    fix = "make per_device_train_batch_size a multiple of num_generations, or use running."
    problems = [
        Problem(f"reward.{index}.normalise", what, fix)
        for index, section in enumerate(rewards)
        if section.normalise == "group"
    ]
    if problems:
        raise ConfigError(problems)


def check_groups(prompts: int, args: Any) -> None:
    """Every batch of completions needs its number of different prompts; TRL drops short ones.

    Raises:
        DataError: there are fewer, so that there would be no batch at all.
    """
    needed = args.generation_batch_size // args.num_generations
    if prompts < needed:
        raise DataError(
            f"{prompts} prompts are fewer than one batch of completions takes: "
            f"{args.generation_batch_size} completions in groups of {args.num_generations} need "
            f"{needed}. Fix: lower trainer.per_device_train_batch_size or "
            "gradient_accumulation_steps, raise num_generations, or give more prompts."
        )


def check_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The model reads a prompt alike with and without padding before it.

    TRL samples with the right positions and scores left-padded rows without giving any. Rotary
    models do not mind; with learnt absolute positions (GPT-2) the gradient would be another
    distribution's.

    Raises:
        ModelError: it reads them differently.
    """
    ids = tokenizer("Where is my order?", add_special_tokens=False)["input_ids"][:8]
    (padded, attention), width = pad_left([ids, [*ids, *ids]], pad_id(tokenizer), "cpu"), len(ids)
    device = next(model.parameters()).device
    with torch.inference_mode():
        rows = model.eval()(padded.to(device), attention_mask=attention.to(device)).logits[
            0, width:
        ]
        alone = model(torch.tensor([ids], device=device)).logits[0]
    found = (rows.float().log_softmax(-1) - alone.float().log_softmax(-1)).abs().max().item()
    if found > _allowed(model):
        raise ModelError(
            f"padding before a prompt moves the log-probabilities of {type(model).__name__} by up "
            f"to {found:.3f} nats: it has absolute positions, which TRL does not pass on. Fix: "
            "`align ppo` with trainer.advantage=grpo or rloo, which does, or a rotary model."
        )


def check_reference(
    trainer: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text]
) -> float:
    """The largest log-probability difference of policy and reference on some prompts.

    Raises:
        ModelError: it is not 0, so that the KL would not start at 0.
    """
    if not trainer.beta or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return 0.0
    device = next(trainer.model.parameters()).device
    ids, attention = pad_left(encode_prompts(prompts, tokenizer), pad_id(tokenizer), device)
    mask = (attention[:, 1:] * attention[:, :-1]).float()
    trainer.model.eval()
    with torch.inference_mode():
        policy = completion_logprobs(trainer.model, ids, attention, mask)[0]
        if trainer.ref_model is None:
            with trainer.model.disable_adapter():
                reference = completion_logprobs(trainer.model, ids, attention, mask)[0]
        else:
            reference = completion_logprobs(trainer.ref_model, ids, attention, mask)[0]
    difference = float((policy - reference).abs().max())
    if difference > _allowed(trainer.model):
        raise ModelError(
            f"step-0 check: policy and reference differ by up to {difference:.4f} nats a token, so "
            "the KL does not start at 0. The reference must be the policy that training starts "
            "from; an adapter must start as the identity."
        )
    return difference


def _allowed(model: PreTrainedModel) -> float:
    return TOLERANCE if next(model.parameters()).dtype == torch.float32 else 0.1

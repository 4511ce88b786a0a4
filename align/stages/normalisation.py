"""The scale of a reward model: mean and std of its scores over samples of the policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.config.sections import NormalisationSection
from align.config.stages import RewardStage
from align.data.tokens import encode_prompt
from align.engine.models import load_policy
from align.errors import ConfigError, Problem
from align.rollout.transformers import TransformersSampler
from align.run import Run, append_jsonl, fingerprint
from align.stages.dryrun import context_of
from reward.model import fit_normalisation, write_normalisation
from reward.process import scorer_of


def normalisation_policy(config: RewardStage) -> str:
    """The policy whose samples set the scale, checked before anything is trained.

    Raises:
        ConfigError: the start model has no language-model head and no policy was named.
    """
    if config.normalisation.policy:
        return config.normalisation.policy
    try:
        names = AutoConfig.from_pretrained(config.model.path).architectures or []
    except (OSError, ValueError):
        return config.model.path  # the tokenizer's error says more
    if any("SequenceClassification" in name for name in names):
        raise ConfigError(
            [
                Problem(
                    "normalisation.policy",
                    f"{config.model.path} is a reward model and cannot write samples.",
                    "name the policy that PPO will start from.",
                )
            ]
        )
    return config.model.path


def normalisation_prompts(
    prompts: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    policy: str,
    settings: NormalisationSection,
) -> list[Any]:
    """Prompts that leave the policy room to answer: found before training, not hours later.

    Raises:
        ConfigError: no prompt leaves `normalisation.max_new_tokens` in the policy's context.
    """
    context = context_of(policy)
    room = None if context is None else context - settings.max_new_tokens
    kept = [p for p in prompts if room is None or len(encode_prompt(p, tokenizer)) <= room]
    if not kept:
        what = (
            f"{settings.max_new_tokens} leaves no prompt room in {policy}'s context of {context}."
        )
        raise ConfigError([Problem("normalisation.max_new_tokens", what, "lower it.")])
    return kept


def normalise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_path: str,
    settings: NormalisationSection,
    prompts: list[Any],
    run: Run,
) -> None:
    """Score samples of the policy and keep mean and std in the model."""
    policy, _, policy_tokenizer = load_policy(policy_path, with_reference=False)
    if policy_tokenizer.chat_template is None:
        policy_tokenizer.chat_template = tokenizer.chat_template
    run.add_parent("reference", policy_path, fingerprint=fingerprint(policy_path))
    sampler = TransformersSampler(
        policy,
        policy_tokenizer,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=run.record["seed"],
    )
    chosen = [prompts[i % len(prompts)] for i in range(settings.prompts)]
    (run.path / "samples.jsonl").unlink(missing_ok=True)  # of a run that ended right here
    rollout = sampler(chosen)
    scores = scorer_of(model, tokenizer).score(rollout.prompts, rollout.completions)
    statistics = fit_normalisation(scores, policy_path)
    write_normalisation(model, statistics)
    for prompt, completion, score in list(
        zip(rollout.prompts, rollout.completions, scores, strict=True)
    )[:20]:
        append_jsonl(
            run.path / "samples.jsonl",
            {"prompt": prompt, "completions": {"policy": completion}, "scores": {"policy": score}},
        )
    run.update(normalisation=vars(statistics))

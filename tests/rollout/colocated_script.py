"""Runs beside vLLM, in its environment: what `test_vllm_colocated.py` asserts on, as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, get_peft_model

from align.config.sections import RolloutSection
from align.engine.head import policy_logprobs
from align.engine.models import load_policy
from align.errors import AlignError
from align.rollout.open import check_rollout, open_sampler
from align.rollout.transformers import TransformersSampler
from align.rollout.vllm_colocated import VLLMColocatedSampler

PROMPTS = ["Where is", "Thank you, that", "I", "The quick brown fox jumps over the lazy"]


def move(policy: Any, seed: int) -> None:
    """Push every trainable weight a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += 0.03 * torch.randn(weight.shape, generator=generator)


def greedy(sampler: Any, policy: Any, tokenizer: Any) -> dict[str, Any]:
    """A vLLM sampler beside the transformers one, on the same weights."""
    ours = sampler(PROMPTS, 2, name=list("abcd"))
    theirs = TransformersSampler(policy, tokenizer, max_new_tokens=24, temperature=0)(PROMPTS, 2)
    same = ours.completion_ids.shape == theirs.completion_ids.shape
    return {
        "same": same and torch.equal(ours.completion_ids, theirs.completion_ids),
        "gap": float((ours.logprobs - theirs.logprobs).abs().max()) if same else None,
        "finished": [ours.finished.tolist(), theirs.finished.tolist()],
        "lengths": [ours.mask.sum(1).tolist(), theirs.mask.sum(1).tolist()],
        "version": ours.version,
        "name": ours.columns["name"],
    }


def error(action: Any) -> str:
    """What an action says when it is refused."""
    try:
        action()
    except AlignError as refusal:
        return f"{type(refusal).__name__}: {refusal}"
    return "nothing"


def main(folder: Path) -> dict[str, Any]:
    policy, _, tokenizer = load_policy(folder / "policy", with_reference=False)
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, 114)]
    found: dict[str, Any] = {}
    section = RolloutSection(
        engine="vllm", max_new_tokens=24, temperature=0.6, vllm={"kv_cache_gib": 0.25}
    )
    found["problems"] = [str(problem) for problem in check_rollout(section)]

    threads, torch_state = torch.get_num_threads(), torch.random.get_rng_state()
    sampler = open_sampler(section, policy, tokenizer, folder)
    assert isinstance(sampler, VLLMColocatedSampler)
    found["threads"] = [threads, torch.get_num_threads()]
    found["undisturbed"] = torch.equal(torch_state, torch.random.get_rng_state())

    # Log-probabilities at the sampling temperature; groups; seeds; lengths.
    sampler.seed = 1
    rollout = sampler(PROMPTS * 3, 3)
    with torch.no_grad():
        found["gap"] = float((policy_logprobs(policy, rollout) - rollout.logprobs).abs().max())
        rollout.temperature = 0.66  # the negative control
        found["gap_elsewhere"] = float(
            (policy_logprobs(policy, rollout) - rollout.logprobs).abs().max()
        )
    found["prompts"] = rollout.prompts
    found["share_finished"] = float(rollout.finished.float().mean())
    ends = set(sampler.ends)
    last = [
        row[mask.bool()][-1].item()
        for row, mask in zip(rollout.completion_ids, rollout.mask, strict=True)
    ]
    found["finished_is_last"] = [token in ends for token in last] == rollout.finished.tolist()
    found["full_unless_finished"] = bool(
        ((rollout.mask.sum(1) == 24) | rollout.finished.cpu()).all()
    )
    texts = rollout.completions
    found["distinct_in_groups"] = len(set(texts)) / len(texts)
    found["repeats"] = sampler(PROMPTS * 3, 3).completions == texts
    sampler.seed = None
    torch.manual_seed(5)
    first, second = sampler(PROMPTS).completions, sampler(PROMPTS).completions
    torch.manual_seed(5)
    found["global"] = [first != second, sampler(PROMPTS).completions == first]
    found["lengths"] = [len(d.tokens) for d in sampler.draw([[5], [6], [7]], 1, [3, 1, 5])]
    found["too_long"] = error(lambda: sampler.draw([[5] * 240]))
    found["no_prompt"] = error(lambda: sampler([]))

    # New weights, three times; greedy, so that both must agree token for token.
    sampler.temperature = 0.0
    found["syncs"] = []
    for version in (1, 2, 3):
        move(policy, version)
        metrics = sampler.sync(policy, version)
        found["syncs"].append(greedy(sampler, policy, tokenizer) | {"metrics": metrics})

    # An adapter: merged on the way, and the base weights as they were, bit for bit.
    torch.manual_seed(0)
    adapted = get_peft_model(
        policy, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    sampler.sync(adapted, 4)
    found["adapter"] = greedy(sampler, adapted, tokenizer)
    found["bit_for_bit"] = all(
        torch.equal(weight, before[name]) for name, weight in adapted.state_dict().items()
    )
    move(adapted, 9)
    sampler.sync(adapted, 5)
    found["adapter_moved"] = greedy(sampler, adapted, tokenizer)

    # Negative controls: weights that stay behind, and keys and values that do.
    move(adapted, 10)
    engine = sampler._engine()
    rpc, engine.collective_rpc = engine.collective_rpc, lambda *args, **kwargs: None
    found["stale_weights"] = error(lambda: sampler.sync(adapted, 6))
    engine.collective_rpc = rpc
    sampler.sync(adapted, 6)
    move(adapted, 11)
    reset, engine.reset_prefix_cache = engine.reset_prefix_cache, lambda *args: True
    found["stale_cache"] = error(lambda: sampler.sync(adapted, 7))
    engine.reset_prefix_cache = reset
    sampler.sync(adapted, 8)
    found["mended"] = greedy(sampler, adapted, tokenizer)
    sampler.close()
    sampler.close()
    found["closed"] = error(lambda: sampler(PROMPTS))

    # An output layer that is the embedding, as most small models have it.
    policy, _, _ = load_policy(folder / "policy", with_reference=False)
    policy.config.tie_word_embeddings = True
    policy.lm_head.weight = policy.model.embed_tokens.weight
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, 114)]
    tied = VLLMColocatedSampler(
        policy, tokenizer, folder / "tied", max_new_tokens=24, temperature=0.0, kv_cache_gib=0.25
    )
    move(policy, 1)
    tied.sync(policy, 1)
    found["tied"] = greedy(tied, policy, tokenizer)
    tied.close()
    found["sleep"] = error(
        lambda: VLLMColocatedSampler(policy, tokenizer, folder / "sleep", sleep=True)
    )
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "found.json").write_text(json.dumps(main(place)))

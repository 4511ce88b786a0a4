"""The probe that proves which weights an engine has."""

from __future__ import annotations

import pytest
import torch

from align.engine.head import completion_logprobs
from align.errors import SamplerError
from align.rollout.base import Draw
from align.rollout.vllm_probe import Probe, score


def answers(probe, policy, temperature=1.0):
    """What an engine that runs `policy` would say."""
    drawn = [7, 8, 9]
    logprobs = score(policy, probe.prompt, drawn, temperature)
    return score(policy, probe.tokens[:1], probe.tokens[1:]), Draw(drawn, logprobs, False)


def test_the_probes_scores_are_the_models(tiny_llama):
    policy, ids = tiny_llama(), torch.tensor([[3, 9, 27, 81]])
    with torch.no_grad():
        table = policy(ids).logits.log_softmax(-1)
    expected = [table[0, place, token].item() for place, token in enumerate([9, 27, 81])]
    assert score(policy, [3], [9, 27, 81]) == pytest.approx(expected, abs=1e-5)
    mask = torch.ones(1, 3)
    own = completion_logprobs(policy, ids, torch.ones_like(ids), mask, 0.5)[0]
    assert score(policy, [3], [9, 27, 81], 0.5) == pytest.approx(own[0].tolist(), abs=1e-5)


def test_the_probe_passes_a_copy_and_refuses_another(tiny_llama, moved):
    policy = tiny_llama()
    probe = Probe(policy.config.vocab_size, room=128)
    assert probe.check(policy, *answers(probe, policy), version=1, temperature=1.0) < 1e-6
    with pytest.raises(SamplerError, match=r"version 2 did not arrive.*policy \[.*engine \["):
        probe.check(policy, *answers(probe, moved(policy)), version=2, temperature=1.0)
    bad = [float("nan")] * (len(probe.tokens) - 1)
    with pytest.raises(SamplerError, match="did not arrive"):
        probe.check(policy, bad, answers(probe, policy)[1], version=2, temperature=1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_finds_steps_below_its_tolerance(tiny_llama, moved, dtype):
    policy = tiny_llama()
    probe = Probe(policy.config.vocab_size, dtype, room=128)
    probe.check(policy, *answers(probe, policy), version=1, temperature=1.0)
    step = moved(policy, 2e-5 if dtype == "float32" else 5e-3)
    stale, _ = answers(probe, policy)
    with pytest.raises(SamplerError, match="did not arrive whole"):
        probe.check(step, stale, answers(probe, step)[1], version=2, temperature=1.0)
    probe.check(step, *answers(probe, step), version=2, temperature=1.0)


def test_the_probe_refuses_draws_at_another_temperature(tiny_llama):
    policy = tiny_llama()
    probe = Probe(policy.config.vocab_size, room=128)
    scored, drawn = answers(probe, policy, 1.0)
    with pytest.raises(SamplerError, match=r"does not agree.*temperature 0.5"):
        probe.check(policy, scored, drawn, version=1, temperature=0.5)


# --- HTTP

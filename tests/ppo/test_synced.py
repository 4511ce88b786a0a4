"""Samplers with weights of their own: when they are synced, how old rollouts are, corrections.

The sampler here is real: transformers on a copy of the policy, which `sync` brings up to date.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from align.engine.models import snapshot
from align.errors import ConfigError, ModelError, SamplerError
from align.ppo.on_policy import refuse_ahead
from align.rollout.transformers import TransformersSampler
from align.types import SyncedSampler


class CopySampler(TransformersSampler):
    """Decodes with a copy of the policy, `lag` syncs behind."""

    def prepare(self, lag: int = 0) -> CopySampler:
        self.lag, self.past, self.version = lag, [], 0
        self.threads: list[str] = []
        return self

    def sync(self, policy, version):
        self.past.append((version, {n: t.clone() for n, t in policy.state_dict().items()}))
        self.version, state = self.past[max(0, len(self.past) - 1 - self.lag)]
        self.policy.load_state_dict(state)
        return {"rollout/sync_seconds": 0.0}

    def close(self):
        """Nothing to let go."""

    def __call__(self, prompts, group_size=1, **columns):
        self.threads.append(threading.current_thread().name)
        rollout = super().__call__(prompts, group_size, **columns)
        rollout.version = self.version
        return rollout


@pytest.fixture
def make_synced(make_trainer, tiny_tokenizer):
    def make(lag: int = 0, broken: float = 0.0, **changes):
        trainer = make_trainer(total_episodes=8 * 5, learning_rate=1e-2)  # a first one, for parts
        own = snapshot(trainer.model.policy)
        sampler = CopySampler(own, tiny_tokenizer, max_new_tokens=8).prepare(lag)
        assert isinstance(sampler, SyncedSampler)
        made = make_trainer(
            sampler=sampler, total_episodes=8 * 5, learning_rate=1e-2, ppo_epochs=1, **changes
        )
        if broken:
            with torch.no_grad():
                for parameter in own.parameters():
                    parameter.add_(broken)
            sampler.sync = lambda policy, version: {}
        return made, sampler

    return make


def test_weights_are_synced_before_every_rollout(make_synced, logged):
    trainer, sampler = make_synced()
    trainer.train()
    assert [version for version, _ in sampler.past] == [0, 1, 2, 3, 4]
    assert logged(trainer, "rollout/age") == [0.0] * 5
    assert max(logged(trainer, "rollout/sampler_gap")) < 1e-4
    assert logged(trainer, "correction/ratio_mean") == pytest.approx(
        [1.0] * 5, abs=1e-4
    )  # it is on
    moved = sampler.past[0][1], sampler.past[-1][1]
    assert any(not torch.equal(moved[0][n], moved[1][n]) for n in moved[0])


def test_rollouts_ahead_are_one_update_old_and_drawn_beside_the_training(make_synced, logged):
    trainer, sampler = make_synced(rollouts_ahead=True)
    trainer.train()
    assert logged(trainer, "rollout/age") == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert sampler.threads[0] == "MainThread"
    assert all(name.startswith("rollouts") for name in sampler.threads[1:])
    assert len(sampler.threads) == 5  # none is drawn for an update that never comes
    gaps = logged(trainer, "rollout/sampler_gap")
    assert gaps[0] < 1e-4 < max(gaps[1:])


def test_what_is_behind_is_corrected(make_synced, logged):
    trainer, _ = make_synced(lag=3, correction_high=1.01)
    trainer.train()
    assert logged(trainer, "rollout/age")[-1] == 3.0
    assert logged(trainer, "correction/clipped")[-1] > 0.0
    trainer, _ = make_synced(lag=3, correction="none")
    trainer.train()
    assert not logged(trainer, "correction/clipped")


def test_a_correction_changes_what_is_learnt(make_synced, weights):
    def trained(**changes):
        trainer, _ = make_synced(lag=3, **changes)
        torch.manual_seed(5)
        trainer.train()
        return weights(trainer.model.policy)

    plain, again = trained(correction="none"), trained(correction="none")
    masked = trained(correction="sequence_mask", correction_high=1.0)
    assert all(torch.equal(plain[n], again[n]) for n in plain)
    assert any(not torch.equal(plain[n], masked[n]) for n in plain)


def test_a_sampler_of_other_weights_is_found_unless_it_is_corrected(make_synced):
    trainer, _ = make_synced(broken=0.05, correction="none")
    with pytest.raises(ModelError, match="correction=token_truncate"):
        trainer.train()


def test_what_draws_in_this_process_cannot_draw_ahead(make_synced):
    trainer, sampler = make_synced()
    sampler.shares_generator = True  # as the colocated vLLM
    with pytest.raises(ConfigError, match="CopySampler computes where the policy trains"):
        refuse_ahead(replace(trainer.args, rollouts_ahead=True), sampler)


@pytest.mark.parametrize(
    "cut", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"min_new_tokens": 2}]
)
def test_a_sampler_that_truncates_is_refused(make_trainer, cut):
    with pytest.raises(ConfigError, match=f"rollout.{next(iter(cut))}.*truncates"):
        make_trainer(sampler=cut)


def test_the_transformers_sampler_cannot_draw_ahead(make_trainer):
    with pytest.raises(ConfigError, match="vllm-server"):
        make_trainer(rollouts_ahead=True)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_failed_rollout_takes_no_prompts(make_synced, ahead):
    trainer, sampler = make_synced(rollouts_ahead=ahead)
    original, calls = TransformersSampler.__call__, []

    def failing(self, prompts, group_size=1, **columns):
        calls.append(list(prompts))
        if len(calls) == 3:
            raise SamplerError("the server is gone")
        return original(self, prompts, group_size, **columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersSampler, "__call__", failing)
        with pytest.raises(SamplerError):
            trainer.train()
        assert trainer.loader.update == 2
        assert trainer.loader.prompts.cursor == 16
        trainer.loader._refill()
    assert calls[3] == calls[2]
    assert sampler.version == 2

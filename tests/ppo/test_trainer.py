"""The PPO trainer: step 0, accumulation, learning, on-policy sampling, warm-up, adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from align.engine.guards.ewc import EWC
from align.engine.guards.replay import Replay
from align.errors import ConfigError, ModelError, NonFiniteError, RewardError
from align.ppo.config import PPOConfig


def greatest(first: dict, second: dict, part: str = "") -> float:
    return max(float((first[n] - second[n]).abs().max()) for n in first if part in n)


def test_before_the_first_update_the_ratio_is_1_and_the_kl_0(make_trainer, logged):
    trainer = make_trainer(max_steps=1, sampler={"temperature": 0.7})
    trainer.train()
    for extreme in ("policy/ratio_max", "policy/ratio_min"):
        assert logged(trainer, extreme)[0] == pytest.approx(1.0, abs=1e-5)
    assert logged(trainer, "kl/reference")[0] == pytest.approx(0.0, abs=1e-5)
    assert logged(trainer, "kl/k3")[0] == pytest.approx(0.0, abs=1e-5)
    assert logged(trainer, "rollout/sampler_gap")[0] < 1e-5


def test_afterwards_they_are_not(make_trainer, logged):
    trainer = make_trainer(total_episodes=16)
    trainer.train()
    assert abs(logged(trainer, "policy/ratio_max")[-1] - 1.0) > 1e-3
    assert logged(trainer, "kl/k3")[-1] > 1e-6


def test_the_self_check_finds_another_reference(make_trainer, tiny_llama):
    trainer = make_trainer(reference=tiny_llama(seed=5))
    with pytest.raises(ModelError, match="policy and reference differ"):
        trainer.train()
    make_trainer(reference=tiny_llama(seed=5), self_check=False).train()


def test_the_self_check_finds_another_temperature(make_trainer):
    trainer = make_trainer(sampler={"temperature": 0.6})
    original = trainer.sampler.__call__

    def claims_another(prompts, **kwargs):
        rollout = original(prompts, **kwargs)
        rollout.temperature = 1.0
        return rollout

    trainer.sampler = claims_another
    with pytest.raises(ModelError, match="sampler's log-probabilities differ"):
        trainer.train()


def test_the_self_check_finds_a_training_forward_that_differs(make_trainer):
    trainer = make_trainer()
    attention = trainer.model.policy.model.layers[0].self_attn
    attention.attention_dropout = 0.5  # on in training only
    with pytest.raises(ModelError, match="first log-ratio"):
        trainer.train()


def one_update(make_trainer, tiny_llama, micro: int, accumulation: int, **changes):
    policy = tiny_llama(seed=4).double()
    policy.generation_config.eos_token_id = list(range(100, 130))  # some answers end
    trainer = make_trainer(
        policy=policy,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        ppo_epochs=1,
        max_steps=1,
        max_grad_norm=0.0,
        optim="sgd",
        learning_rate=0.5,
        **changes,
    )
    torch.manual_seed(11)
    trainer.model.double()
    trainer.train()
    return {n: p.detach() for n, p in trainer.model.named_parameters()}, trainer


@pytest.mark.parametrize("settings", [{}, {"entropy_coef": 0.1, "mask_truncated": True}])
def test_one_batch_of_8_equals_eight_of_1(make_trainer, tiny_llama, settings):
    whole, first = one_update(make_trainer, tiny_llama, 8, 1, **settings)
    eight, second = one_update(make_trainer, tiny_llama, 1, 8, **settings)
    lengths = first.loader.experience.mask.sum(1)
    assert torch.equal(
        first.loader.experience.input_ids, second.loader.experience.input_ids
    )  # the same rollouts
    assert greatest(whole, eight) < 1e-6
    start = dict(tiny_llama(seed=4).double().named_parameters())
    assert lengths.any()
    assert settings == {} or not lengths.all()
    assert greatest(start, {n: whole[f"policy.{n}"] for n in start}) > 1e-4


def test_it_learns(make_trainer, logged):
    trainer = make_trainer(
        total_episodes=32 * 8,
        rollout_batch_size=32,
        per_device_train_batch_size=16,
        ppo_epochs=4,
        learning_rate=1e-2,
        kl_coef=0.0,
    )
    trainer.train()
    rewards = logged(trainer, "reward/mean")
    assert len(rewards) == 8
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.5


def test_a_constant_reward_teaches_nothing_new(make_trainer, weights):
    """The negative control of learning: no advantage, no policy gradient."""
    trainer = make_trainer(
        reward=lambda prompts, completions, **c: [0.0] * len(completions), kl_coef=0.0
    )
    before = weights(trainer.model.policy)
    trainer.train()
    assert greatest(before, weights(trainer.model.policy)) < 1e-7


def test_sampling_happens_once_an_update_and_never_ahead(make_trainer):
    trainer = make_trainer(total_episodes=24)  # 3 updates of 4 steps
    calls, original = [], trainer.sampler.__call__

    def counted(prompts, **kwargs):
        calls.append(trainer.state.global_step)
        return original(prompts, **kwargs)

    trainer.sampler = counted
    trainer.train()
    assert calls == [0, 4, 8]
    assert trainer.state.global_step == 12


def test_every_row_trains_once_an_epoch(make_trainer):
    trainer = make_trainer()
    batches = [next(iter(trainer.loader)) for _ in range(1)]
    order = trainer.loader.order.tolist()
    assert sorted(order[:8]) == sorted(order[8:]) == list(range(8))
    assert order[:8] != order[8:]
    assert batches[0]["input_ids"].shape[0] == 4


def test_the_adaptive_coefficient_moves_and_the_fixed_one_does_not(make_trainer, logged):
    adaptive = make_trainer(total_episodes=24, kl_controller="adaptive", kl_horizon=100)
    adaptive.train()
    coefficients = logged(adaptive, "kl/coef")
    assert coefficients[0] == 0.05
    assert coefficients[1] == pytest.approx(0.05 * (1 - 0.2 * 8 / 100))  # the KL is still 0
    fixed = make_trainer(total_episodes=24)
    fixed.train()
    assert set(logged(fixed, "kl/coef")) == {0.05}


def test_half_precision_begins_at_ratio_1_and_kl_0(make_trainer, logged):
    """Under autocast sampler, policy and reference compute alike: bf16 on a CPU, as on a GPU."""
    trainer = make_trainer(bf16=True, total_episodes=16)
    trainer.train()
    assert logged(trainer, "kl/reference")[0] == pytest.approx(0.0, abs=1e-3)
    assert logged(trainer, "rollout/sampler_gap")[0] < 0.2
    assert logged(trainer, "policy/ratio_max")[0] == pytest.approx(1.0, abs=1e-3)
    assert logged(trainer, "kl/reference")[-1] != 0.0


class Pull(Replay):
    """A guard whose penalty every weight of the policy feels."""

    def __init__(self):
        ids = torch.tensor([[1, 2, 3]])
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        super().__init__([example], lambda model, batch: self.squares(model), 1.0)

    def squares(self, model):
        return sum(p.square().sum() for p in model.policy.parameters())


@pytest.mark.parametrize("backbone", ["separate", "shared"])
def test_critic_warm_up_leaves_the_policy_alone(make_trainer, weights, backbone):
    trainer = make_trainer(
        critic={"backbone": backbone},
        critic_warmup_updates=1,
        entropy_coef=0.1,
        weight_decay=0.1,
        guards=(Pull(),),
    )
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert greatest(before, after, "policy.") == 0.0
    assert greatest(before, after, "value_head") > 0.0
    cold = make_trainer(critic={"backbone": backbone})
    cold.train()
    assert greatest(before, weights(cold.model), "policy.") > 0.0


def test_the_critic_has_its_own_learning_rate(make_trainer, weights):
    trainer = make_trainer(value_learning_rate=0.0)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert greatest(before, after, "value") == 0.0
    assert greatest(before, after, "policy.") > 0.0


def test_adapters_train_against_themselves_switched_off(make_trainer, tiny_llama, weights, logged):
    policy = get_peft_model(
        tiny_llama(seed=4), LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.3)
    )
    trainer = make_trainer(policy=policy, reference=None, total_episodes=24, learning_rate=1e-2)
    before = weights(policy)
    trainer.train()
    after = weights(policy)
    assert logged(trainer, "kl/k3")[0] == pytest.approx(0.0, abs=1e-6)
    assert logged(trainer, "kl/k3")[-1] > 1e-5
    frozen = [n for n in before if "lora" not in n]
    assert all(torch.equal(before[n], after[n]) for n in frozen)
    assert any(not torch.equal(before[n], after[n]) for n in before if "lora" in n)


@pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (1, 8)])
def test_a_guard_holds_whatever_the_accumulation(make_trainer, tiny_llama, micro, accumulation):
    """A penalty counts once a step: 8 x 1 gives the weights of 1 x 8, and holds them back."""
    fisher = {n: torch.ones_like(p) for n, p in tiny_llama(seed=4).named_parameters()}

    def final(strength: float, micro: int = micro, accumulation: int = accumulation):
        trainer = make_trainer(
            guards=(EWC(strength, fisher),) if strength else (),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            ppo_epochs=3,
            optim="sgd",
            learning_rate=0.05,
            max_grad_norm=0.0,
            vf_coef=0.0,
        )
        torch.manual_seed(11)
        trainer.train()
        return {n: p.detach() for n, p in trainer.model.named_parameters()}

    free, held, other = final(0.0), final(5.0), final(5.0, accumulation, micro)
    assert greatest(free, held) > 1e-5
    assert greatest(held, other) < 1e-6


def test_the_faults_of_a_reward_are_named(make_trainer):
    def broken(prompts, completions, **columns):
        return columns["answer"]

    with pytest.raises(RewardError, match="'broken' raised KeyError"):
        make_trainer(reward=broken).train()
    with pytest.raises(RewardError, match="returned 7 rewards"):
        make_trainer(reward=lambda prompts, completions, **c: [0.0] * 7).train()
    with pytest.raises(RewardError, match="nan"):
        make_trainer(reward=lambda prompts, completions, **c: [float("nan")] * 8).train()


def test_a_non_finite_loss_stops_and_keeps_the_batch(make_trainer, tmp_path):
    trainer = make_trainer(self_check=False)
    trainer.finite_folder = tmp_path
    prepare = trainer.loader.prepare

    def poisoned(rollout):
        experience = prepare(rollout)
        experience.advantages[:, 0] = float("nan")
        return experience

    trainer.loader.prepare = poisoned
    with pytest.raises(NonFiniteError, match="step 0"):
        trainer.train()
    saved = torch.load(tmp_path / "non-finite-step-0.pt", weights_only=True)
    assert saved["advantages"].isnan().any()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"rollout_batch_size": 10, "per_device_train_batch_size": 4}, "rollout_batch_size"),
        ({"rollout_batch_size": 8, "group_size": 3}, "group_size"),
        ({"gamma": 1.5}, "gamma"),
        ({"dual_clip": 0.5}, "dual_clip"),
        ({"clip_range": 0.0}, "clip_range"),
        ({"eval_strategy": "steps"}, "eval_strategy"),
        ({"advantage": "rloo"}, "group_size"),
        ({"kl_in_reward": False}, "kl_estimator"),
        ({"correction_low": 4.0}, "correction_low"),
        ({"overlong_buffer": -1}, "overlong_buffer"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, settings, key):
    with pytest.raises(ConfigError, match=key):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_the_length_of_a_run_follows_from_its_episodes(tmp_path):
    args = PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        total_episodes=640,
        rollout_batch_size=64,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        ppo_epochs=4,
    )
    assert (args.updates, args.steps_per_update, args.max_steps) == (10, 16, 160)

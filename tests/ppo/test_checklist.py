"""The numbers of design.md's PPO checklist, written out, and its lines that no other test holds.

The rest of the list: mathematics in test_math, test_advantages, test_loss and test_experience;
value head, dropout and what the critic reads in test_actor_critic; step 0, warm-up and KL
controller in test_trainer; truncation and corrections in test_synced and test_correction; seeds of
ranks in test_processes; reward models and their statistics in tests/reward.
"""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from align.config.load import load_config
from align.config.stages import PPOStage
from align.ppo.actor_critic import build_actor_critic
from align.ppo.advantages import gae, whiten
from align.ppo.config import PPOConfig
from align.ppo.experience import Shaping, shaping_of
from align.ppo.kl import AdaptiveKL, FixedKL
from align.ppo.objectives import policy_loss, value_loss
from align.run import open_run
from align.stages.common import trainer_args
from reward.model import RewardModel

CHECKLIST = {
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "clip_range_value": 0.2,
    "vf_coef": 0.1,
    "ppo_epochs": 4,
    "kl_coef": 0.05,
    "learning_rate": 3e-6,
    "kl_controller": "fixed",
    "kl_target": 6.0,
    "kl_horizon": 10_000,
    "kl_estimator": "k1",
    "kl_in_reward": True,
    "advantage": "gae",
    "group_size": 1,
    "loss_aggregation": "token",
    "missing_eos_penalty": 1.0,
    "mask_truncated": False,
    "whiten_advantages": True,
    "whiten_rewards": False,
    "reward_clip": None,
    "clip_range_high": None,
    "dual_clip": None,
    "entropy_coef": 0.0,
    "length_penalty": 0.0,
    "overlong_buffer": 0,
    "critic_warmup_updates": 0,
    "correction": "auto",
    "correction_high": 3.0,
    "correction_low": None,
    "rollouts_ahead": False,
    "self_check": True,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 0,
    "logging_steps": 1,
}


def differences(args) -> dict[str, object]:
    return {k: getattr(args, k) for k, v in CHECKLIST.items() if getattr(args, k) != v}


def test_the_trainers_defaults_are_the_checklists(tmp_path):
    assert differences(PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)) == {}


def test_the_stages_defaults_are_the_checklists(tmp_path, policy_dir, data_files):
    given = [f"run.dir={tmp_path / 'run'}", f"model.path={policy_dir}", "tracking.report_to=[none]"]
    given += [f"data.train={data_files['prompts']}", "reward=[{function: 'a:b'}]"]
    config = load_config(PPOStage, None, given)
    with open_run(config, resume=False) as run:
        assert differences(trainer_args(config, run)) == {}
    assert (config.value.backbone, config.value.init, config.value.learning_rate) == (
        "separate",
        "zero",
        None,
    )
    assert config.reward[0].normalise is True  # a reward model's own statistics, or refusal
    drawn = config.rollout
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_new_tokens) == (1.0, 1.0, 0, 0)


def test_the_functions_defaults_are_the_checklists():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert (default(gae, "gamma"), default(gae, "gae_lambda")) == (1.0, 0.95)
    assert (default(policy_loss, "clip_range"), default(value_loss, "clip_range")) == (0.2, 0.2)
    assert default(whiten, "eps") == 1e-8
    assert (AdaptiveKL(0.1).target, AdaptiveKL(0.1).horizon) == (6.0, 10_000)
    shaping = Shaping()
    shared = {f.name for f in fields(Shaping)} & CHECKLIST.keys() - {"correction"}
    assert len(shared) > 12
    assert {name: getattr(shaping, name) for name in shared} == {n: CHECKLIST[n] for n in shared}


def test_what_the_arguments_say_of_rewards_reaches_them(tmp_path):
    """Each field of `Shaping` that the arguments have is theirs."""
    other = {
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "kl_estimator": "k3",
        "kl_in_reward": False,
        "missing_eos_penalty": 2.0,
        "mask_truncated": True,
        "overlong_buffer": 3,
        "overlong_penalty": 4.0,
        "length_penalty": 0.5,
        "reward_clip": 6.0,
        "whiten_rewards": True,
        "whiten_advantages": False,
        "loss_aggregation": "fixed",
        "advantage": "rloo",
        "group_size": 2,
        "correction": "token_mask",
        "correction_high": 5.0,
        "correction_low": 0.1,
    }
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **other)
    assert vars(shaping_of(args, 17)) == other | {"longest": 17}


def test_the_controller_is_the_arguments(make_trainer):
    assert type(make_trainer().kl) is FixedKL
    assert make_trainer(kl_coef=0.3).kl == FixedKL(0.3)
    steered = make_trainer(kl_controller="adaptive", kl_coef=0.2)
    assert steered.kl == AdaptiveKL(0.2, 6.0, 10_000)
    other = make_trainer(kl_controller="adaptive", kl_target=2.0, kl_horizon=50)
    assert other.kl == AdaptiveKL(0.05, 2.0, 50)


def test_the_variance_of_whitening_has_1e_8_added():
    values = torch.tensor([[0.0, 2e-4]], dtype=torch.float64)  # variance 1e-8
    found = whiten(values, torch.ones(1, 2, dtype=torch.float64))
    assert found[0].tolist() == pytest.approx([-1e-4 / 2e-8**0.5, 1e-4 / 2e-8**0.5])


def test_positions_count_real_tokens_under_left_padding(make_rollout, tiny_tokenizer):
    """With learnt absolute positions, which show what rotary ones hide."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64,
        initializer_range=0.3, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = build_actor_critic(GPT2LMHeadModel(config).eval())
    torch.nn.init.normal_(model.value_head.weight)
    rollout = make_rollout()
    with torch.no_grad():
        whole = model(rollout.input_ids, rollout.attention_mask, rollout.mask)
        for row in range(4):
            kept, length = rollout.prompt_mask[row].bool(), int(rollout.mask[row].sum())
            answer = rollout.completion_ids[row][:length]
            ids = torch.cat([rollout.prompt_ids[row][kept], answer])[None]
            logits = model.policy(input_ids=ids).logits[0, -length - 1 : -1]
            wanted = logits.log_softmax(-1).gather(-1, answer[:, None]).squeeze(-1)
            assert torch.allclose(whole.logprobs[row, :length], wanted, atol=1e-4)
            states = model.value_backbone(input_ids=ids).last_hidden_state[0, -length - 1 : -1]
            values = model.value_head(states).squeeze(-1)
            assert torch.allclose(whole.values[row, :length], values, atol=1e-4)


def test_a_reward_model_reads_prompt_and_response(tmp_path, tiny_classifier, tiny_tokenizer):
    model = tiny_classifier(seed=1)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    scorer = RewardModel.load(tmp_path, normalise=False)
    texts = [("Where is my order? ", "On Monday."), ("I cannot log in. ", "On Monday.")]
    said = [
        ([{"role": "user", "content": p}], [{"role": "assistant", "content": c}]) for p, c in texts
    ]
    whole = [tiny_tokenizer(p + c + tiny_tokenizer.eos_token)["input_ids"] for p, c in texts]
    whole += [
        tiny_tokenizer.apply_chat_template([*p, *c], return_dict=True)["input_ids"] for p, c in said
    ]
    with torch.no_grad():
        wanted = [model.eval()(torch.tensor([ids])).logits.item() for ids in whole]
    for rows, expected in ((texts, wanted[:2]), (said, wanted[2:])):
        scores = scorer.score(*zip(*rows, strict=True))
        assert scores == pytest.approx(expected, abs=1e-4)
        assert abs(scores[0] - scores[1]) > 1e-3  # one answer to two prompts

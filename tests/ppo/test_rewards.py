"""Several rewards as one: sums, schedules, scales, gold, and what is logged."""

from __future__ import annotations

import asyncio

import pytest
import torch

from align.config import load_config
from align.config.stages import PPOStage
from align.errors import ConfigError, NonFiniteError, RewardError
from align.ppo.rewards import RewardScorer, reward_scorer
from align.stages.rewards import check_rewards, open_rewards
from reward.combine import RewardTerm, Schedule


def values(*numbers):
    """A reward function that returns these."""

    def fixed(prompts, completions, **columns):
        return list(numbers)

    return fixed


def test_a_sum_by_weight_each_logged_raw(make_rollout):
    score = reward_scorer([("a", values(1, 2, 3, 4), 2.0), ("b", values(0, 0, 0, 8), -0.5)])
    total, metrics = score(make_rollout())
    assert total == [2.0, 4.0, 6.0, 4.0]
    assert metrics == {"reward/a": 2.5, "reward/b": 2.0}


def test_gold_is_logged_and_never_trained_on(make_rollout):
    terms = [
        RewardTerm("a", values(1, 1, 1, 1)),
        RewardTerm("truth", values(9, 9, 9, 5), gold=True),
    ]
    total, metrics = RewardScorer(terms)(make_rollout())
    assert total == [1.0] * 4
    assert metrics == {"reward/a": 1.0, "gold/truth": 8.0}


def test_what_does_not_apply_is_left_out(make_rollout):
    score = reward_scorer([("a", values(1, None, 3, None), 1.0), ("b", values(1, 1, None, 2), 1.0)])
    total, metrics = score(make_rollout())
    assert total == [2.0, 1.0, 3.0, 2.0]
    assert metrics["reward/a"] == 2.0
    with pytest.raises(RewardError, match="no reward applies to completion 1: 'a'"):
        reward_scorer([("a", values(1, None, 3, None), 1.0)])(make_rollout())


def test_a_schedule_follows_the_update(make_rollout):
    term = RewardTerm("a", values(1, 1, 1, 1), 1.0, Schedule("linear", to=0.0, updates=4))
    score = RewardScorer([term, RewardTerm("b", values(0, 0, 0, 0))])
    found = []
    for update in (0, 1, 4, 9):
        score.update = update
        total, metrics = score(make_rollout())
        found.append(total[0])
        assert metrics["reward_weight/a"] == total[0]
        assert metrics["reward/a"] == 1.0  # raw
    assert found == [1.0, 0.75, 0.0, 0.0]


def test_groups_are_normalised_by_prompt(make_rollout):
    rollout = make_rollout()
    rollout.prompts = ["p", "p", "q", "q"]
    score = RewardScorer([RewardTerm("a", values(1, 3, 100, 300), normalise="group")])
    total, metrics = score(rollout)
    assert total == [-1.0, 1.0, -1.0, 1.0]
    assert metrics["reward/a"] == 101.0
    rollout.prompts = ["p", "q", "r", "s"]
    with pytest.raises(RewardError, match=r"'a' is normalised in groups, .*group_size"):
        score(rollout)
    assert score(rollout, learn=False)[0] == [0.0] * 4  # only looked at
    score.group_size = 3  # of training
    assert score(rollout, learn=False)[0] == [0.0] * 4
    with pytest.raises(RewardError, match="4 completions are not groups of 3"):
        score(rollout)


def test_what_scaling_hides_is_logged_without_it(make_rollout):
    rollout = make_rollout()
    rollout.prompts = ["p", "p", "q", "q"]
    rising = Schedule("linear", to=1.0, updates=10)
    terms = [
        RewardTerm("a", values(1, 3, 100, 300), weight=2.0, normalise="group"),
        RewardTerm("b", values(1, 1, 1, 1), weight=0.5, schedule=rising),
        RewardTerm("c", values(9, 9, 9, 9), gold=True),
    ]
    assert RewardScorer(terms)(rollout)[1]["reward/unscaled"] == 2.0 * 101.0 + 0.5
    for plainly in (terms[1:], [RewardTerm("a", values(1, 3, 100, 300)), terms[2]]):
        logged = RewardScorer(plainly)(rollout)[1]
        assert ("reward/unscaled" in logged) == any(t.schedule for t in plainly)


def test_clipping_comes_after_normalisation_and_before_the_weight(make_rollout):
    rollout = make_rollout()
    rollout.prompts = ["p"] * 4
    term = RewardTerm("a", values(0, 0, 0, 10), weight=3.0, normalise="group", clip=1.0)
    total, _ = RewardScorer([term])(rollout)
    assert max(total) == 3.0
    assert min(total) == pytest.approx(-3.0 / 3**0.5)


def test_running_statistics_continue_exactly_where_they_were_saved(make_rollout):
    def first_token(prompts, completions, completion_ids, **columns):
        return [float(ids[0]) for ids in completion_ids]

    def make():
        return RewardScorer([RewardTerm("a", first_token, normalise="running")])

    rollouts = [make_rollout(seed=seed) for seed in range(6)]
    whole, before, after = make(), make(), make()
    expected = [whole(rollout)[0] for rollout in rollouts]
    for rollout in rollouts[:3]:
        before(rollout)
    after.load_state_dict(before.state_dict())
    assert [after(rollout)[0] for rollout in rollouts[3:]] == expected[3:]  # to the last bit
    seen = torch.tensor([float(row[0]) for r in rollouts for row in r.completion_ids]).double()
    assert after.statistics["a"].mean == pytest.approx(seen.mean().item())
    assert after.statistics["a"].std == pytest.approx(seen.std(unbiased=False).item())


def test_looking_at_samples_leaves_the_statistics_alone(make_rollout):
    score = RewardScorer([RewardTerm("a", values(1, 2, 3, 4), normalise="running")])
    first = score(make_rollout(), learn=False)[0]
    assert first[3] > 1.0  # without any statistics yet, those of what is looked at
    assert score.state_dict()["a"]["count"] == 0
    score(make_rollout())
    state = score.state_dict()
    score(make_rollout(), learn=False)
    assert score.state_dict() == state


def test_functions_get_what_trl_gives_them(make_rollout):
    seen = {}

    def curious(prompts, completions, completion_ids, trainer_state, log_metric, answer):
        seen.update(ids=completion_ids, step=trainer_state.global_step, answer=answer)
        log_metric("judge/unparsable", 1.0)
        log_metric("judge/unparsable", 2.0)
        return [0.0] * len(completions)

    rollout = make_rollout(columns={"answer": list("abcd"), "unused": [1, 2, 3, 4]})
    score = reward_scorer([("curious", curious, 1.0)])
    score.update = 7
    _, metrics = score(rollout)
    assert seen["step"] == 7
    assert seen["answer"] == list("abcd")
    assert [len(ids) for ids in seen["ids"]] == [4, 6, 1, 3]  # the padding is gone
    assert seen["ids"][2] == [int(rollout.completion_ids[2, 0])]
    assert metrics["judge/unparsable"] == 1.5


def test_async_rewards_and_retries_are_logged(make_rollout):
    calls = []

    async def flaky(completions, **columns):
        await asyncio.sleep(0)
        calls.append(1)
        if len(calls) == 1:
            raise OSError("gone")
        return [1.0] * len(completions)

    score = RewardScorer([RewardTerm("remote", flaky, timeout=5.0, retries=1)])
    total, metrics = score(make_rollout())
    assert total == [1.0] * 4
    assert metrics == {"reward/remote": 1.0, "reward_retries/remote": 1.0}


def test_a_sum_that_is_not_finite(make_rollout):
    with pytest.raises(NonFiniteError, match="weighted sum of rewards is not finite"):
        reward_scorer([("a", values(1e308, 1, 1, 1), 1e308)])(make_rollout())


def test_names_tell_rewards_apart():
    one = RewardTerm("r", values())
    with pytest.raises(ConfigError, match="a second reward is named 'r'") as caught:
        RewardScorer([one, one, RewardTerm("mean", values())])
    assert "reward/mean exists already" in str(caught.value)
    with pytest.raises(ConfigError, match="every reward is `gold`"):
        RewardScorer([RewardTerm("r", values(), gold=True)])


def ppo_config(tmp_path, *overrides):
    file = tmp_path / "ppo.yaml"
    file.write_text(
        "model: {path: m}\ndata: {train: prompts.jsonl}\n"
        "reward:\n"
        "  - function: 'yaml_rewards:scaled'\n"
        "    kwargs: {factor: 2.0}\n"
        "    schedule: {kind: cosine, to: 0.0, updates: 10}\n"
        "    clip: 4\n"
        "  - {function: 'yaml_rewards:Later', kwargs: {value: 3}, name: later, retries: 1}\n"
        "  - {function: 'yaml_rewards:scaled', name: truth, gold: true}\n"
    )
    (tmp_path / "yaml_rewards.py").write_text(
        "def scaled(completions, factor=1.0, **columns):\n"
        "    return [factor * (i + 1) for i, _ in enumerate(completions)]\n"
        "class Later:\n"
        "    def __init__(self, value): self.value = value\n"
        "    async def __call__(self, completions, **columns):\n"
        "        return [self.value for _ in completions]\n"
    )
    return load_config(PPOStage, file, list(overrides))


def test_rewards_named_in_yaml(tmp_path, monkeypatch, make_rollout):
    monkeypatch.chdir(tmp_path)
    config = ppo_config(tmp_path)
    check_rewards(config.reward)
    score = open_rewards(config.reward)
    assert [(t.name, t.timeout, t.retries) for t in score.terms] == [
        ("scaled", 600.0, 0),
        ("later", 600.0, 1),
        ("truth", 600.0, 0),
    ]
    score.update = 5
    total, metrics = score(make_rollout())
    assert total == [3 + 0.5 * min(4, 2 * n) for n in (1, 2, 3, 4)]
    assert metrics == {
        "reward/scaled": 5.0,
        "reward_weight/scaled": pytest.approx(0.5),
        "reward/later": 3.0,
        "reward/unscaled": 8.0,
        "gold/truth": 2.5,
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.0.path=somewhere", "reward.0: names path and function"),
        ("reward.0.function=null", "reward.0: names nothing"),
        ("reward.2.name=later", "reward.2.name: 'later' is another reward's name too"),
        ("reward.1.name=std", "reward.1.name: the metric reward/std exists already"),
        ("reward=[{function: 'yaml_rewards:scaled', gold: true}]", "every reward is `gold`"),
        ("reward.0={ensemble: [nowhere/a, nowhere/b]}", "reward.0.ensemble: no reward model"),
    ],
)
def test_wrong_rewards_are_found_before_anything_loads(tmp_path, monkeypatch, override, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_rewards(ppo_config(tmp_path, override).reward)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.0.schedule.updates=0", "reward.0.schedule.updates"),
        ("reward.0.shedule=1", "did you mean `schedule`"),
        ("reward.0.ensemble=[one]", "reward.0.ensemble"),
        ("reward.0.normalise=sometimes", "reward.0.normalise"),
        ("reward.0.retries=-1", "reward.0.retries"),
    ],
)
def test_wrong_keys_are_explained(tmp_path, override, message):
    with pytest.raises(ConfigError) as caught:
        ppo_config(tmp_path, override)
    assert message in str(caught.value)


def test_wrong_arguments_of_a_function_are_found_before_anything_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match=r"yaml_rewards:Later.*do not fit"):
        check_rewards(ppo_config(tmp_path, "reward.1.kwargs={walue: 3}").reward)

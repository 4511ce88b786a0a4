"""Bad input through the command line: exit status, culprit, fix, and before weights load.

`unreadable` is a model whose weights are NaN, which loading refuses: a case that runs on it and
reports something else proves that the check comes before the weights.
"""

from __future__ import annotations

import json
import re

import pytest
import yaml

pytestmark = pytest.mark.integration


def row(**values) -> str:
    return json.dumps(values) + "\n"


DATA = {
    "missing": ("sft", None, "no such file. Fix: did you mean", []),
    "bad json": ("sft", row(prompt="a", completion="b") + '{"prompt": "a', "data.jsonl:2", []),
    "empty": ("sft", "", "holds no rows", []),
    "all in validation": ("sft", row(prompt="a", completion="b"), "no training row is left", []),
    "nothing fits": ("sft", "sft", "max_length=4", ["trainer.max_length=4"]),
    "equal": ("dpo", row(prompt="a", chosen="b", rejected="b"), "data.jsonl:1: chosen equals", []),
    "equal, set aside": (
        "reward",
        row(prompt="a", chosen="b", rejected="b"),
        "chosen equals rejected: 1",
        ["data.bad_rows=quarantine"],
    ),
    "hh without assistant": (
        "dpo",
        row(chosen="\n\nHuman: hi", rejected="\n\nHuman: hi there"),
        "does not end with the assistant",
        [],
    ),
    "wrong kind": ("dpo", "sft", "cannot serve 'preference'", []),
    "wrong type": ("sft", row(prompt=1, completion=2), "prompt has the wrong type", []),
    "prompt past the context": (
        "sft",
        row(prompt="where is it? " * 60, completion="b"),
        "past the model's context of 128",
        ["data.validation_fraction=0", "trainer.max_length=null"],
    ),
    "no room to answer": (
        "ppo",
        "prompts",
        "rollout.max_new_tokens=126, which can be lowered",
        ["rollout.max_new_tokens=126"],
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data(case, stage, cli, world, unreadable, tmp_path):
    name, content, expected, overrides = DATA[case]
    file = tmp_path / "data.jsonl"
    if content is None:
        (tmp_path / "dota.jsonl").write_text("")
    elif content in ("sft", "prompts"):
        file = world.folder / f"{content}.jsonl"
    else:
        file.write_text(content)
    result = cli(*stage(name, f"model.path={unreadable}", f"data.train={file}", *overrides))
    assert result.code == 3, result.text
    assert expected in result.text
    assert str(file) in result.text or "row 1" in result.text or "no training row" in result.text


FUNCTIONS = {  # function: (message, before weights)
    "tiny_rewards:lenght": ("has no callable 'lenght'; it has length", True),
    "tiny_rewardz:length": ("importing module 'tiny_rewardz' failed", True),
    "tiny_rewards": ("is not of the form 'module:function'", True),
    "tiny_rewards:raises": ("'raises' raised KeyError: 'score'", False),
    "tiny_rewards:short": ("returned 1 rewards, but 7 completions", False),
    "tiny_rewards:nan": ("returned nan for completion 0", False),
    "tiny_rewards:none": ("returned None for it", False),
    "tiny_rewards:one_number": ("returned float, but a list of 7 floats", False),
    "tiny_rewards:wants_gold": ("completions, completion_ids, trainer_state, place", False),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_reward_functions(function, stage, cli, unreadable, world):
    message, early = FUNCTIONS[function]
    model = unreadable if early else world.model
    arguments = stage("ppo", f"model.path={model}", reward=[{"function": function}])
    result = cli(*arguments)
    assert result.code == 5, result.text
    assert message in result.text
    if early:
        assert cli(*arguments, "--dry-run").code == 5


CONFIGURATIONS = {  # overrides: what is named
    ("rollout.top_p=0.9", "rollout.top_k=5"): ["rollout.top_p", "rollout.top_k"],
    ("trainer.rollout_batch_size=5", "rollout.top_p=0.5", "value.init=runs/x/y"): [
        "trainer.rollout_batch_size",
        "rollout.top_p",
        "value.init",
    ],
    ("rollout.engine=vllm-server", "rollout.top_p=0.9", "rollout.min_new_tokens=2"): [
        "rollout.top_p: 0.9 truncates",
        "rollout.min_new_tokens: 2 truncates",
    ],
    ("trainer.rollouts_ahead=true",): ["trainer.rollouts_ahead: the transformers sampler"],
    ("rollout.engine=vllm", "trainer.rollouts_ahead=true"): ["rollouts_ahead: the vllm sampler"],
    ("rollout.engine=vllm-server", "rollout.vllm={sync: nccl}"): ["another for the server"],
    ("trainer.num_train_epochs=1",): ["num_train_epochs: there are no epochs"],
    ("trainer.total_episodes=3",): ["3 is less than one update's"],
    ("trainer.reward_clip=-1", "trainer.correction_high=0", "trainer.clip_range_value=-0.2"): [
        "trainer.reward_clip: -1",
        "trainer.correction_high: 0",
        "trainer.clip_range_value: -0.2; > 0 is expected",
    ],
    ("trainer.entropy_coef=-0.1", "trainer.gamma=1.5", "trainer.kl_target=0"): [
        "trainer.entropy_coef: -0.1",
        "trainer.gamma: 1.5; >= 0 and <= 1 is expected",
        "trainer.kl_target: 0",
    ],
    ("value.learning_rate=-1e-5",): ["value.learning_rate"],
    ("model.quantization=4bit",): ["value.backbone: `separate` copies"],
    ("signals={enabled: false, stop: {kl_budget: 40}}",): ["signals.enabled is false"],
    ("signals.stop.lower_bound_drop=1",): [
        "needs a posterior's lower bound, and no reward has one"
    ],
    ("trainer.advantage=reinforce++", "signals.stop.on=[dead_critic]"): ["there is no critic"],
    ("trainer.per_device_train_batch_size=0",): ["at least 1 is expected"],
    ("rollout.max_new_tokens=128",): ["no room for a prompt in the model's context of 128"],
    ("rollout.min_new_tokens=9",): ["min_new_tokens=9 is more than max_new_tokens=8"],
    ("reward.0.weight=.nan",): ["reward.0.weight"],
    ("reward.0.path=x",): ["reward.0: names path and function"],
    ("reward.0.function=null",): ["reward.0: names nothing"],
    ("guards=[{type: ewc, strength: 1}]",): ["neither data nor artefact"],
    ("guards=[{type: ewc, strength: 1, data: nope.jsonl}]",): ["nope.jsonl: no such file"],
    ("peft.method=prefix_tuning", "value.backbone=shared"): ["value.backbone: `shared` cannot"],
    ("peft.method=prefix_tuning",): ["prefix_tuning needs num_virtual_tokens"],
    ("peft.kwargs={rr: 3}",): ["'rr'"],
    ("peft.kwargs={target_modules: [q_proj, v_prj]}",): ["'v_prj'. Fix: did you mean v_proj?"],
}


@pytest.mark.parametrize("overrides", CONFIGURATIONS)
def test_ppo_configurations_are_refused_before_weights(overrides, stage, cli, unreadable):
    result = cli(*stage("ppo", f"model.path={unreadable}", *overrides))
    assert result.code == 2, result.text
    for name in CONFIGURATIONS[overrides]:
        assert name in result.text


def test_reward_model_without_statistics(stage, cli, unreadable, copy_model):
    reward = [{"path": str(copy_model("bare"))}]
    result = cli(*stage("ppo", f"model.path={unreadable}", reward=reward))
    assert result.code == 2
    assert "carries no normalisation statistics" in result.text
    assert "train it with `align reward`" in result.text


def test_the_scale_of_rewards_is_checked_before_hours_of_training(stage, cli, unreadable):
    arguments = stage("reward", f"model.path={unreadable}")
    result = cli(*arguments, "normalisation.policy=runs/none/model")
    assert result.code == 4
    assert "normalisation.policy: runs/none/model does not exist" in result.text
    result = cli(*arguments, "normalisation.max_new_tokens=128")
    assert result.code == 2
    assert "leaves no prompt room" in result.text


def test_what_guards_cannot_do_is_refused_all_at_once(stage, cli, unreadable, world, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    guards = [
        {"type": "ewc", "strength": 1.0, "data": str(world.sft), "remember": True},
        {"type": "si", "strength": 1.0, "proximal": True},
        {"type": "agem", "data": "nope.jsonl"},
        {"type": "clear"},
        {"type": "replay", "strength": 1.0, "data": str(world.sft), "budget": {"data": "no.jsonl"}},
        {"type": "replay", "strength": 1.0, "remember": True, "buffer": "herding"},
        {"type": "replay", "strength": 1.0, "data": str(world.sft), "buffer": "herding"},
        {"type": "distill", "strength": 1.0, "on": "new"},
    ]
    result = cli(*stage("sft", f"model.path={unreadable}", "peft.method=lora", guards=guards))
    assert result.code == 2
    for part in (
        "guards.0: ewc holds weights, and under ZeRO-3 no process has whole ones",
        "Fix: use ZeRO-2 or FSDP2, or replay.",
        "guards.0.remember: importances are of whole weights",
        "guards.1: si needs the gradient of whole weights",
        "guards.1.proximal: a proximal step moves weights",
        "guards.2: agem needs whole gradients",
        "guards.2.data: nope.jsonl: no such file",
        "guards.3: clear holds a policy and its critic",
        "guards.4.budget.data: no.jsonl: no such file",
        "guards.5.remember: herding reads whole weights",
        "guards.6.buffer: herding reads whole weights",
        "guards.4.budget: a budget measures the model",
        "guards.7: distill asks the model before training",
    ):
        assert part in result.text, part
    given = ["guards=[{type: ewcc, strength: 1}, {type: distill, strength: 1, fisher: true}]"]
    result = cli(*stage("sft", f"model.path={unreadable}", *given))
    assert "guards.0.type: 'ewcc' is no type. Fix: did you mean `ewc`?" in result.text
    assert "guards.1.distill.fisher: unknown key" in result.text


def test_what_guards_cannot_do_where_weights_are_split(stage, cli, unreadable, world, monkeypatch):
    budget = {"data": str(world.sft), "enforce": True}
    guards = [
        {"type": "replay", "strength": 1.0, "remember": True, "buffer": "herding"},
        {"type": "replay", "strength": 1.0, "data": str(world.sft), "buffer": "herding"},
        {"type": "ema"},
        {"type": "wise_ft"},
        {"type": "replay", "strength": 1.0, "data": str(world.sft), "budget": budget},
    ]

    def refused(*more: str) -> dict[str, str]:
        """Which guards, by index and key, and why."""
        result = cli(*stage("sft", f"model.path={unreadable}", *more, guards=guards))
        return dict(re.findall(r"guards\.([\w.]+): ([^:]+?)\. Fix", result.text))

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # its weights are whole until it wraps them
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert list(refused()) == ["0.remember"]
    found = refused("peft.method=lora")
    assert list(found) == ["0.remember", "2", "3", "4.budget.enforce"]
    assert found["2"] == "ema holds LoRA's product, and FSDP splits its factors"
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert list(refused()) == ["0.remember", "2", "3", "4.budget.enforce"]
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # but for this
    assert list(refused()) == ["0.remember", "1.buffer"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    assert list(refused()) == ["2", "3", "4.budget.enforce"]


def test_unknown_loss_and_tracker(stage, cli, unreadable):
    result = cli(*stage("dpo", f"model.path={unreadable}", "trainer.loss_type=sigmoyd"))
    assert result.code == 2
    assert "did you mean sigmoid?" in result.text


def test_loss_types_are_trls():
    import inspect

    from trl import DPOTrainer

    from align.stages.dpo import LOSS_TYPES

    source = inspect.getsource(inspect.getmodule(DPOTrainer))
    listed = source.split("Unknown loss type", 1)[1].split("]", 1)[0]
    assert set(re.findall(r"\w+", listed.partition("[")[2])) == set(LOSS_TYPES)


EVALUATIONS = {  # changes to the file: what is named
    "no models": ({"evaluate": {"models": {}}}, "evaluate.models: is empty"),
    "missing": ({"evaluate": {"models": {"b": "foo/bar/model"}}}, "foo/bar/model does not exist"),
    "reference": ({"evaluate.reference": "runs/none/x"}, "evaluate.reference"),
    "half": ({"evaluate.reward_model": "x"}, "set both, or neither"),
    "judge missing": ({"judge": {}}, "judge: names nothing"),
    "judge doubled": ({"judge": {"path": "x", "function": "a:b"}}, "judge: names both"),
    "judge nowhere": ({"judge": {"path": "runs/none/x"}}, "judge.path: runs/none/x does not"),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluations(case, cli, world, unreadable, tmp_path):
    changes, expected = EVALUATIONS[case]
    config = {
        "run": {"dir": str(tmp_path / "evaluation")},
        "evaluate": {"models": {"a": str(unreadable)}, "prompts": 4},
        "data": {"train": str(world.prompts)},
        "judge": {"function": "tiny_rewards:length"},
    }
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    file = tmp_path / "evaluate.yaml"
    file.write_text(yaml.safe_dump(config))
    result = cli("evaluate", file)
    assert result.code == 2, result.text
    assert expected in result.text

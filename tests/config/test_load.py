"""Configuration: every problem at once, each with where, what and the way out."""

from __future__ import annotations

import pytest

from align.config import DPOStage, EvaluateStage, PPOStage, RewardStage, SFTStage, load_config
from align.config.load import check_trainer_args, resolve_trainer_args, trainer_class_of
from align.errors import ConfigError

GOOD = "model: {path: m}\ndata: {train: d.jsonl}\n"


def problems(stage, path, overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(stage, path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes = GOOD):
        path = tmp_path / "sft.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.freeze=['layers.[0-9']", "model.freeze: .*'layers.[0-9' is no regular expression"),
        (
            "trainer.center_rewards_coefficient=0.01",
            "center_rewards_coefficient centres the two answers of a pair, and objective.kind is "
            "rankings",
        ),
        ("trainer.label_smoothing_factor=0.1", "set objective.label_smoothing"),
    ],
)
def test_what_a_reward_model_cannot_use_is_refused_before_the_run(override, expected, file):
    given = ["objective.kind=rankings", override]
    said = " ".join(problems(RewardStage, file(), given).split())
    for words in expected.split(" .*"):
        assert words in said
    if "trainer" in override:
        load_config(RewardStage, file(), [given[0], override.split("=")[0] + "=0.0"])
        load_config(RewardStage, file(), [override])  # pairs by Bradley-Terry can use both


def test_a_missing_file_offers_the_nearest_name(file, tmp_path):
    file()
    assert f"did you mean {tmp_path / 'sft.yaml'}?" in problems(SFTStage, tmp_path / "stf.yaml")
    assert "is a folder" in problems(SFTStage, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  path: x\n data: [\n", "sft.yaml:3: is not valid YAML"),
        ("model:\n\tpath: x\n", "sft.yaml:2: is not valid YAML"),
        (GOOD + "model: {path: other}\n", "`model` is there twice, in lines 1 and 3"),
        ("- a\n", "holds a list, but sections are expected"),
        (b"\xff\xfe\x00a", "is not valid YAML"),
        ("", "model: is required and missing"),
        ("model: gpt2\ndata: {train: d}\n", "model: 'gpt2' does not fit: a section with"),
        ("1: a\n" + GOOD, "keys should be strings"),
        (GOOD + "trainer: [1]\n", "trainer: [1] does not fit: a section with"),
    ],
)
def test_bad_files(file, text, expected):
    assert expected in problems(SFTStage, file(text))


GUARDS = """[
  {type: distill, strength: 1, on: new, reverse: on},
  {type: ewc, strength: 1, fisher: true, data: x.jsonl}]
"""


def test_a_key_is_what_is_written(file):
    """YAML 1.1 reads `on` as a truth value, and `true` where a word was meant."""
    for config in (
        load_config(SFTStage, file(GOOD + "guards: " + GUARDS)),
        load_config(SFTStage, file(GOOD), ["guards=" + GUARDS]),
    ):
        distill, ewc = config.guards
        assert (distill.on, distill.reverse, ewc.fisher) == ("new", True, "true")
    twice = problems(SFTStage, file(GOOD), ["data={train: d, train: e}"])
    assert "`train` is there twice" in twice


def test_no_steps_are_refused_and_the_default_is_not(file):
    expected = "trainer.max_steps: 0 does not fit: at least 1 is expected, or -1"
    assert expected in problems(SFTStage, file(GOOD), ["trainer.max_steps=0"])
    for steps in (-1, 1):
        load_config(SFTStage, file(GOOD), [f"trainer.max_steps={steps}"])


def test_every_problem_is_reported_at_once(file):
    found = problems(
        SFTStage,
        file(),
        [
            "modle.path=x",
            "data.validation_fracton=0.1",
            "run.seed=abc",
            "trainer.learning_rte=1",
            "trainer.output_dir=x",
            "trainer.max_steps=many",
            "trainer.per_device_train_batch_size=0",
            "trainer.learning_rate=-1e-5",
            "nonsense",
        ],
    )
    assert found.startswith("9 configuration problems:")
    for expected in (
        "modle: unknown key in the top level. Fix: did you mean `model`?",
        "data.validation_fracton: unknown key in section `data`. Fix: did you mean `validation_",
        "run.seed: 'abc' does not fit",
        "SFTConfig has no such key. Fix: did you mean `learning_rate`?",
        "trainer.output_dir: is set elsewhere. Fix: use run.dir instead.",
        "trainer.max_steps: 'many' does not fit",
        "trainer.per_device_train_batch_size: 0 does not fit: at least 1",
        "trainer.learning_rate: '-1e-5' does not fit: at least 0",
        "'nonsense': is not an override. Fix: write section.key=value",
    ):
        assert expected in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("=3", "is not an override"),
        ("trainer..max_steps=3", "is not an override"),
        ("run.seed.x=3", "`run.seed` holds a value, not a section"),
        ("reward.5.weight=3", "'5' is not an index below 1"),
        ("reward.x=3", "'x' is not an index below 1"),
        ("reward.0.wieght=3", "did you mean `weight`?"),
        ("reward.0.weight=.inf", "reward.0.weight"),
        ("reward=[]", "at least 1 item"),
        ("rollout.temperature=0", "greater than 0"),
    ],
)
def test_bad_overrides(file, override, expected):
    text = GOOD + "reward: [{function: 'a:b'}]\nrun: {seed: 1}\n"
    assert expected in problems(PPOStage, file(text), [override])


def test_precedence_is_default_then_file_then_command_line(file):
    path = file(GOOD + "run: {seed: 7}\ntrainer: {learning_rate: 1e-5, max_steps: 3}\n")
    config = load_config(SFTStage, path, ["trainer.max_steps=5", "data.train=[a.jsonl, b.jsonl]"])
    assert config.run.seed == 7
    assert config.data.validation_fraction == 0.05
    assert config.trainer["max_steps"] == 5
    assert [source.path for source in config.data.train] == ["a.jsonl", "b.jsonl"]
    resolved = resolve_trainer_args(trainer_class_of(config), config.trainer)
    assert resolved == {"learning_rate": 1e-5, "max_steps": 5}  # YAML reads 1e-5 as text


def test_what_yaml_and_users_write_is_understood(file):
    config = load_config(SFTStage, file(GOOD + "tracking: {report_to: none}\n"))
    assert config.tracking.report_to == ["none"]
    from trl import DPOConfig

    values = {"loss_type": "ipo", "save_strategy": False, "eval_strategy": False}
    assert not check_trainer_args(DPOConfig, values)
    resolved = resolve_trainer_args(DPOConfig, values)
    assert resolved["loss_type"] == ["ipo"]
    assert str(getattr(resolved["save_strategy"], "value", resolved["save_strategy"])) == "no"


def test_an_evaluation_holds_out_prompts_only_when_asked(file):
    text = "evaluate: {models: {a: a}}\ndata: {train: p.jsonl}\njudge: {path: j}\n"
    assert load_config(EvaluateStage, file(text), []).data.validation_fraction == 0
    asked = load_config(EvaluateStage, file(text), ["data.test_fraction=0.1"])
    assert (asked.data.validation_fraction, asked.data.test_fraction) == (0.05, 0.1)


def test_a_stage_knows_only_its_own_sections(file):
    assert "reward: unknown key" in problems(DPOStage, file(GOOD + "reward: []\n"))
    found = problems(EvaluateStage, file(GOOD + "trainer: {}\n"))
    assert "evaluate: is required" in found
    assert "judge: is required" in found

"""The whole evaluation on real tiny models: evaluation.json, the terminal, resuming, warnings."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from align.errors import DataError, RewardError
from align.evaluate.evaluate import Evaluation, evaluate_models
from align.evaluate.judge import as_judge
from align.evaluate.policy import policy_metrics
from align.evaluate.reward_model import evaluate_reward_model
from align.rollout.transformers import TransformersSampler
from align.types import Text

PROMPTS: list[Text] = [f"w{row % 50} w{row % 7}" for row in range(120)]


def gold(prompts, completions, wanted, **columns):
    """Share of the words that lie below the wanted number."""
    scores = []
    for text, limit in zip(completions, wanted, strict=True):
        words = text.split()
        scores.append(sum(int(word[1:]) < limit for word in words if word[0] == "w") / 8)
    return scores


def shorter(prompts, first, second, **columns):
    return [
        "first" if len(a.split()) <= len(b.split()) else "second"
        for a, b in zip(first, second, strict=True)
    ]


@pytest.fixture(scope="module")
def samplers(make_model, tokenizer) -> dict[str, TransformersSampler]:
    """`better` writes more of the low words than `base`, by a push on its head."""
    base, better = make_model(0), make_model(0)
    better.lm_head.weight.data[3:33] += 0.4 * better.model.norm.weight.mean()
    return {
        name: TransformersSampler(model, tokenizer, max_new_tokens=8, temperature=temperature)
        for name, model, temperature in (("base", base, 1.0), ("better", better, 0.9))
    }


def run(samplers, judge=None, **options) -> Evaluation:
    judges = judge or [as_judge(gold), as_judge(shorter)]
    return evaluate_models(
        samplers, PROMPTS, judges, {"wanted": [30] * len(PROMPTS)}, batch_size=64, **options
    )


@pytest.fixture(scope="module")
def evaluation(samplers) -> Evaluation:
    reference = samplers["base"].policy
    rows = [
        {"prompt": f"p{k}", "chosen": f"w{k % 40} w1 w2", "rejected": f"w{k % 60}", "wanted": 30}
        for k in range(60)
    ]
    return run(
        samplers,
        paths={"base": "models/base", "better": "models/better"},
        measures={
            name: lambda rollout, model=sampler.policy: policy_metrics(
                model, reference, rollout, group_size=2
            )
            for name, sampler in samplers.items()
        },
        reward_model=evaluate_reward_model(rows, gold),
        samples=2,
        show=3,
    )


def test_evaluation_json_has_the_agreed_shape(evaluation: Evaluation, tmp_path: Path) -> None:
    found = json.loads(evaluation.save(tmp_path).read_text())
    assert found["baseline"] == "base"
    assert found["models"]["better"]["path"] == "models/better"
    needed = {"length_mean", "distinct_2", "finished_rate", "entropy_token", "score_mean"}
    assert needed <= set(found["models"]["base"])
    keys = {"a", "b", "judge", "n", "wins", "losses", "ties", "rate", "low", "high", "p_value"}
    assert all(keys | {"score_difference"} <= set(rate) for rate in found["win_rates"])
    assert [(r["a"], r["b"], r["judge"]) for r in found["win_rates"]] == [
        ("better", "base", "gold"),
        ("better", "base", "shorter"),
    ]
    reward = found["reward_model"]
    assert {"accuracy", "low", "high", "n", "log_loss", "ece", "length_baseline"} <= set(reward)
    assert [sample["prompt"] for sample in found["samples"]] == [
        PROMPTS[0],
        PROMPTS[60],
        PROMPTS[119],
    ]
    assert set(found["samples"][0]["completions"]) == {"base", "better"}
    assert set(found["samples"][0]["scores"]) == {"base", "better"}


def test_the_better_model_wins_by_a_clear_margin(evaluation: Evaluation) -> None:
    by_gold = evaluation.win_rates[0]
    assert by_gold.n == 120
    assert by_gold.low > 0.5
    assert by_gold.p_value < 0.01
    difference = evaluation.models["better"]["score_mean"] - evaluation.models["base"]["score_mean"]
    assert by_gold.score_difference == pytest.approx(difference)


def test_kl_of_the_baseline_is_zero_and_of_the_other_is_not(evaluation: Evaluation) -> None:
    assert evaluation.models["base"]["kl_k1_sequence"] == 0.0
    assert evaluation.models["better"]["kl_low"] > 0.0


def test_scores_beside_the_samples_are_those_of_the_text_shown(evaluation: Evaluation) -> None:
    for sample in evaluation.samples:
        for name, text in sample["completions"].items():
            assert gold([sample["prompt"]], [text], [30]) == [sample["scores"][name]]


def test_rendering_shows_what_the_json_holds(evaluation: Evaluation) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation.render())
    shown = console.export_text()
    for rate in evaluation.win_rates:
        assert f"{rate.rate:.3f}" in shown
        assert f"[{rate.low:.3f}, {rate.high:.3f}]" in shown
    assert "baseline: base" in shown
    assert f"{evaluation.reward_model.accuracy:.3f}" in shown


def test_a_crashed_judge_loses_no_completions_and_no_verdicts(samplers, tmp_path: Path) -> None:
    whole = run(samplers)
    asked = []

    def fragile(prompts, first, second, **columns):
        asked.append(len(prompts))
        if len(asked) == 3:
            raise ConnectionError("judge unreachable")
        return shorter(prompts, first, second)

    def unused(prompts, group_size=1, **columns):
        raise AssertionError("sampled again")

    identities = {"base": "1", "better": "2"}
    judges = [as_judge(gold), as_judge(fragile, "shorter", identity="v1")]
    with pytest.raises(RewardError, match="judge unreachable"):
        run(samplers, judges, run_dir=tmp_path, identities=identities)
    calls = len(asked)
    again = run(dict.fromkeys(samplers, unused), judges, run_dir=tmp_path, identities=identities)
    assert again.as_dict() == whole.as_dict()
    assert len(asked) - calls == 2  # the second half, in both orders


def test_warnings_say_what_to_doubt(evaluation: Evaluation) -> None:
    assert any("cut off" in warning for warning in evaluation.warnings)  # 8 tokens are few
    assert any("favours the first" in warning for warning in evaluation.warnings)


def test_errors_before_anything_is_sampled() -> None:
    def untouched(prompts, group_size=1, **columns):
        raise AssertionError("sampled before the arguments were checked")

    judge = as_judge(gold)
    models = {"a": untouched, "b": untouched}
    with pytest.raises(DataError, match="no model is called c; there are a, b"):
        evaluate_models(models, PROMPTS, judge, baseline="c")
    with pytest.raises(DataError, match="no model is called d"):
        evaluate_models(models, PROMPTS, judge, pairs=[("a", "d")])
    with pytest.raises(DataError, match="at least one prompt"):
        evaluate_models(models, [], judge)
    with pytest.raises(DataError, match="0 models and 1 judges"):
        evaluate_models({}, PROMPTS, judge)

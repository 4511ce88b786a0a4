"""Retention: losses against a plain forward pass, pairing by row, and `align evaluate`."""

import json
import math
import random

import pytest
import torch

from align.config import EvaluateStage, load_config
from align.errors import AlignError, DataError
from align.evaluate.retention import Losses, forgotten, retention_losses, row_ids
from align.run import open_run
from align.stages import evaluate
from align.stages.sft import sft_source

ROWS = [
    {"text": "w1 w2 w3 w4"},
    {"prompt": "w5 w6 ", "completion": "w7 w8 w9"},
    {"prompt": "w5 w6 ", "chosen": "w3 w8", "rejected": "w1"},
]


def test_losses_are_those_of_a_plain_forward_pass(make_model, tokenizer):
    model = make_model(0)
    found = retention_losses(model, tokenizer, ROWS, batch_size=2)
    for row, nats, tokens in zip(ROWS, found.nats, found.tokens, strict=True):
        prompt, answer = row_ids(row, tokenizer)
        ids = torch.tensor([prompt + answer])
        first = max(1, len(prompt))
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1).detach()
        expected = -sum(float(logprobs[t - 1, ids[0, t]]) for t in range(first, ids.shape[1]))
        assert nats == pytest.approx(expected, abs=1e-4)
        assert tokens == ids.shape[1] - first
    assert found.tokens == (4, 4, 3)  # each ends with EOS; a text's first token has no context
    mean = sum(found.nats) / sum(found.tokens)
    assert found.metrics()["retention_nats"] == pytest.approx(mean)


def test_the_tokens_are_those_that_sft_trains_on(make_model, tokenizer):
    model = make_model(0)
    source = sft_source(tokenizer, None, model.device)
    batches = list(source.encode(ROWS[:2]))
    found = retention_losses(model, tokenizer, ROWS[:2])
    for nats, batch in zip(found.nats, batches, strict=True):
        assert nats == pytest.approx(float(source.loss(model, batch)), abs=1e-4)


def test_rows_past_the_context_count_for_no_model(make_model, tokenizer):
    model = make_model(0)  # of 64 tokens
    long = {"text": " ".join(["w1"] * 70)}
    found = retention_losses(model, tokenizer, [long, *ROWS])
    assert found.nats[0] == 0.0
    assert found.tokens[0] == 0
    assert found.nats[1:] == retention_losses(model, tokenizer, ROWS).nats
    with pytest.raises(DataError, match="none of 1 rows fits into the model's context of 64"):
        retention_losses(model, tokenizer, [long])


def test_forgetting_is_paired_by_row():
    rng = random.Random(0)
    hard = [rng.uniform(0, 400) for _ in range(200)]  # rows differ far more than models do
    before = Losses(tuple(hard), (10,) * 200)
    after = Losses(tuple(nats + rng.uniform(0.4, 0.6) for nats in hard), (10,) * 200)
    found = forgotten(before, after)
    assert found is not None
    low, value, high = (found[f"forgotten_{end}"] for end in ("low", "nats", "high"))
    assert 0.049 < low < value < high < 0.051
    loose = after.metrics()
    assert loose["retention_high"] - loose["retention_low"] > 1.0
    assert forgotten(before, before)["forgotten_nats"] == 0.0


def test_other_tokens_do_not_compare():
    assert forgotten(Losses((1.0, 2.0), (3, 4)), Losses((1.0, 2.0), (3, 5))) is None
    with pytest.raises(DataError, match="1 rows before and 2 after"):
        forgotten(Losses((1.0,), (3,)), Losses((1.0, 2.0), (3, 5)))


@pytest.fixture
def written(tmp_path, make_model, tokenizer, nearby, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges.py").write_text(
        "def good(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    models = {"base": make_model(1), "after": nearby(make_model(1))}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"w{i} w{i + 1} "}) + "\n" for i in range(6))
    )
    known = [{"question": row["prompt"], "answer": row["completion"]} for row in [ROWS[1]] * 4]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))

    def configure(**retention):
        kept = {"data": "known.jsonl", "columns": {"prompt": "question", "completion": "answer"}}
        settings = {
            "run": {"dir": "run", "overwrite": True},
            "evaluate": {
                "models": {"after": "after", "base": "base"},
                "retention": kept | retention,
            },
            "judge": {"function": "judges:good"},
            "data": {"train": "prompts.jsonl"},
            "rollout": {"max_new_tokens": 4},
        }
        (tmp_path / "evaluate.yaml").write_text(json.dumps(settings))
        return load_config(EvaluateStage, tmp_path / "evaluate.yaml", [])

    return configure, models


def run_it(config):
    with open_run(config, command=["align", "evaluate"]) as run:
        evaluate.run(config, run)
    return json.loads((run.path / "evaluation.json").read_text())


@pytest.mark.parametrize("before", ["base", None])
def test_align_evaluate_says_what_each_model_forgot(written, tokenizer, before):
    configure, models = written
    found = run_it(configure(before=before))["models"]
    start, other = ("base", "after") if before else ("after", "base")
    losses = {
        name: retention_losses(model, tokenizer, [ROWS[1]] * 4) for name, model in models.items()
    }
    for name in models:
        assert found[name]["retention_nats"] == pytest.approx(
            losses[name].metrics()["retention_nats"], abs=1e-5
        )
    assert "forgotten_nats" not in found[start]
    grown = found[other]["retention_nats"] - found[start]["retention_nats"]
    assert found[other]["forgotten_nats"] == pytest.approx(grown, abs=1e-6)
    assert not math.isclose(grown, 0.0, abs_tol=1e-3)


def test_it_is_measured_where_no_kl_can_be(written):
    configure, _ = written
    config = configure()
    nucleus = config.rollout.model_copy(update={"top_p": 0.9})
    found = run_it(config.model_copy(update={"rollout": nucleus}))["models"]["base"]
    assert "forgotten_nats" in found
    assert "kl_k1_sequence" not in found


def test_what_is_not_there_is_refused_before_a_model_loads(written, monkeypatch):
    configure, _ = written
    monkeypatch.setattr(evaluate, "load_policy", None)
    with pytest.raises(AlignError) as caught:
        run_it(configure(before="start", data="./gone.jsonl"))
    assert "evaluate.retention.before: there is no model 'start'" in str(caught.value)
    assert "evaluate.retention.data: ./gone.jsonl does not exist" in str(caught.value)

"""Strategies as YAML names them, and every mistake at once."""

from __future__ import annotations

import numpy as np
import pytest

from align.active.strategies import build_strategy
from feedback.acquisition import Acquirer, Diversify, Epsilon, Mix, Pool, Scorer, Stratify


def built(given, model=True):
    problems = []
    return build_strategy(given, "s", problems, model=model), [str(p) for p in problems]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("bald", Scorer),
        ({"kind": "mix", "parts": [{"kind": "bald", "weight": 3}, "density"]}, Mix),
        ({"kind": "epsilon", "of": "bald", "epsilon": 0.3}, Epsilon),
        ({"kind": "diversify", "of": "badge", "similarity": 0.9, "on": "prompts"}, Diversify),
        ({"kind": "stratify", "of": {"kind": "epsilon", "of": "bald"}}, Stratify),
        ({"kind": "per_cost", "of": "uncertainty"}, Scorer),
    ],
)
def test_what_yaml_makes_chooses(given, kind):
    strategy, problems = built(given)
    assert isinstance(strategy, kind)
    assert not problems
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 4))
    pool = Pool(
        [str(i) for i in range(60)],
        differences=z,
        prompts=rng.normal(size=(60, 5)),
        strata=["en", "de"] * 30,
        costs=np.linspace(1, 2, 60),
    )
    chosen = Acquirer(strategy, None).select(pool, rng.normal(size=(4, 4)) @ z.T, 6, rng)
    assert len(set(chosen.ids)) == 6


def test_options_arrive():
    strategy, _ = built({"kind": "mix", "parts": [{"kind": "bald", "weight": 3}, "density"]})
    assert [(part.name, weight) for part, weight in strategy.parts] == [
        ("bald", 3.0),
        ("density", 1.0),
    ]
    strategy, _ = built({"kind": "epsilon", "of": "bald", "epsilon": 0.3})
    assert strategy.epsilon == 0.3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("bold", "s: 'bold' is no strategy. Fix: did you mean bald?"),
        ({"of": "bald"}, "s: None is no strategy"),
        ({"kind": "bal_pm", "betta": 1}, "s.betta: is no option of this strategy. Fix: it takes b"),
        ({"kind": "random", "k": 1}, "s.k: is no option of this strategy. Fix: it takes none."),
        ({"kind": "epsilon", "epsilon": 0.1}, "s: epsilon is made of another strategy"),
        ({"kind": "epsilon", "of": "badge"}, "s.of: epsilon weighs scores of single items"),
        ({"kind": "mix"}, "s: a mix has `parts`"),
        ({"kind": "mix", "parts": ["bald", "badge"]}, "badge chooses a batch together"),
        ({"kind": "mix", "parts": [{"kind": "bald", "weight": "x"}]}, "s.parts.0.weight: 'x'"),
        ({"kind": "diversify", "of": "bald", "similarity": 2}, "s: similarity is 2"),
        ({"kind": "stratify", "of": {"kind": "mix", "parts": ["bold"]}}, "s.of.parts.0: 'bold'"),
    ],
)
def test_a_mistake_says_where(given, words):
    strategy, problems = built(given)
    assert strategy is None
    assert len(problems) == 1
    assert words in problems[0]


def test_before_there_is_a_model_prompts_alone_can_be_chosen_by():
    for name in ("random", "typical", "k_center", "k_means", "density"):
        strategy, problems = built(name, model=False)
        assert not problems
        rng = np.random.default_rng(0)
        pool = Pool([str(i) for i in range(40)], prompts=rng.normal(size=(40, 5)))
        assert len(Acquirer(strategy, None).select(pool, np.zeros((1, 40)), 5, rng).ids) == 5
    _, problems = built("bald", model=False)
    assert "bald needs a model, and before the first labels there is none" in problems[0]

"""One round: what is asked, what is held out, and that nothing crosses over."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from feedback.acquisition import STRATEGIES, Acquirer, Annotator, Budget, Holdout, Pool, View
from feedback.acquisition.arrays import to_margins
from feedback.acquisition.pool import margins_of
from feedback.errors import DataError

RNG = np.random.default_rng
COUNT = 300


def make_pool(seed: int = 0, count: int = COUNT, **more) -> tuple[Pool, np.ndarray]:
    rng = RNG(seed)
    z = rng.normal(size=(count, 6))
    pool = Pool(ids=[f"i{i}" for i in range(count)], differences=z, **more)
    return pool, rng.normal(size=(8, 6)) @ z.T


def test_a_round_keeps_a_random_holdout_and_explains_each_item():
    pool, margins = make_pool()
    acquirer = Acquirer(STRATEGIES["bald"](), Holdout(0.2, seed=3))
    found = acquirer.select(pool, margins, 25, RNG(0))
    assert len(set(found.ids)) == len(found.ids) == 25
    assert len(found.held) == 3  # a tenth, rounded up
    held = {pool.ids[i] for i in np.flatnonzero(acquirer.holdout.held(pool))}
    assert set(found.held) <= held
    assert not set(found.chosen) & held
    assert set(found.held) | set(found.chosen) == set(found.ids)
    assert found.note == ""
    assert all("holdout" in why for why in found.reasons[:3])
    assert all("disagree" in why for why in found.reasons[3:])
    assert np.isnan(found.scores[:3]).all()
    assert np.isnan(found.propensities[3:]).all()
    assert found.propensities[:3] == pytest.approx(0.2 * 3 / len(held))
    assert sorted(found.shuffled(RNG(1))) == sorted(found.ids)
    rows = found.rows()
    assert rows[0] == {
        "id": found.ids[0],
        "score": None,
        "reason": found.reasons[0],
        "propensity": pytest.approx(0.2 * 3 / len(held)),
        "annotator": None,
    }


def test_rounds_ask_nothing_twice_and_empty_the_pool():
    pool, margins = make_pool(count=60)
    acquirer = Acquirer(STRATEGIES["uncertainty"](), Holdout(0.3), similarity=None)
    asked: list[str] = []
    for turn in range(20):
        found = acquirer.select(pool, margins, 7, RNG(turn), asked)
        assert not set(found.ids) & set(asked)
        asked += found.ids
        if len(found.ids) < 7:
            break
    held = int(acquirer.holdout.held(pool).sum())
    assert len(set(asked)) >= 60 - held
    assert found.note.endswith("every pair that may be chosen is.")


def test_the_same_generator_gives_the_same_selection():
    pool, margins = make_pool()
    for name in ("bald", "badge", "power_bald", "random"):
        acquirer = Acquirer(STRATEGIES[name]())
        both = [acquirer.select(pool, margins, 20, RNG(5)) for _ in range(2)]
        assert both[0].ids == both[1].ids
        assert both[0].reasons == both[1].reasons


def test_near_duplicates_do_not_fill_a_selection():
    rng = RNG(0)
    z = np.concatenate([np.ones((200, 6)) + 0.01 * rng.normal(size=(200, 6)), np.eye(6)])
    pool = Pool(ids=[str(i) for i in range(206)], differences=z)
    margins = np.concatenate([rng.normal(size=(4, 200)) * 5, np.zeros((4, 6))], axis=1)
    found = Acquirer(STRATEGIES["bald"](), holdout=None).select(pool, margins, 5, RNG(0))
    assert sum(int(one) < 200 for one in found.ids) == 1
    let_in = Acquirer(STRATEGIES["bald"](), holdout=None, similarity=None)
    assert all(int(one) < 200 for one in let_in.select(pool, margins, 5, RNG(0)).ids)
    few = Acquirer(STRATEGIES["bald"](), holdout=None).select(pool, margins, 50, RNG(0))
    assert len(few.ids) == 7
    assert few.note == "7 of 50: the 199 others are near-duplicates of these."


def test_labels_of_the_holdout_are_not_counted_as_covered():
    pool, margins = make_pool()
    holdout = Holdout(0.2)
    held = [pool.ids[i] for i in np.flatnonzero(holdout.held(pool))]
    seen: list[View] = []

    def spy(view, k, rng):
        seen.append(view)
        return STRATEGIES["random"]()(view, k, rng)

    free = [one for one in pool.ids if one not in held]
    Acquirer(spy, holdout).select(pool, margins, 5, RNG(0), [*held[:9], *free[:4]])
    assert [pool.ids[i] for i in seen[0].taken] == free[:4]
    assert not {pool.ids[i] for i in seen[0].free} & {*held, *free[:4]}


def test_a_budget_pays_for_the_holdout_too_and_does_not_skip_its_dear_items():
    pool, margins = make_pool(costs=np.full(COUNT, 2.0))
    people = (Annotator("ann", 1.0, capacity=6.0), Annotator("bob", 2.0))
    strategy = Budget(STRATEGIES["bald"](), 20.0, people)
    found = Acquirer(strategy, Holdout(0.2)).select(pool, margins, 20, RNG(0))
    assert len(found.ids) == 3 + 3  # 3 at 2, then 3 at 4; 2 are left, which buy nothing
    assert len(found.held) == 2
    assert [found.annotators[one] for one in found.ids] == ["ann"] * 3 + ["bob"] * 3
    assert "or the budget ends there" in found.note
    order = Holdout(0.2).draw(pool, 3)
    costs = np.ones(COUNT)
    costs[order[1]] = 99.0
    pool, _ = make_pool(costs=costs)
    found = Acquirer(Budget(STRATEGIES["bald"](), 20.0), Holdout(0.2), 0.3).select(
        pool, margins, 10, RNG(0)
    )
    assert found.held == (pool.ids[order[0]],)


class Linear:
    """A posterior as `reward.posterior` has them, over linear rewards."""

    def __init__(self, weights):
        self.weights = weights

    def mean(self, features):
        return features @ self.weights.mean(axis=0)

    def std(self, features):
        return (features @ self.weights.T).std(axis=1)

    def sample(self, features, n, seed=0):
        return self.weights[RNG(seed).permutation(len(self.weights))[:n]] @ features.T


def test_any_posterior_serves():
    rng = RNG(0)
    first, second, weights = (rng.normal(size=(n, 4)) for n in (50, 50, 8))
    pool = Pool(ids=[str(i) for i in range(50)], first=first, second=second)
    acquirer = Acquirer(STRATEGIES["bald"](), holdout=None, samples=8)
    found = acquirer.select(pool, Linear(weights), 9, RNG(1))
    margins = weights @ (first - second).T
    plain = acquirer.select(pool, margins, 9, RNG(1))
    assert found.ids == plain.ids
    assert found.scores == pytest.approx(plain.scores)
    same = acquirer.select(pool, to_margins(1 / (1 + np.exp(-margins))), 9, RNG(1))
    assert same.ids == found.ids


def test_the_posteriors_of_reward_serve():
    from reward.laplace import LastLayerLaplace
    from reward.posterior import EnsemblePosterior

    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(40, 4, generator=draw) for _ in range(2))
    weight = torch.randn(1, 4, generator=draw)
    laplace = LastLayerLaplace.fit(weight, torch.zeros(1), first[:9], second[:9], precision=1.0)
    ids = [str(i) for i in range(40)]
    pool = Pool(ids=ids, first=first, second=second, differences=first - second)
    for name in ("bald", "d_optimal"):
        found = Acquirer(STRATEGIES[name](), holdout=None).select(pool, laplace, 5, RNG(0))
        assert len(found.ids) == 5
    drawn = margins_of(pool, laplace, 4000, 0)
    sure = laplace.margin_std(first, second).numpy()
    assert drawn.std(axis=0) == pytest.approx(sure, rel=0.1)  # one function scores both answers
    ensemble = Acquirer(STRATEGIES["bald"](), holdout=None, samples=4)
    assert len(ensemble.select(pool, EnsemblePosterior(), 5, RNG(0)).ids) == 5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Pool(ids=["a", "a"]), "holds item 'a' twice"),
        (lambda: Pool(ids=["a"], first=np.ones((1, 1))), "features of one side only"),
        (lambda: Pool(ids=["a"], prompts=np.ones((2, 1))), "1 ids and 2 rows of prompts"),
        (lambda: Pool(ids=["a"], costs=[0.0]), "cost of item 'a' is 0"),
        (lambda: Acquirer(STRATEGIES["bald"](), holdout_share=0.0), r"holdout_share is 0\.0"),
        (lambda: round_of(labelled=["zz"]), "item 'zz' is labelled and not in the pool"),
        (lambda: round_of(posterior=np.ones((2, 7))), r"shape \(2, 7\) for a pool of 300"),
        (
            lambda: round_of(posterior=Linear(np.ones((2, 6)))),
            "pool has none. Fix: give first=",
        ),
        (lambda: round_of(posterior=print), "has no `sample`"),
        (lambda: round_of(strategy="k_means"), "needs prompt embeddings"),
        (lambda: round_of(posterior=np.ones(300)), "committee of 1 cannot disagree"),
        (lambda: round_of(k=0), "k is 0"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()


def round_of(strategy="bald", posterior=None, k=5, labelled=()):
    pool, margins = make_pool()
    given = margins if posterior is None else posterior
    return Acquirer(STRATEGIES[strategy]()).select(pool, given, k, RNG(0), labelled)


def test_a_strategy_that_needs_differences_says_so():
    pool = Pool(ids=["a", "b"], first=np.ones((2, 2)), second=np.ones((2, 2)))
    with pytest.raises(DataError, match="needs feature differences"):
        Acquirer(STRATEGIES["d_optimal"](), holdout=None).select(pool, np.ones((2, 2)), 1, RNG(0))


def test_the_example_of_the_page_runs(capsys):
    page = Path(__file__).resolve().parents[3] / "docs" / "active.md"
    code = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert len(code.splitlines()) < 30
    exec(compile(code, str(page), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) >= 3
    assert not math.isnan(float(re.search(r"accuracy (\d\.\d+)", printed[-1]).group(1)))

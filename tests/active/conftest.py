"""Pools with known answers, and a learner that is real and trains in milliseconds.

`WordLearner` fits a Bradley-Terry reward on counts of words and its Laplace posterior:
features that need no language model. `align reward` runs in tests/integration/test_active_cli.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from align.active.belief import Belief
from align.active.choose import Chooser
from align.active.desks import SimulatedDesk, of_ranks
from align.active.loop import Loop
from align.active.open import truth_of
from align.active.pool import Group, PairPool, shuffled
from align.active.stop import Rules
from align.run import read_jsonl
from feedback.acquisition import STRATEGIES, Holdout
from feedback.simulate import SimulatedAnnotator
from feedback.store import FeedbackStore
from reward.laplace import LastLayerLaplace

WORDS = ["please", "thanks", "no", "never", "maybe", "sure", "sorry", "look", "here", "there"]
WORTH = dict(zip(WORDS, [2, 2, -2, -2, 0, 1, 1, 0, 0, -1], strict=True))


def answer(draw: np.random.Generator) -> str:
    return " ".join(draw.choice(WORDS, size=5))


def worth(text: str) -> float:
    return float(sum(WORTH[word] for word in text.split()))


def make_pool(prompts: int = 60, answers: int = 2, seed: int = 0) -> PairPool:
    """Prompts whose answers are worth what their words are; each ranked by it."""
    draw = np.random.default_rng(seed)
    groups = []
    while len(groups) < prompts:
        texts = [answer(draw) for _ in range(answers)]
        if len({worth(text) for text in texts}) < answers:
            continue
        order = sorted(texts, key=worth, reverse=True)
        made = shuffled(f"Question {len(groups)}?", texts, [order.index(t) + 1.0 for t in texts])
        groups.append(Group(f"Question {len(groups)}?", stratum="ab"[len(groups) % 2], **made))
    return PairPool(tuple(groups))


class WordLearner:
    """The likeliest linear reward on counts of ten words, with its Laplace posterior."""

    def __init__(self, draws: int = 8) -> None:
        self.draws, self.fits = draws, 0

    def fit(self, rows, folder: Path, seed: int, warm: Path | None) -> None:
        if (folder / "weights.npy").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "train.jsonl").is_file():
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        z = self._differences(folder)

        def loss(w):
            margin = z @ w
            return np.logaddexp(0, -margin).sum() + w @ w / 2, w - z.T @ expit(-margin)

        np.save(folder / "weights.npy", minimize(loss, np.zeros(z.shape[1]), jac=True).x)
        self.fits += 1

    def believe(self, folder: Path, prompts, answers) -> Belief:
        w = torch.from_numpy(np.load(folder / "weights.npy"))[None]
        sides = [
            torch.from_numpy(_features([row[key] for row in read_jsonl(folder / "train.jsonl")]))
            for key in ("chosen", "rejected")
        ]
        bias = torch.zeros(1, dtype=torch.float64)
        posterior = LastLayerLaplace.fit(w, bias, *sides, precision=1.0)
        features = torch.from_numpy(_features(answers))
        drawn = posterior.sample(features, self.draws, seed=0).numpy()
        return Belief(drawn, features.numpy(), posterior.mean(features).numpy(), 1.0)

    def forget(self, folder: Path) -> None:
        (folder / "weights.npy").unlink(missing_ok=True)

    @staticmethod
    def _differences(folder: Path):
        rows = read_jsonl(folder / "train.jsonl")
        sides = [_features([row[key] for row in rows]) for key in ("chosen", "rejected")]
        return sides[0] - sides[1]


def _features(texts):
    """How often each word is there, (n, 10)."""
    return np.array([[text.split().count(word) for word in WORDS] for text in texts], dtype=float)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


@pytest.fixture
def make_loop(tmp_path, store):
    """`make_loop(pool, strategy="bald", desk=..., **settings)`: a loop with simulated people."""

    def make(pool=None, strategy="bald", desk=None, **settings):
        pool = pool or make_pool()
        own = settings.pop("store", store)
        seed = settings.pop("seed", 0)
        chosen = {
            name: settings.pop(name)
            for name in ("build", "rankings", "holdout_share", "similarity", "batch")
            if name in settings
        }
        fraction = settings.pop("holdout", 0.3)
        chooser = Chooser(
            STRATEGIES[strategy](),
            STRATEGIES["random"](),
            Holdout(fraction, seed),
            **({"batch": 8, "holdout_share": 0.25} | chosen),
        )
        if desk is None:
            desk = SimulatedDesk(own, [SimulatedAnnotator("ann", seed)], of_ranks)
        given = {"rules": Rules(rounds=3), "learner": WordLearner(), "folder": tmp_path / "run"}
        given |= {"truth": truth_of(desk, seed)} | settings
        return Loop(pool=pool, store=own, chooser=chooser, desk=desk, seed=seed, **given)

    return make


@pytest.fixture(name="make_pool")
def make_pool_fixture():
    return make_pool


@pytest.fixture(name="worth")
def worth_fixture():
    return worth


@pytest.fixture
def questions():
    """`questions(run)`: the rows of all rounds' choices, in order."""

    def read(run: Path):
        files = sorted((run / "rounds").glob("*/choice.json"))
        return [row for file in files for row in json.loads(file.read_text())["rows"]]

    return read

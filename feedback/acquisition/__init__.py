"""Which judgement to ask for next: scores, strategies made of them, an honest holdout, and an end.

`Acquirer.select` is one round. Everything below it is functions on arrays: `uncertainty`,
`committee`, `design`, `change`, `reduction`, `coverage`, `prompts`, `explore` score and choose,
`duels` pairs the answers of one prompt, `strategies`, `compose` and `budget` put them together,
`holdout`, `accuracy` and `stopping` say what it brought. It leaves out the loop around a round:
training, pushing and pulling.
"""

from feedback.acquisition.accuracy import Estimate, estimate_accuracy
from feedback.acquisition.acquirer import Acquirer, Selection
from feedback.acquisition.budget import Annotator, Budget, per_cost
from feedback.acquisition.compose import Diversify, Epsilon, Mix, Stratify
from feedback.acquisition.duels import build_pairs
from feedback.acquisition.holdout import Holdout
from feedback.acquisition.pool import Pool, Posterior, View
from feedback.acquisition.strategies import STRATEGIES, Batch, Picks, Scorer, Strategy

__all__ = [
    "STRATEGIES",
    "Acquirer",
    "Annotator",
    "Batch",
    "Budget",
    "Diversify",
    "Epsilon",
    "Estimate",
    "Holdout",
    "Mix",
    "Picks",
    "Pool",
    "Posterior",
    "Scorer",
    "Selection",
    "Strategy",
    "Stratify",
    "View",
    "build_pairs",
    "estimate_accuracy",
    "per_cost",
]

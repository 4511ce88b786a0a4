"""Expected error reduction: how much surer of everything else would one label make the model?

A label y of a candidate z moves the last layer by one Newton step of the Laplace posterior,

    S' = S - w S z z^T S / (1 + w z^T S z),   w = p (1 - p),      theta_y = theta + (y - p) S' z,

so the margin of any other pair e moves by (y - p) e^T S z / (1 + w z^T S z). The score is what the
mean entropy over the pairs that matter falls by, with y drawn from the model itself (Roy and
McCallum 2001, with the update of MacKay 1992 in place of retraining). It may be negative: a label
can show that the model was too sure.

Leaves out retraining, which would cost a fit for each candidate and label. O(N E D) for N
candidates and E pairs that matter: give it a shortlist and a sample, not a million.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from feedback.acquisition.arrays import Array, binary_entropy, chunks, finite, same_length
from feedback.acquisition.design import _root
from feedback.errors import DataError

Risk = Literal["entropy", "error"]


def expected_error_reduction(
    differences: ArrayLike,
    margins: ArrayLike,
    precision: ArrayLike,
    others: ArrayLike,
    other_margins: ArrayLike,
    *,
    risk: Risk = "entropy",
) -> Array:
    """Expected fall of the mean risk over `others`, (N,), when each candidate alone is labelled.

    Args:
        differences: (N, D) z of the candidates.
        margins: (N,) theta . z.
        precision: (D, D) H of the last layer, from `feedback.acquisition.design.information`.
        others: (E, D) the pairs that the model is to be sure of: a random sample of the pool.
        other_margins: (E,).
        risk: `entropy` in nats, or `error`, the chance 1 - max(p, 1 - p) of a wrong answer.

    Raises:
        DataError: shapes that do not match, no others, or an unknown risk.
    """
    if risk not in ("entropy", "error"):
        raise DataError(f"risk is {risk!r}; 'entropy' or 'error' is expected.")
    z, delta = finite(differences, "differences", 2), finite(margins, "margins", 1)
    same_length(differences=z, margins=delta)
    e, e_delta = finite(others, "others", 2), finite(other_margins, "other_margins", 1)
    if not same_length(others=e, other_margins=e_delta):
        raise DataError("others is empty. Fix: give a random sample of the pool.")
    if e.shape[1] != z.shape[1]:
        raise DataError(
            f"others are of width {e.shape[1]}, differences of {z.shape[1]}; one width is expected."
        )
    root = _root(precision, z.shape[1])
    now = _risk(e_delta, risk).mean()
    found = np.empty(len(z))
    for part in chunks(len(z), max(1, 4_000_000 // len(e))):
        towards = z[part] @ root  # (n, D)
        p = expit(delta[part])
        shrink = 1 + p * (1 - p) * np.square(towards).sum(axis=1)
        moved = (e @ root) @ (towards / shrink[:, None]).T  # (E, n), for a residual of 1
        after = sum(
            chance * _risk(e_delta[:, None] + moved * (label - p), risk).mean(axis=0)
            for label, chance in ((1.0, p), (0.0, 1 - p))
        )
        found[part] = now - after
    return found


def _risk(margins: Array, risk: Risk) -> Array:
    p = expit(margins)
    return binary_entropy(p) if risk == "entropy" else np.minimum(p, 1 - p)

"""Imbalance on embeddings, through imbalanced-learn: points made between points, or cleaned away.

SMOTE: Chawla et al. 2002 (Journal of Artificial Intelligence Research 16); ADASYN: He et al. 2008
(IJCNN); Tomek links: Tomek 1976; edited nearest neighbours: Wilson 1972; both after SMOTE: Batista,
Prati & Monard 2004. A made point has no text: it can train a head or a probe on embeddings, never a
language model. What is cleaned away are rows, so `clean_rows` serves text as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from align.errors import MissingDependencyError

Method = Literal["smote", "adasyn", "tomek", "enn", "smote-tomek", "smote-enn"]
Cleaning = Literal["tomek", "enn"]


@dataclass(frozen=True)
class Resampled:
    """Embeddings after resampling."""

    embeddings: NDArray[np.float64]  # (M, D)
    labels: NDArray[Any]  # (M,)
    rows: NDArray[np.int64]  # (M,) index of the row that a point is; -1 = made
    made: int  # points between points


def resample(
    embeddings: ArrayLike,
    labels: ArrayLike,
    method: Method = "smote",
    *,
    neighbours: int | None = None,
    seed: int = 0,
) -> Resampled:
    """Balance classes of embeddings.

    Rows are handed over in the order of their bytes, so that the same rows in another order give
    the same points. Split first and resample training rows only: a made point lies between two
    rows, and one of them in the test set is a leak.

    Args:
        embeddings: (N, D) finite numbers.
        labels: (N,) two classes or more.
        method: smote and adasyn make points of the smaller classes; tomek removes rows of the
            larger class in a Tomek link, enn rows of larger classes that their neighbours outvote;
            the others make points first and then clean both.
        neighbours: that points are made between (5), or that vote in enn (3).
        seed: of the made points.

    Raises:
        ValueError: shapes, a method that is none, fewer than two classes, a class with too few rows
            for the neighbours, or numbers that are not finite; the message names it.
        MissingDependencyError: imbalanced-learn is not installed.
    """
    check_installed(method)
    points = np.asarray(embeddings, dtype=np.float64)
    classes = np.asarray(labels)
    _check(points, classes, method, neighbours)
    tool = _tool(method, neighbours, seed)
    order = np.array(
        sorted(range(len(points)), key=lambda i: (_digest(points[i]), str(classes[i])))
    )
    names, codes = np.unique(classes, return_inverse=True)  # enn counts votes of numbers alone
    try:
        found, coded = tool.fit_resample(points[order], codes[order])
    except (ValueError, RuntimeError) as error:  # ADASYN where no neighbour is of another class
        raise ValueError(f"{method}: imbalanced-learn refuses these rows: {error}") from error
    kinds = names[coded]
    rows = _rows_of(found, kinds, points[order], classes[order], order)
    return Resampled(np.asarray(found), kinds, rows, int((rows < 0).sum()))


def clean_rows(
    data: Dataset,
    embeddings: ArrayLike,
    labels: ArrayLike,
    method: Cleaning = "tomek",
    *,
    neighbours: int | None = None,
) -> Dataset:
    """The rows of a dataset that cleaning leaves, in their order.

    Args:
        data: N rows.
        embeddings: (N, D) of the rows.
        labels: (N,) their classes.
        method: tomek or enn.
        neighbours: as in `resample`.

    Raises:
        ValueError: as in `resample`; the numbers of rows differ; or a method that makes points.
        MissingDependencyError: imbalanced-learn is not installed.
    """
    if method not in get_args(Cleaning):
        raise ValueError(f"clean_rows cannot use {method!r}, which makes points without text")
    points = np.asarray(embeddings, dtype=np.float64)
    if len(points) != len(data):
        raise ValueError(f"there are {len(points)} embeddings for {len(data)} rows")
    kept = resample(points, labels, method, neighbours=neighbours).rows
    return data.select(sorted(kept.tolist()))


def check_installed(method: str) -> None:
    """Refuse a method whose library is not there.

    Raises:
        MissingDependencyError: imbalanced-learn is not installed.
    """
    if find_spec("imblearn") is None:
        raise MissingDependencyError(
            f"{method} needs imbalanced-learn. Fix: pip install 'align-rlhf[imbalance]'."
        )


def _check(
    points: NDArray[np.float64], classes: NDArray[Any], method: str, neighbours: int | None
) -> None:
    problems = []
    if method not in get_args(Method):
        problems.append(f"{method!r} is no method; there are {', '.join(get_args(Method))}")
    if points.ndim != 2:
        problems.append(f"embeddings have the shape {points.shape}; expected (N, D)")
    elif len(points) != len(classes):
        problems.append(f"there are {len(classes)} labels for {len(points)} embeddings")
    if not np.isfinite(points).all():
        problems.append("embeddings hold NaN or infinity")
    counts = Counter(classes.tolist())
    if len(counts) < 2:
        problems.append(f"the labels have {len(counts)} class; two are needed")
    elif method in ("smote", "adasyn", "smote-tomek", "smote-enn"):
        name, least = min(counts.items(), key=lambda item: item[1])
        wanted = 5 if neighbours is None else neighbours
        if least <= wanted:
            problems.append(
                f"class {name!r} has {least} rows, and {wanted} neighbours need {wanted + 1}. "
                f"Fix: neighbours={max(1, least - 1)}, or over-sample that class"
            )
    if neighbours is not None and neighbours < 1:
        problems.append(f"neighbours is {neighbours}; expected 1 or more")
    if problems:
        raise ValueError("; ".join(problems))


def _tool(method: Method, neighbours: int | None, seed: int) -> Any:
    from imblearn.combine import SMOTEENN, SMOTETomek
    from imblearn.over_sampling import ADASYN, SMOTE
    from imblearn.under_sampling import EditedNearestNeighbours, TomekLinks

    made = 5 if neighbours is None else neighbours
    smote = SMOTE(k_neighbors=made, random_state=seed)
    voters = EditedNearestNeighbours(
        n_neighbors=3 if neighbours is None else neighbours,
        kind_sel="mode",  # Wilson's vote; imbalanced-learn's default removes for one dissenter
    )
    match method:
        case "smote":
            return smote
        case "adasyn":
            return ADASYN(n_neighbors=made, random_state=seed)
        case "tomek":
            return TomekLinks()
        case "enn":
            return voters
        case "smote-tomek":
            return SMOTETomek(smote=smote, random_state=seed)
        case "smote-enn":
            cleaner = EditedNearestNeighbours(sampling_strategy="all", kind_sel="mode")
            return SMOTEENN(smote=smote, enn=cleaner, random_state=seed)


def _rows_of(
    found: NDArray[np.float64],
    kinds: NDArray[Any],
    points: NDArray[np.float64],
    classes: NDArray[Any],
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Which row each point is, by its numbers and class; -1 for points that no row is."""
    places: dict[tuple[bytes, str], list[int]] = {}
    for index in reversed(range(len(points))):
        places.setdefault((points[index].tobytes(), str(classes[index])), []).append(index)
    rows = []
    for point, kind in zip(np.ascontiguousarray(found), kinds, strict=True):
        left = places.get((point.tobytes(), str(kind)))
        rows.append(int(order[left.pop()]) if left else -1)
    return np.array(rows, dtype=np.int64)


def _digest(point: NDArray[np.float64]) -> bytes:
    return hashlib.blake2b(point.tobytes(), digest_size=16).digest()

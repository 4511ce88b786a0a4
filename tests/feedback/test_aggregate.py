import pytest

from feedback.aggregate import aggregate
from feedback.schema import Comparison


def votes(*labels: str, strength: int = 1) -> list[Comparison]:
    return [
        Comparison("p", "x", "y", label, f"ann{i}", strength=strength)  # type: ignore[arg-type]
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("labels", "label", "share", "agreement", "unanimous"),
    [
        ("aab", "a", 2 / 3, 1 / 3, False),
        ("bbb", "b", 0.0, 1.0, True),
        ("ab", "tie", 0.5, 0.0, False),
        (["tie", "tie"], "tie", 0.5, 0.0, True),
        (["a", "tie"], "a", 0.75, 0.5, False),
    ],
)
def test_majority_and_soft_label(
    labels: list[str], label: str, share: float, agreement: float, unanimous: bool
) -> None:
    (verdict,) = aggregate(votes(*labels))
    assert (verdict.label, verdict.votes, verdict.unanimous) == (label, len(labels), unanimous)
    assert verdict.share_a == pytest.approx(share)
    assert verdict.agreement == pytest.approx(agreement)


def test_answers_stored_the_other_way_round_vote_for_the_same_side() -> None:
    (verdict,) = aggregate([*votes("a"), Comparison("p", "y", "x", "b", "bob", strength=2)])
    assert (verdict.response_a, verdict.label, verdict.strength) == ("x", "a", 1.5)


def test_pairs_keep_their_order() -> None:
    said = [Comparison(p, "x", "y", "a", n) for p, n in (("q", "1"), ("p", "1"), ("q", "2"))]
    assert [(v.prompt, v.votes) for v in aggregate(said)] == [("q", 2), ("p", 1)]

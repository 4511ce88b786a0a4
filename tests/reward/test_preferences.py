from feedback.schema import Comparison
from reward.preferences import preference_rows, preferences

CHAT = [{"role": "user", "content": "hello?"}]


def votes(labels: str, prompt="p", strength: int = 1) -> list[Comparison]:
    names = {"a": "a", "b": "b", "t": "tie"}
    return [
        Comparison(prompt, "x", "y", names[c], f"ann{i}", strength=strength)  # type: ignore[arg-type]
        for i, c in enumerate(labels)
    ]


def test_majority_gives_one_row_per_pair_and_counts_what_it_drops() -> None:
    found = preferences(votes("abb") + votes("ab", "q") + votes("tt", "r") + votes("aa", "s"))
    assert found.rows == [
        {"prompt": "p", "chosen": "y", "rejected": "x"},
        {"prompt": "s", "chosen": "x", "rejected": "y"},
    ]
    assert (found.comparisons, found.pairs, found.ties, found.contested) == (9, 4, 2, 2)


def test_without_aggregation_every_judgement_is_a_row() -> None:
    found = preferences(votes("abbt"), aggregate=False)
    assert [row["chosen"] for row in found.rows] == ["x", "y", "y"]
    assert (found.ties, found.pairs) == (1, 1)


def test_a_conversation_gets_conversational_answers() -> None:
    (row,) = preference_rows(votes("a", CHAT))
    assert row["prompt"] == CHAT
    assert row["chosen"] == [{"role": "assistant", "content": "x"}]
    assert row["rejected"] == [{"role": "assistant", "content": "y"}]


def test_margin_and_weight_come_on_demand() -> None:
    assert set(preference_rows(votes("a"))[0]) == {"prompt", "chosen", "rejected"}
    (row,) = preference_rows(votes("bbba", strength=2), margin=True, weight=True)
    assert (row["chosen"], row["margin"], row["weight"]) == ("y", 1.0, 0.5)


def test_a_strong_minority_cannot_turn_the_margin_against_the_majority() -> None:
    said = votes("bbb") + votes("aa", strength=2)
    (row,) = preference_rows(said, margin=True)
    assert (row["chosen"], row["margin"]) == ("y", 0.0)

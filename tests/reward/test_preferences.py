import pytest
import torch
from trl.trainer import dpo_trainer, reward_trainer

from feedback.errors import DataError
from feedback.schema import Comparison, pair_id
from reward.preferences import expand_soft, preference_rows, preferences

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


def test_a_soft_column_keeps_ties_and_speaks_of_the_chosen() -> None:
    said = votes("abb") + votes("ab", "q") + votes("aa", "s", strength=2)
    found = preferences(said, soft="column")
    assert [(row["chosen"], row["rejected"]) for row in found.rows] == [
        ("y", "x"),
        ("x", "y"),
        ("x", "y"),
    ]
    assert [row["soft_label"] for row in found.rows] == pytest.approx([2 / 3, 0.5, 1.0])
    assert (found.comparisons, found.pairs, found.ties, found.contested) == (7, 3, 1, 2)
    assert preference_rows(votes("a", CHAT), soft="column")[0]["chosen"][0]["content"] == "x"


def test_soft_labels_come_from_a_method_or_a_mapping() -> None:
    said = votes("aab") + votes("bbb", "q")
    hard = preference_rows(said, soft="column", labels="majority")
    assert [(row["chosen"], row["soft_label"]) for row in hard] == [("x", 1.0), ("y", 1.0)]
    names = [pair_id(prompt, "x", "y") for prompt in ("p", "q")]
    given = preference_rows(said, soft="column", labels=dict(zip(names, (0.2, 0.9), strict=True)))
    assert [(row["chosen"], row["soft_label"]) for row in given] == [("y", 0.8), ("x", 0.9)]
    with pytest.raises(DataError, match=names[1]):
        preferences(said, soft="column", labels={names[0]: 0.5})


def test_expanded_rows_have_the_soft_labels_loss_and_gradient() -> None:
    """Mean over copies of -log sigmoid(d) = cross-entropy with the soft label, and its gradient."""
    said = votes("aab") + votes("at", "q") + votes("bb", "r") + votes("ab", "s")
    column = preference_rows(said, soft="column")
    rows = preference_rows(said, soft="rows")
    assert len(rows) == 12 * len(column)  # thirds and quarters
    assert all("soft_label" not in row for row in rows)
    names = sorted({(row["prompt"], text) for row in column for text in ("x", "y")})
    score = torch.randn(len(names), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score.requires_grad_()

    def differences(items):
        places = [[names.index((r["prompt"], r[k])) for r in items] for k in ("chosen", "rejected")]
        return score[places[0]] - score[places[1]]

    def gradient(loss):
        return loss, torch.autograd.grad(loss, score)[0]

    repeated = gradient(-torch.nn.functional.logsigmoid(differences(rows)).mean())
    target = torch.tensor([row["soft_label"] for row in column], dtype=torch.float64)
    soft = gradient(
        torch.nn.functional.binary_cross_entropy_with_logits(differences(column), target)
    )
    torch.testing.assert_close(repeated, soft, rtol=1e-12, atol=1e-12)
    hard = gradient(-torch.nn.functional.logsigmoid(differences(column)).mean())
    assert (hard[1] - soft[1]).abs().max() > 0.01  # the labels do matter


def test_copies_are_the_fewest_that_are_exact() -> None:
    def size(*labels: float) -> int:
        return len(expand_soft([{"chosen": "x", "rejected": "y", "soft_label": p} for p in labels]))

    assert size(1.0) == 1
    assert size(0.5) == 2
    assert size(1.0, 2 / 3) == 2 * 3
    assert size(0.75, 2 / 3) == 2 * 12
    assert size(0.987) == 12  # no exact number: the nearest twelfth
    rows = expand_soft([{"chosen": "x", "rejected": "y", "soft_label": 0.72}], copies=10)
    assert [row["chosen"] for row in rows] == ["x"] * 7 + ["y"] * 3
    rows = expand_soft([{"chosen": "x", "rejected": "y", "soft_label": 0.76}], copies=10)
    assert [row["chosen"] for row in rows] == ["x"] * 8 + ["y"] * 2
    assert expand_soft([]) == []


def test_bad_soft_requests_are_refused() -> None:
    for wrong in ({"margin": True}, {"weight": True}, {"aggregate": False}):
        with pytest.raises(ValueError, match="Fix: leave margin and weight off"):
            preferences(votes("a"), soft="rows", **wrong)
    with pytest.raises(ValueError, match="soft must be one of"):
        preferences(votes("a"), soft="hard")  # type: ignore[arg-type]
    for label in (None, 1.5, float("nan"), "much"):
        with pytest.raises(DataError, match="row 0 needs a soft label"):
            expand_soft([{"chosen": "x", "rejected": "y", "soft_label": label}])
    with pytest.raises(ValueError, match="at least 1"):
        expand_soft([], copies=0)


def test_trls_collators_drop_a_soft_label_and_keep_a_margin() -> None:
    """Why rows are repeated: this fails on the day TRL reads the column."""
    ids = {"chosen_ids": [1, 2], "rejected_ids": [1, 3], "margin": 0.5, "soft_label": 0.7}
    reward = reward_trainer.DataCollatorForPreference(pad_token_id=0)([ids])
    assert "margin" in reward
    assert not any("soft" in name for name in reward)
    dpo = dpo_trainer.DataCollatorForPreference(pad_token_id=0)([ids | {"prompt_ids": [5]}])
    assert not any("soft" in name for name in dpo)

"""Classes in balance: rows repeated, left out, weighted; embeddings through imbalanced-learn."""

from __future__ import annotations

import random
import sys
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from align.config import load_config
from align.config.sections import DataSection
from align.config.stages import DPOStage, EvaluateStage, RewardStage, SFTStage
from align.data import load_splits
from align.data.imbalance import class_sizes, class_weights, over_sample, under_sample
from align.data.imbalance.embeddings import clean_rows, resample
from align.errors import ConfigError, DataError, MissingDependencyError

groups_of = st.lists(st.sampled_from("aaabbc"), min_size=1, max_size=80)
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ids_of(groups) -> list[str]:
    return [f"{group}{number}" for number, group in enumerate(groups)]


@unhurried
@given(groups_of, st.sampled_from([0.3, 0.5, 1.0]), st.integers(0, 3))
def test_over_and_under_reach_the_sizes_whatever_the_order(groups, power, seed):
    ids = ids_of(groups)
    counts = Counter(groups)
    extra = over_sample(groups, ids, power=power, most=1000, seed=seed)
    assert Counter(groups[i] for i in extra) + counts == class_sizes(counts, "over", power)
    used = Counter(extra)
    for name in counts:
        times = [used[i] for i, group in enumerate(groups) if group == name]
        assert max(times) - min(times) <= 1  # every row as often, but for the rest
    kept = under_sample(groups, ids, power=power, seed=seed)
    assert Counter(groups[i] for i in kept) == class_sizes(counts, "under", power)
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    turned, turned_ids = [groups[i] for i in order], [ids[i] for i in order]
    again = under_sample(turned, turned_ids, power=power, seed=seed)
    assert {turned_ids[i] for i in again} == {ids[i] for i in kept}
    repeated = over_sample(turned, turned_ids, power=power, most=1000, seed=seed)
    assert Counter(turned_ids[i] for i in repeated) == Counter(ids[i] for i in extra)


def test_sizes_by_hand():
    counts = {"a": 100, "b": 25, "c": 1}
    assert class_sizes(counts, "over") == dict.fromkeys(counts, 100)
    assert class_sizes(counts, "over", 0.5) == {"a": 100, "b": 50, "c": 10}
    assert class_sizes(counts, "under") == dict.fromkeys(counts, 1)
    assert class_sizes(counts, "under", 0.5) == {"a": 10, "b": 5, "c": 1}
    groups = ["a"] * 100 + ["c"]
    assert len(over_sample(groups, ids_of(groups), most=10)) == 9


@unhurried
@given(groups_of)
def test_weights_are_scikit_learns(groups):
    counts = Counter(groups)
    weights = class_weights(counts, most=1e9)
    names = np.array(sorted(counts))
    expected = compute_class_weight("balanced", classes=names, y=np.array(groups))
    assert [weights[n] for n in names] == pytest.approx(list(expected))


def test_effective_numbers_and_limits_by_hand():
    weights = class_weights({"a": 1, "b": 2}, beta=0.5)
    assert weights["a"] / weights["b"] == pytest.approx(1.5)  # (1-b)/(1-b) over (1-b)/(1-b^2)
    assert weights["a"] + 2 * weights["b"] == pytest.approx(3)
    limited = class_weights({"a": 1, "b": 1000}, most=10)
    assert limited["a"] / limited["b"] == pytest.approx(10)


def rows(count: int = 120) -> list[dict]:
    topics = ["law"] * 90 + ["art"] * 30
    return [
        {"prompt": f"q {n}", "chosen": "yes it is", "rejected": "no", "topic": topics[n]}
        for n in range(count)
    ]


class TestStage:
    def section(self, path, **balance) -> DataSection:
        return DataSection(train=str(path), validation_fraction=0.2, balance=balance)

    def test_by_a_column(self, write):
        path = write("x.jsonl", rows())
        law = {row["prompt"] for row in rows() if row["topic"] == "law"}
        plain = load_splits(DataSection(train=str(path), validation_fraction=0.2), "preference")
        for method in ("over", "under", "weights"):
            section = self.section(path, by="topic", method=method, seed=2)
            splits = load_splits(section, "preference")
            assert splits.validation.to_list() == plain.validation.to_list()
            balanced = splits.card.balanced
            assert balanced["before"] == {
                "law": sum(p in law for p in plain.train["prompt"]),
                "art": sum(p not in law for p in plain.train["prompt"]),
            }
            assert len(splits.train) == splits.card.splits["train"]
            is_law = [prompt in law for prompt in splits.train["prompt"]]
            if method == "weights":
                weight = np.array(splits.train["weight"][:])
                assert weight.mean() == pytest.approx(1)
                assert weight[is_law].sum() == pytest.approx(weight.sum() / 2)
            else:
                assert is_law.count(True) == is_law.count(False)
                assert len(set(balanced["after"].values())) == 1
                assert (len(splits.train) > len(plain.train)) == (method == "over")

    def test_by_source_and_weights_that_are_there_are_multiplied(self, write):
        many = write("many.jsonl", [row | {"weight": 2.0} for row in rows()[:60]])
        few = write("few.jsonl", [row | {"weight": 2.0} for row in rows()[60:75]])
        section = DataSection(
            train=[str(many), str(few)], validation_fraction=0.0, balance={"method": "weights"}
        )
        splits = load_splits(section, "preference")
        assert set(splits.card.balanced["before"]) == {str(many), str(few)}
        assert sorted(set(splits.train["weight"][:])) == pytest.approx([2 * 75 / 120, 2 * 75 / 30])

    def test_a_column_that_cannot_be_meant(self, write):
        path = write("x.jsonl", [*rows(), {"prompt": "p", "chosen": "a", "rejected": "b"}])
        with pytest.raises(DataError, match=r"x.jsonl:121: has no topic"):
            load_splits(self.section(path, by="topic", method="over"), "preference")
        path = write("y.jsonl", rows()[:90])
        with pytest.raises(ConfigError, match=r"all .* training rows are of one class, 'law'"):
            load_splits(self.section(path, by="topic", method="over"), "preference")
        path = write("z.jsonl", [row | {"topic": str(n)} for n, row in enumerate(rows() * 2)])
        section = self.section(path, by="topic", method="over").model_copy(
            update={"deduplicate": "none"}
        )
        with pytest.raises(ConfigError, match="classes for"):
            load_splits(section, "preference")

    @pytest.mark.parametrize("method", ["tomek", "enn"])
    def test_a_stray_row_of_the_larger_class_is_cleaned_away(self, write, method):
        law = [("law", f"statute court {w}") for w in ("judge", "clause", "appeal") * 10]
        art = [("art", f"painting brush {w}") for w in ("canvas", "colour", "easel") * 4]
        stray, beside = "painting brush canvas fresco", "painting brush fresco"
        rows = [*law, *art, ("law", stray), ("art", beside)]
        made = [
            {"prompt": text, "chosen": "yes", "rejected": "no", "topic": topic}
            for topic, text in rows
        ]
        path = write(f"{method}.jsonl", made)
        section = self.section(path, by="topic", method=method)
        settings = {"validation_fraction": 0.0, "deduplicate": "none"}
        splits = load_splits(section.model_copy(update=settings), "preference")
        assert splits.card.balanced["before"] == {"law": 31, "art": 13}
        kept = splits.train["prompt"][:]
        assert stray not in kept
        assert [text for _, text in rows if text != stray] == kept
        assert splits.card.balanced["after"] == {"law": 30, "art": 13}

    def test_a_class_that_cleaning_leaves_nothing_of_is_named(self, write):
        rows = [("art", "brush")] * 40 + [("tin", "statute")] * 2
        rows += [("law", f"brush {word}") for word in ("stone", "river", "cloud")]
        made = [{"prompt": text, "completion": "yes", "topic": topic} for topic, text in rows]
        settings = {"validation_fraction": 0.0, "deduplicate": "none"}
        section = self.section(write("x.jsonl", made), by="topic", method="enn")
        section = section.model_copy(update=settings)
        card = load_splits(section, "sft").card
        assert card.balanced["after"] == {"art": 40, "tin": 2}
        assert "data.balance: enn left no row of 'law'." in card.as_dict()["warnings"]
        write("x.jsonl", [*made[:1], *made[-2:]])
        with pytest.raises(ConfigError, match=r"data.balance.method: enn: there are 3 training"):
            load_splits(section, "sft")


class TestConfig:
    def problems(self, stage, tmp_path, data: str) -> list[str]:
        path = tmp_path / "c.yaml"
        more = "evaluate: {models: {a: m}}\njudge: {}\n" if stage is EvaluateStage else ""
        model = "" if stage is EvaluateStage else "model: {path: m}\n"
        path.write_text(f"{model}{more}data:\n  train: x.jsonl\n{data}")
        with pytest.raises(ConfigError) as error:
            load_config(stage, path)
        return [str(problem) for problem in error.value.problems]

    def test_every_bad_option_at_once_by_name(self, tmp_path):
        found = self.problems(
            SFTStage,
            tmp_path,
            "  augment:\n"
            "    - {kind: typos, rat: 0.1}\n"
            "    - {kind: typo}\n"
            "    - {rate: 0.1}\n"
            "    - {kind: deletion, rate: 1.5, share: 0}\n"
            "    - {kind: swap, mode: replace, copies: 2}\n"
            "    - {kind: paraphrase, url: localhost, model: m}\n"
            "    - {kind: typos, protect: [codes]}\n"
            "  balance: {method: sideways}\n",
        )
        text = "\n".join(found)
        for part in (
            "data.augment.0.typos.rat: unknown key in section `data.augment.0.typos`. Fix: did "
            "you mean `rate`?",
            "data.augment.1.kind: 'typo' is no kind. Fix: did you mean `typos`?",
            "data.augment.2: has no `kind`.",
            "data.augment.3.deletion.rate: 1.5 does not fit",
            "data.augment.3.deletion.share: 0 does not fit",
            "data.augment.4.swap: mode: replace has room for one copy, not 2",
            "data.augment.5.paraphrase: url 'localhost': expected one such as",
            "data.augment.6.typos.protect.0: 'codes' does not fit",
            "data.balance.method: 'sideways' does not fit",
        ):
            assert part in text
        assert len(found) == 9

    def test_weights_only_where_they_are_read(self, tmp_path):
        balance = "  balance: {method: weights}\n"
        for stage in (SFTStage, DPOStage):
            assert "weights are read by `align reward` alone" in str(
                self.problems(stage, tmp_path, balance)
            )
        path = tmp_path / "c.yaml"
        path.write_text(f"model: {{path: m}}\ndata:\n  train: x.jsonl\n{balance}")
        assert load_config(RewardStage, path).data.balance.method == "weights"
        with pytest.raises(ConfigError, match="nothing that trains on sft rows reads a weight"):
            load_splits(DataSection(train="x.jsonl", balance={"method": "weights"}), "sft")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                "method: tomek, power: 0.5",
                "power is for method: over or under or weights, not tomek",
            ),
            ("method: enn, seed: 2", "seed is for method: over or under, not enn"),
            ("method: over, beta: 0.9", "beta is for method: weights, not over"),
            ("method: smote", "'smote' does not fit"),
        ],
    )
    def test_an_option_that_nothing_would_read(self, tmp_path, options, words):
        assert words in str(self.problems(SFTStage, tmp_path, f"  balance: {{{options}}}\n"))

    def test_an_evaluation_judges_prompts_as_they_are(self, tmp_path):
        data = "  augment: [{kind: typos}]\n"
        assert "is for training" in str(self.problems(EvaluateStage, tmp_path, data))


class TestEmbeddings:
    def cloud(self, few: int = 12, many: int = 60) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(0)
        points = np.concatenate([draw.normal(0, 1, (many, 4)), draw.normal(1.5, 1, (few, 4))])
        return points, np.array(["many"] * many + ["few"] * few)

    def test_smote_is_imbalanced_learns_and_lies_between_rows(self):
        from imblearn.over_sampling import SMOTE

        points, labels = self.cloud()
        found = resample(points, labels, "smote", seed=3)
        assert Counter(found.labels.tolist()) == {"many": 60, "few": 60}
        assert found.made == 48
        kept = found.rows >= 0
        assert np.array_equal(found.embeddings[kept], points[found.rows[kept]])
        assert sorted(found.rows[kept].tolist()) == list(range(72))
        few = points[labels == "few"]
        for point in found.embeddings[~kept]:  # on a segment between two rows of its class
            gaps = np.linalg.norm(few - point, axis=1)
            between = gaps[:, None] + gaps[None, :] - np.linalg.norm(few[:, None] - few, axis=2)
            np.fill_diagonal(between, np.inf)
            assert between.min() < 1e-6
        reference, _ = SMOTE(random_state=3).fit_resample(*self.ordered(points, labels))
        assert np.allclose(np.sort(reference, axis=0), np.sort(found.embeddings, axis=0))

    @staticmethod
    def ordered(points, labels):
        import hashlib

        keys = [hashlib.blake2b(p.tobytes(), digest_size=16).digest() for p in points]
        order = sorted(range(len(points)), key=lambda i: (keys[i], labels[i]))
        return points[order], labels[order]

    @pytest.mark.parametrize(
        "method", ["smote", "adasyn", "tomek", "enn", "smote-tomek", "smote-enn"]
    )
    def test_the_order_of_rows_does_not_matter(self, method):
        points, labels = self.cloud()
        order = np.random.default_rng(1).permutation(len(points))
        one = resample(points, labels, method, seed=5)
        two = resample(points[order], labels[order], method, seed=5)
        assert np.array_equal(one.embeddings, two.embeddings)
        assert np.array_equal(one.labels, two.labels)
        back = np.where(two.rows < 0, -1, order[two.rows])
        assert np.array_equal(one.rows, back)
        assert (one.made > 0) == (method not in ("tomek", "enn"))

    def test_tomek_by_hand_and_as_rows(self):
        points = np.array([[0.0], [0.1], [0.2], [0.9], [1.0], [5.0], [5.1]])
        labels = np.array([0, 0, 0, 0, 1, 1, 1])
        found = resample(points, labels, "tomek")
        assert 3 not in found.rows.tolist()  # 0.9 and 1.0 are each other's nearest
        assert len(found.rows) == 6
        data = Dataset.from_dict({"prompt": [f"p{n}" for n in range(7)]})
        kept = clean_rows(data, points, labels, "tomek")
        assert kept["prompt"][:] == ["p0", "p1", "p2", "p4", "p5", "p6"]
        with pytest.raises(ValueError, match="makes points without text"):
            clean_rows(data, points, labels, "smote")

    def test_enn_is_a_vote_by_hand(self):
        points = np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [1.18], [2.05], [2.0], [2.1], [2.2]])
        labels = np.array([0] * 7 + [1] * 3)
        found = resample(points, labels, "enn")
        # 2.05 stands among the other class. 1.18 has one neighbour of it in three, and stays.
        assert sorted(found.rows.tolist()) == [0, 1, 2, 3, 4, 5, 7, 8, 9]

    def test_refusals_name_everything(self):
        points, labels = self.cloud(few=3)
        with pytest.raises(ValueError, match="class 'few' has 3 rows, and 5 neighbours need 6"):
            resample(points, labels)
        assert resample(points, labels, neighbours=2).made == 57
        points[0, 0] = np.nan
        with pytest.raises(ValueError, match=r"'smite' is no method.*NaN or infinity.*1 class"):
            resample(points, ["a"] * len(points), "smite")


def test_a_missing_library_is_named_with_its_fix(monkeypatch):
    for name in ("imblearn", "imblearn.combine", "imblearn.over_sampling"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"align-rlhf\[imbalance\]"):
        resample(np.random.default_rng(0).normal(size=(20, 2)), [0, 1] * 10)
    section = DataSection(train="nowhere.jsonl", balance={"method": "tomek"})
    with pytest.raises(MissingDependencyError, match=r"data.balance.method: tomek needs"):
        load_splits(section, "sft")  # before data are read

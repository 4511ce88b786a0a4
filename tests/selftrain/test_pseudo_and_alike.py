"""Labels of an ensemble, near-duplicates, and the teacher's average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from align.selftrain.alike import different, embed_pairs, spread
from align.selftrain.average import ema_shares, next_teacher
from align.selftrain.pseudo import credit, pseudo_labels
from reward.calibrate import Temperature, fit_temperature

# The first draw of a process reads constants from every module that is loaded.
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_labels_by_hand():
    margins = np.array([[4.0, 2.0, -6.0, 0.0], [2.0, -1.0, -2.0, 0.0]])
    labels = pseudo_labels(margins, Temperature(2.0))
    assert labels.first.tolist() == [True, True, False, False]
    expected = 1 / (1 + np.exp(-np.array([1.5, 0.25, 2.0, 0.0])))
    assert labels.confidence == pytest.approx(expected)
    assert labels.unanimous.tolist() == [True, False, True, False]
    assert labels.sure(0.5).tolist() == [2, 0]  # the surest first
    assert labels.sure(0.85).tolist() == [2]
    assert credit(np.array([[1.0, -1.0, 2.0], [1.0, -2.0, -2.0]])).tolist() == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="members, pairs"):
        pseudo_labels(np.zeros(3), Temperature(1.0))


@PROPERTY
@given(st.integers(0, 1000), st.floats(0.2, 5))
def test_turning_a_pair_turns_its_label_and_nothing_else(seed, heat):
    margins = np.random.default_rng(seed).normal(size=(3, 20))
    one, other = (pseudo_labels(m, Temperature(heat)) for m in (margins, -margins))
    assert (one.first != other.first).all()
    assert one.confidence == pytest.approx(other.confidence)
    assert (one.unanimous == other.unanimous).all()


def test_a_calibrated_threshold_means_what_it_says():
    draw = np.random.default_rng(0)
    truth = draw.normal(0, 2, 4000)
    right = draw.random(4000) < 1 / (1 + np.exp(-truth))
    overdone = 5 * np.where(right, truth, -truth)  # a model five times too sure
    known, rest = overdone[:1500], overdone[1500:]
    labels = pseudo_labels(rest[None], fit_temperature(known))
    sure = labels.sure(0.9)
    precision = labels.first[sure].mean()  # every pair is written with the better answer first
    assert abs(precision - labels.confidence[sure].mean()) < 0.02
    raw = pseudo_labels(rest[None], Temperature(1.0))
    off = raw.sure(0.9)
    assert raw.confidence[off].mean() - raw.first[off].mean() > 0.05


def test_copies_go_and_what_is_known_goes():
    texts = ["where is my order", "where is my order", "cancel the bill please", "a lamp at home"]
    points, known = embed_pairs(texts, ["a lamp at home", "the bill is wrong"])
    assert different(points, known, 0.95) == [0, 2]
    assert different(points, known, None) == [0, 1, 2, 3]
    near = different(points, known, None, least=0.1)
    assert near == [2, 3]  # shares words with what people labelled
    assert different(points, known[:0], 0.95) == [0, 2, 3]


def test_a_spread_covers_the_clusters():
    draw = np.random.default_rng(0)
    centres = np.eye(4)
    points = np.concatenate([c + draw.normal(0, 0.01, (30, 4)) for c in centres])
    chosen = spread(points, centres[:1], 3)
    assert {n // 30 for n in chosen} == {1, 2, 3}  # the first cluster is known
    assert spread(points[:2], centres, 5) == [0, 1]


@PROPERTY
@given(st.floats(0, 0.99), st.integers(1, 12))
def test_shares_of_the_teacher_are_the_recursion_s(decay, students):
    shares = ema_shares(decay, students)
    assert sum(shares) == pytest.approx(1)
    weights = np.eye(students)
    teacher = weights[0]
    for student in weights[1:]:
        teacher = decay * teacher + (1 - decay) * student
    assert shares == pytest.approx(teacher.tolist())


def test_the_teacher_is_the_average_and_is_made_once(tiny_classifier, tiny_tokenizer, tmp_path):
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"student-{seed}"
        tiny_classifier(seed).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        folders.append(folder)
    out = next_teacher(*folders, tmp_path / "teacher" / "member-0", 0.75)
    old, new, mean = (load_file(f / "model.safetensors") for f in (*folders, out))
    for name, value in mean.items():
        assert value == pytest.approx(0.75 * old[name] + 0.25 * new[name], abs=1e-6)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    next_teacher(*folders, out, 0.1)
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="decay 1"):
        ema_shares(1.0, 2)

"""The summary holds what its parts say, and answers whatever it is given."""

import json

import pytest

from feedback.quality.alpha import krippendorff_alpha
from feedback.quality.summary import agreement_summary
from feedback.quality.votes import LABELS, LEVELS, label_votes, level_votes
from feedback.schema import Comparison


def compare(prompt: str, label: str, annotator: str, strength: int = 1) -> Comparison:
    return Comparison(prompt, "x", "y", label, annotator, strength=strength)


def test_its_figures_are_those_of_its_parts(make_votes) -> None:
    said = [compare(item, label, name, 1 + (name == "ann0")) for item, name, label in make_votes(0)]
    found = agreement_summary(said, draws=50)
    assert (found.pairs, found.overlapping, len(found.annotators)) == (60, 60, 5)
    assert found.judgements == len(said)
    assert found.alpha_nominal == krippendorff_alpha(label_votes(said), labels=LABELS, draws=50)
    ordinal = krippendorff_alpha(level_votes(said), "ordinal", labels=LEVELS, draws=50)
    assert found.alpha_ordinal == ordinal
    assert found.reliability["ann1"] > found.reliability["ann4"]
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert len(read["cohen"]) == 10
    assert read["cohen"][0]["a"] == "ann0"
    assert read["alpha_nominal"]["value"] == found.alpha_nominal.value


@pytest.mark.parametrize(
    "said",
    [
        [],
        [compare("p", "a", "ann")],
        [compare("p", "a", "ann"), compare("q", "b", "bob")],
        [compare("p", "a", "ann"), compare("p", "a", "ann")],
        [compare("p", "tie", "ann", 0), compare("p", "tie", "bob", 0)],
        [compare("p", "a", "ann"), compare("p", "b", "bob")],
    ],
    ids=["empty", "one", "no overlap", "repeat", "only ties", "opposed"],
)
def test_little_is_answered_without_nan(said) -> None:
    found = agreement_summary(said, draws=20)
    json.dumps(found.as_dict(), allow_nan=False)
    overlapping = len({c.annotator for c in said}) == 2 and len({c.prompt for c in said}) == 1
    assert found.overlapping == overlapping
    assert (found.reliability is not None) == overlapping
    if found.alpha_nominal.value is None:
        assert found.alpha_nominal.note

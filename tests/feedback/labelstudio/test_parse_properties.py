"""The parser under Hypothesis: every kind, and anything at all. It understands or refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.labelstudio.parse import MisfitError, parse_annotation
from feedback.labelstudio.tasks import TWIN
from feedback.labelstudio.templates import ASPECTS, LEVELS
from feedback.records import new_item
from feedback.schema import Comparison, Correction, Ranking, Rating, Thumb

WHEN = {"created_at": "2026-01-01T00:00:00Z"}
KINDS = {"pair": Comparison, "ranking": Ranking, "rating": Rating, "thumb": Thumb}
RESPONSES = {"pair": 2, "ranking": 4, "rating": 1, "thumb": 1}
CONTROLS = ("pref", "reason", "correction", "rank", "thumb", *ASPECTS, "chat")
TYPES = ("choices", "textarea", "rating", "ranker", "pairwise")

text = st.text()  # surrogates included
item = st.builds(
    lambda kind, seed: new_item(
        kind, "q", [f"answer {i}" for i in range(RESPONSES[kind])], seed=seed
    ),
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 50),
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | text
    | st.sampled_from([*LEVELS, "up"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(("choices", "text", "rating", "ranker", "rank")), inner)
    ),
    max_leaves=8,
)
entry = st.fixed_dictionaries(
    {},
    optional={
        "from_name": st.sampled_from(CONTROLS) | anything,
        "to_name": st.just("chat") | anything,
        "type": st.sampled_from(TYPES) | anything,
        "value": anything,
    },
)
annotation = st.fixed_dictionaries(
    {"result": st.lists(entry | anything, max_size=5) | anything},
    optional={"lead_time": anything, "updated_at": anything, "created_at": anything},
)


def said(control, kind, **value):
    return {"from_name": control, "to_name": "chat", "type": kind, "value": value}


@st.composite
def answered(draw):
    """An item, what a page would send for it, and the texts in it."""
    one = draw(item)
    match one.kind:
        case "pair":
            level = draw(st.sampled_from(sorted(LEVELS)))
            result = [said("pref", "choices", choices=[level])]
        case "ranking":
            names = draw(st.permutations([f"r{i}" for i in range(4)]))
            result = [said("rank", "ranker", ranker={"rank": names})]
        case "rating":
            stars = [draw(st.integers(1, 7)) for _ in ASPECTS]
            result = [said(a, "rating", rating=n) for a, n in zip(ASPECTS, stars, strict=True)]
        case _:
            result = [said("thumb", "choices", choices=[draw(st.sampled_from(("up", "down")))])]
    reason, correction = draw(text), draw(text)
    result.append(said("reason", "textarea", text=[reason]))
    result.append(said("correction", "textarea", text=[correction]))
    return one, draw(st.permutations(result)), reason, correction


@given(item, annotation, st.booleans())
def test_anything_is_understood_or_refused(one, raw, twin):
    key = one.id + TWIN * (twin and one.kind == "pair")
    try:
        main, *rest = parse_annotation(raw, one, key, "ann")
    except MisfitError:
        return
    assert isinstance(main, KINDS[one.kind])
    assert all(isinstance(more, Correction) for more in rest)


@given(answered())
def test_what_a_page_sends_is_never_refused(sent):
    one, result, reason, correction = sent
    main, *rest = parse_annotation({"result": result, **WHEN}, one, one.id, "ann")
    assert isinstance(main, KINDS[one.kind])
    assert main.reason == reason
    assert [more.corrected for more in rest] == [correction] * (
        bool(correction.strip()) and correction not in one.responses
    )


@given(answered(), st.data())
def test_a_part_taken_away_or_added_is_refused(sent, data):
    one, result, _, _ = sent
    needed = [e for e in result if e["from_name"] not in ("reason", "correction")]
    dropped = data.draw(st.sampled_from(needed))
    less = [e for e in result if e is not dropped]
    with pytest.raises(MisfitError):
        parse_annotation({"result": less, **WHEN}, one, one.id, "ann")
    more = [*result, data.draw(st.sampled_from([*result, said("chat", "choices", choices=["a1"])]))]
    with pytest.raises(MisfitError):
        parse_annotation({"result": more, **WHEN}, one, one.id, "ann")

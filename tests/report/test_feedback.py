"""The feedback section: its figures are the store's, its texts inert, what is missing is said."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from align.errors import AlignError
from align.report.feedback import MOST_DISPUTED, MOST_PEOPLE, feedback_quality, order_is_known
from align.report.feedback_charts import lead_row, time_range, timeline
from feedback.agreement import majority_agreement, position_bias, wilson
from feedback.formats import read_feedback
from feedback.importing import import_feedback
from feedback.quality.summary import agreement_summary
from feedback.schema import Comparison
from feedback.store import FeedbackStore

VOTES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pandalm_votes.jsonl.gz"
START = datetime(2026, 10, 1, 9, tzinfo=UTC)
HARD = "<script>alert(1)</script> & <img src=x onerror=alert(2)> {{ 7 * 7 }} \u202e abc"


@pytest.fixture
def store(tmp_path) -> Callable[..., str]:
    """`store(comparisons, raws)` writes them and returns the URL."""

    def make(said: list[Comparison], raws: Any = None) -> str:
        url = f"sqlite:///{tmp_path / 'feedback.db'}"
        with FeedbackStore(url) as opened:
            opened.add_comparisons(said, raws=raws)
        return url

    return make


def people(
    count: int = 40,
    names: tuple[str, ...] = ("Ada", "Ben", "Cem"),
    lead: float | None = 20.0,
    text: str = "",
) -> list[Comparison]:
    """Judgements of `count` pairs by each name; Ben chooses what is shown first."""
    rng = random.Random(0)
    said = []
    for index in range(count):
        better = rng.choice("ab")
        for name in names:
            swapped = rng.random() < 0.5
            label: Any = better if rng.random() < 0.85 else rng.choice(["a", "b", "tie"])
            if name == "Ben":
                label = "b" if swapped else "a"
            said.append(
                Comparison(
                    f"{text}question {index}",
                    f"{text}first answer {index}",
                    f"{text}other {index}",
                    label,
                    name,
                    strength=0 if label == "tie" else 1,
                    swapped=swapped,
                    lead_time=lead and lead * rng.lognormvariate(0, 0.5),
                    created_at=START + timedelta(days=index // 10),
                )
            )
    return said


def test_figures_are_those_of_the_quality_package(store, pipeline, page):
    said = people()
    url = store(said)
    figures = page(pipeline()["sft"], feedback=url).figures
    summary = agreement_summary(said)
    assert figures["feedback.judgements"] == 120
    assert figures["feedback.pairs"] == 40
    assert figures["feedback.coefficient.Alpha, nominal"] == summary.alpha_nominal.value
    assert figures["feedback.coefficient.Fleiss’ kappa"] == summary.fleiss.value
    assert figures["feedback.kappa.Ada and Ben"] == summary.cohen["Ada", "Ben"].value
    assert summary.same_side is not None
    assert summary.reliability is not None
    assert figures["feedback.same_side.The same answer"] == summary.same_side.rate
    for name in ("Ada", "Ben", "Cem"):
        assert figures[f"feedback.agreement.{name}"] == majority_agreement(said)[name].rate
        assert figures[f"feedback.position.{name}"] == position_bias(said)[name].rate
        assert figures[f"feedback.reliability.{name}"] == summary.reliability[name]
    assert figures["feedback.position.Ben"] == 1.0


def test_the_page_names_flags_lead_times_and_disputes(store, pipeline, page):
    made = page(pipeline()["sft"], feedback=store(people()))
    assert "chooses what is shown first: 100% of 40" in made.text
    assert "half between" in made.text  # the title of a lead-time row
    assert "judgements from 2026-10-01 on" in made.text
    assert made.figures["feedback.disputed"] > MOST_DISPUTED
    assert f"the first {MOST_DISPUTED} are shown" in made.text
    assert "#feedback" in [values.get("href") for _, values in made.elements]
    targets = {values["href"][1:] for tag, values in made.elements if tag == "a"}
    assert targets <= set(made.ids)


def test_no_section_without_a_store(pipeline, page):
    made = page(pipeline()["sft"])
    assert "feedback" not in made.ids
    assert "Feedback quality" not in made.text


def test_texts_and_names_are_shown_and_do_nothing(store, pipeline, page):
    names = ("Ada", "Ben", f"<b>{HARD}</b>")
    made = page(pipeline()["sft"], feedback=store(people(names=names, text=HARD)))
    assert HARD + "question" in made.text
    assert f"<b>{HARD}</b>" in made.text
    assert "<script>alert" not in made.source
    assert not [tag for tag, _ in made.elements if tag == "img"]
    assert len([tag for tag, _ in made.elements if tag == "script"]) == 2  # ours, and the JSON
    assert made.open == []


def test_long_texts_are_cut_and_say_so(store, pipeline, page):
    said = [
        Comparison("q" * 5000, "x" * 4000, "y", label, name)  # type: ignore[arg-type]
        for name, label in (("Ada", "a"), ("Ben", "b"))
    ]
    made = page(pipeline()["sft"], feedback=store(said))
    assert "2500 more characters in the store" in made.text
    assert "x" * 1501 not in made.source


CASES = {
    "empty": ([], "holds no comparison yet"),
    "one annotator": (people(names=("Ada",)), "No pair was judged by two people"),
    "no overlap": (
        [
            Comparison(f"q{i}", "x", "y", "a", name)
            for i, name in enumerate(["Ada", "Ben", "Cem"] * 3)
        ],
        "No pair was judged by two people",
    ),
    "two annotators": (people(names=("Ada", "Cem")), "nobody can say which of them is right"),
    "no lead times": (people(lead=None), "No lead times are recorded"),
    "lead times of 0": (people(lead=0.0), "No lead times are recorded"),
    "all of one mind": (
        [Comparison(f"q{i}", "x", "y", "a", name) for i in range(5) for name in ("Ada", "Ben")],
        "People were of one mind on every pair",
    ),
    "ties alone": (
        [Comparison(f"q{i}", "x", "y", "tie", n) for i in range(5) for n in ("Ada", "Ben")],
        "no answer was longer",
    ),
    "a conversation": (
        [
            Comparison([{"role": "user", "content": "hello there"}], "x", "y", label, name)  # type: ignore[arg-type]
            for name, label in (("Ada", "a"), ("Ben", "b"))
        ],
        "hello there",
    ),
    "one judgement": ([Comparison("q", "x", "y", "b", "Ada", lead_time=3.0)], "Nobody’s record"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_said_in_words(name, store, pipeline, page):
    said, words = CASES[name]
    made = page(pipeline()["sft"], feedback=store(said))
    assert words in made.text
    assert "nan" not in made.text.lower().split()
    assert made.open == []


def test_many_annotators_are_counted_and_the_busiest_drawn(store):
    names = tuple(f"person {i:02}" for i in range(MOST_PEOPLE + 5))
    found = feedback_quality(store([*people(6, names), *people(9, names[:3])]))
    assert (found.people, found.left_out) == (MOST_PEOPLE + 5, 5)
    assert len(found.agreement) == MOST_PEOPLE
    assert {row.label for row in found.agreement[:3]} == set(names[:3])
    assert len(found.kappas) + found.kappas_left_out == len(names) * (len(names) - 1) // 2
    values = [row.estimate.value for row in found.kappas if row.estimate]
    assert values == sorted(values)


def test_judgements_of_unknown_order_say_nothing_about_the_place(store):
    """Imported rows are stored as not turned; as many chose b as a, but all 'first' means a."""
    raw = {"annotator1": 1, "cmp_key": "x_y"}
    imported = [
        Comparison(f"import {i}", "one answer", "two", "a", "file", swapped=False)
        for i in range(60)
    ]
    ours = people()
    found = feedback_quality(store([*imported, *ours], [raw] * 60 + [None] * len(ours)))
    assert found.unplaced == 60
    position = {row.label: row.estimate for row in found.position}
    assert position["file"] is None
    flags = dict(found.flags)
    assert not any("shown" in flag for flag in flags.get("file", ()))
    assert any("shown first" in flag for flag in flags["Ben"])
    expected = list(position_bias(ours).values())
    total = sum(rate.n for rate in expected)
    pooled = wilson(round(sum(rate.rate * rate.n for rate in expected)), total)
    assert position["Everybody"] is not None
    assert position["Everybody"].value == pooled.rate


def test_which_records_tell_the_order():
    assert order_is_known({})
    assert order_is_known({"result": [], "completed_by": 3})
    assert order_is_known({"prompt": "p", "swapped": False})
    assert not order_is_known({"prompt": "p", "swapped": ""})
    assert not order_is_known({"annotator1": 2})
    assert not order_is_known({"chosen": "x", "rejected": "y"})


def test_the_timeline_counts_every_judgement_in_days_or_longer_steps(store):
    said = people(20)
    days = feedback_quality(store(said)).timeline
    assert [(one.first, one.days, one.count) for one in days] == [
        (date(2026, 10, 1), 1, 30),
        (date(2026, 10, 2), 1, 30),
    ]


def test_a_long_project_has_longer_steps(store):
    said = [
        Comparison(f"q{i}", "x", "y", "a", "Ada", created_at=START + timedelta(days=10 * i))
        for i in range(37)
    ]
    bins = feedback_quality(store(said)).timeline
    assert bins[0].days == 7  # 361 days in at most 60 steps
    assert len(bins) <= 60
    assert sum(one.count for one in bins) == 37
    assert str(timeline(bins)).count("<rect") == len(bins)


def test_lead_times_lie_on_their_axis(store):
    found = feedback_quality(store(people()))
    times = sorted(c.lead_time for c in people() if c.annotator == "Ada" and c.lead_time)
    ada = next(one for one in found.lead if one.annotator == "Ada")
    assert ada.n == 40
    assert ada.quantiles[2] == pytest.approx((times[19] + times[20]) / 2)
    low, high = time_range(found.lead)
    assert all(low <= one.quantiles[0] and one.quantiles[-1] <= high for one in found.lead)
    assert "median" in str(lead_row(ada, (low, high)))


def test_a_missing_store_is_refused_by_name(pipeline, page, tmp_path):
    with pytest.raises(AlignError, match=r"nowhere\.db"):
        page(pipeline()["sft"], feedback=f"sqlite:///{tmp_path / 'nowhere.db'}")
    assert not (tmp_path / "nowhere.db").exists()


def test_the_command_takes_a_store(store, pipeline, tmp_path, capsys):
    output = tmp_path / "page.html"
    run = str(pipeline()["sft"])
    with pytest.raises(SystemExit) as end:
        main(["report", run, "-o", str(output), "--feedback", store(people())])
    assert not end.value.code
    assert 'id="feedback"' in output.read_text()


@pytest.mark.data
def test_real_votes_agree_as_the_documentation_says(tmp_path):
    if not VOTES.is_file():
        pytest.skip(f"{VOTES} is not there")
    url = f"sqlite:///{tmp_path / 'pandalm.db'}"
    read = read_feedback(VOTES, "pandalm", bad_rows="quarantine")
    with FeedbackStore(url) as opened:
        import_feedback(opened, read)
    found = feedback_quality(url)
    assert found.unplaced == found.judgements == len(read.reads)
    assert found.coefficients[0].estimate is not None
    assert found.coefficients[0].estimate.value == pytest.approx(0.840, abs=2e-3)
    assert [row.estimate for row in found.position] == [None] * 4

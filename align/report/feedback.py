"""What the page says of a feedback store: agreement, each annotator's record, disputed pairs.

Reads the store once and hands out plain values for the template. Every text is left as people wrote
it: the template escapes it. Leaves out rankings, ratings, thumbs and corrections but for their
number.

Who sees an answer first is known where Align drew the order (its own pages and chats, simulated
people) or a file says it. Other imported judgements are stored as not turned, because nobody knows;
they are left out of what is said about the place on the page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from align.report.evidence import Estimate
from feedback.agreement import Rate, wilson
from feedback.quality.annotators import AnnotatorQuality, annotator_quality
from feedback.quality.coefficient import Coefficient
from feedback.quality.disagreement import Disputed, disagreement_queue
from feedback.quality.summary import AgreementSummary, agreement_summary
from feedback.queries import current_events
from feedback.records import judgement_of
from feedback.schema import Comparison, Text
from feedback.store import FeedbackStore
from feedback.tables import events_table

MOST_PEOPLE = 30  # drawn; those with the most judgements
MOST_KAPPAS = 30
MOST_DISPUTED = 20
MOST_BINS = 60  # of the time line
TEXT = 1500  # characters of a disputed pair's text
PLACE = "chooses what is shown"  # how a flag about the place on the page begins


@dataclass(frozen=True)
class Row:
    """One labelled figure with its interval, or the reason why there is none."""

    label: str
    estimate: Estimate | None
    note: str = ""


@dataclass(frozen=True)
class LeadTimes:
    """How long an annotator's judgements took, in seconds: five quantiles."""

    annotator: str
    n: int
    quantiles: tuple[float, float, float, float, float]  # 5, 25, 50, 75 and 95%


@dataclass(frozen=True)
class Bin:
    """Judgements from `first` on, for `days` days."""

    first: date
    days: int
    count: int


@dataclass(frozen=True)
class Disagreement:
    """A disputed pair, its texts cut to a length for the page."""

    prompt: list[Mapping[str, Any]]  # turns as the page's macros draw them
    answers: list[tuple[str, int]]  # text and votes of each
    cut: tuple[int, int]  # characters left out of each answer
    ties: int


@dataclass(frozen=True)
class FeedbackQuality:
    """Everything the section shows."""

    store: str
    judgements: int
    other: int  # of other kinds
    skips: int
    pairs: int
    overlapping: int
    people: int
    left_out: int  # annotators beyond those shown
    coefficients: list[Row]
    same_side: Row
    kappas: list[Row]
    kappas_left_out: int
    agreement: list[Row]
    reliability: list[Row]
    reliability_note: str
    position: list[Row]
    unplaced: int  # judgements whose order on the page is unknown
    length: list[Row]
    longer: float | None  # share of everybody's choices that fell on the longer answer
    lead: list[LeadTimes]
    timeline: list[Bin]
    rounds: list[tuple[str, int]]
    flags: list[tuple[str, tuple[str, ...]]]
    disputed: list[Disagreement]
    disputed_count: int


@dataclass(frozen=True)
class _Said:
    comparison: Comparison
    placed: bool  # the order on the page is known
    round: str


def feedback_quality(url: str) -> FeedbackQuality:
    """Read a store and measure it.

    Raises:
        StoreError: there is no such store, or it cannot be read.
    """
    with FeedbackStore(url, create=False) as store:
        said, other = _read(store)
        skips = store.counts().skips
        name = store.url
    items = [one.comparison for one in said]
    summary = agreement_summary(items)
    records = sorted(annotator_quality(items), key=lambda record: (-record.n, record.annotator))
    placed = [one.comparison for one in said if one.placed]
    by_place = {record.annotator: record for record in annotator_quality(placed)}
    shown = records[:MOST_PEOPLE]
    kappas = _kappas(summary)
    queue = disagreement_queue(items)
    longer = [hit for hit in (_chose_longer(item) for item in items) if hit is not None]
    return FeedbackQuality(
        store=name,
        judgements=len(items),
        other=other,
        skips=skips,
        pairs=summary.pairs,
        overlapping=summary.overlapping,
        people=len(records),
        left_out=len(records) - len(shown),
        coefficients=[
            _coefficient("Alpha, nominal", summary.alpha_nominal),
            _coefficient("Alpha, ordinal", summary.alpha_ordinal),
            _coefficient("Fleiss’ kappa", summary.fleiss),
        ],
        same_side=_rate("The same answer", summary.same_side, "no overlap"),
        kappas=kappas[:MOST_KAPPAS],
        kappas_left_out=max(0, len(kappas) - MOST_KAPPAS),
        agreement=[_rate(one.annotator, one.agreement, "no overlap") for one in shown],
        reliability=_reliability(summary, [one.annotator for one in shown]),
        reliability_note=_reliability_note(summary),
        position=[
            _rate("Everybody", _pooled(one.first for one in by_place.values()), "order unknown"),
            *(_rate(one.annotator, _first(by_place, one), "order unknown") for one in shown),
        ],
        unplaced=len(said) - len(placed),
        length=[_rate(one.annotator, one.longer, "no answer was longer") for one in shown],
        longer=sum(longer) / len(longer) if longer else None,
        lead=[found for one in shown if (found := _lead_times(one.annotator, items))],
        timeline=_timeline([item.created_at for item in items]),
        rounds=sorted(Counter(one.round for one in said).items()),
        flags=[(one.annotator, why) for one in records if (why := _flags(one, by_place))],
        disputed=[_disagreement(entry) for entry in queue[:MOST_DISPUTED]],
        disputed_count=len(queue),
    )


def order_is_known(raw: Mapping[str, Any]) -> bool:
    """Whether an event's raw record tells in which order the answers were shown.

    Nothing raw is an event that Align's own code recorded, with the order it drew; `result` is a
    Label Studio annotation, whose task holds the order; `swapped` is said by a file in Align's own
    format. Other files (PandaLM, HH, TRL) do not say.
    """
    return not raw or "result" in raw or raw.get("swapped") not in (None, "")


def _read(store: FeedbackStore) -> tuple[list[_Said], int]:
    """The comparisons that stand, and the number of judgements of other kinds."""
    rounds = {item.id: item.round for item in store.items()}
    with store.reading() as connection:
        events = connection.execute(current_events().where(events_table.c.kind == "annotation"))
        rows = [dict(row) for row in events.mappings()]
    found, other = [], 0
    for row in rows:
        judgement = judgement_of(row)
        if isinstance(judgement, Comparison):
            known = order_is_known(row["raw"] or {})
            found.append(_Said(judgement, known, rounds.get(row["item"], "")))
        else:
            other += 1
    return found, other


def _coefficient(label: str, found: Coefficient) -> Row:
    if found.value is None:
        return Row(label, None, found.note)
    return Row(label, Estimate(found.value, found.low, found.high, found.items), found.note)


def _rate(label: str, rate: Rate | None, reason: str) -> Row:
    if rate is None or not rate.n:
        return Row(label, None, reason)
    return Row(label, Estimate(rate.rate, rate.low, rate.high, rate.n))


def _kappas(summary: AgreementSummary) -> list[Row]:
    """Cohen's kappa of every two people, the lowest first; unknown ones last."""
    rows = [_coefficient(f"{a} and {b}", found) for (a, b), found in summary.cohen.items()]
    return sorted(rows, key=lambda row: row.estimate.value if row.estimate else math.inf)


def _reliability(summary: AgreementSummary, names: Sequence[str]) -> list[Row]:
    known = summary.reliability or {}
    return [Row(name, Estimate(known[name])) for name in names if name in known]


def _reliability_note(summary: AgreementSummary) -> str:
    if summary.reliability is None:
        return "Unknown: no pair was judged by two people."
    if len(summary.annotators) < 3:
        return "With two annotators nobody can say which of them is right: read this lightly."
    return ""


def _pooled(rates: Iterable[Rate | None]) -> Rate | None:
    known = [rate for rate in rates if rate is not None]
    total = sum(rate.n for rate in known)
    return wilson(round(sum(rate.rate * rate.n for rate in known)), total) if total else None


def _first(by_place: Mapping[str, AnnotatorQuality], one: AnnotatorQuality) -> Rate | None:
    found = by_place.get(one.annotator)
    return found.first if found else None


def _flags(one: AnnotatorQuality, by_place: Mapping[str, AnnotatorQuality]) -> tuple[str, ...]:
    """Flags; those about the place on the page from judgements whose order is known."""
    placed = by_place[one.annotator].flags if one.annotator in by_place else ()
    first = [flag for flag in placed if flag.startswith(PLACE)]
    return (*first, *(flag for flag in one.flags if not flag.startswith(PLACE)))


def _chose_longer(item: Comparison) -> bool | None:
    gap = len(item.response_a) - len(item.response_b)
    return None if item.label == "tie" or not gap else (gap > 0) == (item.label == "a")


def _lead_times(name: str, items: Sequence[Comparison]) -> LeadTimes | None:
    times = [
        item.lead_time
        for item in items
        if item.annotator == name
        and item.lead_time is not None
        and math.isfinite(item.lead_time)
        and item.lead_time > 0
    ]
    if not times:
        return None
    low, first, middle, third, high = (
        float(q) for q in np.quantile(times, [0.05, 0.25, 0.5, 0.75, 0.95])
    )
    return LeadTimes(name, len(times), (low, first, middle, third, high))


def _timeline(moments: Sequence[datetime]) -> list[Bin]:
    """Judgements per day, or per so many days that the line stays readable."""
    if not moments:
        return []
    days = sorted(moment.astimezone(UTC).date() for moment in moments)
    width = -(-((days[-1] - days[0]).days + 1) // MOST_BINS)
    counts = Counter((day - days[0]).days // width for day in days)
    last = (days[-1] - days[0]).days // width
    return [Bin(days[0] + timedelta(days=i * width), width, counts[i]) for i in range(last + 1)]


def _disagreement(entry: Disputed) -> Disagreement:
    texts = (entry.response_a, entry.response_b)
    votes = (entry.votes["a"], entry.votes["b"])
    return Disagreement(
        prompt=_turns(entry.prompt),
        answers=[(text[:TEXT], count) for text, count in zip(texts, votes, strict=True)],
        cut=(max(0, len(texts[0]) - TEXT), max(0, len(texts[1]) - TEXT)),
        ties=entry.votes["tie"],
    )


def _turns(prompt: Text) -> list[Mapping[str, Any]]:
    """A prompt as turns for the page's macro; the last ones of a long conversation."""
    if isinstance(prompt, str):
        messages = [{"role": "", "content": prompt}]
    else:
        messages = [dict(message) for message in prompt[-4:]]
    return [
        {
            "role": message.get("role", ""),
            "content": message["content"][:TEXT],
            "cut": max(0, len(message["content"]) - TEXT),
        }
        for message in messages
    ]

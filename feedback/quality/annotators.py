"""Each annotator's record, and in plain words what in it deserves a talk.

Everything is a share with Wilson's 95% interval, or None where the annotator had no trial. A flag
is raised only when the interval lies clear of the limit, so that few judgements raise none. A flag
is a reason to look, not a verdict. Leaves out the length of the text when it judges lead times.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from feedback.aggregate import SIGN, by_pair, signed
from feedback.agreement import Rate, majority_agreement, position_bias, wilson
from feedback.schema import Comparison, Label

MAD_TO_SD = 1.4826  # of a normal distribution
LEAST_SPREAD = math.log(1.25)  # log seconds; identical lead times make no outliers


@dataclass(frozen=True)
class Limits:
    """Where a flag begins; each is compared with the near end of an interval."""

    position: float = 0.6  # share of choices for one place on the page
    length: float = 0.1  # distance from how often the others chose the longer answer
    ties: float = 0.2  # distance above how often the others said tie
    gold: float = 0.8  # accuracy on gold questions
    repeats: float = 0.8  # the same verdict on the same pair again
    agreement: float = 0.6  # siding with the majority of the others
    fast: float = 0.05  # share of judgements much faster than usual
    fast_z: float = -3.5  # robust z of the log lead time (Iglewicz and Hoaglin 1993)


@dataclass(frozen=True)
class AnnotatorQuality:
    """What one annotator's judgements show. `None` is no trial."""

    annotator: str
    n: int  # judgements
    pairs: int  # different pairs
    ties: Rate  # share of ties
    first: Rate | None  # chose what was shown first; ties left out, 0.5 is fair
    longer: Rate | None  # chose the longer answer; ties and equal lengths left out
    repeated: Rate | None  # same verdict as the first, shown the same way again
    swapped: Rate | None  # same verdict as the first, shown the other way round
    agreement: Rate | None  # sided with the majority of the others
    gold: Rate | None  # right on gold questions; a tie is right only where gold says so
    lead_time: float | None  # median, seconds
    fast: Rate | None  # judgements much faster than everybody's median
    flags: tuple[str, ...] = ()


@dataclass
class _Trials:
    """Outcomes of one annotator's judgements."""

    pairs: set[str] = field(default_factory=set)
    ties: list[bool] = field(default_factory=list)
    longer: list[bool] = field(default_factory=list)
    repeated: list[bool] = field(default_factory=list)
    swapped: list[bool] = field(default_factory=list)
    gold: list[bool] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # log seconds


def annotator_quality(
    comparisons: Iterable[Comparison],
    gold: Mapping[str, Label] | None = None,
    *,
    limits: Limits | None = None,
) -> list[AnnotatorQuality]:
    """Every annotator's record, by name.

    Args:
        comparisons: judgements, in the order in which they were made.
        gold: pair id to the right label. It speaks of the pair's first seen `response_a`, as all
            of `feedback` does; from a store that is the pair as it was added.
        limits: where flags begin.
    """
    items = list(comparisons)
    limits = limits or Limits()
    trials = _collect(items, gold or {})
    first, others = position_bias(items), majority_agreement(items)
    slow = _fast_below([time for found in trials.values() for time in found.times], limits.fast_z)
    longer = {name: found.longer for name, found in trials.items()}
    ties = {name: found.ties for name, found in trials.items()}
    records = []
    for name, found in sorted(trials.items()):
        record = AnnotatorQuality(
            annotator=name,
            n=len(found.ties),
            pairs=len(found.pairs),
            ties=wilson(sum(found.ties), len(found.ties)),
            first=_known(first[name]),
            longer=_rate(found.longer),
            repeated=_rate(found.repeated),
            swapped=_rate(found.swapped),
            agreement=_known(others[name]),
            gold=_rate(found.gold),
            lead_time=math.exp(float(np.median(found.times))) if found.times else None,
            fast=_rate([time < slow for time in found.times]),
        )
        flags = _flags(record, _of_others(longer, name), _of_others(ties, name), limits)
        records.append(replace(record, flags=flags))
    return records


def _collect(items: list[Comparison], gold: Mapping[str, Label]) -> dict[str, _Trials]:
    trials: dict[str, _Trials] = defaultdict(_Trials)
    for pair, group in by_pair(items).items():
        answer = group[0].response_a
        firsts: dict[str, tuple[int, bool]] = {}
        for item in group:
            found = trials[item.annotator]
            found.pairs.add(pair)
            sign = signed(item, answer)
            # What stood first on the page, whichever way the comparison is stored.
            shown = (item.response_a == answer) != item.swapped
            found.ties.append(sign == 0)
            if item.annotator in firsts:
                before, shown_before = firsts[item.annotator]
                (found.repeated if shown == shown_before else found.swapped).append(sign == before)
            firsts.setdefault(item.annotator, (sign, shown))
            if pair in gold:
                found.gold.append(sign == SIGN[gold[pair]])
            gap = len(item.response_a) - len(item.response_b)
            if gap and sign:
                found.longer.append((gap > 0) == (item.label == "a"))
            if item.lead_time and math.isfinite(item.lead_time) and item.lead_time > 0:
                found.times.append(math.log(item.lead_time))
    return trials


def _fast_below(times: list[float], z: float) -> float:
    """The log lead time below which a judgement is too fast to be one."""
    if not times:
        return -math.inf
    centre = float(np.median(times))
    spread = MAD_TO_SD * float(np.median(np.abs(np.asarray(times) - centre)))
    return centre + z * max(spread, LEAST_SPREAD)


def _flags(
    record: AnnotatorQuality, longer: Rate | None, ties: Rate | None, limits: Limits
) -> tuple[str, ...]:
    flags = []
    if record.first and record.first.low > limits.position:
        flags.append(f"chooses what is shown first: {_words(record.first)}; 50% is fair")
    if record.first and record.first.high < 1 - limits.position:
        flags.append(f"chooses what is shown second: first only {_words(record.first)}")
    if record.longer and longer and _apart(record.longer, longer) > limits.length:
        word = "longer" if record.longer.rate > longer.rate else "shorter"
        flags.append(
            f"prefers {word} answers: the longer one {_words(record.longer)}; "
            f"the others {longer.rate:.0%}"
        )
    if ties and record.ties.low > ties.high + limits.ties:
        flags.append(f"says tie often: {_words(record.ties)}; the others {ties.rate:.0%}")
    if record.gold and record.gold.high < limits.gold:
        flags.append(f"wrong on gold questions: right in {_words(record.gold)}")
    if record.repeated and record.repeated.high < limits.repeats:
        flags.append(f"changes verdicts: the same one again in {_words(record.repeated)}")
    if record.swapped and record.swapped.high < limits.repeats:
        flags.append(
            f"changes verdicts when the answers change places: same in {_words(record.swapped)}"
        )
    if record.agreement and record.agreement.high < limits.agreement:
        flags.append(
            f"disagrees with the others: with their majority in {_words(record.agreement)}"
        )
    if record.fast and record.fast.low > limits.fast:
        flags.append(f"too fast to have read: {_words(record.fast)}")
    return tuple(flags)


def _of_others(outcomes: Mapping[str, list[bool]], name: str) -> Rate | None:
    """The pooled rate of everybody else."""
    return _rate([hit for other, hits in outcomes.items() if other != name for hit in hits])


def _apart(one: Rate, other: Rate) -> float:
    """The gap between two intervals; 0 where they overlap."""
    return max(one.low - other.high, other.low - one.high, 0.0)


def _rate(outcomes: list[bool]) -> Rate | None:
    return wilson(sum(outcomes), len(outcomes)) if outcomes else None


def _known(rate: Rate) -> Rate | None:
    return rate if rate.n else None


def _words(rate: Rate) -> str:
    return f"{rate.rate:.0%} of {rate.n} (95%: {rate.low:.0%} to {rate.high:.0%})"

"""`align feedback agreement | annotators`: how far labels can be relied on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from align.errors import DataError
from align.feedback_cli.common import STORE, Store, out, say, table_of

if TYPE_CHECKING:
    from feedback.schema import Comparison
    from feedback.store import FeedbackStore

app = typer.Typer()


@app.command()
def agreement(store: Store = STORE) -> None:
    """How far annotators agree on pairs, and how far each can be relied on."""
    from feedback.quality.summary import agreement_summary
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        found = agreement_summary(_comparisons(opened))
    say(
        f"{found.judgements} judgements of {found.pairs} pairs by {len(found.annotators)} people; "
        f"{found.overlapping} pairs judged by two or more"
    )
    rows = []
    if found.same_side is not None:
        same = found.same_side
        rows.append(("same side, ties apart", f"{same.rate:.3f}", _interval(vars(same))))
    for label, one in (
        ("Krippendorff's alpha, nominal", found.alpha_nominal),
        ("Krippendorff's alpha, ordinal", found.alpha_ordinal),
        ("Fleiss' kappa", found.fleiss),
        *((f"Cohen's kappa, {a} and {b}", one) for (a, b), one in found.cohen.items()),
    ):
        value = "–" if one.value is None else f"{one.value:.3f}"
        rows.append((label, value, one.note or _interval(vars(one))))
    for person, share in (found.reliability or {}).items():
        rows.append((f"reliability of {person} (Dawid-Skene)", f"{share:.3f}", ""))
    out.print(table_of(("measure", "value", "95% interval"), rows))


@app.command("annotators")
def show_annotators(store: Store = STORE) -> None:
    """What each annotator's labels show: agreement, position and length bias, speed, flags."""
    from feedback.quality.annotators import annotator_quality
    from feedback.quality.gold import gold_answers
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        said = _comparisons(opened)
        known = gold_answers(opened.adjudications(), said)
    records = annotator_quality(said, known)
    header = (
        *("annotator", "labels", "ties", "chose first", "chose longer", "with majority"),
        *("same again", "turned", "gold", "s", "flags"),
    )
    rows = []
    for one in records:
        rates = (
            *(one.ties, one.first, one.longer, one.agreement),
            *(one.repeated, one.swapped, one.gold),
        )
        shown = ["–" if rate is None else f"{rate.rate:.2f}" for rate in rates]
        seconds = "–" if one.lead_time is None else f"{one.lead_time:.0f}"
        rows.append((one.annotator, str(one.n), *shown, seconds, "; ".join(one.flags)))
    out.print(table_of(header, rows))


def _comparisons(store: FeedbackStore) -> list[Comparison]:
    """What the store holds of pairs.

    Raises:
        DataError: nothing.
    """
    found = store.comparisons()
    if not found:
        fix = "align feedback pull, or import."
        raise DataError(f"feedback store {store.url}: no judgements of pairs yet. Fix: {fix}")
    return found


def _interval(found: dict[str, Any]) -> str:
    low, high = found["low"], found["high"]
    return "–" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"

"""What stands of each annotation, with the time of its version: what an export has to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from feedback.records import judgement_of
from feedback.schema import Item, Judgement


@dataclass(frozen=True)
class Standing:
    """The last version of one annotation."""

    annotation: str
    judgement: Judgement | None  # None: the annotator declined to judge
    item: Item  # what was asked, without the columns and the display order of the issue
    annotator: str
    adjudicated: bool  # it settles what others disagreed on
    updated_at: datetime


def standing_of(row: Mapping[str, Any]) -> Standing:
    """What an event's row joined with its item's says."""
    skipped = row["kind"] == "skip"
    texts = (row["prompt"], tuple(row["responses"]), tuple(row["sources"]))
    return Standing(
        row["annotation"],
        None if skipped else judgement_of(row),
        Item(row["item"], row["asked"], *texts),
        row["annotator"],
        row["kind"] == "adjudication",
        version_at(row),
    )


def version_at(event: Mapping[str, Any]) -> datetime:
    """When an event's version came about; where nobody says, when the store heard of it."""
    recorded: datetime = event["recorded_at"]
    return changed_at(event["raw"]) or recorded


def changed_at(raw: Mapping[str, Any]) -> datetime | None:
    """When an annotation was last changed where it was made, if what was received says so."""
    try:
        moment = datetime.fromisoformat(str(raw.get("updated_at")))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""Where the preferences of `align chat --versus` go: a JSONL file, or a feedback store.

The file holds TRL's preference format, so that it is training data as it is; ties have no place in
that format and are left out. A store keeps ties, who judged, and the order that was shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from align.data.remote import STORE_URL
from align.errors import RunError
from feedback.schema import Comparison, Label, Messages
from feedback.store import FeedbackStore


@dataclass(frozen=True)
class Vote:
    """One judgement of two answers; `a` is the first model's, whatever place it was shown in."""

    prompt: Messages
    answer_a: str
    answer_b: str
    label: Label
    swapped: bool  # b was shown first
    model_a: str
    model_b: str
    lead_time: float  # seconds from the answers to the judgement


Recorder = Callable[[Vote], str]  # returns what became of the vote, in words


def open_recorder(target: str, annotator: str) -> Recorder:
    """A recorder for a store URL (`sqlite:///votes.db`) or a JSONL file, checked now.

    Raises:
        RunError: the file cannot be written.
        StoreError: the store cannot be opened.
    """
    if STORE_URL.match(target):
        return _store_recorder(target, annotator)
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise RunError(
            f"cannot write votes to {path}: {error.strerror}. Fix: choose another file."
        ) from error
    return _file_recorder(path)


def _file_recorder(path: Path) -> Recorder:
    def record(vote: Vote) -> str:
        if vote.label == "tie":
            return "a tie makes no preference row: not saved (a feedback store keeps ties)"
        models = (vote.model_a, vote.model_b)
        answers = (vote.answer_a, vote.answer_b)
        better, worse = (0, 1) if vote.label == "a" else (1, 0)
        row = {
            "prompt": vote.prompt,
            "chosen": [{"role": "assistant", "content": answers[better]}],
            "rejected": [{"role": "assistant", "content": answers[worse]}],
            "chosen_model": models[better],
            "rejected_model": models[worse],
        }
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunError(f"the vote was not written to {path}: {error.strerror}.") from error
        return f"saved to {path}"

    return record


def _store_recorder(url: str, annotator: str) -> Recorder:
    store = FeedbackStore(url)

    def record(vote: Vote) -> str:
        comparison = Comparison(
            prompt=vote.prompt,
            response_a=vote.answer_a,
            response_b=vote.answer_b,
            label=vote.label,
            annotator=annotator,
            strength=0 if vote.label == "tie" else 1,
            swapped=vote.swapped,
            source_a=vote.model_a,
            source_b=vote.model_b,
            lead_time=round(vote.lead_time, 2),
        )
        store.add_comparison(comparison)
        return f"saved to {store.url}"

    return record

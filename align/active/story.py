"""The run so far as one JSON object, `active.json`: what the report shows and programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.active.pool import PairPool
from align.active.rounds import rounds_of
from align.active.said import Said
from align.data.rows import plain_text

MOST_CHOICES = 400  # shown; all of them are in rounds/*/choice.json
CHARACTERS = 300  # of a text


def tell_story(
    run: Path, pool: PairPool, said: Said, settings: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    """Rounds, curve, choices and cost.

    Args:
        run: the run directory.
        pool: with all fresh answers.
        said: what stands in the store.
        settings: how questions are chosen and who answers, in words, for the page.
        state: `status` (stopped or waiting), `why` and `next`.
    """
    rounds, choices = [], []
    for one in rounds_of(run):
        measured, choice = one.read("measure") or {}, one.read("choice") or {}
        rows = choice.get("rows", [])
        kept = {k: v for k, v in measured.items() if k != "p"}
        rounds.append(
            {"round": one.number}
            | kept
            | {
                "asked": len(rows),
                "holdout": sum(row["held"] for row in rows),
                "kind": choice.get("kind"),
                "why_kind": choice.get("why"),
                "note": choice.get("note"),
                "finished": one.read("answers") is not None,
            }
        )
        choices += [_choice(one.number, row, pool, said) for row in rows]
    measures = [one for one in rounds if "rows" in one]
    return dict(state) | {
        "settings": dict(settings),
        "rounds": rounds,
        "random": _on_random(measures),
        "cost": {
            "questions": len(choices),
            "answered": sum(bool(said.votes.get(row["id"])) for row in choices),
            "judgements": said.judgements,
            "minutes": said.spent / 60,
            "timed": said.timed,
            "training_seconds": sum(one.get("seconds") or 0.0 for one in measures),
        },
        "choices": choices[-MOST_CHOICES:],
        "choices_in_all": len(choices),
    }


def _on_random(measures: list[dict[str, Any]]) -> str:
    """Whether the curve of random choice is known, in words."""
    curves = [one["curve"] for one in measures if one.get("curve")]
    if any(curve["random"] for curve in curves):
        return (
            "Both curves are on all held-out pairs, whose answers are known here. One run: the "
            "interval of the difference is over prompts, and says nothing of other seeds."
        )
    if curves:
        return "Answers to all pairs are known, but curve.random is 0: no random arm was trained."
    return (
        "What random choice would have brought is not known: nobody answered the pairs that it "
        "would have asked. The holdout says how good the model is, not what choosing saved."
    )


def _choice(number: int, row: Mapping[str, Any], pool: PairPool, said: Said) -> dict[str, Any]:
    group = pool.groups[row["group"]]
    answers = [_short(group.answers[place]) for place in row["places"]]
    label = ""
    if row["kind"] == "pair" and row["id"] in said.shares:
        share = said.shares[row["id"]]
        label = "tie" if share == 0.5 else "first" if share > 0.5 else "second"
    elif said.votes.get(row["id"]):
        label = "ranked" if row["kind"] == "ranking" else "skipped"
    return {
        "round": number,
        "id": row["id"],
        "prompt": _short(plain_text(group.prompt)),
        "answers": answers,
        "score": row["score"],
        "reason": row["reason"],
        "held": row["held"],
        "label": label,
    }


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " …"

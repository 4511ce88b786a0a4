"""The run so far as one JSON object, `selftrain.json`: what the report shows and programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.data.rows import plain_text
from align.run import read_jsonl
from align.selftrain.rounds import Json, Round, rounds_of

EXAMPLES = 6  # of each round
CHARACTERS = 300  # of a text


def tell_story(run: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> Json:
    """Rounds with their figures, what they kept and why they were promoted or not.

    Args:
        run: the run directory.
        settings: the method and what it works with, for the page.
        state: `status` (stopped, waiting or unfinished), `why` and `next`.
    """
    rounds = []
    for one in rounds_of(run):
        found = one.read("measure") or {"round": one.number}
        kept = {k: v for k, v in found.items() if k not in ("scores", "credits")}
        rounds.append(
            kept
            | {
                "plan": one.read("plan"),
                "harvest": one.read("harvest"),
                "audit": _audit(one),
                "examples": _examples(one),
            }
        )
    used = max((one["round"] for one in rounds if one.get("promoted")), default=0)
    return dict(state) | {"settings": dict(settings), "rounds": rounds, "in_use": used}


def _audit(one: Round) -> Json | None:
    asked = one.read("audit")
    return asked and {"round": asked["round"], "asked": len(asked["labels"])}


def _examples(one: Round) -> list[Json]:
    """Some of the rows that the round made for itself, the first of each kind of origin."""
    made = [row for row in read_jsonl(one.train) if _made(row)]
    step = max(1, len(made) // EXAMPLES)
    return [_example(row) for row in made[::step][:EXAMPLES]]


def _made(row: Mapping[str, Any]) -> bool:
    return "score" in row or "gap" in row or row.get("source") == "pseudo-label"


def _example(row: Mapping[str, Any]) -> Json:
    value = next(row[name] for name in ("score", "gap", "p") if name in row)
    what = "score" if "score" in row else "gap" if "gap" in row else "confidence"
    note = " (with a hint)" if row.get("hinted") else ""
    answers = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
    return {
        "prompt": _short(plain_text(row["prompt"])),
        "answers": [_short(plain_text(text)) for text in answers],
        "why": f"{what} {value:.3g}{note}",
    }


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " …"

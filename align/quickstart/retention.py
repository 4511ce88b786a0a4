"""What the quickstart's policy forgets of the plain text it was made of, with and without a guard.

Under `--guard` every policy stage is trained a second time with that guard, from the base model on,
so that the report shows both: what was forgotten and what each policy wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.quickstart.world import World

SEEN = 8000  # texts that `make_base_model` learns
KEPT, HELD_OUT = 640, 300  # of those, for guards; and others, which measure
DATA_GUARDS = ("replay", "distill", "ewc", "mas", "agem", "isolate")
# Strengths that suit this world: docs/quickstart.md says what came of them.
GUARDS: Mapping[str, Mapping[str, Any]] = {
    "replay": {"strength": 0.5, "batch_size": 16},
    "distill": {"strength": 0.5, "batch_size": 16},
    "agem": {"batch_size": 16},
    "ewc": {"strength": 10_000.0, "proximal": True},
    "mas": {"strength": 1.0, "proximal": True},
    "l2sp": {"strength": 0.01},
    "isolate": {"share": 0.4},
    "wise_ft": {"share": 0.6},
}


def write_texts(folder: Path, world: World) -> tuple[Path, Path]:
    """Dialogues that the base model has learnt, for guards; others that it has not, to measure.

    Returns:
        the two files, `earlier.jsonl` and `retention.jsonl`.
    """
    corpus = world.corpus(SEEN + HELD_OUT)
    earlier, later = folder / "earlier.jsonl", folder / "retention.jsonl"
    for file, part in ((earlier, corpus[:KEPT]), (later, corpus[SEEN:])):
        rows = [{"prompt": lead, "completion": text} for lead, text in part if lead]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return earlier, later


def guard_override(name: str, earlier: Path) -> str:
    """The override that switches a guard on, as one would write it on the command line."""
    section = {"type": name, **GUARDS[name]}
    if name in DATA_GUARDS:
        section |= {"data": str(earlier), "samples": KEPT}
    return f"guards={json.dumps([section])}"

"""What a model wrote, kept beside the run: a resumed run trains on the same rows, and asks nothing.

A file of JSON lines, `key` and `reply`. The key is a hash of who was asked, what, and the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data.augment.writers import Writer
from feedback.schema import Messages

REPLIES = "augment_replies.jsonl"
CHUNK = 256  # questions between two writes: what an interrupted run loses at most


def remembered(writer: Writer, path: Path, asked: Mapping[str, Any]) -> Writer:
    """A writer that asks only what the file does not answer.

    Args:
        writer: who is asked.
        path: the file; made with its folder when the first reply comes.
        asked: what else decides a reply: model, URL, temperature.
    """
    known: dict[str, str] = {}

    def write(questions: Sequence[Messages], seeds: Sequence[int]) -> list[str]:
        if not known:
            known.update(_read(path))
        keys = [_key(asked, q, s) for q, s in zip(questions, seeds, strict=True)]
        new = [at for at, key in enumerate(keys) if key not in known]
        for start in range(0, len(new), CHUNK):
            part = new[start : start + CHUNK]
            replies = writer([questions[at] for at in part], [seeds[at] for at in part])
            found = {keys[at]: reply for at, reply in zip(part, replies, strict=True)}
            known.update(found)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                for key, reply in found.items():
                    stream.write(json.dumps({"key": key, "reply": reply}) + "\n")
        return [known[key] for key in keys]

    return write


def _read(path: Path) -> dict[str, str]:
    """Replies of a file; a last line that was cut short is asked for again."""
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                item = json.loads(line)
                found[item["key"]] = item["reply"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return found


def _key(asked: Mapping[str, Any], messages: Messages, seed: int) -> str:
    text = json.dumps([dict(asked), messages, seed], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

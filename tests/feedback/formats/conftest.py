"""Judgements of every kind with texts that break careless code, and files to hold them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from feedback.schema import Comparison, Correction, Judgement, Ranking, Rating, Thumb

HARD_TEXTS = [
    "plain",
    "emoji 👩🏽‍🚀🇺🇳 and a zero-width\u200bspace",
    "عربي: السلام عليكم \u202eright to left",
    "<script>alert('x')</script><b>&amp;</b>",
    "# Title\n\n- item\n\n```python\nprint('x')\n```\n| a | b |",
    "line\r\nline\rline\nline\u2028line\u0085line\x0cline\ttab",
    'quote " and ""two"", comma, semicolon; \\ backslash \\n',
    "  spaces around  ",
    "long " + "ß" * 50_000,
    '[{"role": "user", "content": "text that looks like a conversation"}]',
    "true",
    "0",
    "null",
    "=1+1",
    "NUL \x00 inside",
]
TIME = datetime(2026, 3, 1, 12, 30, 45, 678901, tzinfo=UTC)


def spread() -> list[Judgement]:
    """One judgement of each kind per hard text, as prompt, answer and reason in turn."""
    found: list[Judgement] = []
    for number, text in enumerate(HARD_TEXTS):
        talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
        for prompt in (text, talk):
            found += [
                Comparison(
                    prompt,
                    text,
                    f"other {number}",
                    "b",
                    "ann",
                    2,
                    True,
                    lead_time=1.5,
                    reason=text,
                    source_a="sft",
                    source_b="dpo",
                    created_at=TIME,
                ),
                Comparison(prompt, f"x {number}", "", "tie", text, 0, created_at=TIME),
                Ranking(
                    prompt,
                    (text, "b b", "c"),
                    (2, 0, 1),
                    "bob",
                    reason=text,
                    sources=("m1", "m2", "m3"),
                    created_at=TIME,
                ),
                Rating(
                    prompt,
                    text,
                    {"helpful": 7, "honest": 1},
                    "cy",
                    source="m",
                    lead_time=0.125,
                    created_at=TIME,
                ),
                Thumb(prompt, text, number % 2 == 0, "dee", reason="ok", created_at=TIME),
                Correction(prompt, "wrong", text, "eve", source="m", created_at=TIME),
            ]
    return found


@pytest.fixture
def judgements() -> list[Judgement]:
    return spread()


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """`save("x.jsonl", rows)` writes rows (or text, or bytes) and returns the path."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            if ".jsonl" in name:
                content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
            else:
                content = json.dumps(content, ensure_ascii=False, indent=1)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write

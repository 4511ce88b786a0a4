"""Whatever an export holds: no crash, no valid judgement lost, the rest set aside with a reason.

Seeded random mutations in place of a property-testing library. Each run knows which annotations it
left whole; those, and no others, must come back.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from feedback.errors import DataError
from feedback.formats import FORMATS, read_feedback
from feedback.formats.write import judgement_row
from feedback.labelstudio.tasks import task_data
from feedback.records import new_item

JUNK: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**400, 1e308, "", " ", "x", "\ud800", "\x00", [], [[]], [None],
    {}, {"a": []}, ["a1", "b1"], [0, 0], [1, 0], {"rank": None}, "2026-13-01", [{"role": "user"}],
    [{"role": [], "content": {}}], {"from": [], "value": 1}, "[{", '[{"role": 1}]', "r0", [["r0"]],
]  # fmt: skip
RESULTS: dict[str, list[dict[str, Any]]] = {
    "pair": [{"from_name": "pref", "type": "choices", "value": {"choices": ["b1"]}}],
    "ranking": [
        {"from_name": "rank", "type": "ranker", "value": {"ranker": {"rank": ["r1", "r2", "r0"]}}}
    ],
    "rating": [
        {"from_name": name, "type": "rating", "value": {"rating": 5}}
        for name in ("helpful", "honest", "harmless")
    ],
    "thumb": [{"from_name": "thumb", "type": "choices", "value": {"choices": ["down"]}}],
}


def make_task(draw: random.Random, number: int) -> dict[str, Any]:
    kind = draw.choice(list(RESULTS))
    count = {"pair": 2, "ranking": 3}.get(kind, 1)
    prompt: Any = f"question {number} 👍"
    if draw.random() < 0.5:
        prompt = [{"role": "user", "content": prompt}]
    item = new_item(kind, prompt, [f"answer {i} of {number}" for i in range(count)], seed=number)
    annotations = [
        {
            "id": 100 * number + i,
            "unique_id": f"{number}-{i}",
            "completed_by": draw.choice([1, {"id": 1, "email": "a@b"}, None]),
            "was_cancelled": draw.random() < 0.1,
            "lead_time": draw.choice([None, 2, 3.5]),
            "created_at": "2026-03-01T12:00:00Z",
            "updated_at": "2026-03-01T12:00:00Z",
            "result": copy.deepcopy(RESULTS[kind]),
        }
        for i in range(draw.randrange(4))
    ]
    return {"id": number, "data": task_data(item, item.id), "annotations": annotations}


def mutate(draw: random.Random, value: Any) -> None:
    """Change one place somewhere inside: another value, a missing key, one thing twice."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(list(keys))
        inner = value[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.75:
            value = inner
            continue
        action = draw.random()
        if action < 0.25:
            del value[key]
        elif action < 0.35 and isinstance(value, list):
            value.append(copy.deepcopy(inner))
        else:
            value[key] = copy.deepcopy(draw.choice(JUNK))
        return


@pytest.mark.parametrize("seed", range(150))
def test_fuzzed_label_studio_export(save, seed):
    draw = random.Random(seed)
    whole: Counter[str] = Counter()  # annotations left as they were
    broken: Counter[str] = Counter()  # changed ones: they may be read or set aside
    tasks = 0  # changed ones
    rows: list[Any] = []
    for number in range(12):
        row: Any = make_task(draw, number)
        fate = draw.random()
        if fate < 0.15:  # the task itself: nothing is promised for what it holds
            mutate(draw, row["data"]) if draw.random() < 0.8 else row.pop("data")
            tasks += 1
        elif fate < 0.2:
            row = draw.choice(JUNK)
            tasks += 1
        else:
            for place, annotation in enumerate(row["annotations"]):
                if draw.random() < 0.6:
                    whole[json.dumps(annotation)] += 1
                    continue
                if draw.random() < 0.1:
                    row["annotations"][place] = draw.choice(JUNK)
                else:
                    mutate(draw, annotation)
                broken[json.dumps(row["annotations"][place])] += 1
        rows.append(row)
    read = read_feedback(save("x.json", json.dumps(rows)), "label-studio", bad_rows="quarantine")
    found = Counter(json.dumps(item.raw) for item in (*read.reads, *read.skips))
    aside = Counter(json.dumps(row.row) for row in read.bad)
    assert whole <= found
    assert whole + broken <= found + aside  # every annotation is somewhere
    assert sum(found.values()) + sum(aside.values()) - sum((whole + broken).values()) <= 4 * tasks
    assert all(row.reason and row.line for row in read.bad)
    for item in read.reads:  # what is read can be written
        json.dumps(judgement_row(item.judgement), ensure_ascii=False).encode()


def rows_of_every_format(judgements: Any) -> list[dict[str, Any]]:
    talk = [{"role": "user", "content": "hi"}]
    answer = [{"role": "assistant", "content": "yes"}]
    other = [{"role": "assistant", "content": "no"}]
    rows = [
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"prompt": talk, "chosen": answer, "rejected": other},
        {"chosen": talk + answer, "rejected": talk + other},
        {"chosen": "the sky is blue", "rejected": "the sky is red", "annotator": "ann"},
        {"prompt": "p", "completion": "x", "label": True, "lead_time": 2},
        {"prompt": talk, "completion": answer},
        {"prompt": "p", "response_a": "x", "response_b": "y", "label": "tie", "strength": 0},
        {
            "instruction": "do", "input": "it", "cmp_key": "m_n", "response1": "x",
            "response2": "y", "annotator1": 0, "annotator2": 2,
        },
    ]  # fmt: skip
    short = [j for j in judgements if len(str(j)) < 2000]
    return rows + [judgement_row(j, f"id {n}") for n, j in enumerate(short[:40])]


@pytest.mark.parametrize("seed", range(60))
def test_fuzzed_rows_of_every_format(save, judgements, seed):
    draw = random.Random(seed)
    rows = [copy.deepcopy(row) for row in rows_of_every_format(judgements) for _ in range(3)]
    good = set()
    for number, row in enumerate(rows):
        if draw.random() < 0.5:
            mutate(draw, row)
        else:
            good.add(number + 1)
    path = save("x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    fits = set()
    for format in FORMATS[1:]:
        read = read_feedback(path, format, bad_rows="quarantine")
        seen = {int(item.where.rsplit(":", 1)[1]) for item in read.reads}
        bad = {row.line for row in read.bad}
        assert seen | bad == set(range(1, len(rows) + 1))
        assert all(row.reason for row in read.bad)
        fits |= seen
    assert good <= fits


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.jsonl.gz", "x.json.gz"])
@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_never_crash(save, judgements, tmp_path, name, seed):
    draw = random.Random(f"{name} {seed}")
    rows = rows_of_every_format(judgements)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if ".json" in name and "jsonl" not in name:
        text = json.dumps(rows, ensure_ascii=False, indent=draw.choice([None, 1]))
    elif name == "x.csv":
        text = "prompt,response_a,response_b,label\n" + 'p,"x ""1""\n",y,a\n' * 20
    data = bytearray(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    for _ in range(draw.randrange(1, 6)):
        place = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[place] = draw.randrange(256)
            case 1:
                del data[place : place + draw.randrange(1, 200)]
            case 2:
                data[place:place] = draw.randbytes(draw.randrange(1, 50))
            case _:
                data[place:place] = draw.choice([b"[" * 5000, b'"', b"\\ud800", b"NaN", b"\x00"])
    path = tmp_path / name
    path.write_bytes(bytes(data))
    for format in FORMATS[1:]:
        read = read_feedback(path, format, bad_rows="quarantine")
        assert all(row.reason for row in read.bad)
    with suppress(DataError):  # all that is left to refuse: it cannot tell the format
        read_feedback(path, bad_rows="quarantine")

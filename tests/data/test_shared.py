"""Real files: HH dialogues, GSM8K, model solutions and votes, from shared/data."""

from __future__ import annotations

import gzip
import json

import pytest

from align.config.sections import DataSection
from align.data import fit_length, load_splits

pytestmark = pytest.mark.data


def lines(path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def dialogue(messages: list[dict]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)


def squeeze(text: str) -> str:
    return "".join(text.replace("Assistant:", "").split())


def test_hh(shared_data, tmp_path, tokenizer):
    path = shared_data / "hh_harmless.jsonl.gz"
    values = DataSection(train=str(path), bad_rows="quarantine", deduplicate="none")
    splits = load_splits(values, "preference", quarantine=tmp_path / "q.jsonl")
    card = splits.card
    assert card.reasons == {"chosen is empty": 4}  # four answers in the file say nothing
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 4
    assert len(splits.train) + len(splits.validation) == card.rows_used == 1496
    # Put together again, every dialogue says what the file says.
    made = {
        squeeze(dialogue(row["prompt"] + row[answer]))
        for part in (splits.train, splits.validation)
        for row in part
        for answer in ("chosen", "rejected")
    }
    raw = lines(path)
    bad = {json.loads(line)["where"] for line in (tmp_path / "q.jsonl").read_text().splitlines()}
    kept = [row for i, row in enumerate(raw, start=1) if f"{path}:{i}" not in bad]
    assert made == {squeeze(row[answer]) for row in kept for answer in ("chosen", "rejected")}
    data, statistics = fit_length(splits.validation, "preference", tokenizer, 1024)
    assert statistics.merged_boundaries == 0
    assert len(data) + statistics.overlong == len(splits.validation)


def test_gsm8k(shared_data, tokenizer):
    columns = {"prompt": "question", "completion": "answer"}
    source = {"path": str(shared_data / "gsm8k.jsonl.gz"), "columns": columns}
    values = DataSection(train=source, test_fraction=0.1, deduplicate="near")
    sft = load_splits(values, "sft")
    assert sft.card.rows_read == 4000
    assert sft.card.layout == "plain"
    answers = {row["question"]: row["answer"] for row in lines(shared_data / "gsm8k.jsonl.gz")}
    assert all(answers[row["prompt"]] == row["completion"] for row in sft.train)
    prompts = load_splits(values, "prompts")
    assert prompts.train.column_names == ["prompt", "answer"]
    assert set(prompts.test["prompt"]) >= set(sft.test["prompt"])
    assert not set(prompts.test["prompt"]) & set(sft.train["prompt"])
    _, statistics = fit_length(sft.test, "sft", tokenizer, None)
    assert statistics.rows == len(sft.test)


def test_solutions_as_unpaired_preferences(shared_data):
    model = "175b_verification"
    columns = {
        "prompt": "question",
        "completion": f"{model}.solution",
        "label": f"{model}.is_correct",
    }
    path = shared_data / "gsm8k_solutions.jsonl.gz"
    values = DataSection(train={"path": str(path), "columns": columns}, deduplicate="none")
    splits = load_splits(values, "sft")
    right = sum(row[model]["is_correct"] for row in lines(path))
    assert splits.card.sources[0].format == "unpaired"
    assert splits.card.rows_used == right
    assert splits.card.count("left_out") == 900 - right


def test_votes_serve_prompts_with_their_columns(shared_data):
    path = shared_data / "pandalm_votes.jsonl.gz"
    source = {"path": str(path), "columns": {"prompt": "instruction"}}
    values = DataSection(train=source, validation_fraction=0.0, bad_rows="quarantine")
    splits = load_splits(values, "prompts")
    # Line 467 has no instruction, and six answers are true or false instead of text.
    assert splits.card.reasons == {
        "response1 has another type": 4,
        "response2 has another type": 2,
        "prompt is empty": 1,
    }
    assert splits.card.rows_read == 700
    assert {"input", "response1", "response2", "annotator1"} <= set(splits.train.column_names)
    assert all(isinstance(answer, str) for answer in splits.train["response1"])

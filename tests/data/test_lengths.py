"""Lengths and the checks on every encoded row."""

from __future__ import annotations

import pytest
from datasets import Dataset

from align.data import encode_pair, encode_prompt, fit_length
from align.errors import DataError, ModelError


def conversation(prompt: str, **answers: str) -> dict:
    row: dict = {"prompt": [{"role": "user", "content": prompt}]}
    return row | {k: [{"role": "assistant", "content": v}] for k, v in answers.items()}


SFT = [
    conversation("What color is the sky?", completion="Blue."),
    conversation("Where is my order? " * 8, completion="It was sent on Monday."),
    conversation("Hm?", completion="It is " * 60),
]


def length(row: dict, tokenizer, answer: str = "completion") -> int:
    return sum(map(len, encode_pair(row["prompt"], row[answer], tokenizer)))


def test_statistics_by_hand(tokenizer):
    data = Dataset.from_list(SFT)
    kept, statistics = fit_length(data, "sft", tokenizer, None)
    lengths = [length(row, tokenizer) for row in SFT]
    prompts = [len(encode_prompt(row["prompt"], tokenizer)) for row in SFT]
    assert len(kept) == statistics.kept == 3
    assert statistics.tokens == sum(lengths)
    assert statistics.sequence.max == max(lengths)
    assert statistics.prompt.mean == pytest.approx(sum(prompts) / 3, abs=0.05)
    assert statistics.prompt.p50 == sorted(prompts)[1]
    assert statistics.as_dict()["completion"]["max"] == max(
        a - b for a, b in zip(lengths, prompts, strict=True)
    )


def test_the_limit_itself_fits_and_one_less_drops(tokenizer):
    data = Dataset.from_list(SFT)
    longest = max(length(row, tokenizer) for row in SFT)
    assert len(fit_length(data, "sft", tokenizer, longest)[0]) == 3
    kept, statistics = fit_length(data, "sft", tokenizer, longest - 1)
    assert kept.to_list() == SFT[:2]
    assert (statistics.overlong, statistics.kept, statistics.rows) == (1, 2, 3)
    assert statistics.tokens == sum(length(row, tokenizer) for row in SFT[:2])


def test_a_preference_is_as_long_as_its_longer_answer(tokenizer):
    row = conversation("Sky?", chosen="Blue.", rejected="Red, or so I think, at least in part.")
    data = Dataset.from_list([row, conversation("Sky?", chosen="a", rejected="b")])
    limit = length(row, tokenizer, "rejected")
    kept, statistics = fit_length(data, "preference", tokenizer, limit - 1)
    assert kept["rejected"] == [[{"role": "assistant", "content": "b"}]]
    assert statistics.sequence.max == limit
    assert len(fit_length(data, "preference", tokenizer, limit)[0]) == 2


def test_refusal_names_the_row(tokenizer):
    with pytest.raises(DataError) as error:
        fit_length(Dataset.from_list(SFT), "sft", tokenizer, 100, "error")
    message = str(error.value)
    assert "1 of 3 rows are overlong; row 3 has " in message
    assert "past max_length=100 (it starts with 'Hm?')" in message
    assert "data.overlong=drop" in message


def test_a_prompt_past_the_context_is_named(tokenizer):
    rows = [{"prompt": "short"}, {"prompt": "a very long prompt " * 30}]
    data = Dataset.from_list(rows)
    tokens = len(encode_prompt(rows[1]["prompt"], tokenizer))
    with pytest.raises(DataError) as error:
        fit_length(data, "prompts", tokenizer, None, "error", context=64)
    assert f"row 2 has a prompt of {tokens} tokens alone, past the model's context of 64" in str(
        error.value
    )
    kept, statistics = fit_length(data, "prompts", tokenizer, 4096, context=64)
    assert kept.to_list() == rows[:1]
    assert statistics.limit == 64
    assert statistics.completion is None


def test_nothing_left_is_an_error(tokenizer):
    with pytest.raises(DataError, match=r"no row is left: 3 of 3 rows are overlong"):
        fit_length(Dataset.from_list(SFT), "sft", tokenizer, 5)


def test_text(tokenizer):
    data = Dataset.from_dict({"text": ["The sky is blue.", "What? " * 50]})
    kept, statistics = fit_length(data, "sft", tokenizer, 40)
    assert kept["text"] == ["The sky is blue."]
    assert statistics.prompt is None


def test_double_bos_is_refused_with_row_and_sample(make_tokenizer):
    tokenizer = make_tokenizer(template=None, bos=True)
    data = Dataset.from_list([{"prompt": p, "completion": "b"} for p in ("a", "<|bos|>a")])
    with pytest.raises(DataError, match=r"row 2 of 2: two BOS tokens at the start: '<\|bos\|><\|b"):
        fit_length(data, "sft", tokenizer, None)
    with pytest.raises(DataError, match="row 2 of 2: two BOS"):
        fit_length(data.select_columns("prompt"), "prompts", tokenizer, None)


def test_a_template_that_drops_the_end_of_some_turns(make_tokenizer):
    # It ends short answers, so the probe of `end_of_turn_id` is content; the rows tell.
    tokenizer = make_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m['content'] }}"
        "{% if m['content'] | length < 20 %}<|im_end|>{% endif %}{% endfor %}"
    )
    rows = [
        conversation("a", completion="Blue."),
        conversation("a", completion="It is blue as far as I see."),
    ]
    with pytest.raises(DataError, match=r"row 2 of 2: the last supervised token is not the end"):
        fit_length(Dataset.from_list(rows), "sft", tokenizer, None)


def test_a_template_that_refuses_a_conversation(make_tokenizer):
    tokenizer = make_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    row = conversation("a", completion="b")
    row["prompt"].insert(0, {"role": "system", "content": "c"})
    with pytest.raises(DataError, match=r"chat template refuses .* rows 1 to 1: System role not"):
        fit_length(Dataset.from_list([row]), "sft", tokenizer, None)


def test_the_tokenizer_is_checked_first(make_tokenizer):
    with pytest.raises(ModelError, match=r"no chat template.*model\.chat_template=chatml"):
        fit_length(Dataset.from_list(SFT), "sft", make_tokenizer(template=None), None)
    plain = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    fit_length(plain, "sft", make_tokenizer(template=None), None)


def test_prompts_that_end_inside_a_token_are_counted(tokenizer):
    rows = [{"prompt": "Open the sett", "completion": "ings"}, {"prompt": "a\n", "completion": "b"}]
    statistics = fit_length(Dataset.from_list(rows), "sft", tokenizer, None)[1]
    assert statistics.merged_boundaries == 1


def test_many_batches_equal_one(tokenizer, monkeypatch):
    data = Dataset.from_list(SFT * 5)
    whole = fit_length(data, "sft", tokenizer, 100)
    monkeypatch.setattr("align.data.lengths.BATCH", 4)
    parts = fit_length(data, "sft", tokenizer, 100)
    assert whole[1] == parts[1]
    assert whole[0].to_list() == parts[0].to_list()

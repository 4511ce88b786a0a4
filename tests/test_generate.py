"""`align generate` against transformers' own generation, and what reaches the file."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel

from align.data.tokens import encode_prompt
from align.engine.create import create_model
from align.engine.models import load_policy
from align.errors import ConfigError, DataError, ModelError, RewardError, RunError
from align.generate import Decoding, generate, run_generate
from align.prompts import as_conversations, read_prompts
from align.winners import Winners

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,  # sharp enough that greedy choices are no coin tosses
}
WORDS = "the cat sat on a mat and a dog ran to the park in the sun. why? [bold] yes!"
PROMPTS = ["the cat", "why a dog ran to the park in the sun?", "yes", "on a mat", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("generate")
    (place / "text.txt").write_text(WORDS * 10)
    return create_model(
        TINY, place / "model", tokenizer_data=[place / "text.txt"], vocab_size=300, seed=3
    )


@pytest.fixture(scope="module")
def loaded(folder):
    policy, _, tokenizer = load_policy(folder, with_reference=False)
    return policy.eval(), tokenizer


def alone(policy: PreTrainedModel, tokenizer, prompt, **kwargs) -> list[torch.Tensor]:
    """transformers' own completions of one prompt, without padding."""
    ids = torch.tensor([encode_prompt(prompt, tokenizer)])
    with torch.inference_mode():
        rows = policy.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **kwargs
        )
    return [row[ids.shape[1] :] for row in rows]


def total_logprob(policy, tokenizer, prompt, tokens: torch.Tensor) -> float:
    ids = encode_prompt(prompt, tokenizer)
    whole = torch.tensor([ids + tokens.tolist()])
    with torch.inference_mode():
        table = policy(input_ids=whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return float(table.gather(1, tokens[:, None]).sum())


def until_end(tokens: torch.Tensor, end: int) -> torch.Tensor:
    where = (tokens == end).nonzero()
    return tokens[: int(where[0]) + 1] if len(where) else tokens


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_is_what_transformers_writes_for_each_prompt_alone(loaded, batch_size):
    policy, tokenizer = loaded
    asked = as_conversations(PROMPTS, tokenizer)
    decoding = Decoding(max_new_tokens=10, temperature=0, batch_size=batch_size)
    found = [item for batch in generate(policy, tokenizer, asked, decoding) for item in batch]
    assert [item.index for item in found] == list(range(len(PROMPTS)))
    assert [item.prompt for item in found] == asked
    for item, prompt in zip(found, asked, strict=True):
        (tokens,) = alone(policy, tokenizer, prompt, max_new_tokens=10)
        tokens = until_end(tokens, tokenizer.eos_token_id)
        assert item.completion == tokenizer.decode(tokens, skip_special_tokens=True)
        assert item.tokens == len(tokens)
        assert item.finished == (tokens[-1] == tokenizer.eos_token_id)
        expected = total_logprob(policy, tokenizer, prompt, tokens)
        assert item.logprob == pytest.approx(expected, abs=1e-3)


def test_beams_are_transformers_beams_and_their_logprobs_those_of_the_model(loaded):
    policy, tokenizer = loaded
    asked = as_conversations(PROMPTS, tokenizer, raw=True)
    decoding = Decoding(max_new_tokens=8, beams=4, samples=2, batch_size=8)
    found = [item for batch in generate(policy, tokenizer, asked, decoding) for item in batch]
    assert [(item.index, item.sample) for item in found] == [
        (p, s) for p in range(5) for s in (0, 1)
    ]
    for number, prompt in enumerate(asked):
        rows = alone(
            policy, tokenizer, prompt, max_new_tokens=8, num_beams=4, num_return_sequences=2
        )
        for row, item in zip(rows, found[2 * number : 2 * number + 2], strict=True):
            tokens = until_end(row, tokenizer.eos_token_id)
            assert item.completion == tokenizer.decode(tokens, skip_special_tokens=True)
            expected = total_logprob(policy, tokenizer, prompt, tokens)
            assert item.logprob == pytest.approx(expected, abs=1e-3)


def test_beams_find_likelier_completions_than_greedy(loaded):
    policy, tokenizer = loaded
    asked = as_conversations(PROMPTS, tokenizer)

    def total(decoding: Decoding) -> float:
        batches = generate(policy, tokenizer, asked, decoding)
        return sum(item.logprob for batch in batches for item in batch)

    beams = total(Decoding(max_new_tokens=8, beams=8))
    assert beams > total(Decoding(max_new_tokens=8, temperature=0)) + 0.1


def test_a_seed_repeats_and_batches_differ_from_each_other(loaded):
    policy, tokenizer = loaded
    asked = as_conversations(["the cat"] * 4, tokenizer)

    def texts(seed: int) -> list[str]:
        decoding = Decoding(max_new_tokens=12, seed=seed, batch_size=1, temperature=2.0)
        return [b[0].completion for b in generate(policy, tokenizer, asked, decoding)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(set(texts(1))) == 4, "one prompt in four batches must not get one answer four times"


def test_completions_that_end_by_themselves_are_told_from_those_that_were_cut(loaded):
    policy, tokenizer = loaded
    asked = as_conversations(["the cat"] * 4, tokenizer)
    decoding = Decoding(max_new_tokens=20, temperature=5.0, samples=50, seed=0, batch_size=200)
    (batch,) = generate(policy, tokenizer, asked, decoding)
    ended = [item for item in batch if item.finished]
    assert 0 < len(ended) < len(batch)
    assert all(item.tokens == 20 for item in batch if not item.finished)
    assert any(item.tokens < 20 for item in ended)
    assert all(item.logprob < 0 for item in batch)


def test_top_k_one_is_greedy(loaded):
    policy, tokenizer = loaded
    asked = as_conversations(PROMPTS, tokenizer)
    greedy = Decoding(max_new_tokens=8, temperature=0)
    for decoding in (
        Decoding(max_new_tokens=8, top_k=1),
        Decoding(max_new_tokens=8, top_p=1e-6),
        Decoding(max_new_tokens=8, min_p=0.999),
    ):
        a, b = (
            [item.completion for batch in generate(policy, tokenizer, asked, d) for item in batch]
            for d in (greedy, decoding)
        )
        assert a == b


def test_the_file_holds_one_line_per_completion_in_order(folder, tmp_path):
    source = tmp_path / "prompts.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": p, "id": i}) + "\n" for i, p in enumerate(PROMPTS))
    )
    prompts, columns = read_prompts(["first"], source)
    output = tmp_path / "deep/out.jsonl"
    decoding = Decoding(max_new_tokens=6, samples=2, seed=1, batch_size=4)
    count = run_generate(
        folder, prompts, decoding, output=output, columns=columns, system="Be brief."
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert count == len(rows) == 12
    assert [row["index"] for row in rows] == [i for i in range(6) for _ in range(2)]
    assert [row.get("id") for row in rows[::2]] == [None, 0, 1, 2, 3, 4]
    assert rows[0]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert rows[0]["prompt"][1] == {"role": "user", "content": "first"}
    assert {"completion", "finished", "logprob", "tokens", "sample"} <= rows[0].keys()
    with pytest.raises(ConfigError, match="exists"):
        run_generate(folder, prompts, decoding, output=output)
    run_generate(folder, ["again"], decoding, output=output, overwrite=True)
    assert len(output.read_text().splitlines()) == 2


def test_without_a_terminal_stdout_gets_json_and_with_one_it_gets_text(folder):
    plain, pretty = io.StringIO(), io.StringIO()
    decoding = Decoding(max_new_tokens=4, temperature=0)
    run_generate(folder, ["why? [bold]"], decoding, console=Console(file=plain))
    row = json.loads(plain.getvalue())
    console = Console(file=pretty, force_terminal=True, width=60, color_system=None)
    run_generate(folder, ["why? [bold]"], decoding, console=console)
    assert "why? [bold]" in pretty.getvalue(), "text must not be read as markup"
    assert row["completion"].strip()[:10] in pretty.getvalue()
    assert "log-probability" in pretty.getvalue()


def test_raw_prompts_stay_plain(loaded):
    _, tokenizer = loaded
    chat = [{"role": "user", "content": "hi"}]
    assert as_conversations(["hi", chat], tokenizer) == [chat, chat]
    assert as_conversations(["hi"], tokenizer, raw=True) == ["hi"]
    with pytest.raises(ConfigError, match="system"):
        as_conversations(["hi"], tokenizer, raw=True, system="Be brief.")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        assert as_conversations(["hi"], tokenizer) == ["hi"]
        with pytest.raises(ModelError, match="chatml"):
            as_conversations([chat], tokenizer)
    finally:
        tokenizer.chat_template = template


def test_prompts_come_from_text_files_data_files_and_stdin(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\n  two\n")
    assert read_prompts([], lines) == (["one", "  two"], [{}, {}])
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        json.dumps({"prompt": "p", "chosen": "a", "rejected": "b", "topic": "t"}) + "\n"
    )
    assert read_prompts(["x"], pairs)[0] == ["x", "p"]
    assert read_prompts([], None, io.StringIO("a\n\nb\n"))[0] == ["a", "b"]
    assert read_prompts(["x"], None, io.StringIO("unread\n"))[0] == ["x"]
    with pytest.raises(DataError, match=r"did you mean .*prompts\.txt"):
        read_prompts([], tmp_path / "prompt.txt")


def test_a_repeated_prompt_in_a_file_is_answered_twice(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "same"}\n{"prompt": "other"}\n{"prompt": "same"}\n')
    assert read_prompts([], file)[0] == ["same", "other", "same"]


def test_prompts_that_do_not_fit_are_refused_before_anything_is_drawn(loaded):
    policy, tokenizer = loaded
    asked = as_conversations(["a", "the cat sat " * 40], tokenizer)
    with pytest.raises(ModelError, match=r"1 of 2 prompts do not fit: prompt 1 .* context of 96"):
        next(generate(policy, tokenizer, asked, Decoding(max_new_tokens=8)))


@pytest.mark.parametrize("old", [None, "old answers\n"])
def test_a_run_that_fails_before_its_first_answer_leaves_the_output_as_it_was(
    folder, tmp_path, old
):
    output = tmp_path / "out.jsonl"
    if old:
        output.write_text(old)
    decoding = Decoding(max_new_tokens=8)
    with pytest.raises(ModelError, match="do not fit"):
        run_generate(folder, ["the cat " * 60], decoding, output=output, overwrite=bool(old))
    assert (output.read_text() if output.exists() else None) == old
    assert [path.name for path in tmp_path.iterdir()] == (["out.jsonl"] if old else [])
    run_generate(folder, ["the cat"], decoding, output=output, overwrite=bool(old))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert json.loads(output.read_text())["index"] == 0


@pytest.mark.parametrize("old", [None, "old answers\n"])
def test_the_answers_of_a_run_that_fails_later_are_kept_and_named(folder, tmp_path, capsys, old):
    def fails_at_last(prompts, completions, **columns):
        if "why?" in str(prompts):
            raise ValueError("no more")
        return [0.0] * len(completions)

    output, place = tmp_path / "out.jsonl", tmp_path / "out.jsonl"
    if old:
        output.write_text(old)
        place = tmp_path / "out.unfinished.jsonl"
    with pytest.raises(RewardError, match="no more"):
        run_generate(
            folder,
            ["a", "yes", "why?"],
            Decoding(max_new_tokens=4, batch_size=1),
            output=output,
            overwrite=bool(old),
            winners=Winners(fails_at_last),
        )
    assert [json.loads(line)["index"] for line in place.read_text().splitlines()] == [0, 1]
    said = capsys.readouterr().err
    assert f"Answers finished before that: 2, in {place}." in said
    if old:
        assert output.read_text() == old
        assert f"{output} is as it was." in said


def test_settings_that_cannot_be_meant_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        Decoding(max_new_tokens=0, temperature=-1, top_p=0, beams=2, samples=3).check()
    assert len(caught.value.problems) == 5
    with pytest.raises(ConfigError, match="does not sample"):
        Decoding(beams=2, top_k=5).check()
    Decoding(beams=2, samples=2).check()


def test_no_prompts_is_an_error(folder):
    with pytest.raises(DataError, match="no prompts"):
        run_generate(folder, [], Decoding())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_as_it_is(folder):
    with pytest.raises(RunError, match=r"No space left .* free some space"):
        run_generate(
            folder, ["a"], Decoding(max_new_tokens=2), output=Path("/dev/full"), overwrite=True
        )


def test_what_was_decoded_before_a_crash_is_in_the_file(folder, tmp_path):
    output = tmp_path / "out.jsonl"
    code = (
        "import sys; from pathlib import Path; from align.generate import Decoding, run_generate\n"
        "run_generate(sys.argv[1], ['the cat'] * 5000, Decoding(max_new_tokens=8, batch_size=2),"
        " output=Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 480
        while not (output.exists() and output.read_text().count("\n") >= 6):
            assert time.monotonic() < deadline, "no output within eight minutes"
            assert process.poll() is None, "ended before it was stopped"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert 6 <= len(rows) < 5000
    assert [row["index"] for row in rows] == list(range(len(rows)))

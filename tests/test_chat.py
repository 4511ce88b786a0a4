"""`align chat` through its input and output, with real (tiny) models."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from align.chat import Chat, run_chat
from align.config.sections import DataSection
from align.data import encode_prompt, load_splits
from align.engine.create import create_model
from align.engine.models import load_policy
from align.errors import ConfigError, ModelError, RunError
from align.generate import Decoding, generate
from align.rollout.stream import ReplyStream
from align.speaker import Speaker, turns_to_drop
from feedback.store import FeedbackStore

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
FOX = "a fox 🦊 ran, 狐狸!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("chat")
    (place / "text.txt").write_text("the cat sat on a mat and a dog ran. why? yes! " * 20)
    data = [place / "text.txt"]
    for name, seed in (("one", 1), ("two", 2)):
        create_model(TINY, place / name, tokenizer_data=data, vocab_size=300, seed=seed)
    return place


@pytest.fixture(scope="module")
def speaker(folder) -> Speaker:
    policy, _, tokenizer = load_policy(folder / "one", with_reference=False)
    return Speaker("one", policy.eval(), tokenizer)


def talk(folder: Path, lines: str, **kwargs) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=False)
    decoding = kwargs.pop("decoding", Decoding(max_new_tokens=8, seed=0))
    run_chat(folder / "one", decoding, console=console, stdin=io.StringIO(lines), **kwargs)
    return out.getvalue()


@pytest.fixture(scope="module")
def parrot(folder) -> Speaker:
    """A model taught to say one sentence, whose emoji and characters are several tokens each."""
    policy, _, tokenizer = load_policy(folder / "one", with_reference=False)
    prompt = encode_prompt([{"role": "user", "content": "say it"}], tokenizer)
    answer = [*tokenizer(FOX)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([prompt + answer])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(150):
        loss = policy(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Speaker("parrot", policy.eval(), tokenizer)


def test_pieces_never_end_inside_a_character(parrot):
    stream = parrot.reply([{"role": "user", "content": "say it"}], Decoding(temperature=0), None)
    pieces = list(stream)
    assert "".join(pieces) == stream.text == FOX
    assert stream.finished
    assert len(stream.tokens) > len(pieces) > 5, "several tokens, but one piece, per character"
    assert not any("\ufffd" in piece for piece in pieces)


def test_greedy_streaming_writes_what_generate_writes(speaker):
    prompts = [[{"role": "user", "content": text}] for text in ("why?", "the cat sat", "yes")]
    decoding = Decoding(max_new_tokens=16, temperature=0)
    batches = generate(speaker.policy, speaker.tokenizer, prompts, decoding)
    expected = [item.completion for batch in batches for item in batch]
    assert ["".join(speaker.reply(p, decoding, None)) for p in prompts] == expected


def test_a_stream_can_be_left_and_its_seed_repeats(speaker):
    def start(seed: int) -> ReplyStream:
        generator = torch.Generator().manual_seed(seed)
        decoding = Decoding(max_new_tokens=30, temperature=1.5)
        return speaker.reply([{"role": "user", "content": "why?"}], decoding, generator)

    whole, left = start(4), start(4)
    text = "".join(whole)
    pieces = iter(left)
    first = next(pieces) + next(pieces)
    assert text.startswith(first)
    assert len(left.tokens) < len(whole.tokens)
    assert "".join(start(5)) != text


def test_a_conversation_is_remembered_and_saved_as_sft_data(folder, tmp_path):
    file = tmp_path / "saved.jsonl"
    lines = f"why?\n/system Be kind\nyes [bold]\n/save {file}\n/reset\n/save {file}\nthe cat\n"
    shown = talk(folder, lines + f"/save {file}\n/quit\nunread\n")
    rows = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    assert [[m["role"] for m in row] for row in rows] == [
        ["system", "user", "assistant", "user", "assistant"],
        ["system", "user", "assistant"],
    ]
    assert rows[0][3]["content"] == "yes [bold]"
    assert rows[0][2]["content"] in shown
    assert "nothing to save yet" in shown
    assert "unread" not in shown
    splits = load_splits(DataSection(train=[str(file)], validation_fraction=0), "sft")
    assert len(splits.train) == 2


def test_the_history_reaches_the_model(speaker):
    """With temperature 0, the second answer depends on the first message."""

    def second(first: str) -> str:
        chat = Chat([speaker], Decoding(max_new_tokens=12, temperature=0), Console(quiet=True))
        chat.turn(first)
        chat.turn("and now?")
        assert len(chat.turns) == 4
        return chat.turns[-1]["content"]

    assert second("why?") == second("why?")
    assert second("why?") != second("the cat sat on a mat")


def test_commands_answer_mistakes_with_a_hint(folder):
    shown = talk(
        folder, "/temprature 1\n/temperature hot\n/temperature -1\n/temperature 0.5\n/help\n"
    )
    assert "did you mean /temperature?" in shown
    assert shown.count("a number of at least 0 is expected") == 2
    assert "temperature 0.5" in shown
    assert "/versus" not in shown
    assert "/system TEXT" in shown


def test_temperature_zero_repeats_itself(folder):
    shown = talk(folder, "/temperature 0\nwhy?\n/reset\nwhy?\n")
    answers = [part.split("\nyou>")[0] for part in shown.split("why?\n")[1:]]
    assert answers[0].replace("a new conversation", "").strip() == answers[1].strip()


def test_the_oldest_exchanges_go_when_the_context_is_full(speaker):
    out = io.StringIO()
    chat = Chat(
        [speaker],
        Decoding(max_new_tokens=16, seed=0),
        Console(file=out, width=100),
        system="Be kind.",
    )
    for number in range(6):
        chat.turn(f"message {number}: the cat sat on a mat")
    prompt = chat.fit()
    assert len(encode_prompt(prompt, speaker.tokenizer)) + 16 <= 128
    assert prompt[0] == {"role": "system", "content": "Be kind."}
    assert prompt[1]["role"] == "user"
    assert len(chat.turns) == 12, "the record is kept whole"
    assert "oldest turns are no longer seen" in out.getvalue()


def test_no_more_is_dropped_than_must_be(speaker):
    turns = [
        {"role": role, "content": f"the cat {number}"}
        for number in range(4)
        for role in ("user", "assistant")
    ][:-1]
    lengths = [len(encode_prompt(turns[drop:], speaker.tokenizer)) for drop in (0, 2, 4, 6)]
    assert turns_to_drop([], turns, speaker.tokenizer, lengths[0]) == 0
    assert turns_to_drop([], turns, speaker.tokenizer, lengths[0] - 1) == 2
    assert turns_to_drop([], turns, speaker.tokenizer, lengths[2]) == 4
    with pytest.raises(ModelError, match=f"at most {lengths[3] - 1} fit"):
        turns_to_drop([], turns, speaker.tokenizer, lengths[3] - 1)


def test_a_message_that_never_fits_is_refused_and_the_chat_goes_on(folder):
    shown = talk(folder, "the cat " * 100 + "\nwhy?\n")
    assert "Say it shorter" in shown
    assert shown.count("you>") == 2
    assert "(cut at the limit)" in shown.split("why?")[1]


def test_votes_become_preference_rows_whatever_order_was_shown(folder, tmp_path):
    file = tmp_path / "votes.jsonl"
    # Votes always for answer 1: the shown order is random, so both models win some.
    lines = "".join(f"message {n}\n1\n/reset\n" for n in range(12)) + "tie now\n=\nnone now\n\n"
    shown = talk(folder, lines, versus=folder / "two", votes=str(file))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 12
    wins = {row["chosen_model"] for row in rows}
    assert wins == {str(folder / "one"), str(folder / "two")}
    words = " ".join(shown.split())
    assert "a tie makes no preference row" in words
    wins_of_one = sum(row["chosen_model"] == str(folder / "one") for row in rows)
    assert f"{folder / 'one'} {wins_of_one}" in words
    assert "tie 1" in words
    splits = load_splits(DataSection(train=[str(file)], validation_fraction=0), "preference")
    assert splits.train[0]["prompt"] == [{"role": "user", "content": "message 0"}]


def test_the_conversation_goes_on_with_the_better_answer(folder, tmp_path):
    file = tmp_path / "votes.jsonl"
    saved = tmp_path / "saved.jsonl"
    talk(folder, f"why?\n2\nand now?\n1\n/save {saved}\n", versus=folder / "two", votes=str(file))
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert second["prompt"][1]["content"].strip() == first["chosen"][0]["content"]
    messages = json.loads(saved.read_text())["messages"]
    assert messages[3]["content"].strip() == second["chosen"][0]["content"]


def test_votes_in_a_store_speak_of_models_not_of_places(folder, tmp_path):
    url = f"sqlite:///{tmp_path / 'votes.db'}"
    lines = "".join(f"message {n}\n{'12='[n % 3]}\n/reset\n" for n in range(12))
    decoding = Decoding(max_new_tokens=8, temperature=0, seed=3)
    talk(folder, lines, versus=folder / "two", votes=url, annotator="ada", decoding=decoding)
    with FeedbackStore(url) as store:
        found = store.comparisons()
    assert len(found) == 12
    assert {c.annotator for c in found} == {"ada"}
    assert {c.swapped for c in found} == {True, False}
    models = {}
    for name in ("one", "two"):
        policy, _, tokenizer = load_policy(folder / name, with_reference=False)
        models[str(folder / name)] = Speaker(name, policy.eval(), tokenizer)
    for number, comparison in enumerate(found):
        for source, response in (
            (comparison.source_a, comparison.response_a),
            (comparison.source_b, comparison.response_b),
        ):
            spoken = "".join(models[source].reply(comparison.prompt, decoding, None)).strip()
            assert response == spoken, "the answer is not that of the model it is put down to"
        shown_first_is_a = not comparison.swapped
        vote = "12="[number % 3]
        expected = "tie" if vote == "=" else ("a" if (vote == "1") == shown_first_is_a else "b")
        stored_a_is_one = comparison.source_a == str(folder / "one")
        assert comparison.label == expected, (number, stored_a_is_one)
        assert comparison.strength == (0 if vote == "=" else 1)
        assert comparison.lead_time is not None


def test_equal_answers_cannot_be_compared(folder, tmp_path):
    decoding = Decoding(max_new_tokens=8, temperature=0)
    shown = talk(
        folder, "why?\n", versus=folder / "one", votes=str(tmp_path / "v.jsonl"), decoding=decoding
    )
    assert "nothing to compare" in shown
    assert "better?" not in shown


def test_two_answers_stand_side_by_side(folder):
    shown = talk(folder, "why?\n\n", versus=folder / "two")
    assert any("─ 1 ─" in line and "─ 2 ─" in line for line in shown.splitlines())
    assert str(folder / "two") not in shown.split("why?")[1], "the models must stay anonymous"


def test_a_model_without_chat_template_is_refused(folder, tmp_path):
    policy, _, tokenizer = load_policy(folder / "one", with_reference=False)
    tokenizer.chat_template = None
    policy.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match="--chat-template chatml"):
        run_chat(tmp_path / "plain", stdin=io.StringIO(""))
    run_chat(
        tmp_path / "plain",
        Decoding(max_new_tokens=8),
        chat_template="chatml",
        stdin=io.StringIO("hi\n"),
        console=Console(file=io.StringIO()),
    )


def test_settings_and_places_are_checked_before_a_model_is_loaded(folder, tmp_path):
    with pytest.raises(ConfigError, match="beams"):
        run_chat("nowhere", Decoding(beams=2))
    with pytest.raises(RunError, match="cannot write votes"):
        run_chat("nowhere", votes=str(tmp_path))
    with pytest.raises(ConfigError, match="no room"):
        run_chat(folder / "one", Decoding(max_new_tokens=128), stdin=io.StringIO(""))


@pytest.mark.integration
def test_it_works_on_a_pipe(folder):
    code = (
        "import sys; from align.chat import run_chat; from align.generate import Decoding\n"
        "run_chat(sys.argv[1], Decoding(max_new_tokens=6))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "one")],
        input="why?\n/quit\n",
        capture_output=True,
        text=True,
        timeout=480,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert "you> why?" in done.stdout
    assert done.stdout.rstrip().endswith("you> /quit")

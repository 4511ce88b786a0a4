"""`align chat`: talk to a checkpoint in the terminal, or to two of them side by side.

With `--versus` both answer each message in an order drawn anew every time, without their names; the
person may say which is better, and the conversation goes on with that answer. Works on pipes too:
one line a message (and, with two models, one line a vote).
"""

from __future__ import annotations

import difflib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text as Styled

from align.errors import ConfigError, ModelError
from align.generate import Decoding
from align.rollout.stream import ReplyStream
from align.speaker import Speaker, load_speaker, turns_to_drop
from align.votes import Recorder, Vote, open_recorder
from feedback.schema import Label, Messages

HELP = {
    "/reset": "forget the conversation (the system message stays)",
    "/system TEXT": "set the system message; without TEXT, remove it",
    "/temperature X": "0 is greedy",
    "/save FILE": "append the conversation to a JSONL file, as SFT data",
    "/help": "this list",
    "/quit": "or Ctrl-D; Ctrl-C stops an answer",
}


@dataclass
class Chat:
    """A conversation with one or two speakers, and everything a command can change."""

    speakers: Sequence[Speaker]
    decoding: Decoding
    console: Console
    stdin: TextIO | None = None  # None: the terminal's own line editing
    system: str | None = None
    recorder: Recorder | None = None
    turns: Messages = field(default_factory=list)
    forgotten: int = 0  # turns that no longer fit, as last told
    votes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        seed = self.decoding.seed
        self.order = random.Random(seed)
        device = self.speakers[0].policy.device
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(
            seed if seed is not None else random.SystemRandom().getrandbits(48)
        )

    def run(self) -> None:
        """Read, answer, repeat, until /quit or the end of the input."""
        names = " and ".join(speaker.name for speaker in self.speakers)
        self.note(f"{names}. /help lists the commands.")
        while (line := self.read("you> ")) is not None:
            if line.startswith("/"):
                if not self.command(line):
                    break
            elif line.strip():
                self.turn(line.strip())
        if self.votes:
            tally = ", ".join(f"{name} {count}" for name, count in self.votes.most_common())
            self.note(f"votes: {tally}")

    def turn(self, text: str) -> None:
        """One message and its answer (or answers)."""
        self.turns.append({"role": "user", "content": text})
        try:
            prompt = self.fit()
        except ModelError as error:
            self.turns.pop()
            self.note(str(error))
            return
        answer = self.answer(prompt) if len(self.speakers) == 1 else self.duel(prompt)
        if answer.strip():
            self.turns.append({"role": "assistant", "content": answer})
        else:
            self.turns.pop()
            self.note("(an empty answer: neither it nor your message is kept)")

    def fit(self) -> Messages:
        """The conversation without its oldest turns, as many as do not fit, and a word about it."""
        head: Messages = [{"role": "system", "content": self.system}] if self.system else []
        dropped = 0
        for speaker in self.speakers:
            if speaker.context:
                room = speaker.context - self.decoding.max_new_tokens
                dropped = max(dropped, turns_to_drop(head, self.turns, speaker.tokenizer, room))
        if dropped > self.forgotten:
            self.note(f"(the context is full: the {dropped} oldest turns are no longer seen)")
        self.forgotten = dropped
        return [*head, *self.turns[dropped:]]

    def answer(self, prompt: Messages) -> str:
        """Stream one speaker's answer to the console."""
        stream = self.speakers[0].reply(prompt, self.decoding, self.generator)
        try:
            for piece in stream:
                self.console.out(piece, end="", highlight=False)
            end = "" if stream.finished else " (cut at the limit)"
        except KeyboardInterrupt:
            end = " (stopped)"
        self.console.out(end, highlight=False)
        return stream.text

    def duel(self, prompt: Messages) -> str:
        """Two answers side by side, a vote, and the answer to go on with."""
        swapped = self.order.random() < 0.5
        shown = list(reversed(self.speakers)) if swapped else list(self.speakers)
        streams = [speaker.reply(prompt, self.decoding, self.generator) for speaker in shown]
        try:
            if self.console.is_terminal:
                with Live(console=self.console, transient=True, refresh_per_second=8) as live:
                    for _ in _alternate(streams):
                        live.update(_columns(streams))
            else:
                for _ in _alternate(streams):
                    pass
        except KeyboardInterrupt:
            self.note("(stopped)")
        self.console.print(_columns(streams))
        first, second = (stream.text.strip() for stream in streams)
        if first == second or not first or not second:
            self.note("(nothing to compare: the answers are equal, or one is empty)")
            return streams[0].text or streams[1].text
        choice, seconds = self.ask_vote()
        if choice is not None:
            label: Label = "tie"
            if choice != "=":
                label = "a" if (choice == "1") != swapped else "b"
            a, b = reversed((first, second)) if swapped else (first, second)
            name_a, name_b = (speaker.name for speaker in self.speakers)
            self.votes[{"a": name_a, "b": name_b, "tie": "tie"}[label]] += 1
            vote = Vote(prompt, a, b, label, swapped, name_a, name_b, lead_time=seconds)
            outcome = self.recorder(vote) if self.recorder else "not saved"
            self.note(f"(1 was {shown[0].name}, 2 was {shown[1].name}; {outcome})")
        return streams[1].text if choice == "2" else streams[0].text

    def ask_vote(self) -> tuple[str | None, float]:
        """1, 2, = or None, and the seconds it took."""
        start = time.monotonic()
        while (line := self.read("better? 1, 2, = (Enter: no vote)> ")) is not None:
            choice = line.strip()
            if choice in ("1", "2", "="):
                return choice, time.monotonic() - start
            if not choice:
                break
            self.note("1, 2 or =, or nothing for no vote")
        return None, 0.0

    def command(self, line: str) -> bool:
        """Carry out a command; False ends the chat."""
        name, _, argument = line[1:].strip().partition(" ")
        argument = argument.strip()
        known = [key.split()[0][1:] for key in HELP]
        if name == "quit":
            return False
        if name == "reset":
            self.turns, self.forgotten = [], 0
            self.note("a new conversation")
        elif name == "system":
            self.system = argument or None
            self.note(f"system: {argument}" if argument else "no system message")
        elif name == "temperature":
            try:
                changed = replace(self.decoding, temperature=float(argument))
                changed.check()
                self.decoding = changed
                self.note(f"temperature {changed.temperature:g}")
            except ValueError:  # ConfigError is one, too
                self.note(f"temperature: a number of at least 0 is expected, not {argument!r}")
        elif name == "save":
            self.note(self.save(argument))
        elif name == "help":
            for key, text in HELP.items():
                self.note(f"{key:<16}{text}")
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists them"
            self.note(f"unknown command /{name}; {hint}")
        return True

    def save(self, file: str) -> str:
        """Append the conversation to a JSONL file; returns what became of it, in words."""
        if not file:
            return "/save FILE: name a file"
        if not self.turns:
            return "nothing to save yet"
        head: Messages = [{"role": "system", "content": self.system}] if self.system else []
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            with Path(file).open("a", encoding="utf-8") as stream:
                row = {"messages": [*head, *self.turns]}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            return f"not saved: {file}: {error.strerror}"
        return f"{len(self.turns)} turns saved to {file}"

    def read(self, prompt: str) -> str | None:
        """A line from the person, or None at the end; lines of a pipe are echoed."""
        if self.stdin is None:
            try:
                return self.console.input(Styled(prompt, style="bold cyan"))
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return None
        line = self.stdin.readline()
        if not line:
            return None
        self.console.out(prompt + line.rstrip("\r\n"), highlight=False)
        return line.rstrip("\r\n")

    def note(self, text: str) -> None:
        """A word from the program, apart from what the models say."""
        self.console.print(Styled(text, style="dim"))


def run_chat(
    model: str | Path,
    decoding: Decoding | None = None,
    *,
    versus: str | Path | None = None,
    system: str | None = None,
    votes: str | None = None,
    annotator: str = "chat",
    tokenizer: str | None = None,
    chat_template: str | None = None,
    dtype: str = "auto",
    console: Console | None = None,
    stdin: TextIO | None = None,
) -> None:
    """What the command does.

    Args:
        model: directory or hub id.
        decoding: how answers are drawn; `seed` also fixes the order of two answers.
        versus: a second model.
        system: the system message to begin with.
        votes: where votes go: a JSONL file or a feedback store's URL; without it only the tally.
        annotator: whose votes they are.
        tokenizer: where the tokenizer of `model` is, if not with it.
        chat_template: a built-in name or a .jinja file, for both models.
        dtype: of the weights.
        console: where the chat is shown.
        stdin: where lines come from; default: the terminal, or the pipe in its place.

    Raises:
        ConfigError: settings that cannot be meant.
        ModelError: a model cannot be loaded, or its tokenizer has no chat template.
        RunError, StoreError: `votes` cannot be written.
    """
    decoding = decoding or Decoding()
    decoding.check()
    if decoding.beams > 1 or decoding.samples > 1:
        raise ConfigError("a chat streams one sampled answer: beams and samples must be 1.")
    recorder = open_recorder(votes, annotator) if votes else None
    speakers = [load_speaker(model, tokenizer, chat_template, dtype)]
    if versus is not None:
        speakers.append(load_speaker(versus, None, chat_template, dtype))
    for speaker in speakers:
        if speaker.context and decoding.max_new_tokens >= speaker.context:
            raise ConfigError(
                f"max_new_tokens={decoding.max_new_tokens} leaves no room for a message in the "
                f"context of {speaker.name}, {speaker.context} tokens."
            )
    if stdin is None and not sys.stdin.isatty():
        stdin = sys.stdin
    if stdin is None:
        import readline  # noqa: F401 - importing it gives `input` line editing and history
    Chat(speakers, decoding, console or Console(), stdin, system, recorder).run()


def _alternate(streams: Sequence[ReplyStream]) -> Iterator[str]:
    """A piece of each in turn, until all have ended."""
    running = [iter(stream) for stream in streams]
    while running:
        for stream in list(running):
            piece = next(stream, None)
            if piece is None:
                running.remove(stream)
            else:
                yield piece


def _columns(streams: Sequence[ReplyStream]) -> Table:
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in streams:
        table.add_column(ratio=1)
    table.add_row(
        *(
            Panel(Styled(stream.text.strip()), title=str(number), title_align="left")
            for number, stream in enumerate(streams, start=1)
        )
    )
    return table

"""`align generate`: completions of a checkpoint for prompts from anywhere, to JSONL or a terminal.

Sampling goes through `align.rollout.transformers`, beams through the model's own `generate`. Each
batch is written as soon as it is decoded, so a crash loses one batch at most. Leaves out judging
(`align evaluate`) and conversation (`align chat`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.text import Text as Styled
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data import encode_prompt
from align.engine.head import completion_logprobs
from align.engine.models import load_policy
from align.errors import ConfigError, DataError, ModelError, Problem
from align.evaluate.generate import seeded
from align.lines import JsonLines, put
from align.prompts import as_conversations, check_context
from align.rollout.base import pad_id, pad_left
from align.rollout.decode import NOT_FINITE
from align.rollout.transformers import TransformersSampler, end_ids, evaluating
from align.types import Text
from align.winners import Winners


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn. Temperature 0 is greedy; more than one beam samples nothing."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    beams: int = 1
    samples: int = 1  # completions per prompt; with beams, the best so many of them
    seed: int | None = None  # each batch has its own, derived from this one
    batch_size: int = 16  # completions decoded at once

    def check(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            ConfigError: all of them at once.
        """
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1"),
            "temperature": (self.temperature >= 0, "must be 0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "must be above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "must be 0 (off) or more"),
            "min_p": (0 <= self.min_p < 1, "must be at least 0 and below 1"),
            "beams": (self.beams >= 1, "must be at least 1"),
            "samples": (self.samples >= 1, "must be at least 1"),
            "batch_size": (self.batch_size >= 1, "must be at least 1"),
        }
        problems = [
            Problem(name, f"is {getattr(self, name)}; it {rule}.")
            for name, (fine, rule) in rules.items()
            if not fine
        ]
        if self.beams > 1:
            if self.samples > self.beams:
                problems.append(
                    Problem("samples", f"{self.samples} of {self.beams} beams.", "add beams.")
                )
            if (self.temperature, self.top_p, self.top_k, self.min_p) != (1.0, 1.0, 0, 0.0):
                fix = "leave temperature, top-p, top-k and min-p out, or use one beam."
                problems.append(Problem("beams", "beam search does not sample.", fix))
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Generation:
    """One completion."""

    prompt: Text
    completion: str
    finished: bool  # it ended by itself, not at max_new_tokens
    logprob: float  # sum over its tokens, of the full distribution at the temperature
    tokens: int  # the end-of-turn token included
    index: int  # of its prompt
    sample: int  # of its prompt's completions

    def row(self) -> dict[str, Any]:
        """Its line in a JSONL file."""
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "finished": self.finished,
            "logprob": round(self.logprob, 4),
            "tokens": self.tokens,
            "index": self.index,
            "sample": self.sample,
        }


def run_generate(
    model: str | Path,
    prompts: Sequence[Text],
    decoding: Decoding,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    raw: bool = False,
    system: str | None = None,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    dtype: str = "auto",
    columns: Sequence[Mapping[str, Any]] | None = None,
    winners: Winners | None = None,
    console: Console | None = None,
) -> int:
    """What the command does: load, generate, write; returns the number of completions.

    Args:
        model: directory or hub id; an adapter's directory is merged into its base.
        prompts: from `align.prompts.read_prompts`.
        decoding: how to draw.
        output: a JSONL file, which appears with the first batch; without one, the terminal (or JSON
            lines where stdout is no terminal).
        overwrite: replace `output`, if it exists, when all is written.
        raw: plain prompts stay plain text even when the tokenizer has a chat template.
        system: a system message put before conversations.
        tokenizer: where the tokenizer is, if not with the model.
        chat_template: a built-in name or a .jinja file.
        dtype: of the weights.
        columns: further values per prompt, written into its lines.
        winners: of each prompt's samples only the best is kept.
        console: where the terminal's output goes.

    Raises:
        ConfigError: settings that cannot be meant, or an output that exists.
        DataError: no prompts.
        ModelError: the model cannot be loaded, or a prompt does not fit its context.
        RunError: the output cannot be written (the completions before it are kept).
    """
    decoding.check()
    if not prompts:
        raise DataError(
            "no prompts. Fix: give them as arguments, with --prompts FILE, or on stdin."
        )
    console = console or Console()
    with JsonLines(output, overwrite) if output else nullcontext() as file:
        policy, _, loaded = load_policy(
            model,
            tokenizer=tokenizer,
            chat_template=chat_template,
            dtype=dtype,
            with_reference=False,
        )
        asked = as_conversations(prompts, loaded, raw=raw, system=system)
        count = 0
        with _progress(file is not None, len(asked) * decoding.samples) as advance:
            for batch in generate(policy, loaded, asked, decoding):
                advance(len(batch))
                kept = winners.pick(batch, columns) if winners else [(item, {}) for item in batch]
                if file is None and console.is_terminal:
                    for generation, found in kept:
                        show(generation, decoding.samples, console, found)
                else:
                    extra = [columns[item.index] if columns else {} for item, _ in kept]
                    rows = [
                        {**e, **one.row(), **f} for e, (one, f) in zip(extra, kept, strict=True)
                    ]
                    if file is None:
                        put(rows, console.file, "stdout")
                    else:
                        file.write(rows)
                count += len(kept)
    return count


def generate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    decoding: Decoding,
) -> Iterator[list[Generation]]:
    """Completions batch by batch, in the order of the prompts, a prompt's side by side.

    Raises:
        ModelError: a prompt and its completion do not fit the context (before anything is drawn),
            or the model's logits are not finite.
    """
    check_context(policy, tokenizer, prompts, decoding.max_new_tokens)
    draw = _beams if decoding.beams > 1 else _samples
    at_once = max(1, decoding.batch_size // max(decoding.samples, decoding.beams))
    for start in range(0, len(prompts), at_once):
        batch = list(prompts[start : start + at_once])
        if decoding.seed is None:
            yield draw(policy, tokenizer, batch, decoding, start)
        else:
            with seeded(decoding.seed, "generate", start):
                yield draw(policy, tokenizer, batch, decoding, start)


def _samples(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Text],
    decoding: Decoding,
    start: int,
) -> list[Generation]:
    sampler = TransformersSampler(
        policy,
        tokenizer,
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        min_p=decoding.min_p,
        batch_size=decoding.batch_size,
    )
    rollout = sampler(prompts, group_size=decoding.samples)
    sums = (rollout.logprobs * rollout.mask).sum(dim=1).tolist()
    lengths = rollout.mask.sum(dim=1).long().tolist()
    return [
        Generation(
            rollout.prompts[row],
            _content(rollout.completions[row]),
            bool(rollout.finished[row]),
            sums[row],
            lengths[row],
            start + row // decoding.samples,
            row % decoding.samples,
        )
        for row in range(len(rollout))
    ]


def _beams(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Text],
    decoding: Decoding,
    start: int,
) -> list[Generation]:
    """Beam search; log-probabilities are computed anew, without its length penalty."""
    device = next(policy.parameters()).device
    encoded = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    ids, mask = pad_left(encoded, pad_id(tokenizer), device)
    ends = end_ids(policy, tokenizer)
    with torch.inference_mode(), evaluating(policy):
        tokens = policy.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.beams,
            num_return_sequences=decoding.samples,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=pad_id(tokenizer),
        )[:, ids.shape[1] :]
        last = torch.isin(tokens, torch.tensor(ends, device=device))
        lengths = torch.where(last.any(1), last.int().argmax(1) + 1, tokens.shape[1])
        kept = torch.arange(tokens.shape[1], device=device)[None] < lengths[:, None]
        rows = ids.repeat_interleave(decoding.samples, dim=0)
        seen = mask.repeat_interleave(decoding.samples, dim=0)
        logprobs, _ = completion_logprobs(
            policy, torch.cat([rows, tokens], 1), torch.cat([seen, kept.long()], 1), kept.float()
        )
    if bool(logprobs.isnan().any()):
        raise ModelError(NOT_FINITE)
    return [
        Generation(
            prompts[row // decoding.samples],
            str(tokenizer.decode(tokens[row][: lengths[row]], skip_special_tokens=True)),
            bool(last[row].any()),
            float(logprobs[row].sum()),
            int(lengths[row]),
            start + row // decoding.samples,
            row % decoding.samples,
        )
        for row in range(len(tokens))
    ]


def show(
    generation: Generation, samples: int, console: Console, found: Mapping[str, Any] | None = None
) -> None:
    """One completion on the terminal; whatever it holds is shown as it is, not as markup."""
    if generation.sample == 0 or found:
        console.rule(style="dim")
        console.print(Styled(_last(generation.prompt), style="bold cyan"))
    head = f"[{generation.sample + 1}/{samples}] " if samples > 1 else ""
    note = "" if generation.finished else ", cut at the limit"
    note += "".join(f", {k.replace('_', ' ')} {v:.4g}" for k, v in (found or {}).items())
    console.print(Styled(head, style="dim") + Styled(generation.completion))
    facts = f"{generation.tokens} tokens, log-probability {generation.logprob:.2f}{note}"
    console.print(Styled(facts, style="dim"))


@contextmanager
def _progress(wanted: bool, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while a file is written, if anyone is there to see it."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task("completions", total=total)
        yield lambda done: bar.advance(task, done)


def _content(completion: Text) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _last(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]

"""Prompts with everybody's answers, ready to print side by side.

Texts are plain strings here: escaping is the template's business (autoescape). Long texts are cut
for the page and say so; the run directory keeps them whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from align.report.collect import RunData
from align.report.families import display_name, hue, in_order
from align.report.notices import run_title
from align.report.values import Json, mapping, number, rows, text

MAX_CHARACTERS = 4000  # of one text on the page
_OWN_NAMES = ("after", "completion", "response")
_PLAIN_KEYS = ("before", "completion", "response", "after")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; plain text is a single turn without a role."""

    role: str
    content: str
    cut: int = 0  # characters left out


@dataclass(frozen=True)
class Answer:
    """One model's answer."""

    label: str
    hue: str
    turns: list[Turn]
    score: float | None
    best: bool = False


@dataclass(frozen=True)
class Sample:
    """One prompt with its answers.

    `gain` is the last answer's score less the baseline's; without a named baseline, the first's.
    """

    source: str
    prompt: list[Turn]
    answers: list[Answer]
    gain: float | None
    baseline: str = ""

    @property
    def size(self) -> int:
        """Characters on the page."""
        turns = self.prompt + [turn for answer in self.answers for turn in answer.turns]
        return sum(len(turn.content) for turn in turns)


@dataclass(frozen=True)
class SampleSet:
    """The samples on the page, and how many there were."""

    shown: list[Sample] = field(default_factory=list)
    total: int = 0

    @property
    def sources(self) -> list[str]:
        """Where they come from, each once."""
        return list(dict.fromkeys(sample.source for sample in self.shown))

    @property
    def scored(self) -> bool:
        """Whether there is anything to sort by."""
        return any(sample.gain is not None for sample in self.shown)


def gather_samples(runs: Sequence[RunData], budget: int) -> SampleSet:
    """Samples of all runs, evaluations first, then the latest stages.

    Args:
        runs: in the order of the pipeline.
        budget: characters on the page; each run may spend an equal share.
    """
    lists = [
        *([_evaluated(run, row) for row in rows(run.evaluation.get("samples"))] for run in runs),
        *([_trained(run, row) for row in run.samples] for run in reversed(runs)),
    ]
    lists = [kept for own in lists if (kept := [sample for sample in own if sample.answers])]
    shown: list[Sample] = []
    for own in lists:
        spent = 0
        for sample in own:
            spent += sample.size
            if spent > budget / len(lists) and sample is not own[0]:
                break
            shown.append(sample)
    return SampleSet(shown, sum(map(len, lists)))


def to_turns(value: object) -> list[Turn]:
    """A text, a conversation, or whatever else stands there, as turns."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [_turn(text(item.get("role")), text(item.get("content"))) for item in value]
    return [_turn("", text(value))]


def _turn(role: str, content: str) -> Turn:
    cut = max(0, len(content) - MAX_CHARACTERS)
    return Turn(role, content[:MAX_CHARACTERS], cut)


def _evaluated(run: RunData, row: Json) -> Sample:
    """A sample of evaluation.json."""
    completions, scores = mapping(row.get("completions")), mapping(row.get("scores"))
    baseline = text(run.evaluation.get("baseline"))
    return _sample(run_title(run), row.get("prompt"), completions, scores, baseline)


def _trained(run: RunData, row: Json) -> Sample:
    """A line of samples.jsonl: `completions` by name, or before and after."""
    completions = mapping(row.get("completions"))
    if not completions:
        completions = {key: row[key] for key in _PLAIN_KEYS if key in row}
    scores = mapping(row.get("scores"))
    if not scores and len(completions) == 1 and "score" in row:
        scores = dict.fromkeys(completions, row["score"])
    sample = _sample(run_title(run), row.get("prompt"), completions, scores)
    # Whatever the run calls its own answers, they have the colour of its stage.
    answers = [
        replace(answer, hue=hue(run.stage)) if name in _OWN_NAMES else answer
        for name, answer in zip(in_order(completions), sample.answers, strict=True)
    ]
    return replace(sample, answers=answers)


def _sample(
    source: str, prompt: object, completions: Json, scores: Json, baseline: str = ""
) -> Sample:
    found = {name: number(scores.get(name)) for name in in_order(completions)}
    known = [score for score in found.values() if score is not None]
    best = max(known) if len(known) > 1 and max(known) > min(known) else None
    answers = [
        Answer(
            label=display_name(name),
            hue=hue(name),
            turns=to_turns(completions[name]),
            score=score,
            best=best is not None and score == best,
        )
        for name, score in found.items()
    ]
    names = list(found)
    base = baseline if baseline in found else names[0] if names else ""
    before, after = found.get(base), found[names[-1]] if names else None
    gain = None
    if before is not None and after is not None and base != names[-1]:
        gain = after - before
    return Sample(source, to_turns(prompt), answers, gain, display_name(base))

"""Which transform may change which part of a row, so that what people said of it stays true.

| effect   | transforms                                        | what it does to a text            |
|----------|---------------------------------------------------|-----------------------------------|
| `same`   | synonyms, paraphrase, back_translation            | same meaning, as well written     |
| `noisy`  | typos, ocr, punctuation                           | same meaning, worse written       |
| `lossy`  | insertion, deletion, swap, shuffle, contextual    | worse, and the meaning may change |
| `turned` | counterfactual                                    | another meaning, the same all over|

A prompt may be made worse: the answers still answer it. An answer that is learnt from may not. The
chosen answer alone may not lose, the rejected one alone may, unless somebody said *by how much* one
is better. These are rules about kinds of change; whether one paraphrase is right, no rule knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from align.data.rows import Kind

Effect = Literal["same", "noisy", "lossy", "turned"]

FIELDS: dict[Kind, tuple[str, ...]] = {  # that rows of a kind have
    "sft": ("prompt", "completion", "text", "all"),
    "preference": ("prompt", "chosen", "rejected", "answers", "all"),
    "unpaired": ("prompt", "all"),
    "prompts": ("prompt", "all"),
    "ranking": ("prompt", "answers", "all"),
    "rating": ("prompt", "completion", "all"),
    "steps": ("prompt", "all"),
}
LEARNT = ("completion", "text")  # what a policy would write itself
# (effect, field): why the label would not hold. What is not here is allowed.
_REASONS: dict[tuple[str, str], str] = {
    **{("noisy", f): "the model would learn to write such slips" for f in LEARNT},
    **{("lossy", f): "the model would learn to write such damage" for f in LEARNT},
    ("noisy", "chosen"): "a chosen answer that is made worse may no longer be the better one",
    ("lossy", "chosen"): "a chosen answer that is damaged may no longer be the better one",
    ("lossy", "answers"): "damage may hit the better answer harder, and turn the order round",
    **{
        (effect, "all"): "it changes words for words of another meaning or worse ones, and only "
        "`counterfactual` does so alike in the whole row"
        for effect in ("same", "noisy", "lossy")
    },
    **{
        ("turned", f): "an attribute must change in the whole row, or prompt and answer disagree"
        for f in ("prompt", "completion", "text", "chosen", "rejected", "answers")
    },
}
ONE_SIDED = ("chosen", "rejected")
# By how much, or how surely, one answer is better; and what says nothing of it.
STRENGTHS = {"margin": 0, "soft_label": 1}


def default_fields(effect: Effect, kind: Kind) -> tuple[str, ...]:
    """What is changed where nothing is said: the prompt, or everything for `counterfactual`."""
    return ("all",) if effect == "turned" else ("prompt",)


def refusal(effect: Effect, field: str, kind: Kind) -> str | None:
    """Why a field of such rows must not be changed so; None where it may."""
    if field not in FIELDS[kind]:
        return f"{kind} rows have no such field; theirs are {', '.join(FIELDS[kind])}"
    if kind == "rating" and field == "completion" and effect in ("noisy", "lossy"):
        return "people rated the answer as it was"
    return _REASONS.get((effect, field))


def allowed(effect: Effect, kind: Kind) -> tuple[str, ...]:
    """The fields that such rows may be changed in."""
    return tuple(field for field in FIELDS[kind] if refusal(effect, field, kind) is None)


def loses_strength(effect: Effect, fields: Sequence[str], values: Mapping[str, Any]) -> str | None:
    """The column whose number would no longer hold when one answer alone is made worse."""
    one_sided = effect in ("noisy", "lossy") and any(field in ONE_SIDED for field in fields)
    found = [n for n, neutral in STRENGTHS.items() if values.get(n, neutral) not in (None, neutral)]
    return found[0] if one_sided and found else None

"""The section on self-training: what each round kept, what it brought, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from align.report.charts import Chart, Kind, Line
from align.report.collect import RunData
from align.report.evidence import Estimate
from align.report.families import hue
from align.report.notices import run_title
from align.report.values import Json, items, mapping, number, rows, text

METHODS = {
    "raft": "RAFT: trained on the best of its own answers.",
    "star": "STaR: trained on its own right answers.",
    "rest": "ReST: trained on its own answers above a rising threshold.",
    "dpo": "Iterated DPO: its best answers against its worst.",
    "preferences": "A reward model trained on its own sure labels beside people's.",
}
GATES = {
    "gain": "A round is promoted where the interval of its held-out gain lies above 0.",
    "not_worse": "A round is promoted where the interval of its held-out gain allows little loss.",
}


@dataclass(frozen=True)
class SelfRound:
    """One round in the table."""

    number: float | None
    held: Estimate | None
    gain: Estimate | None
    promoted: bool
    why: str
    kept: str  # of how much, in words
    examples: list[Json]
    audits: list[str]


@dataclass(frozen=True)
class SelftrainEvidence:
    """One run."""

    title: str
    hue: str
    status: Literal["stopped", "waiting", "unfinished"]
    why: list[str]  # rules that hold
    next: str  # what people are to do
    about: str
    gate: str
    share: bool  # held-out figures are shares: accuracies
    in_use: str
    chart: Chart | None
    rounds: list[SelfRound]


def selftrain_evidence(runs: Sequence[RunData]) -> list[SelftrainEvidence]:
    """Each run's section; a run that has not measured anything yet has a short one."""
    return [_evidence(run) for run in runs if run.selftrain]


def _evidence(run: RunData) -> SelftrainEvidence:
    story = run.selftrain
    settings = mapping(story.get("settings"))
    found = [_round(one) for one in rows(story.get("rounds"))]
    status = text(story.get("status"))
    used = number(story.get("in_use")) or 0
    method = text(settings.get("method"))
    return SelftrainEvidence(
        title=run_title(run),
        hue=hue("reward" if method == "preferences" else "sft"),
        status=status if status in ("stopped", "waiting") else "unfinished",  # type: ignore[arg-type]
        why=[text(why) for why in items(story.get("why"))],
        next=text(story.get("next")),
        about=METHODS.get(method, method),
        gate=GATES.get(text(settings.get("gate")), ""),
        share=method == "preferences",
        in_use=f"round {used:.0f}" if used else "the start",
        chart=_chart(found, method),
        rounds=found,
    )


def _round(one: Json) -> SelfRound:
    kept = mapping(one.get("harvest"))
    said = [_audit(mapping(found)) for found in rows(kept.get("audits"))]
    return SelfRound(
        number(one.get("round")),
        _estimate(mapping(one.get("value"))),
        _estimate(mapping(one.get("gain"))),
        bool(one.get("promoted")),
        text(one.get("why")),
        _kept(kept),
        [_example(example) for example in rows(one.get("examples"))],
        said,
    )


def _kept(kept: Json) -> str:
    """What a round trained on, in words."""
    if not kept:
        return ""
    count = number(kept.get("kept")) or 0
    if "tau" in kept:
        pairs, tau = number(kept.get("pairs")) or 0, number(kept.get("tau")) or 0
        said = f"{count:.0f} of {pairs:.0f} pairs above {tau:.0%}"
        steps = [
            f"{number(kept.get(name)) or 0:.0f} {word}"
            for name, word in (
                ("confident", "sure"),
                ("sure", "unanimous"),
                ("different", "different"),
            )
        ]
        return f"{said} ({', '.join(steps)})"
    drawn = number(kept.get("drawn")) or 0
    said = f"{count:.0f} of {drawn:.0f} answers"
    threshold, hinted = number(kept.get("threshold")), number(kept.get("hinted")) or 0
    said += f", reward {threshold:.3g} or more" if threshold is not None else ""
    said += f", {hinted:.0f} with a hint" if hinted else ""
    if (able := number(kept.get("usable"))) is not None and able < drawn:
        said += f", {drawn - able:.0f} cut off or empty"
    earlier = number(kept.get("earlier")) or 0
    return said + (f"; {earlier:.0f} of earlier rounds" if earlier else "")


def _audit(found: Json) -> str:
    right, answered = number(found.get("right")) or 0, number(found.get("answered")) or 0
    low, high = number(found.get("low")), number(found.get("high"))
    said = f"round {number(found.get('round')) or 0:.0f}: {right:g} of {answered:.0f}"
    return said + (f" [{low:.0%}, {high:.0%}]" if low is not None and high is not None else "")


def _example(one: Json) -> Json:
    texts = [text(answer) for answer in items(one.get("answers"))]
    return {"prompt": text(one.get("prompt")), "why": text(one.get("why")), "answers": texts}


def _estimate(found: Json) -> Estimate | None:
    value = number(found.get("value"))
    if value is None:
        return None
    low, high, n = (number(found.get(key)) for key in ("low", "high", "n"))
    return Estimate(value, low, high, n, level=number(found.get("level")) or 0.95)


def _chart(found: Sequence[SelfRound], method: str) -> Chart | None:
    """The held-out figure of every round, and of the model in use."""
    every = [(r.number, r.held.value) for r in found if r.held and r.number is not None]
    if len(every) < 2:
        return None
    use, best = [], every[0][1]
    for one in found:
        if one.held is None or one.number is None:
            continue
        best = one.held.value if one.promoted else best
        use.append((one.number, best))
    own = "hue-reward" if method == "preferences" else "hue-sft"
    shapes: list[tuple[str, list[tuple[float, float]], int, Kind]] = [
        ("each round", every, 1, "faint"),
        ("in use", use, 0, "mean"),
    ]
    lines = [
        Line(name, [x for x, _ in points], [y for _, y in points], own, dash, kind, points[-1][1])
        for name, points, dash, kind in shapes
    ]
    about = "On held-out data, by round; a round that is not promoted is not used."
    what = "Accuracy" if method == "preferences" else "Score"
    return Chart("holdout/score", f"{what} of each round", about, None, lines, across="round")

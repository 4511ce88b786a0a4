"""Rounds of a policy that learns from its own answers: draw, keep, train, measure.

One round is a training on answers that the policy in use drew and rewards kept. RAFT keeps the
best of k, STaR right answers (and those found with a hint), ReST what reaches a threshold that
rises over the improve steps between two draws, iterated DPO the best beside the worst.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from align.config.selftrain import GateSection, HarvestSection, LoopSection
from align.evaluate.significance import bootstrap_interval
from align.ppo.rewards import RewardScorer
from align.run import read_jsonl
from align.selftrain.draw import Asked, Drawer, score_rollout
from align.selftrain.fit import PolicyLearner
from align.selftrain.gate import Gate, measured
from align.selftrain.harvest import (
    Sample,
    dpo_row,
    keep_best,
    keep_pairs,
    sft_row,
    unanswered,
    unusable,
    usable,
    why_nothing,
    with_hint,
)
from align.selftrain.rounds import (
    Json,
    Round,
    history,
    promoted_before,
    round_at,
    rounds_of,
    write_rows,
)
from align.selftrain.schedule import improve_step, quantile_threshold
from align.types import Rollout

RIGHT = 1.0  # STaR's threshold


@dataclass(frozen=True, eq=False)
class PolicyRounds:
    """What the rounds of a policy work with."""

    folder: Path  # of the run
    model: str  # the policy as it began
    loop: LoopSection
    harvest: HarvestSection
    measure: GateSection
    gate: Gate
    questions: Sequence[Asked]
    held: Sequence[Asked]
    drawer: Drawer
    score: RewardScorer
    learner: PolicyLearner
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    log: Callable[[Mapping[str, Any], int], None] = field(default=lambda metrics, step: None)

    def start(self, here: Round) -> Json:
        """Measure the policy as it began."""
        return self._measured(here, self.model, {})

    def play(self, here: Round) -> Json:
        """One round."""
        plan = here.read("plan") or self._planned(here)
        if here.read("harvest") is None:
            self._harvested(here, plan, self._drawn(here, plan))
        found = here.read("harvest") or {}
        if not found["rows"]:
            why = why_nothing(found)
            self.say(f"round {here.number}: {why}")
            empty = {"round": here.number, "promoted": False, "why": why, "rows": 0, "scores": []}
            return here.write("measure", empty | {"value": None, "gain": None, "logged": {}})
        if 2 * found.get("cut", 0) > found["drawn"]:
            self.say(f"round {here.number}: {unusable(found)} of {found['drawn']} answers")
        model = self.learner.fit(plan["start"], here.train, here.fit, self.seed + here.number)
        return self._measured(here, str(model), found)

    def tidy(self, here: Round) -> None:
        """Let go of the weights of rounds that are not in use."""
        if self.loop.keep == "all":
            return
        used = promoted_before(self.folder, here.number + 1)
        for one in rounds_of(self.folder):
            if one.number <= here.number and one.number != used:
                shutil.rmtree(one.fit / "model", ignore_errors=True)

    def in_use(self, number: int) -> str:
        """The policy in use before a round."""
        last = promoted_before(self.folder, number)
        return str(round_at(self.folder, last).fit / "model") if last else self.model

    def _planned(self, here: Round) -> Json:
        """Where the round begins; whether it draws, and how strict it is."""
        used = self.in_use(here.number)
        base = self.loop.base or self.model
        plan: Json = {
            "policy": used,
            "start": base if self.loop.begins == "base" else used,
            "draws": True,
            "samples": here.number,  # the round whose answers are kept from
            "quantile": None,
            "threshold": self.harvest.threshold,
        }
        if self.loop.method == "star" and plan["threshold"] is None:
            plan["threshold"] = RIGHT
        if self.loop.method == "rest":
            steps = self.harvest.quantiles
            step = improve_step(history(self.folder)[: here.number - 1], len(steps))
            plan |= {"quantile": steps[step], "draws": step == 0}
            if step:
                before = round_at(self.folder, here.number - 1).read("plan") or {}
                plan["samples"] = before["samples"]
        return here.write("plan", plan)

    def _drawn(self, here: Round, plan: Mapping[str, Any]) -> list[Sample]:
        """The answers that the round keeps from: drawn now, or by the last grow step."""
        file = round_at(self.folder, plan["samples"]).folder / "samples.jsonl"
        if not file.is_file():
            assert plan["draws"]
            cache = here.folder / "cache"
            asked = [self.questions[place] for place in self._places(here.number)]
            rollout = self.drawer.draw(
                plan["policy"], asked, self.harvest.samples, self._seed(here.number), cache
            )
            scores, logged = score_rollout(self.score, rollout, cache / "plain")
            samples = samples_of(rollout, scores, range(len(asked)))
            if self.harvest.hint is not None:
                samples += self._hinted(here, plan, asked, samples)
            here.write("drawn", {"logged": logged})
            write_rows(file, (vars(one) for one in samples))
            shutil.rmtree(cache, ignore_errors=True)
        return [Sample(**row) for row in read_jsonl(file)]

    def _hinted(
        self,
        here: Round,
        plan: Mapping[str, Any],
        asked: Sequence[Asked],
        samples: Sequence[Sample],
    ) -> list[Sample]:
        """Answers to the questions that nothing solved, drawn with the answer shown."""
        missing = unanswered(samples, len(asked), plan["threshold"])
        hint = str(self.harvest.hint)
        shown = [
            Asked(with_hint(asked[n].prompt, hint, asked[n].columns), asked[n].columns)
            for n in missing
        ]
        fitting = self.drawer.fitting(shown)
        missing, shown = [missing[n] for n in fitting], [shown[n] for n in fitting]
        if not missing:
            return []
        cache = here.folder / "cache" / "hinted"
        seed = self._seed(here.number) + 1
        rollout = self.drawer.draw(plan["policy"], shown, self.harvest.samples, seed, cache)
        # Judged as answers to the question itself.
        prompts = [asked[n].prompt for n in missing for _ in range(self.harvest.samples)]
        scores, _ = score_rollout(self.score, replace(rollout, prompts=prompts), cache)
        return samples_of(rollout, scores, missing, hinted=True)

    def _harvested(self, here: Round, plan: Mapping[str, Any], samples: Sequence[Sample]) -> None:
        """Keep the answers that the method keeps, and say how many there were."""
        places = self._places(plan["samples"])
        own = [one for one in samples if not one.hinted]
        threshold = plan["threshold"]
        whole = [one.score for one in own if usable(one)]
        if plan["quantile"] is not None and whole:
            threshold = quantile_threshold(whole, plan["quantile"])
        if self.loop.method == "dpo":
            pairs = keep_pairs(own, self.harvest.gap)
            asked = [self.questions[places[better.question]].prompt for better, _ in pairs]
            rows = [dpo_row(p, *pair) for p, pair in zip(asked, pairs, strict=True)]
        else:
            most = self.harvest.most or (1 if self.loop.method == "raft" else 4)
            kept = keep_best(samples, most, threshold)
            rows = [sft_row(self.questions[places[one.question]].prompt, one) for one in kept]
        fresh = len(rows)
        if self.harvest.accumulate:
            rows = self._with_earlier(here, rows)
        scores = [one.score for one in own]
        solved = {one.question for one in own if threshold is None or one.score >= threshold}
        write_rows(here.train, rows)
        here.write(
            "harvest",
            {
                "drawn": len(samples),
                "questions": len(places),
                "usable": sum(map(usable, samples)),
                "cut": sum(not one.finished for one in samples),
                "mean": float(np.mean(scores)),
                "threshold": threshold,
                "solved": len(solved),
                "kept": fresh,
                "hinted": sum(bool(row.get("hinted")) for row in rows[:fresh]),
                "earlier": len(rows) - fresh,
                "rows": len(rows),
            },
        )

    def _with_earlier(self, here: Round, rows: list[Json]) -> list[Json]:
        """The rows, and those of the round before that are not among them."""
        known = {_identity(row) for row in rows}
        earlier = read_jsonl(round_at(self.folder, here.number - 1).train)
        return rows + [row for row in earlier if _identity(row) not in known]

    def _measured(self, here: Round, model: str, kept: Mapping[str, Any]) -> Json:
        """Score the round's policy on the held-out questions, and decide."""
        began = time.monotonic()
        cache = here.folder / "cache"
        how = self.measure
        rollout = self.drawer.answer(
            model, self.held, how.samples, self.seed, cache, how.temperature
        )
        scores, logged = score_rollout(self.score, rollout, cache / "held")
        own = np.asarray(scores).reshape(-1, how.samples).mean(axis=1)
        found: Json = {
            "round": here.number,
            "scores": own.tolist(),
            "value": measured(bootstrap_interval(own), len(own)),
            "rows": kept.get("rows", 0),
            "finished": float(rollout.finished.float().mean()),
            "logged": logged,
        }
        if here.number == 0:
            found |= {"promoted": True, "why": "the start", "gain": None}
        else:
            before = round_at(self.folder, promoted_before(self.folder, here.number))
            incumbent = cast(Json, before.read("measure"))["scores"]
            found |= self.gate.decide(own, incumbent).as_dict()
        found["seconds"] = round(time.monotonic() - began, 1)
        self.log(metrics_of(found, kept), here.number)
        done = here.write("measure", found)
        shutil.rmtree(cache, ignore_errors=True)
        self.say(in_words(done))
        return done

    def _places(self, number: int) -> list[int]:
        """The questions of a round."""
        count = self.harvest.questions
        if count is None or count >= len(self.questions):
            return list(range(len(self.questions)))
        draw = np.random.default_rng([self.seed, number])
        return sorted(int(n) for n in draw.choice(len(self.questions), count, replace=False))

    def _seed(self, number: int) -> int:
        return self.seed + 1000 * number


def samples_of(
    rollout: Rollout, scores: Sequence[float], questions: Sequence[int], hinted: bool = False
) -> list[Sample]:
    """Answers with their score; a question's lie side by side.

    Args:
        rollout: B answers.
        scores: (B,).
        questions: P places, the questions that were asked.
        hinted: whether the answer was shown.
    """
    each = len(rollout) // max(1, len(questions))
    return [
        Sample(questions[row // each], text, float(score), bool(finished), hinted)
        for row, (text, score, finished) in enumerate(
            zip(rollout.completions, scores, rollout.finished.tolist(), strict=True)
        )
    ]


def in_words(found: Mapping[str, Any]) -> str:
    """A measured round in one line."""
    value, gain = found["value"], found["gain"]
    said = f"round {found['round']}: {value['value']:.3f} {_bounds(value, '.3f')}"
    said += f" on {value['n']} held out"
    if gain is None:
        return said
    word = "promoted" if found["promoted"] else "not promoted"
    return (
        f"{said}, gain {gain['value']:+.3f} {_bounds(gain, '+.3f')} "
        f"({gain['level']:.1%}): {word}, {found['why']}"
    )


def _bounds(figure: Mapping[str, Any], form: str) -> str:
    if figure["low"] is None:
        return "(all alike, so no interval)"
    return f"[{figure['low']:{form}}, {figure['high']:{form}}]"


def metrics_of(found: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, float]:
    """What metrics.jsonl has of a round."""
    values = {"holdout/score": found["value"]["value"], "selftrain/rows": found["rows"]}
    values["selftrain/promoted"] = float(found["promoted"])
    if found["gain"]:
        values["holdout/gain"] = found["gain"]["value"]
    if kept:
        values["selftrain/sample_score"] = kept["mean"]
        values["selftrain/solved"] = kept["solved"] / max(1, kept["questions"])
    return values


def _identity(row: Mapping[str, Any]) -> str:
    return repr([row.get(name) for name in ("prompt", "completion", "chosen", "rejected")])

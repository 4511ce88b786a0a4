"""Rounds of a reward model that learns from its own labels: label, choose, train, measure.

One round labels every unlabelled pair anew with the teacher, keeps what is sure, unanimous,
balanced and different, has people check a random share of that, trains an ensemble on people's
labels and these, and promotes it only where people's held-out pairs say that it got better.
Pseudo-labels live in the run directory alone; the feedback store gets questions, never answers of a
machine.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from align.active.pool import PairPool
from align.active.said import read_said
from align.config.selftrain import AuditSection, LoopSection, PseudoSection
from align.data.rows import prompt_key
from align.errors import DataError
from align.evaluate.significance import share_interval
from align.run import read_jsonl
from align.selftrain.audit import Audited, audit, drawn_for_audit
from align.selftrain.average import ema_shares, next_teacher
from align.selftrain.fit import RewardEnsemble, margins_of
from align.selftrain.gate import Gate, measured, per_prompt
from align.selftrain.pairs import in_proportion, longer, new_pairs, pair_row, pool_sides, sides_of
from align.selftrain.policy import in_words
from align.selftrain.pseudo import credit, pseudo_labels
from align.selftrain.rounds import (
    Json,
    Round,
    history,
    promoted_before,
    round_at,
    rounds_of,
    write_rows,
)
from align.selftrain.schedule import tau_at
from align.selftrain.weights import capped_weights
from feedback.store import FeedbackStore
from reward.calibrate import fit_temperature

PSEUDO = "pseudo-label"  # the provenance of a row that no person labelled
AUDITED = "audit"  # of one that a person labelled because a machine had


class UncalibratedError(DataError):
    """A teacher whose confidence means nothing."""


@dataclass(frozen=True, eq=False)
class PreferenceRounds:
    """What the rounds of a reward model work with."""

    folder: Path  # of the run
    loop: LoopSection
    pseudo: PseudoSection
    audit: AuditSection
    gate: Gate
    human: Sequence[Json]  # people's pairs to train on: prompt, chosen, rejected
    calibration: Sequence[Json]  # people's held-out pairs for the temperature
    held: Sequence[Json]  # and for the gate
    pool: PairPool  # pairs that nobody compared
    store: FeedbackStore
    ensemble: RewardEnsemble
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    log: Callable[[Mapping[str, Any], int], None] = field(default=lambda metrics, step: None)

    def start(self, here: Round) -> Json:
        """Train on people's labels alone, and measure."""
        if not here.train.is_file():
            write_rows(here.train, self.human)
        students = self.ensemble.fit(here.train, here.fit)
        return self._measured(here, students, {"kept": 0, "rows": len(self.human)})

    def play(self, here: Round) -> Json | None:
        """One round; None: people are to check the last one's labels first."""
        checked = here.read("checked") or self._checked(here)
        if checked is None:
            return None
        if checked["fails"]:
            return self._nothing(here, checked["fails"], stop="audit")
        try:
            found = here.read("harvest") or self._labelled(here, checked)
        except UncalibratedError as error:
            return self._nothing(here, str(error), stop="calibration")
        if not found["kept"]:
            return self._nothing(here, f"no label of {found['pairs']} pairs was kept")
        self._audited(here)
        students = self.ensemble.fit(here.train, here.fit)
        return self._measured(here, students, found)

    def tidy(self, here: Round) -> None:
        """Let go of the weights of rounds that are not in use."""
        if self.loop.keep == "all":
            return
        used = promoted_before(self.folder, here.number + 1)
        for one in rounds_of(self.folder):
            if one.number <= here.number and one.number != used:
                shutil.rmtree(one.folder / "teacher", ignore_errors=True)
                for model in one.fit.glob("member-*/model"):
                    shutil.rmtree(model, ignore_errors=True)

    def students(self, number: int) -> list[Path]:
        """The ensemble that a round trained."""
        fit = round_at(self.folder, number).fit
        return [fit / f"member-{member}" / "model" for member in range(self.ensemble.count)]

    def teachers(self, number: int) -> list[Path]:
        """The ensemble that labels after a promoted round: weights averaged over such rounds."""
        if number == 0:
            return self.students(0)
        folder = round_at(self.folder, number).folder / "teacher"
        return [folder / f"member-{member}" for member in range(self.ensemble.count)]

    def _nothing(self, here: Round, why: str, stop: str = "") -> Json:
        """A round that trains nothing; `stop` names the rule that ends the loop by it."""
        self.say(f"round {here.number}: {why}")
        found: Json = {"round": here.number, "promoted": False, "why": why, "rows": 0}
        found |= {"value": None, "gain": None, "credits": []}
        return here.write("measure", found | ({"stop": [f"{stop}: {why}"]} if stop else {}))

    def _checked(self, here: Round) -> Json | None:
        """What people said of earlier rounds' labels; None: it is waited for."""
        said = read_said(self.store, self.pool)
        rows, tested, fails = [], [], ""
        for number in range(1, here.number):
            asked = round_at(self.folder, number).read("audit")
            if not asked or not asked["labels"]:
                continue
            found = audit(asked["labels"], said.shares)
            missing = found.asked - sum(name in said.votes for name in asked["labels"])
            if self.audit.wait and missing:
                todo = (
                    f"round {here.number}: people are to check {missing} of {found.asked} pairs of "
                    f"round {number} (`align feedback push --round {asked['round']}` on "
                    f"{self.store.url}, or rounds/{number:03d}/audit.jsonl)"
                )
                here.write("waiting", {"next": todo})
                self.say(todo)
                return None
            tested.append({"round": number} | found.as_dict())
            if found.fails(asked["tau"]):
                fails = _failure(number, found, asked["tau"])
            names = [name for name in asked["labels"] if said.shares.get(name, 0.5) != 0.5]
            rows += [
                pair_row(self.pool, name, said.shares[name] > 0.5) | {"source": AUDITED}
                for name in names
            ]
        return here.write("checked", {"audits": tested, "rows": rows, "fails": fails})

    def _labelled(self, here: Round, checked: Mapping[str, Any]) -> Json:
        """Label the whole pool, keep what may be learnt, and write the round's rows."""
        tau = tau_at(self.pseudo.tau, self.pseudo.tau_last, here.number, self.loop.rounds)
        used = promoted_before(self.folder, here.number)
        teachers = self.teachers(used)
        margins = self._pool_margins(here, teachers)
        known = margins_of(teachers, *sides_of(self.calibration))
        try:
            temperature = fit_temperature(known.mean(axis=0))
        except DataError as error:  # the margins say nothing, or too few pairs are held out
            raise UncalibratedError(str(error)) from error
        labels = pseudo_labels(margins, temperature)
        human = [*self.human, *checked["rows"]]
        people = {row["pair"] for row in checked["rows"]}
        sure = [int(n) for n in labels.sure(tau) if self.pool.pairs[int(n)].id not in people]
        given = self.pseudo
        new = new_pairs(self.pool, sure, human, given.similarity, given.near, given.most)
        kept = in_proportion(self.pool, new, labels, human, given.balance, given.slack)
        names = [self.pool.pairs[place].id for place in kept]
        rows = [
            pair_row(self.pool, name, bool(labels.first[place]))
            | {"p": float(labels.confidence[place]), "source": PSEUDO, "round": here.number}
            | {"teacher": used}
            for name, place in zip(names, kept, strict=True)
        ]
        total = sum(float(row.get("weight", 1.0)) for row in human)
        weights = capped_weights(total, [row["p"] for row in rows], self.pseudo.max_weight)
        write_rows(here.folder / "pseudo.jsonl", rows)
        write_rows(
            here.train,
            [
                *({"weight": 1.0} | row for row in human),
                *(row | {"weight": float(w)} for row, w in zip(rows, weights, strict=True)),
            ],
        )
        return here.write(
            "harvest",
            {
                "pairs": len(self.pool.pairs),
                "tau": tau,
                "temperature": temperature.temperature,
                "teacher": used,
                "confident": int((labels.confidence > tau).sum()),
                "sure": len(sure),
                "different": len(new),
                "kept": len(kept),
                "weight": float(weights.sum()),
                "human_weight": total,
                "expected": float(np.mean([row["p"] for row in rows])) if rows else None,
                "longer": float(np.mean([longer(row) == "longer" for row in rows]))
                if rows
                else None,
                "audits": checked["audits"],
                "rows": len(human) + len(rows),
            },
        )

    def _pool_margins(self, here: Round, teachers: Sequence[Path]) -> np.ndarray:
        """Each teacher's margins of all pairs, (K, N); what one has said is kept."""
        found = []
        for member, path in enumerate(teachers):
            file = here.folder / f"pool-{member}.npy"
            if not file.is_file():
                here.folder.mkdir(parents=True, exist_ok=True)
                temporary = file.with_suffix(".tmp.npy")
                np.save(temporary, margins_of([path], *pool_sides(self.pool))[0])
                temporary.replace(file)
            found.append(np.load(file))
        return np.stack(found)

    def _audited(self, here: Round) -> None:
        """Draw the pairs that people check, and put them into the store as questions."""
        if here.read("audit") is not None:
            return
        rows = {row["pair"]: row for row in read_jsonl(here.folder / "pseudo.jsonl")}
        names = drawn_for_audit(list(rows), self.audit.share, self.seed + here.number)
        round_name = f"selftrain-{self.folder.name}-{here.number:03d}"
        items = [self._item(name, round_name) for name in names]
        self.store.add_items(items)
        file = here.folder / "audit.jsonl"
        write_rows(
            file,
            (
                {"item": item.id, "prompt": item.prompt, "responses": list(item.responses)}
                for item in items
            ),
        )
        tau = (here.read("harvest") or {})["tau"]
        labels = {name: bool(rows[name]["first"]) for name in names}
        here.write("audit", {"round": round_name, "tau": tau, "labels": labels})

    def _item(self, name: str, round_name: str) -> Any:
        pair = self.pool.pairs[self.pool.place[name]]
        places = (pair.first, pair.second)
        return self.pool.groups[pair.group].item(places, round_name, self.seed)

    def _measured(self, here: Round, students: Sequence[Path], kept: Mapping[str, Any]) -> Json:
        """How right the round's ensemble is on people's held-out pairs; whether it is promoted."""
        began = time.monotonic()
        keys = [prompt_key(row["prompt"]) for row in self.held]
        credits = credit(margins_of(students, *sides_of(self.held)))
        own = per_prompt(credits, keys)
        found: Json = {
            "round": here.number,
            "credits": own.tolist(),
            "value": measured(share_interval(own), len(own)),
            "rows": kept["rows"],
        }
        if here.number == 0:
            found |= {"promoted": True, "why": "people's labels alone", "gain": None}
        else:
            used = promoted_before(self.folder, here.number)
            before = cast(Json, round_at(self.folder, used).read("measure"))
            found |= self.gate.decide(own, before["credits"]).as_dict()
            if found["promoted"]:
                students_so_far = 2 + sum(history(self.folder)[: here.number - 1])
                found["teacher"] = ema_shares(self.pseudo.ema, students_so_far)
                pairs = zip(self.teachers(used), students, strict=True)
                for member, (teacher, student) in enumerate(pairs):
                    out = here.folder / "teacher" / f"member-{member}"
                    next_teacher(teacher, student, out, self.pseudo.ema)
        found["seconds"] = round(time.monotonic() - began, 1)
        self.log(_metrics(found, kept), here.number)
        done = here.write("measure", found)
        self.say(in_words(done))
        return done


def _failure(number: int, found: Audited, tau: float) -> str:
    return (
        f"people agree with {found.right:g} of {found.answered} audited labels of round {number}, "
        f"at most {found.high:.0%} of all, and each of them claims more than {tau:.0%}"
    )


def _metrics(found: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, float]:
    values = {"holdout/accuracy": found["value"]["value"], "selftrain/rows": found["rows"]}
    values["selftrain/promoted"] = float(found["promoted"])
    if found["gain"]:
        values["holdout/gain"] = found["gain"]["value"]
    if "tau" in kept:
        values |= {"selftrain/tau": kept["tau"], "selftrain/pseudo_labels": kept["kept"]}
    return values

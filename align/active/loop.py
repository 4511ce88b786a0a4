"""The active loop: fit, measure, stop or choose, ask, answer, and round again.

Each phase leaves a file (`align.active.rounds`) and is passed over where that is there, so the loop
may end at any moment, by waiting for people or by being killed, and is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align.active.belief import Belief
from align.active.choose import Chooser, least_sure
from align.active.desks import Desk, Question
from align.active.fit import Learner
from align.active.measure import (
    against_random,
    holdout_accuracy,
    in_words,
    metrics_of,
    random_rows,
)
from align.active.pool import Group, PairPool, load_pool, save_pool
from align.active.rounds import Round, asked_before, round_at, rounds_of
from align.active.said import Said, read_said, training_rows
from align.active.stop import Rules
from feedback.acquisition.committee import bald
from feedback.labelstudio.client import DoubtfulError
from feedback.queries import find_items
from feedback.store import FeedbackStore

Fresh = Callable[[Sequence[Group], int], list[Group]]  # (groups, round) -> new answers beside old
Truth = Callable[[PairPool, Sequence[str]], dict[str, float]]  # shares of pairs, if they are known


@dataclass(frozen=True, eq=False)
class Loop:
    """What a loop works with; `run` is the story."""

    folder: Path  # of the run
    pool: PairPool  # as the run began
    store: FeedbackStore
    learner: Learner
    chooser: Chooser
    desk: Desk
    rules: Rules = field(default_factory=Rules)
    seed: int = 0
    warm: bool = False
    keep: str = "last"  # rounds whose weights stay: "last" or "all"
    truth: Truth | None = None  # answers to any pair, where annotators are simulated
    arms: int = 0  # of random choice
    fresh: Fresh | None = None
    fresh_prompts: int = 0
    enough: float = 1.0  # share of a round's questions whose answers end it
    say: Callable[[str], None] = lambda line: None
    log: Callable[[Mapping[str, Any], int], None] = lambda metrics, step: None
    told: Callable[[Mapping[str, Any]], None] = lambda state: None  # after each phase

    def run(self, *, wait: float | None = None, sleep: Callable[[float], None] = time.sleep) -> str:
        """Go on until a rule holds, or until people are waited for.

        Args:
            wait: seconds between two looks for answers; None: return instead.
            sleep: between them.

        Returns:
            "stopped" or "waiting".

        Raises:
            AlignError: of a training, a server or a file; what was done until then stays.
        """
        number = 1
        while True:
            here = round_at(self.folder, number)
            pool = self.pool_at(number)
            measured = self.measured(here, pool)
            if measured["stop"]:
                self.told({"status": "stopped", "why": measured["stop"], "next": ""})
                return "stopped"
            choice = here.read("choice")
            if choice is None:
                pool = self.refreshed(here, pool)
                choice = self.chosen(here, pool)
            if not choice["rows"]:
                self.told({"status": "stopped", "why": [f"pool: {choice['note']}"], "next": ""})
                return "stopped"
            pool = self.pool_at(number + 1)
            todo = self.asked(here, pool, choice)
            before = ""
            while not self._answered(here, pool, choice, patient=wait is not None):
                said = f"round {number}: {self._progress(pool, choice)}. {todo}"
                self.told({"status": "waiting", "why": [], "next": said})
                if wait is None:
                    return "waiting"
                if said != before:
                    self.say(said)
                before = said
                sleep(wait)
            self._tidy(here)
            number += 1

    def pool_at(self, number: int) -> PairPool:
        """The pool as round `number` finds it: new answers of earlier rounds included."""
        more = [
            group
            for one in rounds_of(self.folder)
            if one.number < number
            for group in load_pool(one.fresh)
        ]
        return self.pool.with_groups(more) if more else self.pool

    def measured(self, here: Round, pool: PairPool) -> dict[str, Any]:
        """Train on what is answered, measure on the holdout, and see which rules hold."""
        done = here.read("measure")
        if done is not None:
            return done
        began = time.monotonic()
        said = read_said(self.store, pool)
        held = self.chooser.held(pool)
        before = asked_before(rounds_of(self.folder))
        belief, rows = self._fitted(here, pool, said, held)
        first = self.chooser.held(self.pool)
        p = {} if belief is None else _by_pair(pool, belief.p(pool), first)
        drawn = {name for row in before if row["held"] for name in row["pairs"]}
        accuracy = holdout_accuracy(self.pool, p, said.shares, drawn, self.chooser.holdout)
        answered = [row for row in before if said.votes.get(row["id"])]
        found: dict[str, Any] = {
            "round": here.number,
            "answered": len(answered),
            "rows": rows,
            "minutes": said.spent / 60,
            "timed": said.timed,
            "judgements": said.judgements,
            "accuracy": accuracy,
            "p": p,
            "most": None,
        }
        told = None
        if belief is not None:
            asked = {*said.shares, *(name for row in before for name in row["pairs"]), *held}
            left = [place for place, pair in enumerate(pool.pairs) if pair.id not in asked]
            members = 1 / (1 + np.exp(-belief.margins(pool)[:, left]))
            told = bald(members).tolist() if left else []
            found["most"] = max(told, default=0.0)
        found["curve"] = self._curve(here, pool, p, rows, held)
        beliefs = [one["p"] for r in rounds_of(self.folder) if (one := r.read("measure"))]
        found["stop"] = self.rules.holding(
            rounds=here.number - 1,
            labels=len(answered),
            minutes=said.spent / 60,
            told=told,
            beliefs=[one for one in [*beliefs, p] if one],
            answered={name: said.shares[name] for name in drawn if name in said.shares},
        )
        found["seconds"] = round(time.monotonic() - began, 1)
        self.log(metrics_of(found), len(answered))
        here.write("measure", found)
        self.say(in_words(found))
        return found

    def _fitted(
        self, here: Round, pool: PairPool, said: Said, held: set[str]
    ) -> tuple[Belief | None, int]:
        """The round's model, and on how many rows it was trained; none before there are labels."""
        rows = training_rows(pool, said, held)
        if not rows and not (here.fit / "train.jsonl").is_file():
            return None, 0
        earlier = round_at(self.folder, here.number - 1).fit
        warm = earlier if self.warm and (earlier / "train.jsonl").is_file() else None
        self.learner.fit(rows, here.fit, self.seed, warm)
        count = len((here.fit / "train.jsonl").read_text(encoding="utf-8").splitlines())
        if not here.belief.is_file():
            self.learner.believe(here.fit, pool.prompts, pool.answers).save(here.belief)
        return Belief.load(here.belief), count

    def _curve(
        self, here: Round, pool: PairPool, p: Mapping[str, float], rows: int, held: set[str]
    ) -> dict[str, Any] | None:
        """This round's model beside models of as many random labels, where answers are known."""
        if self.truth is None or not p:
            return None
        truth = self.truth(self.pool, list(p))
        free = [pair.id for pair in pool.pairs if pair.id not in held]
        arms = []
        for arm in range(self.arms):
            names = random_rows(free, rows, self.seed, arm)
            shares = self.truth(pool, names)
            own = training_rows(pool, Said(shares, {}, (), {}, 0.0, 0, 0), held)
            if not own:  # all ties
                continue
            folder = here.folder / f"random-{arm}"
            file = folder / "belief.npz"
            if not file.is_file():
                self.learner.fit(own, folder, self.seed, None)
                found = self.learner.believe(folder, self.pool.prompts, self.pool.answers)
                found.save(file)
                self.learner.forget(folder)
            arms.append(_by_pair(self.pool, Belief.load(file).p(self.pool), set(p)))
        return against_random(self.pool, truth, p, arms)

    def refreshed(self, here: Round, pool: PairPool) -> PairPool:
        """The pool with new answers to the prompts that the model is least sure of."""
        if self.fresh is None or not self.fresh_prompts or not here.belief.is_file():
            return pool
        if not here.fresh.is_file():
            belief = Belief.load(here.belief)
            barred = self.chooser.held(pool)
            groups = least_sure(pool, belief, barred, self.fresh_prompts)
            made = self.fresh([pool.groups[n] for n in groups], here.number)
            save_pool(here.fresh, [group for group in made if len(group.answers) > 1])
        return pool.with_groups(load_pool(here.fresh))

    def chosen(self, here: Round, pool: PairPool) -> dict[str, Any]:
        """Which questions this round asks, each with its reason."""
        belief = Belief.load(here.belief) if here.belief.is_file() else None
        missing = len(pool.answers) - (0 if belief is None else belief.scores.shape[1])
        if belief is not None and missing:
            new = slice(len(pool.answers) - missing, None)
            texts = pool.prompts[new], pool.answers[new]
            belief = belief.joined(self.learner.believe(here.fit, *texts))
        said = read_said(self.store, pool)
        asked = {name for row in asked_before(rounds_of(self.folder)) for name in row["pairs"]}
        rng = np.random.default_rng([self.seed, here.number])
        left = self.chooser.batch
        if self.rules.labels is not None:
            left = min(left, self.rules.labels - len(asked_before(rounds_of(self.folder))))
        found = self.chooser(pool, belief, {*asked, *said.shares}, said, rng, max(left, 1))
        if not found["rows"]:
            found["note"] = "every pair that may be asked is asked."
        return here.write("choice", found)

    def asked(self, here: Round, pool: PairPool, choice: Mapping[str, Any]) -> str:
        """Put the round's questions to people; what they are to do."""
        done = here.read("asked")
        if done is None:
            questions = self._questions(here, pool, choice)
            done = here.write("asked", {"next": self.desk.ask(questions, here.number)})
            self.say(f"round {here.number}: {len(questions)} questions asked. {choice['why']}")
        return str(done["next"])

    def answered(self, here: Round, pool: PairPool, choice: Mapping[str, Any]) -> bool:
        """Bring what was answered; whether it is enough for the next round."""
        if here.read("answers") is not None:
            return True
        questions = self._questions(here, pool, choice)
        self.desk.collect(questions, here.number)
        votes = read_said(self.store, pool).votes
        done = sum(
            votes.get(question.item.id, 0) >= self._wanted(question) for question in questions
        )
        if done < self.enough * len(questions):
            return False
        here.write("answers", {"questions": len(questions), "answered": done})
        return True

    def _answered(
        self, here: Round, pool: PairPool, choice: Mapping[str, Any], *, patient: bool
    ) -> bool:
        """Whether enough is answered; who waits outlives a server that is away for a while."""
        try:
            return self.answered(here, pool, choice)
        except DoubtfulError as error:
            if not patient:
                raise
            self.say(str(error))
            return False

    def _wanted(self, question: Question) -> int:
        return 1 if question.annotator else self.desk.needed

    def _questions(self, here: Round, pool: PairPool, choice: Mapping[str, Any]) -> list[Question]:
        """The round's questions, as the store has them: it may have known some of them before."""
        rows = choice["rows"]
        made = {
            row["id"]: pool.groups[row["group"]].item(
                row["places"], f"active-{here.number}", self.seed
            )
            for row in rows
        }
        self.store.add_items(made.values())
        with self.store.reading() as connection:
            items = find_items(connection, list(made))
        return [
            Question(
                items[row["id"]], pool.groups[row["group"]], float(row["queue"]), row["annotator"]
            )
            for row in rows
        ]

    def _progress(self, pool: PairPool, choice: Mapping[str, Any]) -> str:
        votes = read_said(self.store, pool).votes
        done = sum(votes.get(row["id"], 0) > 0 for row in choice["rows"])
        return f"{done} of {len(choice['rows'])} questions have an answer"

    def _tidy(self, here: Round) -> None:
        """Let go of the weights that no later round reads."""
        earlier = round_at(self.folder, here.number - 1)
        if self.keep == "last" and earlier.fit.is_dir():
            self.learner.forget(earlier.fit)


def _by_pair(pool: PairPool, p: np.ndarray, wanted: set[str]) -> dict[str, float]:
    return {
        pair.id: float(value)
        for pair, value in zip(pool.pairs, p, strict=True)
        if pair.id in wanted
    }

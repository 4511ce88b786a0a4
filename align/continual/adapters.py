"""An adapter for each task: what each task starts from, and whose adapter answers.

Parameter isolation of whole tasks: nothing that an earlier task learnt is touched.

    apart        each task's adapter is on the trunk, the model before the first of them
    progressive  each is on those of the tasks before, frozen, so that a task builds on what was
                 learnt (the idea of Rusu et al. 2016, "Progressive neural networks")

A task is answered by its own adapter (`route: task`), or each prompt by that of the task whose
prompts are most like it (`route: prompt`, `align.continual.routing`). Tasks that are yet to come
are answered by the trunk where adapters are apart, by the newest one where they are progressive;
what no task trains, by the trunk. Routed prompts go to the nearest task learnt, whatever they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from align.config.continual import AdaptersSection, TaskSection
from align.config.load import check_section
from align.errors import Problem

FROM, TYPE = "from", "adapters"
Guard = Mapping[str, Any]


@dataclass(frozen=True)
class Adapters:
    """What an arm asks for, and the first task that has one."""

    section: AdaptersSection
    first: int = 1


@dataclass(frozen=True)
class Columns:
    """Whose weights answer what, as far as tasks are learnt; paths of models."""

    trunk: str = ""  # the newest model that is no adapter of a task
    adapters: Adapters | None = None
    learnt: Mapping[str, str] = field(default_factory=dict)  # of every task so far
    newest: str = ""

    def on(self, number: int) -> bool:
        """Whether a task trains an adapter of its own."""
        return self.adapters is not None and number >= self.adapters.first

    @property
    def progressive(self) -> bool:
        """Whether adapters build on each other."""
        return self.adapters is not None and self.adapters.section.mode == "progressive"

    @property
    def routed(self) -> bool:
        """Whether prompts say who answers."""
        return self.adapters is not None and self.adapters.section.route == "prompt"

    def start(self, number: int) -> str:
        """The model that a task starts from."""
        apart = self.on(number) and not self.progressive
        return self.trunk if apart else self.newest or self.trunk

    def peft(self, number: int) -> dict[str, Any]:
        """What is added to a task's settings."""
        if not self.on(number):
            return {}
        assert self.adapters is not None
        return {"peft": {"method": "lora", "kwargs": dict(self.adapters.section.kwargs)}}

    def after(self, number: int, task: str, model: str) -> Columns:
        """The same once a task has been learnt."""
        if self.on(number):
            return replace(self, learnt={**self.learnt, task: model}, newest=model)
        moved = dict.fromkeys([*self.learnt, task], model)  # full training leaves one model
        return replace(self, trunk=model, learnt=moved, newest=model)

    def answers(self, column: str, task: bool) -> str:
        """The model that answers a column where nothing is routed."""
        if column in self.learnt:
            return self.learnt[column]
        ahead = task and (self.adapters is None or self.progressive)
        return self.newest if ahead else self.trunk

    def models(self) -> set[str]:
        """Every model that is still needed to answer."""
        return {self.trunk, self.newest, *self.learnt.values()}


def adapters_of(guards: Sequence[Guard]) -> Adapters | None:
    """An arm's adapters; None where it has none, or wrong ones, which are reported elsewhere."""
    for guard in guards:
        if guard.get("type") == TYPE:
            given = {key: value for key, value in guard.items() if key != FROM}
            section = check_section(AdaptersSection, given, [])
            first = guard.get(FROM, 1)
            if section is not None and isinstance(first, int):
                return Adapters(section, first)
    return None


def adapters_problems(
    arms: Mapping[str, Sequence[Guard]], tasks: Sequence[TaskSection]
) -> Iterator[Problem]:
    """What is wrong with arms' adapters."""
    for arm, guards in arms.items():
        places = [place for place, guard in enumerate(guards) if guard.get("type") == TYPE]
        for place in places[1:]:
            yield Problem(f"arms.{arm}.{place}", "there are adapters already.", "leave one out.")
        for place in places:
            found: list[Problem] = []
            given = {key: value for key, value in guards[place].items() if key != FROM}
            check_section(AdaptersSection, given, found)
            yield from (
                Problem(f"arms.{arm}.{place}.{one.where}", one.what, one.fix) for one in found
            )
            first = guards[place].get(FROM, 1)
            if isinstance(first, int) and first > len(tasks):
                what = f"there are {len(tasks)} tasks, so that none has an adapter."
                yield Problem(f"arms.{arm}.{place}.from", what, "1 is the first task.")
        if places:
            yield from _own_peft(arm, guards[places[0]].get(FROM, 1), tasks)


def _own_peft(arm: str, first: Any, tasks: Sequence[TaskSection]) -> Iterator[Problem]:
    for place, task in enumerate(tasks):
        if task.settings.get("peft") and isinstance(first, int) and place + 1 >= first:
            what = f"{arm} trains an adapter of its own here."
            fix = "leave peft out, and give kwargs to the arm's adapters."
            yield Problem(f"tasks.{place}.settings.peft", what, fix)

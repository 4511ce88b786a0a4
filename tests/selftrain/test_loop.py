"""The loop around rounds: order, promotion, patience, waiting, and what a second run repeats."""

from __future__ import annotations

import pytest

from align.errors import RunError
from align.selftrain.loop import go
from align.selftrain.rounds import history, measured, promoted_before, round_at, rounds_of


class Scripted:
    """Rounds whose promotions are written down; counts what it is asked to do."""

    def __init__(self, promotions, waits=(), stops=None):
        self.promotions, self.waits, self.stops = promotions, list(waits), stops or {}
        self.played: list[int] = []

    def start(self, here):
        self.played.append(0)
        return here.write("measure", {"round": 0, "promoted": True})

    def play(self, here):
        if here.number in self.waits:
            here.write("waiting", {"next": "ask people"})
            return None
        self.played.append(here.number)
        found = {"round": here.number, "promoted": self.promotions[here.number - 1]}
        return here.write("measure", found | self.stops.get(here.number, {}))

    def tidy(self, here):
        self.tidied = here.number


@pytest.mark.parametrize(
    ("promotions", "played", "rules"),
    [
        ([True, True, True], 3, ["rounds"]),
        ([True, False, False], 3, ["rounds", "gain"]),
        ([False, False, True], 2, ["gain"]),
        ([False, True, False], 3, ["rounds"]),
    ],
)
def test_it_goes_on_while_it_gains(promotions, played, rules, tmp_path):
    kind, told = Scripted(promotions), []
    assert go(tmp_path, kind, 3, 2, told.append) == "stopped"
    assert kind.played == list(range(played + 1))
    assert [why.split(":")[0] for why in told[-1]["why"]] == rules
    again = Scripted(promotions)
    assert go(tmp_path, again, 3, 2, told.append) == "stopped"
    assert again.played == []  # all of it is there
    assert history(tmp_path) == promotions[:played]
    assert len(measured(tmp_path)) == len(rounds_of(tmp_path)) == played + 1


def test_what_is_in_use_is_the_last_that_was_promoted(tmp_path):
    go(tmp_path, Scripted([True, False, True, False]), 4, 2, lambda state: None)
    assert [promoted_before(tmp_path, n) for n in range(6)] == [0, 0, 1, 1, 3, 3]


def test_it_waits_and_goes_on(tmp_path):
    told = []
    assert go(tmp_path, Scripted([True, True], waits=[2]), 2, 1, told.append) == "waiting"
    assert told[-1] == {"status": "waiting", "why": [], "next": "ask people"}
    kind = Scripted([True, True])
    assert go(tmp_path, kind, 2, 1, told.append) == "stopped"
    assert kind.played == [2]


def test_a_round_may_end_it(tmp_path):
    told = []
    stops = {1: {"stop": ["audit: people disagree"]}}
    go(tmp_path, Scripted([False, True], stops=stops), 2, 2, told.append)
    assert told[-1]["why"] == ["audit: people disagree"]


def test_a_damaged_file_is_named(tmp_path):
    here = round_at(tmp_path, 1)
    here.write("plan", {"draws": True})
    (here.folder / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan.json is damaged .* Fix: restore it, or delete it"):
        here.read("plan")

"""What the peer is given is ours, bit for bit, and what it says is counted as ours is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import digits_peers
from benchmarks.digits import summary
from benchmarks.digits_methods import METHODS, Method
from benchmarks.digits_world import network, worlds


@pytest.mark.parametrize("world", ["permuted", "class", "task"])
def test_tasks_and_first_weights_are_handed_over_bit_for_bit(world, tmp_path):
    tasks = worlds(world, 3)
    digits_peers.hand_over(tmp_path / "tasks.npz", tasks, 3)
    torch.manual_seed(3)  # as `benchmarks.digits.learn` begins
    weights = list(network().parameters())
    with np.load(tmp_path / "tasks.npz") as file:
        for number, task in enumerate(tasks):
            for part in (*digits_peers.PARTS, "allowed"):
                found, ours = torch.from_numpy(file[f"{part}{number}"]), getattr(task, part)
                assert found.dtype == ours.dtype
                assert torch.equal(found, ours), (part, number)
        for number, weight in enumerate(weights):
            assert torch.equal(torch.from_numpy(file[f"weight{number}"]), weight)
        assert len(file.files) == 5 * len(tasks) + len(weights)


def test_another_row_has_another_sum():
    x = worlds("class", 0)[0].x
    other = x.clone()
    other[-1, 5] = torch.nextafter(other[-1, 5], torch.tensor(2.0))
    assert digits_peers.digest([x]) == digits_peers.digest([x.clone()])
    assert digits_peers.digest([x]) != digits_peers.digest([other])


def test_the_best_of_those_tried():
    assert digits_peers.best([1.0, 10.0, 100.0], [0.3, 0.8, 0.5]) == 10.0
    assert digits_peers.best([1.0, 10.0, 100.0], [0.3, 0.8, 0.8]) == 10.0


@pytest.fixture
def said(monkeypatch, tmp_path):
    """Figures of a run whose peer says, of every method, what a function of its name says."""

    def run(answer, *options: str):
        def learn(python, method, cases, epochs=10):
            return [answer(method, *case) | {"seconds": 1.0} for case in cases]

        monkeypatch.setattr(digits_peers, "ensure_environment", lambda: None)
        monkeypatch.setattr(digits_peers, "peer_versions", lambda python, names: {})
        monkeypatch.setattr(digits_peers, "learn", learn)
        file = tmp_path / "out.json"
        assert digits_peers.main(["--json", str(file), *options]) == 0
        return json.loads(file.read_text(encoding="utf-8"))

    return run


def test_figures_are_by_the_definition_of_ours(said):
    tables = [[[0.9, 0.1], [0.5, 0.8]], [[1.0, 0.2], [0.7, 0.9]]]
    found = said(
        lambda method, world, seed, strength: {"table": tables[seed], "weights": ""},
        *("--methods", "naive", "--worlds", "class", "--seeds", "2"),
    )["class"]["naive"]
    assert found["acc"] == pytest.approx((0.65 + 0.8) / 2)
    assert found["forgetting"] == pytest.approx((0.4 + 0.3) / 2)
    assert found.items() >= summary(tables).items()


def test_the_best_strength_of_seed_0_is_used_everywhere(said):
    def answer(method, world, seed, strength):
        right = 0.9 if strength == 300.0 else 0.5
        return {"table": [[right, 0.0], [right, right]], "weights": ""}

    found = said(answer, "--methods", "ewc", "icarl", "--seeds", "1")
    assert found["tried"]["ewc"] == {"100.0": 0.5, "300.0": 0.9, "1000.0": 0.5}
    assert [found[w]["ewc"]["strength"] for w in ("permuted", "class", "task")] == [300.0] * 3
    assert [w for w in ("permuted", "class", "task") if "icarl" in found[w]] == ["class"]


@pytest.mark.parametrize("same", [True, False])
def test_si_is_naive_only_if_every_run_ends_in_the_same_weights(same, said):
    def answer(method, world, seed, strength):
        other = method == "si" and world == "task" and seed == 1 and not same
        return {"table": [[0.5, 0.5]] * 2, "weights": f"{world}{seed}{other}"}

    found = said(answer, "--methods", "naive", "si", "--seeds", "2")
    assert found["si_is_naive"] is same


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestAvalanche:
    """The peer itself, where it is installed."""

    @pytest.fixture
    def python(self):
        found = digits_peers.installed()
        if found is None:
            pytest.skip(
                "avalanche-lib's environment is made by `python -m benchmarks.digits_peers`"
            )
        return found

    @pytest.mark.parametrize("world", ["class", "task"])
    def test_it_begins_as_we_do(self, world, python):
        """After no epoch at all its accuracies are those of our first weights, by our code."""
        (run,) = digits_peers.learn(python, "naive", [(world, 1, 0.0)], epochs=0)
        torch.manual_seed(1)
        model, method, tasks = network(), Method(), worlds(world, 1)
        ours = [float((method.answer(model, t) == t.y_test).float().mean()) for t in tasks]
        for row in run["table"]:
            assert row == pytest.approx(ours, abs=1e-6)

    def test_its_si_is_naive_until_it_is_mended(self, python):
        cases = [("class", 0, 30.0), ("task", 0, 30.0)]
        ends = {
            name: [run["weights"] for run in digits_peers.learn(python, name, cases, epochs=1)]
            for name in ("naive", "si", "si_mended")
        }
        assert ends["si"] == ends["naive"]
        assert not set(ends["si_mended"]) & set(ends["naive"])


def test_methods_of_one_name_are_the_same_method():
    assert set(digits_peers.TRIED) - set(METHODS) == {"cumulative", "si_mended", "gem"}

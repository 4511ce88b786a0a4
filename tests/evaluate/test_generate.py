"""Sampling for an evaluation: repeatable, independent of neighbours, resumable after a crash."""

from pathlib import Path

import pytest
import torch

from align.errors import DataError, ModelError
from align.evaluate.generate import complete, generate_completions
from align.rollout.transformers import TransformersSampler
from align.types import Rollout, Text

PROMPTS: list[Text] = [f"w{row} w{row + 1}" * (1 + row % 2) for row in range(10)]


class Counting:
    """A real sampler that counts its calls and can be made to crash."""

    def __init__(self, sampler: TransformersSampler, crash_at: int | None = None):
        self.sampler, self.crash_at, self.calls = sampler, crash_at, 0

    def __call__(self, prompts: list[Text], group_size: int = 1, **columns: list) -> Rollout:
        self.calls += 1
        if self.calls == self.crash_at:
            raise KeyboardInterrupt
        return self.sampler(prompts, group_size=group_size, **columns)


@pytest.fixture
def sampler(make_model, tokenizer) -> TransformersSampler:
    return TransformersSampler(make_model(0), tokenizer, max_new_tokens=6)


def test_shapes_and_rollout_round_trip(sampler) -> None:
    written = complete({"m": sampler}, "m", PROMPTS, samples=2, batch_size=8)
    assert len(written.texts) == len(written.finished) == 20
    rollout = written.rollout()
    assert rollout.prompts[:3] == [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    assert rollout.mask.sum(dim=1).tolist() == written.lengths
    for row in range(20):
        kept = rollout.mask[row].bool()
        assert rollout.completion_ids[row][kept].tolist() == written.completion_ids[row]
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()].tolist()
        assert prompt == written.prompt_ids[row]
        ended = written.completion_ids[row][-1] == 1
        assert bool(rollout.finished[row]) == ended


def test_seeded_whatever_the_neighbours_and_the_global_generator(sampler) -> None:
    torch.manual_seed(1)
    alone = generate_completions({"a": sampler}, PROMPTS)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    both = generate_completions({"b": sampler, "a": sampler}, PROMPTS)
    assert both["a"] == alone["a"]
    assert both["a"].texts != both["b"].texts  # another name draws other samples
    assert complete({"a": sampler}, "a", PROMPTS, seed=1).texts != alone["a"].texts
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # sampling left the generator alone


def test_every_batch_draws_anew(sampler) -> None:
    written = complete({"m": sampler}, "m", ["w1 w2"] * 4, batch_size=2)
    assert written.texts[:2] != written.texts[2:]


def test_crash_and_resume_equal_one_go(sampler, tmp_path: Path) -> None:
    whole = complete({"m": sampler}, "m", PROMPTS, samples=2, batch_size=4)
    options = {"samples": 2, "batch_size": 4, "run_dir": tmp_path, "identity": "v1"}
    crashing = Counting(sampler, crash_at=4)
    with pytest.raises(KeyboardInterrupt):
        complete({"m": crashing}, "m", PROMPTS, **options)
    (file,) = (tmp_path / "cache").iterdir()
    with file.open("a") as stream:
        stream.write('{"start": 6, "rows": [{"te')  # the power went while a line was written
    again = Counting(sampler)
    assert complete({"m": again}, "m", PROMPTS, **options) == whole
    assert again.calls == 2  # five batches, three were finished

    class Unloaded(dict):
        def __missing__(self, name: str) -> None:
            raise AssertionError("a finished model must not be loaded again")

    assert complete(Unloaded(), "m", PROMPTS, **options) == whole


@pytest.mark.parametrize(
    "change", [{"identity": "v2"}, {"seed": 1}, {"samples": 1}, {"prompts": PROMPTS[::-1]}]
)
def test_a_stale_cache_is_not_used(sampler, tmp_path: Path, change: dict) -> None:
    options = {"samples": 2, "run_dir": tmp_path, "identity": "v1", "seed": 0, "prompts": PROMPTS}
    complete({"m": sampler}, "m", **options)
    counting = Counting(sampler)
    complete({"m": counting}, "m", **(options | change))
    assert counting.calls > 0
    counting.calls = 0
    complete({"m": counting}, "m", **(options | change))
    assert counting.calls == 0


def test_nothing_is_kept_without_an_identity(sampler, tmp_path: Path) -> None:
    complete({"m": sampler}, "m", PROMPTS, run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_that_look_alike_do_not_share_a_file(sampler, tmp_path: Path) -> None:
    for name in ("a/b", "a b"):
        complete({name: sampler}, name, PROMPTS[:2], run_dir=tmp_path, identity="v1")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_errors(sampler) -> None:
    with pytest.raises(DataError, match="at least one prompt"):
        complete({"m": sampler}, "m", [])
    with pytest.raises(DataError, match="'answer' has 1 rows for 10 prompts"):
        complete({"m": sampler}, "m", PROMPTS, {"answer": ["x"]})

    def one_each(prompts: list[Text], group_size: int = 1, **columns: list) -> Rollout:
        return sampler(prompts, group_size=1)

    with pytest.raises(ModelError, match="'m' returned 10 completions, but 10 prompts x 3"):
        complete({"m": one_each}, "m", PROMPTS, samples=3)

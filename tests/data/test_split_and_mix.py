"""Splits follow the prompt; mixtures have the shares that weights ask for."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from align.data.mix import mix, mixture_sizes
from align.data.rows import Row, normalise, prompt_key
from align.data.split import position_of, remove_leaks, split_of, split_rows


def row(prompt: str, source: int = 0) -> Row:
    return Row("x:1", source, {"prompt": prompt}, prompt_key(prompt))


PROMPTS = [f"What is {i} plus {i * 7}?" for i in range(5000)]


class TestSplit:
    def test_no_prompt_is_in_two_splits(self):
        rows = [row(prompt) for prompt in PROMPTS[:300] for _ in range(3)]
        random.Random(0).shuffle(rows)
        where = defaultdict(set)
        for name, part in split_rows(rows, 0.2, 0.2, 0).items():
            for item in part:
                where[item.key].add(name)
        assert all(len(names) == 1 for names in where.values())
        assert {name for names in where.values() for name in names} == {
            "train",
            "validation",
            "test",
        }

    def test_sizes_are_right_on_average(self):
        parts = split_rows([row(prompt) for prompt in PROMPTS], 0.1, 0.2, 3)
        sizes = {name: len(part) / len(PROMPTS) for name, part in parts.items()}
        # Four standard deviations of a binomial share of 5,000.
        assert sizes["validation"] == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 5000) ** 0.5)
        assert sizes["test"] == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 5000) ** 0.5)

    def test_adding_data_moves_no_prompt(self):
        few = split_rows([row(prompt) for prompt in PROMPTS[:500]], 0.1, 0.1, 0)
        many = split_rows([row(prompt) for prompt in reversed(PROMPTS)], 0.1, 0.1, 0)
        for name in few:
            assert {r.key for r in few[name]} <= {r.key for r in many[name]}

    def test_other_fractions_keep_held_out_prompts_held_out(self):
        for prompt in PROMPTS[:1000]:
            before = split_of(prompt, 0.1, 0.0, 0)
            after = split_of(prompt, 0.15, 0.2, 0)
            assert not (before == "validation" and after != "validation")
            assert (after == "test") == (split_of(prompt, 0.3, 0.2, 0) == "test")

    def test_zero_fractions_leave_everything_in_train(self):
        parts = split_rows([row(prompt) for prompt in PROMPTS], 0.0, 0.0, 0)
        assert len(parts["train"]) == len(PROMPTS)

    def test_another_seed_splits_otherwise(self):
        one, two = ([split_of(p, 0.5, 0.0, seed) for p in PROMPTS] for seed in (0, 1))
        assert 0.45 < sum(a == b for a, b in zip(one, two, strict=True)) / len(PROMPTS) < 0.55

    def test_positions_are_pinned(self):
        # A change here would move prompts between the splits of runs that people already have.
        assert position_of("what color is the sky?", 0) == pytest.approx(POSITION, abs=1e-12)
        assert position_of("what color is the sky?", -1) != position_of("what color is the sky?", 0)

    def test_leaks_leave_train(self):
        train = [row("A b"), row("c"), row("a  B")]
        kept, leaked = remove_leaks(train, [row("a b")], [])
        assert [r.values["prompt"] for r in kept] == ["c"]
        assert len(leaked) == 2


POSITION = 0.26116922363682504


class TestPromptKey:
    def test_case_space_and_system_messages_do_not_count(self):
        assert normalise(" What\n IS\tthis? ") == "what is this?"
        plain = prompt_key("What is this?")
        assert plain == prompt_key([{"role": "user", "content": " what  is THIS?"}])
        assert plain == prompt_key(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is this?"},
            ]
        )

    def test_turns_and_who_speaks_count(self):
        def key(*roles: str) -> str:
            return prompt_key([{"role": role, "content": "a"} for role in roles])

        assert len({key("user"), key("user", "assistant", "user"), key("user", "user")}) == 3


class TestMix:
    def test_without_weights_everything_is_used(self):
        assert mixture_sizes([10, 1000], [None, None]) == [10, 1000]

    @pytest.mark.parametrize(
        ("available", "weights", "sizes"),
        [
            ([100, 1000], [1.0, 1.0], [100, 100]),
            ([100, 1000], [0.1, 0.9], [100, 900]),
            ([100, 1000], [0.9, 0.1], [100, 11]),
            ([100, 1000], [2.0, None], [100, 50]),
            ([50, 60, 1000], [1, 2, 3], [30, 60, 90]),
            ([7], [5.0], [7]),
            ([30, 0, 50], [1.0, 5.0, 1.0], [30, 0, 30]),
        ],
    )
    def test_sizes_by_hand(self, available, weights, sizes):
        assert mixture_sizes(available, weights) == sizes

    def test_shares_and_size_for_any_weights(self):
        rng = random.Random(1)
        for _ in range(300):
            available = [rng.randint(50, 5000) for _ in range(rng.randint(2, 5))]
            weights = [rng.uniform(0.2, 5.0) for _ in available]
            sizes = mixture_sizes(available, weights)
            total, expected = sum(sizes), sum(weights)
            for size, weight, count in zip(sizes, weights, available, strict=True):
                assert size <= count
                assert abs(size - total * weight / expected) <= len(sizes)
            # The largest such mixture: some source is used up.
            assert any(size == count for size, count in zip(sizes, available, strict=True))

    def test_no_row_is_repeated_and_the_same_seed_repeats_the_mixture(self):
        sources = [[row(p, 0) for p in PROMPTS[:900]], [row(p, 1) for p in PROMPTS[1000:1100]]]
        first = mix(sources, [2.0, 1.0], seed=0)
        assert len({id(item) for item in first}) == len(first) == 300
        assert [sum(item.source == s for item in first) for s in (0, 1)] == [200, 100]
        assert [r.key for r in mix(sources, [2.0, 1.0], seed=0)] == [r.key for r in first]
        assert [r.key for r in mix(sources, [2.0, 1.0], seed=1)] != [r.key for r in first]

    def test_the_choice_does_not_depend_on_the_order_of_the_file(self):
        rows, other = [row(p) for p in PROMPTS[:500]], [row(p, 1) for p in PROMPTS[900:910]]
        a = {r.key for r in mix([rows, other], [5.0, 1.0], 0)}
        b = {r.key for r in mix([rows[::-1], other], [5.0, 1.0], 0)}
        assert a == b
        assert len(a) == 60

    def test_sources_are_interleaved_and_one_source_keeps_its_order(self):
        sources = [[row(p, 0) for p in PROMPTS[:100]], [row(p, 1) for p in PROMPTS[100:200]]]
        owners = [r.source for r in mix(sources, [None, None], 0)]
        assert 30 < sum(owners[:100]) < 70
        assert mix(sources[:1], [None], 0) == sources[0]

    def test_choice_and_split_are_independent(self):
        # Taking the lowest hashes of one kind must not empty the validation split.
        rows, other = [row(p) for p in PROMPTS[:4000]], [row(p, 1) for p in PROMPTS[4000:5000]]
        chosen = [r for r in mix([rows, other], [1.0, 1.0], 0) if r.source == 0]
        parts = split_rows(chosen, 0.2, 0.0, 0)
        assert 0.14 < len(parts["validation"]) / len(chosen) < 0.26

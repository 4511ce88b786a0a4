"""Episodes with an environment: exact tokens, masks, ends, rewards and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align.data.tokens import encode_prompt, end_of_turn_id
from align.engine.head import completion_logprobs
from align.errors import ConfigError, ModelError
from align.rollout.base import Draw
from align.rollout.environment import environment_reward, load_environment
from align.rollout.episodes import SyncedEnvironmentSampler
from align.rollout.transcript import Transcript, reply_ids
from align.types import Sampler, SyncedSampler
from reward.functions import call_reward


def test_an_episode_is_turns_and_replies(play, tiny_tokenizer, prompts, counter):
    sampler = play()
    assert not isinstance(sampler, SyncedSampler)  # the engine has no weights of its own
    rollout = sampler(prompts, group_size=2, answer=[1, 2, 3])
    assert rollout.prompts == [p for p in prompts for _ in range(2)]
    assert rollout.finished.all()
    assert rollout.columns["answer"] == [1, 1, 2, 2, 3, 3]
    assert rollout.columns["environment_reward"] == [6.0] * 6
    assert rollout.columns["environment_turns"] == [3] * 6
    assert rollout.columns["environment_info"] == [{"n": 3}] * 6
    for number, messages in enumerate(rollout.completions):
        roles = [m["role"] for m in messages]
        assert roles == ["assistant", "user", "assistant", "user", "assistant"]
        assert [messages[1]["content"], messages[3]["content"]] == ["Turn 1.", "Turn 2."]
        made = counter.made[number]
        assert made.heard == [m["content"] for m in messages[::2]]
        assert made.row == {"prompt": prompts[number // 2], "answer": number // 2 + 1}
        assert made.closed


def test_where_encoding_undoes_decoding_the_tokens_are_the_templates(
    play, engine, tiny_tokenizer, prompts, rows
):
    spoken = [*tiny_tokenizer("Send the parcel.")["input_ids"], tiny_tokenizer.eos_token_id]
    engine.draw = lambda prompts, group_size=1, max_new_tokens=None: [
        Draw(list(spoken), [-1.0] * len(spoken), True) for _ in prompts
    ]
    rollout = play()(prompts)
    for row, (ids, _) in enumerate(rows(rollout)):
        whole = [*rollout.prompts[row], *rollout.completions[row]]
        rendered = tiny_tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
        kept = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()].tolist()
        assert kept == encode_prompt(rollout.prompts[row], tiny_tokenizer)
        assert kept + ids == rendered


def test_the_mask_is_on_the_models_own_tokens_end_of_turn_included(
    play, tiny_tokenizer, prompts, rows
):
    rollout = play()(prompts)
    end = tiny_tokenizer.eos_token_id
    for row, (ids, mask) in enumerate(rows(rollout)):
        turns, replies, current = [], [], None
        for token, own in zip(ids, mask, strict=True):
            if own != current:
                (turns if own else replies).append([])
                current = own
            (turns if own else replies)[-1].append(token)
        assert len(turns) == 3
        assert all(turn[-1] == end for turn in turns)
        said = [m["content"] for m in rollout.completions[row] if m["role"] == "assistant"]
        assert [tiny_tokenizer.decode(t, skip_special_tokens=True) for t in turns] == said
        frame = "\n<|im_start|>user\nTurn {}." + tiny_tokenizer.eos_token
        frame += "\n<|im_start|>assistant\n"
        assert [tiny_tokenizer.decode(r) for r in replies] == [frame.format(n) for n in (1, 2)]
    assert (rollout.logprobs[rollout.mask == 0] == 0).all()
    assert (rollout.logprobs[rollout.mask == 1] < 0).all()
    assert (rollout.completion_ids[rollout.real == 0] == tiny_tokenizer.pad_token_id).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_step_0_the_policys_log_probabilities_are_the_samplers(play, engine, temperature, prompts):
    engine.temperature = temperature
    rollout = play()(prompts, group_size=2)
    with torch.no_grad():
        found, _ = completion_logprobs(
            engine.model, rollout.input_ids, rollout.attention_mask, rollout.mask, temperature
        )
        blind = torch.cat([rollout.prompt_mask, rollout.mask.long()], dim=1)
        wrong, _ = completion_logprobs(
            engine.model, rollout.input_ids, blind, rollout.mask, temperature
        )
    assert rollout.temperature == temperature
    assert (found - rollout.logprobs).abs().max() < 1e-5
    assert (wrong - rollout.logprobs).abs().max() > 1e-2  # blind to the replies: the control


def test_sampled_tokens_are_never_encoded_again(play, engine, tiny_tokenizer, prompts, rows):
    """`Th`, `e` drawn apart decode to `The`, which the tokenizer would encode otherwise."""
    spelled = [tiny_tokenizer.convert_tokens_to_ids(letter) for letter in "The"]
    end = tiny_tokenizer.eos_token_id
    assert tiny_tokenizer("The")["input_ids"] != spelled
    engine.draw = lambda prompts, group_size=1, max_new_tokens=None: [
        Draw([*spelled, end], [-1.0, -2.0, -3.0, -4.0], True) for _ in range(len(prompts))
    ]
    rollout = play()(prompts[:1])
    ((ids, mask),) = rows(rollout)
    assert rollout.completions[0][0]["content"] == "The"
    own = [token for token, m in zip(ids, mask, strict=True) if m]
    assert own == [*spelled, end] * 3
    assert rollout.logprobs[0][rollout.mask[0] == 1].tolist() == [-1.0, -2.0, -3.0, -4.0] * 3


def test_every_turn_is_drawn_for_all_that_go_on_and_the_first_once_a_group(play, engine, prompts):
    play(max_turns=2)(prompts, group_size=4)
    assert [(asked[0], asked[1]) for asked in engine.asked] == [(3, 4), (12, 1)]


@pytest.fixture
def greeter(counter) -> type:
    class Greeter(counter):
        def __init__(self) -> None:
            super().__init__()
            self.number = len(counter.made)

        def reset(self, **columns: Any) -> str:
            return f" You are number {self.number}."

    return Greeter


def test_an_opening_observation_is_part_of_the_prompt(
    play, engine, tiny_tokenizer, prompts, greeter
):
    rollout = play(greeter, max_turns=1)(prompts[:1], group_size=2)
    for row in range(2):
        wanted = [{"role": "user", "content": f"Where is it? You are number {row + 1}."}]
        assert rollout.prompts[row] == wanted
        kept = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()].tolist()
        assert kept == encode_prompt(wanted, tiny_tokenizer)
    assert engine.asked[0][:2] == (2, 1)  # they differ, so nothing is shared
    assert prompts[0] == [{"role": "user", "content": "Where is it?"}]


def test_async_environments_and_messages_of_any_role(
    play, tiny_tokenizer, prompts, counter, rows, tool
):
    rollout = play(tool)(prompts, group_size=4)
    assert tool.most == 12  # all steps of a turn at once
    assert rollout.prompts[0][-1] == {"role": "system", "content": "Tools are there."}
    assert rollout.completions[0][1] == {"role": "tool", "content": "42"}
    (ids, _), *_ = rows(rollout)
    assert "<|im_start|>tool\n42<|im_end|>" in tiny_tokenizer.decode(ids)
    assert all(made.closed for made in counter.made)


def test_a_plain_prompt_is_put_as_a_users_message(play):
    assert play(max_turns=1)(["Hello"]).prompts == [[{"role": "user", "content": "Hello"}]]


def test_the_turn_limit_cuts_an_episode_off(play, prompts, rows):
    rollout = play(max_turns=2)(prompts)
    assert not rollout.finished.any()
    assert rollout.columns["environment_reward"] == [3.0] * 3
    assert [m["role"] for m in rollout.completions[0]] == ["assistant", "user", "assistant"]
    (_, mask), *_ = rows(rollout)
    assert mask[-1] == 1  # nothing follows the last turn


def test_a_turn_that_was_cut_is_not_carried_out(play, engine, prompts, counter):
    engine.end_after = 100
    rollout = play()(prompts)
    assert not rollout.finished.any()
    assert rollout.columns["environment_reward"] == [0.0] * 3
    assert all(made.heard == [] for made in counter.made)
    assert rollout.mask.sum(1).tolist() == [8.0] * 3


def test_a_full_context_cuts_an_episode_off(play, engine, tiny_tokenizer, prompts):
    free = play()(prompts[:1])
    start, length = int(free.prompt_mask.sum()), int(free.real.sum())
    for context in range(start + 1, start + length + 3):
        engine.asked.clear()
        rollout = play(context=context)(prompts[:1])
        assert int(rollout.prompt_mask.sum() + rollout.real.sum()) <= context
        assert bool(rollout.finished) == (context >= start + length)
        assert rollout.mask[0, int(rollout.real.sum()) - 1] == 1  # never ends with a reply
        assert all(room >= 1 for asked in engine.asked for room in asked[2])
    with pytest.raises(ModelError, match=rf"begins with {start} tokens.*context of {start}"):
        play(context=start)(prompts[:1])


def test_another_end_token_or_none_gets_the_templates_end_of_turn(tiny_tokenizer, prompts):
    end = end_of_turn_id(tiny_tokenizer, conversational=True)
    reply = [{"role": "user", "content": "Go on."}]
    letter = tiny_tokenizer.convert_tokens_to_ids("a")

    def frame(tokens: list[int]) -> list[int]:
        transcript = Transcript(prompts[0], encode_prompt(prompts[0], tiny_tokenizer))
        transcript.add_turn(Draw(tokens, [0.0] * len(tokens), True), "a")
        return reply_ids(transcript, reply, tiny_tokenizer)

    whole = encode_prompt(
        [*prompts[0], {"role": "assistant", "content": "a"}, *reply], tiny_tokenizer
    )
    start = encode_prompt(prompts[0], tiny_tokenizer)
    assert [*start, letter, end, *frame([letter, end])] == whole
    assert frame([letter]) == [end, *frame([letter, end])]
    assert frame([letter, 7]) == [end, *frame([letter, end])]


def test_what_cannot_be_played_is_refused(play, prompts):
    for limit in ("max_turns", "max_new_tokens", "timeout"):
        with pytest.raises(ConfigError, match=f"{limit}=0"):
            play(**{limit: 0})
    with pytest.raises(ConfigError, match="environment_reward"):
        play()(prompts, environment_reward=[0, 0, 0])
    with pytest.raises(ModelError, match="no prompts"):
        play()([])


def test_the_seed_is_the_engines(play, engine):
    sampler: Sampler = play()
    sampler.seed = 7
    assert engine.seed == 7


def test_every_turn_has_numbers_of_its_own(play, engine, prompts, monkeypatch):
    seeds, draw = [], engine.draw
    monkeypatch.setattr(engine, "draw", lambda *a, **k: seeds.append(engine.seed) or draw(*a, **k))
    for seed in (7, None):
        sampler = play(max_turns=3)
        sampler.seed = seed
        sampler(prompts)
        assert engine.seed == seed
    own, none = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    assert own[0] == 7
    assert len(own) > 1
    assert len(set(own)) == len(own)
    assert set(none) == {None}


def test_an_engine_with_weights_of_its_own_is_kept_up_to_date(engine, counter, tiny_tokenizer):
    """What vLLM's samplers do of `SyncedSampler`, on the plain engine."""
    brought = []
    engine.sync = lambda policy, version: brought.append(version) or {"sync/seconds": 1.0}
    engine.close = lambda: brought.append("closed")
    sampler = SyncedEnvironmentSampler(engine, tiny_tokenizer, counter, max_new_tokens=8)
    assert isinstance(sampler, SyncedSampler)
    assert sampler.sync(engine.model, 3) == {"sync/seconds": 1.0}
    assert sampler(["Hello"]).version == 3
    sampler.close()
    assert brought == [3, "closed"]


def test_the_reward_function_reads_the_environments_column(play, prompts):
    rollout = play()(prompts, answer=["a", "b", "c"])
    found = call_reward(environment_reward, rollout.prompts, rollout.completions, **rollout.columns)
    assert found == [6.0, 6.0, 6.0]


def test_environments_are_imported_by_name(tmp_path, monkeypatch):
    (tmp_path / "worlds_of_mine.py").write_text(
        "class Good:\n    def reset(self, **c): ...\n    def step(self, completion): ...\n"
        "class Needy(Good):\n    def __init__(self, port): ...\n"
        "class Half:\n    def reset(self, **c): ...\n"
        "def make():\n    return Good()\n"
    )
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert load_environment("worlds_of_mine:Good", tmp_path).__name__ == "Good"
    assert type(load_environment("worlds_of_mine:make", tmp_path)()).__name__ == "Good"
    for spec, says in {
        "worlds_of_mine": "module:Class",
        "worlds_not_there:Good": "importing 'worlds_not_there' failed with ModuleNotFoundError",
        "worlds_of_mine:Bad": "no class 'Bad'.*Good, Half, Needy",
        "worlds_of_mine:Half": "no step method",
        "worlds_of_mine:Needy": "needs port",
    }.items():
        with pytest.raises(ConfigError, match=says):
            load_environment(spec, tmp_path)

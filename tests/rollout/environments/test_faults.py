"""What goes wrong in an episode is named, and every environment is closed."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from align.errors import ModelError, SamplerError
from align.rollout.environment import Step

THINKING = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['role'] == 'assistant' and loop.last -%}{{- '<think></think>' -}}{%- endif -%}
{{- message['content'] + eos_token + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""

ALTERNATING = """{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}{{- raise_exception('no tools here') -}}{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""


def with_template(tokenizer: Any, template: str | None) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def test_a_template_that_rewrites_history_is_refused(play, tiny_tokenizer, prompts, counter):
    sampler = play(tokenizer=with_template(tiny_tokenizer, THINKING))
    with pytest.raises(ModelError, match=r"rewrites what came before.*<think>.*chatml"):
        sampler(prompts)
    assert all(made.closed for made in counter.made)


def test_a_template_that_refuses_a_role_is_named(play, tiny_tokenizer, prompts, tool):
    sampler = play(tool, tokenizer=with_template(tiny_tokenizer, ALTERNATING))
    with pytest.raises(ModelError, match=r"system, assistant, tool: no tools here.*Fix"):
        sampler(prompts)
    rollout = play(tokenizer=with_template(tiny_tokenizer, ALTERNATING))(prompts)
    assert rollout.finished.all()  # a newline after the end of turn belongs to the frame


def test_without_a_chat_template_there_are_no_turns(play, tiny_tokenizer):
    with pytest.raises(ModelError, match="chat template"):
        play(tokenizer=with_template(tiny_tokenizer, None))


@pytest.fixture
def broken(counter) -> type:
    class Broken(counter):
        answer: Any = None

        def step(self, completion: str) -> Any:
            super().step(completion)
            if len(counter.made) == 3 and self is counter.made[1] and self.turns == 2:
                if isinstance(self.answer, Exception):
                    raise self.answer
                return self.answer
            return Step("Go on.")

    return Broken


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ValueError("bad move"), r"step raised ValueError: bad move"),
        (("a", 1.0, True), r"step returned tuple\. Fix: return .*Step"),
        (Step("x", reward=None), r"step gave a reward of None"),
        (Step("x", reward=float("nan")), r"step gave a reward of nan"),
        (Step(reward=1.0), r"step neither ended the episode nor returned an observation"),
        (Step(["x"]), r"step showed \['x'\]; text, or messages"),
    ],
)
def test_an_environment_at_fault_is_named_with_episode_and_turn(
    play, monkeypatch, answer, says, prompts, counter, broken
):
    monkeypatch.setattr(broken, "answer", answer)
    with pytest.raises(SamplerError, match=rf"environment Broken, episode 1, turn 2: {says}"):
        play(broken)(prompts)
    assert len(counter.made) == 3
    assert all(made.closed for made in counter.made)


def test_a_step_that_hangs_is_named_and_the_others_are_closed(play, prompts, counter):
    class Slow(counter):
        def step(self, completion: str) -> Step:
            if self is counter.made[2]:
                time.sleep(4)
            return super().step(completion)

    with pytest.raises(SamplerError, match=r"Slow, episode 2, turn 1: step did not return within"):
        play(Slow, timeout=2.0)(prompts)
    assert all(made.closed for made in counter.made)


def test_an_environment_that_cannot_be_made_leaves_none_open(play, prompts, counter):
    class Dear(counter):
        def __init__(self) -> None:
            if len(counter.made) == 2:
                raise OSError("no room")
            super().__init__()

    with pytest.raises(SamplerError, match="environment Dear, episode 2 raised OSError: no room"):
        play(Dear)(prompts)
    assert [made.closed for made in counter.made] == [True, True]
    with pytest.raises(SamplerError, match="is a dict, which has no reset and step"):
        play(dict)(prompts)


def test_one_that_fails_to_close_is_reported_after_all_were_closed(play, prompts, counter):
    class Sticky(counter):
        def close(self) -> None:
            super().close()
            if self is counter.made[0]:
                raise OSError("still in use")

    with pytest.raises(SamplerError, match=r"episode 0, turn 3: close raised OSError"):
        play(Sticky)(prompts)
    assert all(made.closed for made in counter.made)

"""The words of a completion: the model's own, whoever spoke in between."""

from __future__ import annotations

from reward.functions import final, plain, short

EPISODE = [
    {"role": "assistant", "content": "I guess 17"},
    {"role": "user", "content": "No, it is #### 18."},
    {"role": "assistant", "content": "ok"},
]


def test_only_what_the_model_said_is_read():
    assert plain(EPISODE) == "I guess 17\nok"
    assert final(EPISODE) == "ok"
    assert plain("as it is") == final("as it is") == "as it is"
    assert plain([{"content": "no role"}]) == "no role"
    assert final([]) == plain([]) == ""
    assert plain([{"role": "assistant", "content": None}]) == ""


def test_a_prompt_is_shown_whole():
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert plain(prompt) == "Be kind.\nHi"
    assert short(prompt, 5) == "'Be ki...'"

"""Who answers what once tasks have adapters, by hand; and which way prompts go."""

from __future__ import annotations

import pytest
import torch

from align.config.continual import AdaptersSection, TaskSection
from align.continual.adapters import Adapters, Columns
from align.continual.measure import Column
from align.continual.routing import Routes


def columns(first: int = 1, **given) -> Columns:
    """After tasks a, b and c, whose models have their names."""
    found = Columns("start", Adapters(AdaptersSection(type="adapters", **given), first))
    for number, name in enumerate("abc", 1):
        found = found.after(number, name, name)
    return found


def test_without_adapters_the_newest_answers_everything():
    found = Columns("start").after(1, "a", "A").after(2, "b", "B")
    assert [found.answers(name, True) for name in "abc"] == ["B"] * 3
    assert found.answers("other", False) == "B"
    assert (found.start(3), found.peft(3), found.models()) == ("B", {}, {"B"})


def test_apart_is_on_the_trunk_and_progressive_on_the_last():
    apart, stacked = columns(), columns(mode="progressive")
    for found in (apart, stacked):
        assert [found.answers(name, True) for name in "abc"] == list("abc")
        assert found.answers("other", False) == "start"
        assert found.models() == {"start", "a", "b", "c"}
    assert (apart.start(4), stacked.start(4)) == ("start", "c")
    assert (apart.answers("later", True), stacked.answers("later", True)) == ("start", "c")
    assert columns(kwargs={"r": 2}).peft(1) == {"peft": {"method": "lora", "kwargs": {"r": 2}}}


def test_tasks_before_the_first_adapter_train_the_trunk():
    found = columns(first=3)
    assert not found.on(2)
    assert (found.on(3), found.peft(2)) == (True, {})
    assert [found.answers(name, True) for name in "abc"] == ["b", "b", "c"]
    assert found.answers("other", False) == "b"


@pytest.mark.parametrize("learnt", [["digits", "letters"], ["letters"]])
def test_prompts_go_to_the_nearest_task(learnt, tiny_llama, tiny_tokenizer, tmp_path):
    texts = {"digits": "12 34 56 {}?", "letters": "Who lives in the north {}?"}
    tasks = []
    for name, text in texts.items():
        file = tmp_path / f"{name}.csv"
        lines = [f"{text.format(n)},x" for n in range(40)]
        file.write_text("prompt,completion\n" + "\n".join(lines))
        tasks.append(TaskSection(name=name, settings={"data": {"train": str(file)}}))
    routes = Routes(lambda: tiny_llama(), tasks, tiny_tokenizer, 128)
    rows = [{"prompt": texts[name].format(n + 50), "completion": "x"} for name in texts
            for n in range(10)]  # fmt: skip
    found = routes.route(Column("both", "likelihood", tuple(rows)), learnt)
    assert found[10:] == ["letters"] * 10
    assert found[:10] == [learnt[0]] * 10
    routes.save(tmp_path / "means.safetensors", learnt)
    assert torch.isfinite(routes.means["digits"]).all()

"""Items as Label Studio's tasks. A task says nothing of who wrote an answer.

A task's key is the item's id; a turned twin of a pair (the same pair, B before A) has `~` behind
it, so both can be asked and told apart.
"""

from __future__ import annotations

from typing import Any

from feedback.schema import Item

TWIN = "~"


def task_keys(item: Item, *, twins: bool = False) -> list[str]:
    """The keys of an item's tasks: one, or two for a pair that is asked both ways round."""
    return [item.id, item.id + TWIN] if twins and item.kind == "pair" else [item.id]


def item_of_key(key: str) -> str:
    """The id of the item a task's key belongs to."""
    return key.removesuffix(TWIN)


def shown_order(item: Item, key: str) -> tuple[int, ...]:
    """The index of the answer at each place of the task's page."""
    return tuple(reversed(item.shown)) if key.endswith(TWIN) else item.shown


def task_data(item: Item, key: str) -> dict[str, Any]:
    """The data of a task: prompt as a dialogue, answers in the order they are shown."""
    prompt = item.prompt
    dialogue = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answers = [item.responses[index] for index in shown_order(item, key)]
    data: dict[str, Any] = {"key": key, "kind": item.kind, "prompt": dialogue}
    if item.kind == "ranking":
        items = enumerate(answers)
        data["items"] = [{"id": f"r{i}", "title": f"{i + 1}", "body": text} for i, text in items]
    else:
        data |= {f"answer_{place}": text for place, text in enumerate(answers, 1)}
    return data

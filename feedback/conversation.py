"""Conversations in the rows of files: what a valid one is, and where its last answer begins.

Training data and feedback files follow these rules alike, so that both make the same prompt of the
same row. Every function raises `RowProblem` on what does not fit. Leaves out tool calls and images:
a message here is a role and a text. Raw Human/Assistant dialogues: `feedback.dialogue`.
"""

from __future__ import annotations

from typing import Any

from feedback.dialogue import RowProblem
from feedback.schema import Message, Messages, Text

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # of from/value messages


def read_messages(value: Any, field: str) -> Messages:
    """A list of messages as role and content (or from and value)."""
    if not isinstance(value, list | tuple):
        raise RowProblem(
            f"{field} has the wrong type", f"{type_name(value)}; expected a list of messages"
        )
    if not value:
        raise RowProblem(f"{field} is empty", "expected at least one message")
    messages = [_read_message(item, f"{field}[{i}]", field) for i, item in enumerate(value)]
    if any(message["role"] == "system" for message in messages[1:]):
        raise RowProblem(f"{field} has a late system message", "it may only come first")
    return messages


def _read_message(item: Any, where: str, field: str) -> Message:
    if not isinstance(item, dict):
        raise RowProblem(
            f"{field} has a bad message",
            f"{where} is {type_name(item)}; expected {{role, content}}",
        )
    role, content = item.get("role"), item.get("content")
    if "from" in item and "value" in item:
        role, content = item["from"], item["value"]
        role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise RowProblem(
            f"{field} has an unknown role", f"{where} is from {shorten(role)}; expected {known}"
        )
    if not isinstance(content, str):
        found = "no content" if content is None else f"{type_name(content)} as content"
        raise RowProblem(f"{field} has a bad message", f"{where} has {found}; expected text")
    if not content.strip():
        raise RowProblem(f"{field} has an empty message", f"{where} ({role}) says nothing")
    return {"role": role, "content": content}


def check_prompt(prompt: Text, field: str) -> None:
    """Refuse a conversation that no assistant's answer can follow."""
    if isinstance(prompt, str) or (prompt and prompt[-1]["role"] == "user"):
        return
    found = f"the {_last(prompt)}" if prompt else "nothing"
    raise RowProblem(
        f"{field} has no user turn before the answer", f"{found} comes right before it"
    )


def split_last(messages: Messages, field: str) -> tuple[Messages, str]:
    """A conversation as its prompt and the assistant's last answer."""
    if messages[-1]["role"] != "assistant":
        found = f"the last message is the {_last(messages)}"
        raise RowProblem(f"{field} does not end with the assistant", found)
    check_prompt(messages[:-1], field)
    return messages[:-1], messages[-1]["content"]


def join(prompt: Text, answer: Text, field: str) -> tuple[Text, str]:
    """The whole prompt and the last answer, however the two fields share the conversation.

    Raises:
        RowProblem: no answer is at the end, or no user's turn before it.
    """
    if isinstance(answer, str):
        check_prompt(prompt, "prompt")
        return prompt, answer
    turns = as_turns(prompt)
    if answer[: len(turns)] == turns:  # the answer's field repeats the prompt
        return split_last(answer, field)
    if len(answer) > 1 and isinstance(prompt, str) and answer[-2]["content"] == prompt:
        return split_last(answer, field)  # the same, with a system message or earlier turns
    check_prompt(turns, "prompt")
    return split_last([*turns, *answer], field)


def as_turns(prompt: Text) -> Messages:
    """A prompt as a conversation: plain text is the user's turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def split_shared(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two texts as the beginning they share and two answers, split between words.

    `trl.extract_prompt` splits inside a word ("bl|ue", "bl|ack") and loses a letter where one
    text continues the other, so it is not used here.

    Raises:
        RowProblem: they share no beginning, or one ends where it does.
    """
    shared = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    inside = [text[max(shared - 1, 0) : shared + 1] for text in (chosen, rejected)]
    if any(len(pair) == 2 and not any(c.isspace() for c in pair) for pair in inside):
        while shared and not chosen[shared - 1].isspace():
            shared -= 1
    while shared and chosen[shared - 1].isspace():  # answers keep the space before them
        shared -= 1
    if not shared:
        raise RowProblem("chosen and rejected share no beginning", "add a prompt column")
    for name, answer in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
        if not answer.strip():
            raise RowProblem(f"{name} is empty", "it ends where the shared beginning does")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def type_name(value: object) -> str:
    """A value's type as JSON calls it."""
    if value is None:
        return "nothing"
    names: dict[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
    kind = type(value)
    return names.get(kind, "a number" if kind in (int, float) else f"a {kind.__name__}")


def shorten(value: object, width: int = 60) -> str:
    """A quoted preview on one line."""
    text = repr(value)
    return text if len(text) <= width else text[:width] + "..."


def _last(messages: Messages) -> str:
    return f"{messages[-1]['role']}'s {shorten(messages[-1]['content'], 40)}"

"""Conversations: what a valid one is, and the raw `Human:`/`Assistant:` dialogues of HH-RLHF.

Leaves out tool calls and images: a message here is a role and a text.
"""

from __future__ import annotations

from typing import Any

from align.data.rows import shorten
from feedback.dialogue import RowProblem, parse_dialogue
from feedback.schema import Message, Messages, Text

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # of from/value messages


def read_text(value: Any, field: str) -> Text:
    """A field as text or as a valid conversation.

    Raises:
        RowProblem: it is missing, empty, or neither.
    """
    if value is None:
        raise RowProblem(f"{field} is missing", "expected text or a list of messages")
    if isinstance(value, str):
        if not value.strip():
            raise RowProblem(f"{field} is empty", "expected text or a list of messages")
        return value
    if isinstance(value, list | tuple):
        return read_messages(value, field)
    kind = type(value).__name__
    raise RowProblem(f"{field} has the wrong type", f"{kind}; expected text or a list of messages")


def read_messages(value: Any, field: str) -> Messages:
    """A list of messages as role and content (or from and value), each checked.

    Raises:
        RowProblem: it is no list, is empty, or a message lacks a known role or its text.
    """
    if not isinstance(value, list | tuple):
        kind = "missing" if value is None else type(value).__name__
        raise RowProblem(f"{field} has the wrong type", f"{kind}; expected a list of messages")
    if not value:
        raise RowProblem(f"{field} is empty", "expected at least one message")
    messages = [_read_message(item, f"{field}[{i}]", field) for i, item in enumerate(value)]
    if any(message["role"] == "system" for message in messages[1:]):
        raise RowProblem(f"{field} has a late system message", "it may only come first")
    return messages


def _read_message(item: Any, where: str, field: str) -> Message:
    if not isinstance(item, dict):
        what = f"{where} is a {type(item).__name__}"
        raise RowProblem(f"{field} has a bad message", f"{what}; expected {{role, content}}")
    if "from" in item and "value" in item:
        role, content = SHAREGPT_ROLES.get(item["from"], item["from"]), item["value"]
    else:
        role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise RowProblem(
            f"{field} has an unknown role", f"{where} is from {role!r}; expected {', '.join(ROLES)}"
        )
    if not isinstance(content, str):
        what = "no content" if content is None else f"content of type {type(content).__name__}"
        raise RowProblem(f"{field} has a bad message", f"{where} has {what}; expected text")
    if not content.strip():
        raise RowProblem(f"{field} has an empty message", f"{where} ({role}) says nothing")
    return {"role": role, "content": content}


def split_last(messages: Messages, field: str) -> tuple[Messages, str]:
    """A conversation as its prompt and the assistant's last answer.

    Raises:
        RowProblem: it does not end with the assistant, or nothing comes before that answer.
    """
    if messages[-1]["role"] != "assistant":
        raise RowProblem(
            f"{field} does not end with the assistant", f"the last message is the {_last(messages)}"
        )
    prompt = messages[:-1]
    check_prompt(prompt, field)
    return prompt, messages[-1]["content"]


def check_prompt(prompt: Text, field: str) -> None:
    """Refuse a conversation that no assistant's answer can follow.

    Raises:
        RowProblem: the last message before the answer is not the user's.
    """
    if isinstance(prompt, str):
        return
    if not prompt or prompt[-1]["role"] != "user":
        found = f"the {_last(prompt)}" if prompt else "nothing"
        raise RowProblem(
            f"{field} has no user turn before the answer", f"{found} comes right before it"
        )


def read_dialogue(value: Any, field: str) -> Messages:
    r"""A raw dialogue, `\n\nHuman: ...\n\nAssistant: ...`, as messages.

    Raises:
        RowProblem: it is no such dialogue, or a turn is empty.
    """
    if not isinstance(value, str):
        kind = "missing" if value is None else type(value).__name__
        raise RowProblem(f"{field} has the wrong type", f"{kind}; expected a raw dialogue")
    return parse_dialogue(value, field)


def add_system(prompt: Messages, system: str) -> Messages:
    """The conversation with a system message first; one that has its own keeps it."""
    if prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": system}, *prompt]


def _last(messages: Messages) -> str:
    return f"{messages[-1]['role']}'s {shorten(messages[-1]['content'], 40)}"

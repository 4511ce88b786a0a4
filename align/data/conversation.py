"""Fields of training data that hold text, a conversation, or a raw dialogue of HH-RLHF.

What a valid conversation is, `feedback.conversation` says: feedback files follow the same rules.
"""

from __future__ import annotations

from typing import Any

from feedback.conversation import read_messages
from feedback.dialogue import RowProblem, parse_dialogue
from feedback.schema import Messages, Text


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

r"""Raw dialogues, `\n\nHuman: ...\n\nAssistant: ...`, and what is wrong with a row of a file.

Training data and feedback files both hold them, so the rules live here once.
"""

from __future__ import annotations

import re

from feedback.schema import Messages

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class RowProblem(Exception):  # noqa: N818 - caught by readers, never shown as it is
    """One row cannot be used: `reason` is short and countable, `detail` says what was expected."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def parse_dialogue(value: str, field: str) -> Messages:
    """A raw dialogue as messages.

    Turns of one speaker in a row are joined into one message, since chat templates alternate.

    Raises:
        RowProblem: it is no such dialogue, or a turn is empty.
    """
    before, *parts = TURN.split(value)
    if before.strip() or not parts:
        raise RowProblem(
            f"{field} is no raw dialogue", f"expected '\\n\\nHuman: ...', got {value[:40]!r}"
        )
    messages: Messages = []
    for index, (speaker, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        role, content = ("user" if speaker == "Human" else "assistant"), text.strip()
        if not content:
            last = 2 * (index + 1) == len(parts)
            reason = f"{field} is empty" if last else f"{field} has an empty message"
            raise RowProblem(reason, f"turn {index + 1} ({speaker}) says nothing")
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": role, "content": content})
    return messages


def is_dialogue(value: object) -> bool:
    """Whether a value looks like a raw HH dialogue."""
    return isinstance(value, str) and bool(re.match(r"\s*(Human|Assistant):", value))

"""Prompts for `align generate` and how they are put to a model.

From arguments, files of any format that `align.data` reads, or stdin; plain ones become
conversations where the tokenizer has a chat template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.sections import DataSection, SourceSection
from align.data import encode_prompt, load_splits
from align.data.read import missing
from align.data.rows import shorten
from align.errors import ConfigError, DataError, ModelError
from align.types import Text


def read_prompts(
    arguments: Iterable[str] = (), file: str | Path | None = None, stdin: TextIO | None = None
) -> tuple[list[Text], list[dict[str, Any]]]:
    """Prompts from arguments, then a file, then (only if there are none) stdin.

    A .txt file and stdin hold one prompt a line; any other file is read as `align.data` reads
    prompts, so preference and SFT data serve too.

    Returns:
        The prompts, and for each the file's further columns.

    Raises:
        DataError: the file is missing, damaged or holds no prompts.
    """
    prompts: list[Text] = [text for text in arguments if text.strip()]
    columns: list[dict[str, Any]] = [{} for _ in prompts]
    if file is not None:
        found, extra = _read_file(Path(file))
        prompts += found
        columns += extra
    if not prompts and stdin is not None:
        prompts = [line.strip() for line in stdin if line.strip()]
        columns = [{} for _ in prompts]
    return prompts, columns


def load_prompts(path: str | Path) -> list[Text]:
    """The prompts of a data file (or of a .txt file, one a line).

    Raises:
        DataError: the file is missing, damaged or holds no prompts.
    """
    return _read_file(Path(path))[0]


def batches(prompts: Sequence[Text], size: int) -> Iterator[list[Text]]:
    """Consecutive batches of at most `size` prompts."""
    for start in range(0, len(prompts), size):
        yield list(prompts[start : start + size])


def _read_file(path: Path) -> tuple[list[Text], list[dict[str, Any]]]:
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise DataError(missing(path))
        lines: list[Text] = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        if not lines:
            raise DataError(f"{path}: holds no prompts; one a line is expected.")
        return lines, [{} for _ in lines]
    section = DataSection(
        train=[SourceSection(path=str(path))], validation_fraction=0.0, deduplicate="none"
    )
    rows = load_splits(section, "prompts").train.to_list()
    return [row.pop("prompt") for row in rows], rows


def as_conversations(
    prompts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    *,
    raw: bool = False,
    system: str | None = None,
) -> list[Text]:
    """Plain prompts as a user's turn where the tokenizer has a chat template, unless `raw`.

    Raises:
        ModelError: a conversation, but no chat template.
        ConfigError: a system message for plain prompts.
    """
    templated = tokenizer.chat_template is not None
    asked: list[Text] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            if raw or not templated:
                if system is not None:
                    raise ConfigError("a system message needs a chat template and no --raw.")
                asked.append(prompt)
                continue
            prompt = [{"role": "user", "content": prompt}]
        if not templated:
            raise ModelError(
                f"the prompt {shorten(str(prompt[-1]['content']))} is a conversation, but the "
                "tokenizer has no chat template. Fix: --chat-template chatml, or a .jinja file."
            )
        if system is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system}, *prompt]
        asked.append(prompt)
    return asked


def check_context(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    max_new_tokens: int,
) -> None:
    """Refuse prompts that leave no room for an answer, before the first one is drawn.

    Raises:
        ModelError: naming the first such prompt and how many there are.
    """
    context = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    lengths = [len(encode_prompt(prompt, tokenizer)) for prompt in prompts]
    empty = next((i for i, length in enumerate(lengths) if length == 0), None)
    if empty is not None:
        raise ModelError(f"prompt {empty} is empty: there is no token to start from.")
    over = [i for i, length in enumerate(lengths) if context and length + max_new_tokens > context]
    if over:
        first = over[0]
        raise ModelError(
            f"{len(over)} of {len(prompts)} prompts do not fit: prompt {first} has "
            f"{lengths[first]} tokens, and with max_new_tokens={max_new_tokens} that is more than "
            f"the model's context of {context}. Fix: shorten it, or lower --max-new-tokens."
        )

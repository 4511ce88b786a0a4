"""Rows to token ids, exactly as TRL's trainers do it, and the checks that spare a lost run.

`encode_pair` is the one place that says which tokens a completion has. Sampling, scoring and PPO
use it, so that they see what SFT, reward and DPO trained on (tests compare it with the columns of
the real trainers). Checks: `check_tokenizer` before, `fit_length` on every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from trl.data_utils import common_prefix_length

from align.data.rows import plain_text, shorten
from align.errors import DataError, ModelError
from feedback.schema import Messages, Text

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<unk>")


def encode_prompt(prompt: Text, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt as the model sees it when it has to answer.

    A conversation is rendered by the chat template with the generation prompt; plain text is
    tokenised as it is, with the special tokens the tokenizer puts before it.
    """
    return encode_prompts([prompt], tokenizer)[0]


def encode_pair(
    prompt: Text, completion: Text, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """A prompt and its completion, as TRL trains on them.

    The whole is tokenised at once and cut where the prompt alone and the whole part ways, so
    tokens that merge across the boundary belong to the completion. The completion ends with the
    end-of-turn token (and whatever blank the chat template puts after it).

    Args:
        prompt: plain text or a conversation.
        completion: text, or `[assistant message]`; text after a conversation is the assistant's.
        tokenizer: the policy's.

    Returns:
        Prompt ids and completion ids; their concatenation is the training sequence.
    """
    (prompt_ids,), ((start, ids),) = _encode([prompt], [completion], tokenizer)
    return prompt_ids[:start], ids[start:]


def encode_prompts(prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`encode_prompt` for many prompts of one type at once."""
    return _ids(prompts, tokenizer, generation_prompt=True)


def encode_pairs(
    prompts: Sequence[Text], completions: Sequence[Text], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[int]]]:
    """`encode_pair` for many pairs of one type at once."""
    _, wholes = _encode(prompts, completions, tokenizer)
    return [(ids[:start], ids[start:]) for start, ids in wholes]


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Text without a prompt, ending with EOS, as SFT trains on it."""
    return _ids([_with_eos(text, tokenizer)], tokenizer)[0]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase, conversational: bool | None = None) -> int:
    """The token that ends a completion.

    Args:
        tokenizer: the policy's.
        conversational: whether completions are rendered by the chat template; by default they
            are where there is one. Plain completions end with EOS.

    Raises:
        ModelError: there is no EOS, or the chat template ends the assistant's turn with no token
            of its own, so that a model trained with it never stops.
    """
    if conversational is None:
        conversational = tokenizer.chat_template is not None
    if not conversational:
        if tokenizer.eos_token_id is None:
            raise ModelError(NO_EOS.format(name=_name(tokenizer)))
        return int(tokenizer.eos_token_id)
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    ids = _strip_blank(_ids([[question, answer]], tokenizer)[0], tokenizer)
    marks = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    if not ids or ids[-1] not in marks:
        tail = tokenizer.decode(ids[-4:])
        raise ModelError(
            f"{_name(tokenizer)}: the chat template ends the assistant's turn with {tail!r}, not "
            "with an end-of-turn token, so the model would never learn to stop. "
            "Fix: model.chat_template=chatml, or add the EOS token to the template."
        )
    return ids[-1]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, conversational: bool = False) -> None:
    """Refuse a tokenizer that cannot train a model that stops.

    Args:
        tokenizer: the policy's.
        conversational: whether the data are conversations.

    Raises:
        ModelError: no EOS, no PAD, PAD is EOS (its loss would be masked with the padding), no
            chat template for conversations, or one that never ends a turn. All at once.
    """
    name, problems = _name(tokenizer), []
    if tokenizer.eos_token_id is None:
        problems.append(NO_EOS.format(name=name))
    pad = next(
        (n for n in PAD_NAMES if n in tokenizer.get_vocab() and n != tokenizer.eos_token), ""
    )
    offer = (
        f"tokenizer.pad_token = {pad!r}" if pad else "add one: add_special_tokens(pad_token=...)"
    )
    if tokenizer.pad_token_id is None:
        problems.append(f"{name} has no PAD token. Fix: {offer}, and save the tokenizer.")
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        problems.append(
            f"{name} pads with its EOS token {tokenizer.eos_token!r}; a model trained so may never "
            f"stop. Fix: {offer}, and save the tokenizer."
        )
    if conversational and tokenizer.chat_template is None:
        problems.append(
            f"{name} has no chat template, but the data are conversations. "
            "Fix: model.chat_template=chatml, or a .jinja file."
        )
    elif conversational and not problems:
        end_of_turn_id(tokenizer, conversational)
    if problems:
        raise ModelError("\n".join(problems))


def check_sample(
    ids: Sequence[int],
    completion_ids: Sequence[int] | None,
    tokenizer: PreTrainedTokenizerBase,
    end_of_turn: int,
) -> None:
    """Refuse one encoded sample that would train a model badly.

    Args:
        ids: the whole sequence.
        completion_ids: its supervised end; None for a prompt alone.
        tokenizer: what encoded it.
        end_of_turn: what the last supervised token must be, blanks after it apart.

    Raises:
        DataError: two BOS tokens at the start, or no supervised end of turn.
    """
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise DataError(
            f"two BOS tokens at the start: {tokenizer.decode(list(ids[:12]))!r}... Fix: take "
            f"{tokenizer.bos_token!r} out of the text (or the template); the tokenizer adds it."
        )
    if completion_ids is None:
        return
    tail = tokenizer.decode(list(completion_ids[-8:]))
    supervised = _strip_blank(completion_ids, tokenizer)
    if not supervised or supervised[-1] != end_of_turn:
        mark = tokenizer.convert_ids_to_tokens(end_of_turn)
        raise DataError(
            f"the last supervised token is not the end of turn {mark!r}: the completion ends with "
            f"{tail!r}, so the model would not learn to stop. "
            "Fix: a chat template that ends every assistant turn (model.chat_template=chatml)."
        )


NO_EOS = (
    "{name} has no EOS token, so the model could never stop. "
    "Fix: set eos_token in its tokenizer_config.json to the token that ends a text."
)


def _encode(
    prompts: Sequence[Text], completions: Sequence[Text], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], list[tuple[int, list[int]]]]:
    """Prompts alone, and every whole sequence with the place where its completion starts."""
    wholes = [_join(p, c, tokenizer) for p, c in zip(prompts, completions, strict=True)]
    alone = _ids(prompts, tokenizer, generation_prompt=True)
    ids = _ids(wholes, tokenizer)
    starts = [common_prefix_length(a, b) for a, b in zip(alone, ids, strict=True)]
    return alone, list(zip(starts, ids, strict=True))


def _join(prompt: Text, completion: Text, tokenizer: PreTrainedTokenizerBase) -> Text:
    if isinstance(prompt, str):
        return prompt + _with_eos(plain_text(completion), tokenizer)
    answer: Messages = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else completion
    )
    return [*prompt, *answer]


def _with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    eos = tokenizer.eos_token
    if eos is None:
        raise ModelError(NO_EOS.format(name=_name(tokenizer)))
    return text if text.endswith(eos) else text + eos


def _ids(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool = False
) -> list[list[int]]:
    """Token ids of texts, or of conversations, all of one type; the calls TRL makes, in a batch."""
    if not texts:
        return []
    if isinstance(texts[0], str):
        encoded = tokenizer(text=cast(list[str], list(texts)))
    else:
        encoded = tokenizer.apply_chat_template(
            cast(list[Messages], list(texts)),
            tokenize=True,
            return_dict=True,
            add_generation_prompt=generation_prompt,
        )
    return cast("BatchEncoding", encoded)["input_ids"]


def _strip_blank(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids without the tokens at the end that are only whitespace."""
    end = len(ids)
    while end and not str(tokenizer.decode([ids[end - 1]])).strip():
        end -= 1
    return list(ids[:end])


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {shorten(tokenizer.name_or_path or type(tokenizer).__name__)}"

"""How hard a row is to a model: perplexity and loss of a language model, margin of a reward model.

Batched by length, without gradients. Leaves out difficulty that is measured again during training:
these are the scores of one fixed model (Hacohen and Weinshall 2019's transfer and bootstrapping
scoring functions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from align.data.curriculum.rank import Floats
from align.data.rows import Kind
from align.data.tokens import encode_pairs, encode_prompts, encode_text
from align.engine.head import completion_logprobs
from feedback.schema import Text
from reward.model import RewardModel
from reward.steps import join_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = tuple[list[int], list[int]]  # ids that are given, ids whose probability is measured


def answer_ids(rows: Dataset, kind: Kind, tokenizer: PreTrainedTokenizerBase) -> list[Split]:
    """What of each row a language model is asked for.

    The answer after its prompt: of a preference the chosen one, of a ranking the best. Of text, and
    of prompts alone, everything after the first token.
    """
    if "text" in rows.column_names:
        return [_after_first(encode_text(text, tokenizer)) for text in rows["text"]]
    prompts: list[Text] = list(rows["prompt"])
    if kind == "prompts":
        return [_after_first(ids) for ids in encode_prompts(prompts, tokenizer)]
    pairs = encode_pairs(prompts, _answers(rows, kind), tokenizer)
    return [(head, tail) if head else _after_first(tail) for head, tail in pairs]


def _after_first(ids: list[int]) -> Split:
    return ids[:1], ids[1:]


def _answers(rows: Dataset, kind: Kind) -> list[Text]:
    """The answer of each row that training makes likelier, or would."""
    if kind == "preference":
        return list(rows["chosen"])
    if kind == "ranking":
        found = zip(rows["responses"], rows["ranks"], strict=True)
        return [responses[int(np.argmin(ranks))] for responses, ranks in found]
    if kind == "steps":
        return [join_steps(steps) for steps in rows["completions"]]
    return list(rows["completion"])


@torch.no_grad()
def answer_nll(
    model: nn.Module, answers: Sequence[Split], pad_token_id: int, batch_size: int = 16
) -> tuple[Floats, Floats]:
    """Negative log-likelihood of answers, and their numbers of tokens.

    Args:
        model: a causal language model; its training mode is put back.
        answers: (prompt ids, answer ids) of each row; a row without answer ids has 0 nats.
        pad_token_id: what pads, and nothing attends to.
        batch_size: rows at once, of like length.

    Returns:
        nats of each answer, (N,), and its tokens, (N,).
    """
    device = next(model.parameters()).device
    nats = np.zeros(len(answers))
    by_length = sorted(range(len(answers)), key=lambda i: sum(map(len, answers[i])))
    training = model.training
    model.eval()
    try:
        for at in range(0, len(by_length), batch_size):
            chosen = by_length[at : at + batch_size]
            before = max(len(answers[i][0]) for i in chosen)
            after = max(1, max(len(answers[i][1]) for i in chosen))
            ids = torch.full((len(chosen), before + after), pad_token_id)
            attention = torch.zeros_like(ids)
            for line, i in enumerate(chosen):
                head, tail = answers[i]
                span = slice(before - len(head), before + len(tail))
                ids[line, span] = torch.tensor(head + tail)
                attention[line, span] = 1
            ids, attention = ids.to(device), attention.to(device)
            mask = attention[:, before:].float()
            found = completion_logprobs(model, ids, attention, mask)[0]
            nats[chosen] = -found.sum(dim=1).double().cpu().numpy()
    finally:
        model.train(training)
    return nats, np.asarray([len(tail) for _, tail in answers], dtype=np.float64)


def perplexity(nats: Floats, tokens: Floats) -> Floats:
    """Exp of the mean nats a token; infinite ones are cut at the largest float."""
    found: Floats = np.exp(np.minimum(nats / np.maximum(tokens, 1), 700.0))
    return found


def pair_margins(model: RewardModel, rows: Dataset) -> Floats:
    """The score of chosen less that of rejected, by a reward model, (N,)."""
    prompts = list(rows["prompt"])
    chosen, rejected = (model.score(prompts, list(rows[key])) for key in ("chosen", "rejected"))
    return np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)


def pair_loss(margins: Floats) -> Floats:
    """-log sigmoid(margin), the Bradley-Terry loss of each pair in nats."""
    found: Floats = np.logaddexp(0.0, -margins)
    return found

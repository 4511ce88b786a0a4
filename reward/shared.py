"""Last states of many token rows, each common prefix computed once.

Rows become a tree (`reward.tree`) and the tree one flat row (`reward.packed`); batches are filled
to a number of tokens. A model that cannot be packed, or an accelerator, gets padded batches of rows
of like length instead: the same states. Leaves out what is done with the states.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward.layout import Layout
from reward.packed import Run, can_pack, tree_states
from reward.tree import LEAST, Row, Tree, padded_batches, share, tree_batches

BATCH_TOKENS = 2048  # measured on CPU: what is in hand stays in the caches, and prompts stay whole


def pooled_states(
    backbone: nn.Module,
    rows: Sequence[Row],
    *,
    padding: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    least: int = LEAST,
) -> Iterator[tuple[list[int], Tensor]]:
    """The state at the last token of every row, batch by batch; gradients flow if they are on.

    Args:
        backbone: without its head.
        rows: lists of token ids, none empty.
        padding: an id for padded batches.
        batch_tokens: of a batch: unique ones where prefixes are shared, else with padding.
        least: tokens in common that are worth sharing.

    Yields:
        places in `rows`, each once over all batches, and their states, (n, H).

    Raises:
        ValueError: a row is empty.
    """
    if not all(rows):
        raise ValueError(f"row {[bool(row) for row in rows].index(False)} has no tokens.")
    device = next(backbone.parameters()).device
    if can_pack(backbone, device, max(map(len, rows), default=0)):
        for batch in tree_batches(rows, batch_tokens, least):
            yield batch, last_states(backbone, [rows[index] for index in batch], least)
        return
    for batch in padded_batches(rows, batch_tokens):
        yield batch, padded_states(backbone, [rows[index] for index in batch], padding, device)


def last_states(backbone: PreTrainedModel, rows: Sequence[Row], least: int = LEAST) -> Tensor:
    """The state at the last token of each row, (B, H); one pass over the unique tokens.

    Args:
        backbone: one for which `reward.packed.can_pack` holds.
        rows: B lists of token ids, none empty.
        least: tokens in common that are worth sharing.
    """
    tree = share(rows, least)
    return shared_states(backbone, tree, torch.tensor(tree.ends()))


def batch_states(backbone: PreTrainedModel, layout: Layout, wanted: Tensor) -> Tensor:
    """Last hidden states of some tokens of a padded batch; one pass over its unique tokens.

    Args:
        backbone: one for which `reward.packed.can_pack` holds.
        layout: of the batch.
        wanted: (B, T) bool, True on W tokens that are no padding.

    Returns:
        (W, H), row by row.
    """
    return shared_states(backbone, layout.tree, layout.places[wanted], ids=layout.ids)


def shared_states(
    backbone: PreTrainedModel,
    tree: Tree,
    places: Tensor,
    *,
    ids: Tensor | None = None,
    run: Run | None = None,
) -> Tensor:
    """Last hidden states at places of a tree's flat row.

    Args:
        backbone: one for which `reward.packed.can_pack` holds.
        tree: of the rows; `tree.places(row)` says where their tokens lie.
        places: (S,) int64, in any order; a token that rows share may be asked for several times.
        ids: (N,) int64, `tree.ids` where they are on the device already.
        run: as of `reward.packed.tree_states`.

    Returns:
        (S, H).
    """
    if ids is None:
        ids = torch.tensor(tree.ids, device=places.device)
    unique, back = places.unique(return_inverse=True)  # sorted, as the states come
    wanted = torch.zeros(len(ids), dtype=torch.bool, device=places.device)
    wanted[unique] = True
    return tree_states(backbone, ids, tree.segments, wanted, run=run)[back]


def padded_states(
    backbone: nn.Module, rows: Sequence[Row], padding: int, device: torch.device
) -> Tensor:
    """The state at the last token of each row, (B, H), from a batch padded on the right."""
    lengths = torch.tensor([len(row) for row in rows])
    columns = torch.arange(int(lengths.max()))
    mask = (columns < lengths[:, None]).long()
    ids = torch.full(mask.shape, padding)
    ids[mask.bool()] = torch.tensor([token for row in rows for token in row])
    extra = {}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        extra["position_ids"] = (mask.cumsum(dim=1) - 1).to(device)
    states: Tensor = backbone(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **extra
    ).last_hidden_state
    return states[torch.arange(len(rows), device=device), lengths.to(device) - 1]

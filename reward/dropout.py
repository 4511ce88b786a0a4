"""Monte Carlo dropout with shared masks: a seed and a number are one thinned reward model.

Gal and Ghahramani (2016), arXiv 1506.02142, read dropout at test time as samples of a posterior.
For comparing answers the samples must be *functions*: one mask for both answers of a pair, for all
answers of a prompt, on every machine and in every batch. So a mask here depends on the seed, the
number of the sample and the layer, not on the text: channels of a layer are dropped at all
positions alike (Gal and Ghahramani 2016, arXiv 1512.05287), and attention drops keys, by position
and head, for all queries alike. With fresh masks for every answer the noise of two answers would
not cancel, and margins would look less certain than they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from reward.errors import ModelError, RewardError
from reward.posterior import EnsemblePosterior, Features, RewardPosterior, check_features
from reward.score import pool_heads, read_rows, unwrapped

NAME = "align_dropout"
RATES = (  # what configurations call the rates of dropouts that run in a reward model's backbone
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "embedding_dropout",
    "dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
)


def config_rates(config: PretrainedConfig) -> dict[str, float]:
    """Dropout rates above 0 that a model's configuration names."""
    found = {name: getattr(config.get_text_config(), name, None) for name in RATES}
    return {
        name: float(rate) for name, rate in found.items() if isinstance(rate, float) and rate > 0
    }


@dataclass(frozen=True, eq=False)
class DropoutPosterior(RewardPosterior):
    """Dropout before the last layer alone; features are pooled states, (B, H).

    Cheap (one pass of the trunk whatever the number of samples) and crude: the trunk, which dropout
    never thinned in training, is taken as certain.
    """

    weight: Tensor  # (K, H) the heads; their mean is the score
    bias: Tensor  # (K,)
    rate: float  # of features dropped
    samples: int = 16  # masks
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or self.samples < 2:
            raise RewardError(
                "dropout needs a rate between 0 and 1 and at least 2 samples; got "
                f"{self.rate} and {self.samples}."
            )

    def scores(self, features: Features) -> Tensor:
        """Each mask's score, (B, samples)."""
        check_features(features, self.weight.shape[1])
        width = self.weight.shape[1]
        masks = [
            channel_mask(width, self.rate, self.seed, sample, "features")
            for sample in range(self.samples)
        ]
        thinned = torch.stack(masks) * self.weight.double().mean(dim=0)
        return features.double() @ thinned.T + self.bias.double().mean()

    def mean(self, features: Features) -> Tensor:
        """Mean over masks, (B,)."""
        return EnsemblePosterior().mean(self.scores(features))

    def std(self, features: Features) -> Tensor:
        """Biased standard deviation over masks, (B,)."""
        return EnsemblePosterior().std(self.scores(features))

    def sample(self, features: Features, n: int, seed: int = 0) -> Tensor:
        """Scores under n of the masks, (n, B)."""
        return EnsemblePosterior().sample(self.scores(features), n, seed)

    def margin_std(self, chosen: Features, rejected: Features) -> Tensor:
        """Biased standard deviation of each mask's own margin, (B,)."""
        return EnsemblePosterior().margin_std(self.scores(chosen), self.scores(rejected))

    def worst(self, features: Features) -> Tensor:
        """The least score under any mask, (B,)."""
        return EnsemblePosterior().worst(self.scores(features))


def dropout_scores(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    padding: int,
    *,
    samples: int = 16,
    seed: int = 0,
    batch_size: int = 32,
) -> Features:
    """Scores by a model's thinned copies, (N, samples): features of an `EnsemblePosterior`.

    Args:
        model: a sequence-classification model with dropout in its config, or LoRA's in an adapter
            that is not merged.
        rows: token ids.
        padding: the token that fills rows up.
        samples: thinned copies; each reads all rows once.
        seed: of the masks.
        batch_size: rows read at once.

    Raises:
        ModelError: the model has no dropout, or draws some that cannot be shared between rows.
    """
    refuse_without_dropout(model)
    found = []
    for sample in range(samples):
        drawing = Drawing(model, seed, sample)

        def read(
            module: nn.Module, ids: Tensor, mask: Tensor, drawing: Drawing = drawing
        ) -> Tensor:
            with thinned(module, drawing) as more:
                return pool_heads(module, ids, mask, **more).mean(dim=1)

        found.append(read_rows(model, rows, padding, batch_size, read))
    return torch.stack(found, dim=-1)


def refuse_without_dropout(model: nn.Module) -> None:
    """Refuse a model that every sample would leave as it is.

    Raises:
        ModelError: no module drops anything, and the config names no rate above 0.
    """
    layers = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    if not layers and not config_rates(unwrapped(model).config):
        raise ModelError(
            f"{type(unwrapped(model)).__name__} has no dropout, so its samples would all be the "
            "same. Fix: train it with attention_dropout or LoRA dropout (and do not merge the "
            "adapter), give a rate for its pooled features (DropoutPosterior), or use an ensemble, "
            "heads or Laplace."
        )


class Drawing:
    """The masks of one sample, by the name of the layer."""

    def __init__(self, model: nn.Module, seed: int, sample: int):
        self.names = {id(module): name for name, module in model.named_modules()}
        self.seed, self.sample = seed, sample

    def channels(self, module: nn.Module, states: Tensor, rate: float) -> Tensor:
        """States (..., C) with whole channels dropped."""
        mask = channel_mask(states.shape[-1], rate, self.seed, self.sample, self.names[id(module)])
        return states * mask.to(states.device, states.dtype)

    def keys(self, module: nn.Module, value: Tensor, rate: float) -> Tensor:
        """Values (B, heads, T, d) with whole positions of a head dropped."""
        heads, length = value.shape[1], value.shape[2]
        name = self.names[id(module)]
        # Positions first: a longer row begins with a shorter one's mask.
        mask = channel_mask(length * heads, rate, self.seed, self.sample, name)
        return value * mask.view(length, heads).T[None, :, :, None].to(value.device, value.dtype)


def channel_mask(width: int, rate: float, seed: int, sample: int, name: str) -> Tensor:
    """0 with probability `rate`, else 1 / (1 - rate); (width,) float64.

    A wider mask begins with the narrower one.
    """
    draw = np.random.default_rng([seed, sample, zlib.crc32(name.encode())])
    kept = draw.random(width) >= rate
    return torch.from_numpy(kept / (1 - rate))


@contextmanager
def thinned(model: nn.Module, drawing: Drawing) -> Iterator[dict[str, Any]]:
    """Inside, the model is one sample; yields arguments for its backbone.

    Raises:
        ModelError: the model drew random numbers of its own, which differ from row to row.
    """
    inner = unwrapped(model)
    backbone: Any = inner.base_model
    shared = bool(getattr(backbone, "_supports_attention_backend", False))
    config = backbone.config
    implementation = config._attn_implementation
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    training = model.training
    device = next(model.parameters()).device
    before = _state(device)
    try:
        for layer in layers:
            layer.forward = _channels(drawing, layer)  # type: ignore[method-assign]
        model.train()  # attention learns its rate only then
        if shared:
            config._attn_implementation = NAME
        yield {"drawing": drawing} if shared else {}
        if not torch.equal(before, _state(device)):
            raise ModelError(
                f"{type(inner).__name__} drops by a function of its own, whose masks cannot be "
                "shared between two answers. Fix: use an ensemble, heads or Laplace, or a model "
                "with nn.Dropout layers."
            )
    finally:
        config._attn_implementation = implementation
        model.train(training)
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _channels(drawing: Drawing, layer: nn.Dropout) -> Any:
    return lambda states: drawing.channels(layer, states, layer.p) if layer.p > 0 else states


def _state(device: torch.device) -> Tensor:
    """The random state that dropout on the device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    drawing: Drawing,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if dropout > 0:
        value = drawing.keys(module, value, dropout)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

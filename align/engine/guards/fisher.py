"""The diagonal of the Fisher information, from gradients of single examples.

    F_i = 1/N sum_n E_{y ~ q(.|x_n)} [ (d log p(y|x_n; theta) / d theta_i)^2 ]

q is the model itself for the *true* Fisher (Kirkpatrick et al. 2017; Martens 2020, "New insights
and perspectives on the natural gradient method", section 5), and the data for the *empirical* one.
The square of a batch's mean gradient is something else, and far smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.weights import Plain, Product, trained_weights, zero_splits
from align.errors import ModelError

IGNORED = -100  # a label that trains nothing
LogitsFn = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]  # (N, C) and labels (N,)


def estimate_fisher(
    model: nn.Module, examples: Iterable[Batch], loss_fn: LossFn
) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher: mean over examples of the squared gradient.

    Args:
        model: its trained weights are taken; gradients are cleared afterwards.
        examples: batches of *one* example each.
        loss_fn: negative log-likelihood of an example, a scalar *sum* over its tokens.

    Returns:
        Parameter name to a tensor of that parameter's shape, float32.

    Raises:
        ModelError: no example was given, or a gradient is not finite.
    """
    return mean_of_gradients(model, examples, loss_fn, torch.square, "the Fisher")


def estimate_true_fisher(
    model: nn.Module,
    examples: Iterable[Batch],
    logits_fn: LogitsFn,
    *,
    draws: int = 1,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Diagonal of the true Fisher, with labels drawn from the model.

    Args:
        model: as in `estimate_fisher`.
        examples: batches of *one* example each; their labels say where one is drawn, not which.
        logits_fn: (model, example) -> logits (N, C) and labels (N,), -100 where none is drawn.
        draws: labels drawn for each position.
        seed: of the draws.

    Returns:
        Parameter name to a tensor of that parameter's shape, float32.

    Raises:
        ModelError: no example was given, or a gradient is not finite.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(module: nn.Module, example: Batch) -> Tensor:
        logits, labels = logits_fn(module, example)
        logits = logits[labels != IGNORED].float()
        chances = logits.detach().softmax(dim=-1).cpu()
        found = torch.multinomial(chances, 1, generator=generator).squeeze(-1)
        return nn.functional.cross_entropy(logits, found.to(logits.device), reduction="sum")

    repeated = (example for example in examples for _ in range(draws))
    return mean_of_gradients(model, repeated, drawn, torch.square, "the Fisher")


def mean_of_gradients(
    model: nn.Module,
    examples: Iterable[Batch],
    scalar_fn: LossFn,
    transform: Callable[[Tensor], Tensor],
    what: str,
) -> dict[str, Tensor]:
    """Mean over examples of a transformed gradient, by weight.

    Raises:
        ModelError: no example was given, or the result is not finite.
    """
    weights = trained_weights(model)
    if any(isinstance(w, Product) for w in weights.values()):
        raise ModelError(
            f"{what} is one of whole weights: estimate it before adapters are added, or with "
            "`align guard fisher` on the saved model."
        )
    plain = {n: w.parameter for n, w in weights.items() if isinstance(w, Plain)}
    found = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in plain.items()}
    count = 0
    with evaluating(model):
        for example in examples:
            model.zero_grad(set_to_none=True)
            gradients = _gradients(scalar_fn(model, example), list(plain.values()))
            for name, gradient in zip(plain, gradients, strict=True):
                if gradient is not None:
                    found[name] += transform(gradient.detach().float())
            count += 1
        model.zero_grad(set_to_none=True)
    if not count:
        raise ModelError(f"{what} needs at least one example; guards.data gave none.")
    if not all(bool(torch.isfinite(value).all()) for value in found.values()):
        raise ModelError(f"{what} is not finite: an example's loss or gradient overflowed.")
    return {name: value.div_(count) for name, value in found.items()}


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Sequence[Tensor | None]:
    if any(zero_splits(p) for p in parameters):
        # DeepSpeed's hooks would hand what is accumulated to its reduction, and take it away.
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    loss.backward()
    return [p.grad for p in parameters]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, every module's own mode outside."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training

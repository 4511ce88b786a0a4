"""Did the weights arrive? A probe that the policy and the engine both score.

One fixed row of tokens, spread over the vocabulary, has a log-probability per token under the
policy's own forward pass and under the engine's. They must agree to rounding; and where the policy
has moved since the last synchronisation, the engine must have moved with it. The second test finds
weights that stayed behind although one update changes less than a tolerance that rounding needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from align.engine.head import completion_logprobs
from align.errors import SamplerError
from align.rollout.base import Draw
from align.rollout.transformers import evaluating

LENGTH = 64  # tokens of the probe
DRAWN = 8  # tokens drawn after its first half, on the path that rollouts take
# Mean absolute difference per token that rounding explains, by the engine's dtype. Improbable
# tokens have log-probabilities of -10 and more, of which bfloat16 keeps three digits.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.03}
MOVED = 16.0  # the policy has moved when the probe says so, so many times above rounding
FLOOR = {"float32": 1e-5, "bfloat16": 2e-3, "float16": 5e-4}


@dataclass
class Probe:
    """Compares an engine with the policy it should be a copy of.

    Args:
        vocabulary: number of tokens.
        dtype: the engine's, which decides how far rounding goes.
        room: the engine's context, in tokens.
        tolerance: mean absolute difference allowed; None for the dtype's own.
    """

    vocabulary: int
    dtype: str = "float32"
    room: int = LENGTH + DRAWN
    tolerance: float | None = None
    # Of the last probe that passed: the policy's log-probabilities, and the difference then.
    last: list[float] | None = field(default=None, init=False)
    noise: float = field(default=0.0, init=False)

    @property
    def tokens(self) -> list[int]:
        """The probe: the same at every synchronisation, so that a stale prefix cache shows."""
        length = max(4, min(LENGTH, self.room - DRAWN))
        generator = torch.Generator().manual_seed(20)
        return torch.randint(self.vocabulary, (length,), generator=generator).tolist()

    @property
    def prompt(self) -> list[int]:
        """The part of the probe that a completion is drawn after."""
        return self.tokens[: -len(self.tokens) // 4]

    def check(
        self,
        policy: nn.Module,
        scored: Sequence[float],
        drawn: Draw,
        *,
        version: int,
        temperature: float,
    ) -> float:
        """Refuse an engine that is not a copy of the policy.

        Args:
            policy: what should have arrived.
            scored: the engine's log-probabilities of `tokens[1:]`, at temperature 1.
            drawn: the engine's completion of `prompt`, at `temperature`.
            version: of the weights, for the message.
            temperature: of the draw; 0 is greedy.

        Returns:
            The mean absolute difference of the log-probabilities.

        Raises:
            SamplerError: with what both said.
        """
        expected = score(policy, self.tokens[:1], self.tokens[1:])
        distance = gap(expected, scored)
        allowed = TOLERANCES[self.dtype] if self.tolerance is None else self.tolerance
        if not distance <= allowed:  # NaN too
            raise SamplerError(
                f"weights of version {version} did not arrive: on the probe the engine differs "
                f"from the policy by {distance:.3g} per token on average (allowed {allowed}). "
                f"{both(expected, scored)} Fix: check that both run the same model; look at the "
                "engine's log; in half precision, raise rollout.vllm.tolerance."
            )
        self._check_movement(expected, scored, distance, version)
        own = score(policy, self.prompt, drawn.tokens, temperature or 1.0)
        apart = gap(own, drawn.logprobs)
        if not apart <= 3 * allowed:  # fewer tokens, so a wider spread
            raise SamplerError(
                f"weights of version {version} arrived, but a completion drawn from them does not "
                f"agree with the policy: {apart:.3g} per token on average at temperature "
                f"{temperature} (allowed {3 * allowed:.3g}). {both(own, drawn.logprobs)} Fix: the "
                "engine's prefix cache must be emptied with every synchronisation, and its "
                "log-probabilities be those of the sampling temperature (--logprobs-mode "
                "processed_logprobs)."
            )
        self.last, self.noise = expected, max(distance, FLOOR[self.dtype])
        return distance

    def _check_movement(
        self, expected: list[float], scored: Sequence[float], distance: float, version: int
    ) -> None:
        if self.last is None:
            return
        moved = gap(expected, self.last)
        if moved > MOVED * self.noise and distance > moved / 4:
            behind = gap(self.last, scored)
            raise SamplerError(
                f"weights of version {version} did not arrive whole: on the probe the policy has "
                f"moved by {moved:.3g} per token since the last synchronisation, and the engine is "
                f"still {distance:.3g} from it ({behind:.3g} from where the policy was). "
                f"{both(expected, scored)} Fix: look at the engine's log."
            )


@torch.no_grad()
def score(
    policy: nn.Module, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """The policy's own log-probabilities of a completion."""
    device = next(policy.parameters()).device
    ids = torch.tensor([[*prompt, *completion]], device=device)
    mask = torch.ones(1, len(completion), device=device)
    with evaluating(policy):
        found = completion_logprobs(policy, ids, torch.ones_like(ids), mask, temperature)[0]
    return found[0].tolist()


def gap(first: Sequence[float], second: Sequence[float]) -> float:
    """Mean absolute difference; infinite where the lengths differ."""
    if len(first) != len(second):
        return float("inf")
    pairs = zip(first, second, strict=True)
    return sum(abs(one - other) for one, other in pairs) / max(1, len(first))


def both(policy: Sequence[float], engine: Sequence[float]) -> str:
    """The first log-probabilities of each, for a message."""
    shown = [", ".join(f"{value:.4f}" for value in row[:4]) for row in (policy, engine)]
    return f"Log-probabilities begin: policy [{shown[0]}], engine [{shown[1]}]."

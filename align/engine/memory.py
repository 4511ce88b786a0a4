"""How much memory a training step will take, from the model's config alone (`--dry-run`).

Counts what every stage holds: weights, gradients, optimizer states, activations kept for the
backward pass, logits, and the further models of the stage. Leaves out the allocator's
fragmentation, the framework itself (0.5-1 GiB with CUDA) and splitting over devices (FSDP, ZeRO).

Activations per token and layer are 6 hidden + 4 attention + 4 intermediate elements for a gated MLP
and one per key of the mask (counted in saved tensors of transformers' Llama, SDPA, padded rows),
after the accounting of Korthikanti et al. 2022 (arXiv 2205.05198, section 4). On CPU the
estimates were 0.86 to 1.05 of the measured peaks of TRL steps (docs/launch.md has the table); CUDA,
autocast and PPO are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from align.engine.create import read_settings
from align.engine.models import freeze
from align.errors import ConfigError, ModelError

Stage = Literal["sft", "reward", "dpo", "ppo"]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STATES = {  # bytes of optimizer state per trained parameter; None: as many as two weights
    "adamw": None,
    "adamw_8bit": 2.0,
    "adafactor": 0.1,  # factored second moments, no first
    "sgd": 0.0,
}
LOGITS_AT_ONCE = 1 << 24  # align.engine.head.CHUNK_LOGITS
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768  # TRL's fused head works on tiles of this size


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per device at the peak of a step, each part by itself."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reference: int  # a frozen copy of the policy
    critic: int  # value model: weights, gradients, optimizer and activations
    reward: int  # reward models held beside

    @property
    def total(self) -> int:
        """The sum."""
        return sum(getattr(self, field.name) for field in fields(self))

    def as_dict(self) -> dict[str, int]:
        """For run.json."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "total": self.total
        }

    def render(self, available: int | None = None) -> Table:
        """A table; with `available` bytes it says whether the step fits."""
        table = Table(title="memory per device, estimated")
        table.add_column("part")
        table.add_column("size", justify="right")
        for name, size in self.as_dict().items():
            if size and name != "total":
                table.add_row(name, human(size))
        table.add_section()
        table.add_row("total", human(self.total), style="bold")
        if available is not None:
            fits = self.total <= available
            style = "green" if fits else "bold red"
            table.add_row("available", human(available), style=style)
        return table


def estimate(
    parameters: int,
    trainable: int,
    dtype: str,
    stage: Stage,
    batch: int,
    length: int,
    vocabulary: int,
    layers: int,
    hidden: int,
    checkpointing: bool = False,
    optimizer: str = "adamw",
    reference: bool = True,
    critic: Literal["separate", "shared", "none"] = "separate",
    *,
    intermediate: int | None = None,
    attention: int | None = None,
    autocast: bool = False,
    triton: bool = False,
    reward_parameters: int = 0,
) -> MemoryEstimate:
    """Memory of one step on one device, in bytes.

    Args:
        parameters: of the policy.
        trainable: of them; with adapters, the adapters'.
        dtype: of the weights: float32, bfloat16 or float16.
        stage: sft, reward, dpo or ppo. A batch of reward and dpo holds pairs: 2 x `batch` rows.
        batch: rows per device and step (PPO: per minibatch), before accumulation.
        length: tokens per row, padding included.
        vocabulary: size of the vocabulary.
        layers: how many.
        hidden: width of the hidden states.
        checkpointing: gradient checkpointing: one layer's activations and every layer's input.
        optimizer: adamw, adamw_8bit, adafactor or sgd.
        reference: whether a reference model is held (dpo and ppo only).
        critic: PPO's value model: a model of its own, a head on the policy, or none.
        intermediate: width of the MLP; default 3 x hidden.
        attention: heads x head width, which SDPA repeats keys and values to; default hidden.
        autocast: bf16 or fp16 mixed precision: half-precision activations and copies of weights.
        triton: whether TRL's head runs its Triton kernel (CUDA): one tile of logits, not nine.
        reward_parameters: of the reward models held on the device.

    Raises:
        ConfigError: an unknown dtype, stage or optimizer, or a size below 1.
    """
    _check(dtype, stage, optimizer, batch=batch, length=length, layers=layers, hidden=hidden)
    size = BYTES[dtype]
    states = STATES[optimizer]
    per_parameter = 2.0 * size if states is None else states
    rows = batch * (2 if stage in ("reward", "dpo") else 1)
    tokens = rows * length
    element = 3 if autocast and size == 4 else size  # norms and residuals stay in float32
    wide = intermediate or 3 * hidden
    per_layer = 6 * hidden + 4 * (attention or hidden) + 4 * wide + length
    # Beside what is kept, one layer's gradients are alive during the backward pass.
    if checkpointing:
        kept = (layers * hidden + 2 * per_layer) * tokens * element
    else:
        kept = (layers + 1) * per_layer * tokens * element
    copies = parameters * 2 if autocast and size == 4 else 0  # autocast caches weights in 2 bytes
    activations = kept + copies
    own = stage == "ppo" and critic == "separate"
    training = int(trainable * (size + per_parameter))
    return MemoryEstimate(
        weights=parameters * size,
        gradients=trainable * size,
        optimizer=int(trainable * per_parameter),
        activations=activations,
        logits=_logits(stage, tokens, vocabulary, hidden, triton),
        reference=parameters * size if reference and stage in ("dpo", "ppo") else 0,
        critic=parameters * size + training + activations if own else 0,
        reward=reward_parameters * size,
    )


def from_config(
    path: str | Path,
    stage: Stage,
    batch: int,
    length: int,
    *,
    dtype: str = "float32",
    adapter: peft.PeftConfig | None = None,
    frozen: list[str] | None = None,
    checkpointing: bool = False,
    optimizer: str = "adamw",
    reference: bool = True,
    critic: Literal["separate", "shared", "none"] = "separate",
    autocast: bool = False,
    triton: bool | None = None,
    reward_parameters: int = 0,
    trust_remote_code: bool = False,
) -> MemoryEstimate:
    """`estimate` for a model's directory, hub id or config JSON; no weights are read.

    `triton` is by default whether this machine has CUDA; the other arguments are `estimate`'s.

    Raises:
        ModelError: there is no config, or no causal language model of its kind.
        ConfigError: as `estimate`.
    """
    config = _load_config(path, trust_remote_code)
    total, trainable = count_parameters(config, adapter=adapter, frozen=frozen)
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return estimate(
        total,
        trainable,
        dtype,
        stage,
        batch,
        length,
        text.vocab_size,
        text.num_hidden_layers,
        text.hidden_size,
        checkpointing,
        optimizer,
        reference,
        critic,
        intermediate=getattr(text, "intermediate_size", None) or _ungated(text),
        attention=heads * width,
        autocast=autocast,
        triton=torch.cuda.is_available() if triton is None else triton,
        reward_parameters=reward_parameters,
    )


def count_parameters(
    config: PretrainedConfig,
    *,
    adapter: peft.PeftConfig | None = None,
    frozen: list[str] | None = None,
) -> tuple[int, int]:
    """All parameters and the trained ones, counted on a model without storage."""
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
            total = sum(p.numel() for p in model.parameters())
            if frozen:
                freeze(model, frozen)
            if adapter is not None:
                model = peft.get_peft_model(model, adapter)
    except ValueError as error:
        raise ModelError(f"no causal language model of this kind: {error}.") from error
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return total, trainable


def human(size: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _logits(stage: Stage, tokens: int, vocabulary: int, hidden: int, triton: bool) -> int:
    """The head's chunk of float32 logits with what its backward pass makes of it."""
    if stage == "reward":
        return 0
    if stage == "ppo":
        return 3 * 4 * min(tokens * vocabulary, LOGITS_AT_ONCE)
    tile = min(tokens, TILE_TOKENS) * min(vocabulary, TILE_VOCABULARY)
    # Without Triton, TRL's backward holds the tile, five results and three temporaries of its size.
    copies = 1 if triton else 9
    return copies * 4 * tile + 4 * vocabulary * hidden  # the head's own gradient is float32


def _ungated(text: PretrainedConfig) -> int:
    """GPT-2's kind: four times as wide, with a GELU whose every step is kept."""
    return int(1.6 * (getattr(text, "n_inner", None) or 4 * text.hidden_size))


def _load_config(path: str | Path, trust_remote_code: bool) -> PretrainedConfig:
    place = Path(path)
    try:
        if place.suffix == ".json" and place.is_file():
            return AutoConfig.for_model(**read_settings(place))
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).splitlines()[0][:200]
        raise ModelError(
            f"cannot read a config from {str(path)!r} ({reason}). Fix: check model.path."
        ) from error


def _check(dtype: str, stage: str, optimizer: str, **sizes: int) -> None:
    options = {
        "dtype": (dtype, list(BYTES)),
        "stage": (stage, ["sft", "reward", "dpo", "ppo"]),
        "optimizer": (optimizer, list(STATES)),
    }
    for name, (value, known) in options.items():
        if value not in known:
            raise ConfigError(f"{name}={value!r} is unknown; expected one of {', '.join(known)}.")
    for name, number in sizes.items():
        if number < 1:
            raise ConfigError(f"{name}={number}; at least 1 is expected.")

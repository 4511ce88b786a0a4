"""The sections of a configuration file, typed, with their defaults.

`trainer` is not here: it is checked against, and passed to, the TRL or transformers config of the
stage (`align.config.load`). Paths are relative to the working directory. Leaves out whatever a
stage does not read: each stage lists its own sections in `align.config.stages`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from align.config.augment import Augmentations, BalanceSection
from align.config.base import Section as Section
from align.config.order import CurriculumSection, Samplers
from align.config.order import SamplerSection as SamplerSection


def _as_switch(value: Any) -> Any:
    """YAML reads a plain on or off as a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Sharing = Annotated[Literal["auto", "measured", "on", "off"], BeforeValidator(_as_switch)]


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    dir: str | None = None  # default: runs/<stage>-<time>
    seed: int = 42
    overwrite: bool = False  # start over in a directory that holds a finished or failed run


class ModelSection(Section):
    """The model a stage starts from."""

    path: str  # a directory or a hub id; an adapter directory is merged into its base
    revision: str | None = None
    tokenizer: str | None = None  # default: the model's own
    chat_template: str | None = None  # a .jinja file, or the name of a built-in one
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None  # QLoRA: needs peft
    freeze: list[str] = Field(default_factory=list)  # regular expressions on parameter names
    trust_remote_code: bool = False
    prefix_sharing: Sharing = "auto"  # on: wherever it is right; auto: where it should be faster

    @field_validator("freeze")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value


class SourceSection(Section):
    """One source of data."""

    path: str  # .jsonl .json .csv .parquet (.gz too), a hub id, a folder, or a store URL
    split: str = "train"  # of a hub dataset
    weight: float | None = Field(default=None, gt=0)  # share of the mixture; unset: all its rows
    limit: int | None = Field(default=None, gt=0)  # first rows only
    format: Literal[
        "auto",
        "text",
        "messages",
        "prompt-completion",
        "preference",
        "hh",
        "unpaired",
        "prompts",
        "ranking",
        "rating",
        "steps",
        "store",
    ] = "auto"
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs, {"prompt": "question"}


def _as_sources(value: Any) -> Any:
    """A path, or a list of paths and sources, as a list of sources."""
    items = [value] if isinstance(value, str | dict) else value
    if not isinstance(items, list):
        return value
    return [{"path": item} if isinstance(item, str) else item for item in items]


def _as_list(value: Any) -> Any:
    """A lone text as a list of one."""
    return [value] if isinstance(value, str) else value


Sources = Annotated[list[SourceSection], BeforeValidator(_as_sources)]


class DataSection(Section):
    """What a stage trains and validates on."""

    train: Sources = Field(min_length=1)
    validation: Sources | None = None  # default: a fraction of train
    test: Sources | None = None
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)  # by prompt, never by row
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    fold: str | None = Field(default=None, pattern=r"^[0-9]+/[0-9]+$")  # "0/5": a fifth validates
    split_seed: int = 0  # the same seed splits the same prompts alike in every stage
    bad_rows: Literal["strict", "quarantine"] = "strict"
    labels: Literal["majority", "votes", "dawid-skene"] = "majority"  # of a store's pairs
    deduplicate: Literal["none", "exact", "near"] = "exact"
    near_threshold: float = Field(default=0.9, gt=0, le=1)  # Jaccard similarity of word 3-grams
    augment: Augmentations = Field(default_factory=list)  # of training rows alone
    balance: BalanceSection | None = None  # of training rows alone
    overlong: Literal["drop", "error"] = "drop"  # rows past the trainer's max_length
    system_prompt: str | None = None
    curriculum: CurriculumSection | None = None  # the order of the rows, docs/curriculum.md
    sampler: Samplers = Field(default_factory=list)  # how often each is drawn
    batches: Literal["random", "grouped"] = "random"  # grouped: rows of one prompt in one batch

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if self.fold is None:
            return self
        place, count = map(int, self.fold.split("/"))
        if not 0 <= place < count or count < 2:
            raise ValueError(f"fold {self.fold}: expected i/k with 0 <= i < k and k of 2 or more")
        if self.validation or self.test_fraction:
            raise ValueError("a fold is validation: leave validation and test_fraction out")
        return self


class PeftSection(Section):
    """Parameter-efficient fine-tuning; `kwargs` go to the PEFT config of `method` as they are."""

    method: Literal[
        "lora",
        "prefix_tuning",
        "prompt_tuning",
        "p_tuning",
        "ia3",
        "adalora",
        "oft",
        "boft",
        "vera",
        "ln_tuning",
    ] = "lora"
    kwargs: dict[str, Any] = Field(default_factory=dict)


class NormalisationSection(Section):
    """Mean 0 and std 1 over samples of a policy, saved in the reward model."""

    policy: str | None = None  # default: the causal LM that the reward model starts from
    prompts: int = Field(default=256, ge=2)
    max_new_tokens: int = Field(default=128, gt=0)
    temperature: float = Field(default=1.0, gt=0)


class WeightScheduleSection(Section):
    """A reward's weight moves from `weight` to `to`, and stays there."""

    kind: Literal["linear", "cosine"] = "linear"
    to: float = Field(allow_inf_nan=False)
    updates: int = Field(gt=0)  # PPO updates that it takes
    start: int = Field(default=0, ge=0)  # the update at which it begins to move


class RewardSourceSection(Section):
    """One reward: a reward model's directory, several as an ensemble, or a `module:function`."""

    path: str | None = None
    ensemble: list[str] | None = Field(default=None, min_length=2)  # reward models' directories
    function: str | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)  # fixed arguments of the function
    name: str | None = None  # in metrics; default: the model's or function's own
    weight: float = Field(default=1.0, allow_inf_nan=False)
    schedule: WeightScheduleSection | None = None
    # true: a reward model's saved statistics (PPO refuses a model without) and a function as it is
    normalise: bool | Literal["running", "group"] = True
    clip: float | None = Field(default=None, gt=0)  # to [-clip, clip], once normalised
    gold: bool = False  # logged as gold/<name>, never trained on
    # how a reward model knows its own doubt: members of `ensemble`, or of the one at `path`
    posterior: Literal["ensemble", "heads", "laplace", "dropout"] | None = None
    dropout: float | None = Field(default=None, gt=0, lt=1)  # of pooled features; unset: its own
    samples: int = Field(default=16, ge=2)  # masks of `posterior: dropout`
    mode: Literal["mean", "lower_bound", "worst"] = "lower_bound"  # of a posterior
    pessimism: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # stds below the mean
    timeout: float | None = Field(default=600.0, gt=0)  # seconds of one call of a function
    retries: int = Field(default=0, ge=0)  # further calls after an error or a time-out


class VLLMSection(Section):
    """The vLLM engines, `rollout.engine: vllm` and `vllm-server`."""

    url: str | None = None  # of a server that runs; unset: one is started, and stopped with the run
    sync: Literal["checkpoint", "lora", "nccl"] = "checkpoint"  # how weights reach a server
    timeout: float = Field(default=600.0, gt=0)  # seconds of any one wait, a server's start too
    # auto: float32 on a CPU; on a GPU the policy's, or bfloat16 where that is float32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)  # 0.3; a server's 0.9
    kv_cache_gib: float | None = Field(default=None, gt=0)  # on a CPU 1; a GPU: what is left
    max_model_len: int | None = Field(default=None, gt=0)  # default: the model's context
    sleep: bool = False  # give the GPU's memory back between rollouts; colocated only
    concurrency: int = Field(default=64, gt=0)  # requests in flight to a server
    tolerance: float | None = Field(default=None, gt=0)  # of the probe after each synchronisation
    python: str | None = None  # of an environment with vLLM, which starts the server
    devices: str | None = None  # GPUs of the server that is started, such as "1,2"; unset: all


class RolloutSection(Section):
    """How completions are sampled."""

    engine: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    max_new_tokens: int = Field(default=128, gt=0)
    min_new_tokens: int = Field(default=0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, gt=0)  # completions decoded at once; vLLM decides itself
    vllm: VLLMSection = Field(default_factory=VLLMSection)
    environment: str | None = None  # module:Class; max_new_tokens is then of one turn
    max_turns: int = Field(default=8, gt=0)  # of the model's in an episode
    environment_timeout: float = Field(default=60.0, gt=0)  # seconds of one of its calls

    @model_validator(mode="after")
    def _room_to_end(self) -> RolloutSection:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than "
                f"max_new_tokens={self.max_new_tokens}."
            )
        return self


class ValueSection(Section):
    """The critic of PPO."""

    backbone: Literal["shared", "separate"] = "separate"
    init: str = "zero"  # "zero", a reward model's directory, or the value/ of an earlier run
    learning_rate: float | None = Field(default=None, gt=0)  # default: the policy's


class JudgeSection(Section):
    """Who compares answers in `align evaluate`: a reward model or a function."""

    path: str | None = None  # a reward model's directory
    function: str | None = None  # module:function with the signature of a reward function


class RetentionSection(Section):
    """What the models should still know: held-out rows, read as SFT reads them."""

    data: str
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs, {"prompt": "question"}
    rows: int = Field(default=500, gt=0)
    before: str | None = None  # which model came before training; default: the baseline


class EvaluateSection(Section):
    """What `align evaluate` measures."""

    models: dict[str, str]  # name: directory; the first is the baseline
    prompts: int = Field(default=200, gt=0)
    samples: int = Field(default=1, gt=0)  # completions per prompt and model
    reference: str | None = None  # KL is measured to it: a name or a path; default: the baseline
    reward_model: str | None = None  # measured on held-out preferences
    preferences: str | None = None  # those preferences
    retention: RetentionSection | None = None  # what was forgotten: docs/evaluate.md


AlarmName = Literal[
    "reward_hacking",
    "kl_runaway",
    "entropy_collapse",
    "dead_critic",
    "stale_rollouts",
    "eos_collapse",
    "length_explosion",
    "length_collapse",
    "degenerate_groups",
]


class StopSection(Section):
    """What ends a run early, with a checkpoint and the model saved; nothing by default."""

    kl_budget: float | None = Field(default=None, gt=0)  # nats per answer
    lower_bound_drop: float | None = Field(default=None, gt=0)  # of the ensemble, below its best
    on: Annotated[list[AlarmName], BeforeValidator(_as_list)] = Field(default_factory=list)


class SignalsSection(Section):
    """What raises an alarm; the defaults' false alarms are measured (docs/signals.md)."""

    enabled: bool = True
    level: float = Field(default=0.9999, gt=0.5, lt=1)  # confidence of each single test
    kl_limit: float | None = Field(default=None, gt=0)  # nats per answer; unset: only its growth
    entropy_fraction: float = Field(default=0.2, ge=0, lt=1)  # of the start
    explained_variance: float = Field(default=0.05, lt=1)
    critic_warmup: int = Field(default=10, ge=0)  # logged updates in which a critic may be bad
    max_age: float = Field(default=2.0, ge=0)  # updates between sampling and training weights
    length_growth: float = Field(default=2.0, gt=1)  # times the start
    stop: StopSection = Field(default_factory=StopSection)


class TrackingSection(Section):
    """Where metrics go, beside metrics.jsonl."""

    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]],
        BeforeValidator(_as_list),
    ] = Field(default=["tensorboard"])
    project: str = "align"
    non_finite: Literal["stop", "skip"] = "stop"  # a NaN loss ends the run, or skips the batch
    profile: bool = False  # a trace of a few steps, and a table of where time and memory went

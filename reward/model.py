"""A reward model: a sequence classifier with its normalisation, itself a reward function.

It has one label, or K where `align_reward` in its config says that they are K heads on one trunk:
its score is their mean. Statistics over samples of the reference policy live there too, so that
they travel with the weights; the directory stays a standard transformers model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from feedback.schema import Text
from reward.errors import ModelError
from reward.score import (
    check_reader,
    context_length,
    encode_answer,
    heads_ids,
    pooled_features,
    score_head,
    score_ids,
)

CONFIG_KEY = "align_reward"


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of raw scores over reference-policy samples."""

    mean: float
    std: float
    samples: int
    policy: str = ""  # the policy that wrote the samples


@dataclass
class RewardModel:
    """Scores completions; called with prompts and completions it is a `RewardFn`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    normalisation: Normalisation | None = None
    name: str = "reward_model"
    batch_size: int = 32

    @property
    def __name__(self) -> str:  # the name metrics and errors use
        return self.name

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        normalise: bool = True,
        batch_size: int = 32,
        steps: bool = False,
        **kwargs: Any,
    ) -> RewardModel:
        """Load a reward model's directory, or one from the hub; adapters are merged.

        Args:
            path: directory or hub id.
            dtype: of the weights.
            normalise: refuse a model without saved statistics, and apply them to scores.
            batch_size: rows scored at once.
            steps: take a process reward model too, whose steps the caller reads.
            **kwargs: for `from_pretrained`.

        Raises:
            ModelError: there is no such model, it is a process reward model and `steps` is not
                set, it has labels that are no heads, it reads texts in another way than one linear
                head at the last token, or `normalise` is set and it carries no statistics.
        """
        model = load_classifier(path, dtype=dtype, **kwargs)
        how = steps_of(model.config)
        if how is not None and not steps:
            raise ModelError(f"{path} {scores_steps(how)}")
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        labels, heads = model.config.num_labels, head_count(model.config)
        if labels != heads:
            known = f"its config names {heads} heads" if heads > 1 else "a reward model has 1"
            raise ModelError(
                f"{path} has {labels} labels; {known}. Fix: give the directory of a model "
                "trained by `align reward`."
            )
        check_reader(model, str(path))
        statistics = read_normalisation(model)
        if normalise and statistics is None:
            raise ModelError(
                f"the reward model {path} carries no normalisation statistics, so its scale is "
                "unknown and PPO's coefficients would mean nothing. Fix: train it with "
                "`align reward` (which saves them), or set `normalise: false` on this reward to "
                "use raw scores."
            )
        if torch.cuda.is_available():
            model.to(torch.device("cuda"))  # type: ignore[arg-type]
        return cls(
            model.eval(),
            tokenizer,
            statistics if normalise else None,
            Path(path).parent.name if Path(path).name == "model" else Path(path).name,
            batch_size,
        )

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[float]:
        """Raw scores, one per completion: with K heads their mean."""
        return self._read(score_ids, prompts, completions).tolist()

    def heads_scores(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """Raw scores of each head, (K, B) float32."""
        return self._read(heads_ids, prompts, completions).T

    def features(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """What the head reads: the last hidden state at each text's last token, (B, H) float32."""
        return self._read(pooled_features, prompts, completions)

    def rows(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[int]]:
        """Token ids of each prompt with its completion, up to the one that is read.

        Raises:
            ModelError: an answer is longer than the model's context.
        """
        pairs = zip(prompts, completions, strict=True)
        rows = [self.encode(prompt, answer) for prompt, answer in pairs]
        longest = context_length(self.model)
        for row, answer in zip(rows, completions, strict=True):
            if len(row) > longest:
                raise ModelError(
                    f"{self.name} reads {longest} tokens, and the answer {str(answer)[:60]!r} with "
                    f"its prompt has {len(row)}. Fix: leave it out, or shorten it."
                )
        return rows

    def encode(self, prompt: Text, completion: Text) -> list[int]:
        """Token ids of a prompt with its completion, of any length.

        Where the model's padding is its end-of-sequence token, the score is read before it, as
        transformers does: such a model was trained so.
        """
        ids = encode_answer(prompt, completion, self.tokenizer)
        padding = self.model.config.get_text_config().pad_token_id
        end = len(ids)
        while end > 1 and ids[end - 1] == padding:
            end -= 1
        return ids[:end]

    def _read(
        self,
        read: Callable[..., Tensor],
        prompts: Sequence[Text],
        completions: Sequence[Text],
    ) -> Tensor:
        rows = self.rows(prompts, completions)
        return read(self.model, rows, self.tokenizer.pad_token_id or 0, self.batch_size)

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        """Scores normalised to mean 0 and std 1 over reference samples (raw without them)."""
        raw = self.score(prompts, completions)
        if self.normalisation is None:
            return raw
        mean, std = self.normalisation.mean, self.normalisation.std
        return [(value - mean) / std for value in raw]


def load_classifier(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A one-label sequence-classification model from a directory or the hub; adapters merged.

    Raises:
        ModelError: nothing loadable is there.
    """
    try:
        if (Path(path) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForSequenceClassification

            adapted = AutoPeftModelForSequenceClassification.from_pretrained(
                str(path), num_labels=1, **kwargs
            )
            merged = adapted.merge_and_unload()
            saved = AutoTokenizer.from_pretrained(str(path)).pad_token_id
            merged.config.pad_token_id = saved
            return merged
        return load_whole(AutoModelForSequenceClassification, path, **kwargs)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load a reward model from {str(path)!r}: {error} Fix: give the `model/` "
            "folder of an `align reward` run, or a hub id."
        ) from error


def load_whole(auto: Any, path: str | Path, *, fresh: str | None = None, **kwargs: Any) -> Any:
    """`auto.from_pretrained`, refusing weights that lack a tensor.

    transformers fills what is missing with random numbers and trains on without a word.

    Args:
        auto: one of transformers' Auto classes.
        path: directory or hub id.
        fresh: a prefix of parameter names that may be new, such as a classifier's head.
        **kwargs: for `from_pretrained`.

    Raises:
        ModelError: tensors are missing; the message names the first ones.
    """
    model, info = auto.from_pretrained(str(path), output_loading_info=True, **kwargs)
    missing = sorted(n for n in info["missing_keys"] if fresh is None or not n.startswith(fresh))
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"the weights of {path} lack {len(missing)} tensors ({shown}); transformers would "
            "fill them with random numbers. Fix: save the whole model again, or check that its "
            "config.json belongs to these weights."
        )
    return model


def initialise_head(model: nn.Module, seed: int) -> None:
    """Head weights from N(0, 1/(d + 1)), bias 0, as in Stiennon et al. (2020), appendix.

    Small first scores keep the first Bradley-Terry gradients even over pairs.
    """
    head = score_head(model)
    assert isinstance(head, nn.Linear)
    std = (head.in_features + 1) ** -0.5
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed)) * std
    with torch.no_grad():
        head.weight.copy_(noise)
        if head.bias is not None:
            head.bias.zero_()


def fit_normalisation(scores: Sequence[float], policy: str = "") -> Normalisation:
    """Statistics of raw scores over samples of the reference policy.

    Raises:
        ModelError: fewer than two scores, or all alike: the model cannot rank anything.
    """
    values = torch.tensor(list(scores), dtype=torch.float64)
    std = values.std().item() if len(values) > 1 else 0.0
    if not std > 1e-8:
        raise ModelError(
            f"the reward model gives {len(values)} samples of the policy scores with std {std}: "
            "it cannot rank them. Fix: more or cleaner preferences, or a larger learning rate."
        )
    return Normalisation(values.mean().item(), std, len(values), policy)


def write_normalisation(model: PreTrainedModel, statistics: Normalisation) -> None:
    """Keep statistics in the model's config; `save_pretrained` writes them."""
    setattr(model.config, CONFIG_KEY, _notes(model.config) | vars(statistics))


def read_normalisation(model: PreTrainedModel) -> Normalisation | None:
    """The statistics a model carries, if any."""
    return statistics_of(model.config)


def statistics_of(config: PretrainedConfig) -> Normalisation | None:
    """The statistics in a model's config, if any."""
    names = {field.name for field in fields(Normalisation)}
    saved = {name: value for name, value in _notes(config).items() if name in names}
    return Normalisation(**saved) if "mean" in saved else None


def head_count(config: PretrainedConfig) -> int:
    """How many heads a model's config says that its labels are; 1 if it says nothing."""
    return int(_notes(config).get("heads", 1))


def steps_of(config: PretrainedConfig) -> str | None:
    """How a process reward model's steps make an answer's score; None for one of whole answers."""
    how: str | None = _notes(config).get("steps")
    return how


def scores_steps(how: str) -> str:
    """Why a process reward model is no ordinary one, and what to do."""
    return (
        f"is a process reward model ({how} of its steps), which is read at the end of every step. "
        "Fix: load it with reward.process.load_reward, or name a model of whole answers."
    )


def _notes(config: PretrainedConfig) -> dict[str, Any]:
    return dict(getattr(config, CONFIG_KEY, None) or {})

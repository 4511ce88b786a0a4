"""The part of `align reward` that trains on an objective of our own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from align.config.objective import DATA, ObjectiveSection
from align.config.sections import ModelSection
from align.config.stages import RewardStage
from align.data import Splits
from align.data.sampling import OrderPlan
from align.engine.guards.base import Batch
from align.engine.models import disable_dropout, load_causal_lm, peft_config
from align.engine.objective import TIES, Objective, TextHead, balanced
from align.engine.objective_trainer import ObjectiveTrainer, forward, tie_parameter
from align.engine.reward_batches import Example, RewardCollator, reward_examples
from align.engine.scorer import Scorer
from align.engine.soft_labels import has_soft_labels
from align.engine.tokenizer import match_embeddings
from align.errors import ConfigError, DataError, Problem
from align.run import Run
from align.stages.common import model_kwargs
from align.stages.guard_memory import finish_guards, settle_guards
from align.stages.guard_source import Source, one_by_one, step_rows
from align.stages.guards import build_guards
from align.stages.preflight import build_trainer, is_classifier
from align.stages.reward_results import (
    pair_results,
    ranking_results,
    rating_results,
    step_results,
)
from align.stages.sft import read_rows
from align.stages.sharing import share
from align.stages.training import train
from reward.losses import decided, tie_start
from reward.model import CONFIG_KEY, RewardModel
from reward.preferences import SOFT_LABEL, is_tie
from reward.score import score_head

ASPECTS = "aspects.safetensors"  # the heads of a rating's aspects, beside the model


@dataclass
class Trained:
    """A trained reward model, and how it is measured."""

    model: PreTrainedModel  # a standard sequence classifier
    steps: int
    measure: Callable[[Dataset], dict[str, Any]]  # of held-out rows
    notes: dict[str, Any] = field(default_factory=dict)  # for run.json
    save_more: Callable[[Path], None] | None = None  # further files of the model
    finish: Callable[[Run], None] = lambda run: None  # once the model is saved: what guards keep


def merged(model: Any) -> PreTrainedModel:
    """A reward model without its adapter wrapper, so that it is a standard transformers model."""
    if not hasattr(model, "merge_and_unload"):
        return model
    whole = model.merge_and_unload()
    whole.config.get_text_config().pad_token_id = model.config.get_text_config().pad_token_id
    return whole


def check_objective(section: ObjectiveSection, args: Any, data: Splits) -> None:
    """Refuse data and trainer options that do not go with the objective.

    Raises:
        ConfigError: a trainer option of TRL's own loss, or aspects that no row has.
        DataError: ties under a strict order, or no tie where a loss learns how common they are.
    """
    problems = []
    smoothing = getattr(args, "label_smoothing_factor", 0.0)
    if smoothing:
        fix = "set objective.label_smoothing."
        problems.append(Problem("trainer.label_smoothing_factor", f"{smoothing}", fix))
    if args.center_rewards_coefficient and section.kind != "pairs":
        what = "centres the two answers of a pair, and objective.kind is not pairs."
        problems.append(Problem("trainer.center_rewards_coefficient", what, "leave it out."))
    if has_soft_labels(data):
        if section.label_smoothing:
            what = "soft labels say how sure each label is already."
            problems.append(Problem("objective.label_smoothing", what, "leave it out."))
        if 0 < section.focal < 1:
            what = f"{section.focal} has no gradient where a model meets a soft label."
            problems.append(Problem("objective.focal", what, "set 1 or more."))
    if section.kind == "ratings":
        known = sorted(data.train.features["scores"])
        for name in section.aspects:
            if name not in known:
                what = f"no row has a score of that name; they have {', '.join(known)}."
                problems.append(Problem(f"objective.aspects.{name}", what, "name one of them."))
    if problems:
        raise ConfigError(problems)
    if section.kind == "rankings" and section.chosen_loss == "plackett-luce":
        parts = [part for part in (data.train, data.validation) if part is not None]
        every = (row for part in parts for row in part)
        tied = next((row for row in every if len(set(row["ranks"])) < len(row["ranks"])), None)
        if tied is not None:
            raise DataError(
                f"ranks {tied['ranks']} have a tie, and plackett-luce needs a strict order. "
                "Fix: set objective.loss=pairs-of-answers, which leaves ties out."
            )
    if section.chosen_loss in TIES and not any(is_tie(row) for row in data.train):
        raise DataError(
            f"no training pair is a tie, and {section.chosen_loss} learns how common they are. "
            "Fix: set data.labels=votes (or soft_label 0.5 in the file), or leave "
            "objective.loss out."
        )


def train_objective(
    config: RewardStage,
    run: Run,
    args: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Splits,
    resume: bool,
    order: OrderPlan | None = None,
) -> Trained:
    """Train on the objective, and make a standard classifier of the result."""
    section, kind, size = config.objective, config.objective.kind, args.per_device_eval_batch_size
    aspects = aspect_weights(section, data.train)
    objective, start = make_objective(config, args, model, tokenizer, data)
    if args.disable_dropout:  # as TRL's own trainer does
        disable_dropout(model)
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs of one process would need DataParallel
    if config.peft:
        from peft import get_peft_model

        adapter = peft_config(config.peft.method, config.peft.kwargs, "SEQ_CLS")
        model = get_peft_model(model, adapter)  # type: ignore[assignment]
    scorer = Scorer(model, start)
    args.remove_unused_columns = False  # the columns of examples are ours
    collate = RewardCollator(tokenizer.pad_token_id or 0)
    encode = partial(
        reward_examples, kind=kind, tokenizer=tokenizer, aspects=list(aspects), heads=section.heads
    )
    resample = config.run.seed if section.heads > 1 and section.bootstrap else None

    def batches(rows: Iterable[Mapping[str, Any]]) -> Iterable[Batch]:
        """One example a batch, for guards."""
        for example in encode(Dataset.from_list(list(map(dict, rows)))):
            yield {k: v.to(model.device) for k, v in collate([example]).items()}

    def total_loss(module: nn.Module, batch: Batch) -> Tensor:
        found = forward(module, batch, objective)
        return objective.losses(found, batch, tie_parameter(module)).sum()

    def choices(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each head's pair as a choice of two, (heads, 2)."""
        scores = forward(module, batch, objective).scores.T.reshape(-1, 2)
        return scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device)

    logits = choices if kind == "pairs" else None
    gather, loss, outputs, size_of = one_by_one(total_loss, logits)
    read = partial(read_rows, kind=DATA[kind])
    source = Source(read, batches, loss, outputs, gather, size_of, step_rows(args))
    guards = build_guards(config.guards, scorer, source, config.model.path, run)

    trainer = build_trainer(
        ObjectiveTrainer,
        model=scorer,
        args=args,
        data_collator=collate,
        train_dataset=encode(data.train, resample=resample),
        eval_dataset=None if data.validation is None else encode(data.validation),
        processing_class=tokenizer,
        guards=guards,
        objective=objective,
        order=order,
    )
    if section.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(section.patience))
    mode = config.model.prefix_sharing
    trainer.sharing = share({"reward": model}, mode, run, resume=resume, always=True)
    train(trainer, config, run, resume=resume)
    settle_guards(guards, scorer, run)
    scorer.model = classifier = merged(scorer.model)
    judge = RewardModel(classifier, tokenizer, batch_size=size)
    finish = partial(finish_guards, guards, config.guards, trainer, scorer, source, data.train)
    notes: dict[str, Any] = {"objective": section.kind, "loss": section.chosen_loss}
    if scorer.tie is not None:
        notes["tie_parameter"] = float(scorer.tie.detach())
    measure = partial(ranking_results, scorer=judge)
    done = Trained(classifier, trainer.state.global_step, measure, finish=finish)
    done.notes = notes
    if kind == "pairs":
        done.measure = partial(pair_results, fit_rows=data.train, scorer=judge)
    elif kind == "ratings":
        heads = one_head(classifier, list(aspects.values()))
        done.save_more = partial(save_aspects, heads=heads, names=list(aspects))
        done.measure = lambda rows: rating_results(rows, aspect_scores(judge, rows, heads), aspects)
    elif kind == "steps":
        done.measure = lambda rows: steps_measured(scorer, encode(rows), collate, size)
    return done


def make_objective(
    config: RewardStage,
    args: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Splits,
) -> tuple[Objective, float | None]:
    """The objective of the section, and where its parameter of ties starts."""
    section = config.objective
    values: dict[str, Any] = {
        name: getattr(section, name)
        for name in ("kind", "label_smoothing", "focal", "contrastive", "generative", "length")
    }
    start = None
    if section.chosen_loss in TIES:
        soft = torch.tensor(data.train[SOFT_LABEL][:])
        start = tie_start(float((~decided(soft)).float().mean()))
        if section.balance is not None:
            values["win_weight"], values["tie_weight"] = balanced(soft, section.balance)
    if section.generative:
        values["text_head"] = text_head(config.model, model, tokenizer)
    values["centring"] = args.center_rewards_coefficient or 0.0
    return Objective(loss=section.chosen_loss, **values), start


def text_head(
    section: ModelSection, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> TextHead:
    """The head of the policy that training starts from; tied ones are the trained embeddings.

    Raises:
        ConfigError: the start is a reward model already, and its head is gone.
    """
    config = model.config.get_text_config()
    if is_classifier(section.path):
        what = "keeps the language-model head useful, and a reward model has none left."
        raise ConfigError([Problem("objective.generative", what, "start from a policy.")])
    if config.tie_word_embeddings:
        table = model.get_input_embeddings().weight
        return TextHead(lambda states: nn.functional.linear(states, table), config)  # type: ignore[arg-type]
    policy = load_causal_lm(section.path, **model_kwargs(section))
    match_embeddings(policy, tokenizer)
    return TextHead(policy.get_output_embeddings().requires_grad_(False), config)


def aspect_weights(section: ObjectiveSection, rows: Dataset) -> dict[str, float]:
    """The weight of each aspect of a rating in the reward; unless given, all alike and 1 in all."""
    if section.kind != "ratings" or section.aspects:
        return section.aspects
    names = sorted(rows.features["scores"])
    return dict.fromkeys(names, 1 / len(names))


def describe(model: PreTrainedModel, section: ObjectiveSection, ties: dict[str, Any]) -> None:
    """Say in the model's config how its scores are to be read, and nothing of what it was."""
    notes: dict[str, Any] = {}
    if section.heads > 1:
        notes["heads"] = section.heads
    if section.kind == "steps":
        notes["steps"] = section.aggregate
    if "tie_parameter" in ties:
        notes["ties"] = {"loss": ties["loss"], "parameter": ties["tie_parameter"]}
    setattr(model.config, CONFIG_KEY, notes)


def one_head(model: PreTrainedModel, weights: Sequence[float]) -> nn.Linear:
    """Put the weighted sum of the heads in their place; returns them.

    A sum of linear heads is a linear head, so the model is a standard one-label classifier.
    """
    heads = score_head(model)
    assert isinstance(heads, nn.Linear)
    mix = torch.tensor(weights, dtype=heads.weight.dtype, device=heads.weight.device)
    one = nn.Linear(heads.in_features, 1, bias=heads.bias is not None).to(heads.weight)
    with torch.no_grad():
        one.weight.copy_((mix @ heads.weight)[None])
        if heads.bias is not None:
            one.bias.copy_((mix @ heads.bias)[None])
    name = next(name for name, module in model.named_children() if module is heads)
    setattr(model, name, one)
    model.config.num_labels = 1
    return heads


def save_aspects(folder: Path, heads: nn.Linear, names: Sequence[str]) -> None:
    """Keep the aspects' own heads beside the model: one row of `weight` for each name."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in heads.named_parameters()}
    save_file(tensors, folder / ASPECTS, metadata={"aspects": json.dumps(list(names))})


def aspect_scores(judge: RewardModel, rows: Dataset, heads: nn.Linear) -> np.ndarray:
    """What each head gives each row, (N, A)."""
    features = judge.features(rows["prompt"][:], rows["completion"][:])
    with torch.no_grad():
        scores: np.ndarray = heads.cpu().float()(features).numpy()
    return scores


def steps_measured(
    scorer: Scorer, examples: Sequence[Example], collate: RewardCollator, size: int
) -> dict[str, Any]:
    """Figures of held-out steps."""
    labels, scores = [], []
    device = next(scorer.parameters()).device
    scorer.eval()
    for at in range(0, len(examples), size):
        batch = {k: v.to(device) for k, v in collate(examples[at : at + size]).items()}
        with torch.no_grad():
            read = scorer(batch["input_ids"], batch["attention_mask"], batch["read"].bool()).scores
        counts = batch["counts"].tolist()
        scores += [part.numpy() for part in read[:, 0].cpu().split(counts)]
        labels += [part.numpy() for part in batch["step_labels"].cpu().split(counts)]
    return step_results(labels, scores)

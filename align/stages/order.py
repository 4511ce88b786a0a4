"""From `data.curriculum`, `sampler` and `batches` to the plan of an order, and the card's lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.config.order import SamplerSection
from align.config.stages import TrainingStage
from align.data import Splits
from align.data.carried import SOURCE
from align.data.curriculum.cache import cache_key, cached
from align.data.curriculum.measures import by_function, length, own_margin
from align.data.curriculum.model_measures import (
    answer_ids,
    answer_nll,
    pair_loss,
    pair_margins,
    perplexity,
)
from align.data.curriculum.rank import Floats, check_difficulty
from align.data.rows import Kind
from align.data.sampling import (
    DrawOrder,
    OrderPlan,
    Pacing,
    by_difficulty,
    by_uncertainty,
    class_balanced,
    effective_number,
    recency,
    temperature_mix,
)
from align.data.sampling.times import as_times
from align.engine.models import load_causal_lm
from align.engine.tokenizer import load_tokenizer
from align.errors import DataError
from align.run import Run, fingerprint, write_json
from align.stages.batches import describe_groups, plan_groups
from align.stages.common import console, model_kwargs
from align.stages.order_checks import measure_of
from align.stages.preflight import is_classifier, loading
from reward.model import RewardModel

SHOWN = 20  # classes and sources on the card


def plan_order(
    config: TrainingStage, data: Splits, kind: Kind, tokenizer: Any, run: Run, args: Any
) -> OrderPlan | None:
    """Measure what the section asks for, and note it on the data card.

    Args:
        config: of the stage, which `check_order` has passed.
        data: its rows.
        kind: what they are.
        tokenizer: of the policy.
        run: keeps measured difficulties, and the card.
        args: the trainer's, for the device and the processes.

    Returns:
        None where the section asks for nothing.

    Raises:
        DataError: a column or a difficulty is not what is needed.
    """
    section = config.data
    if section.batches == "grouped":
        size = args.per_device_train_batch_size
        plan, grouped = plan_groups(data.train, size, config.run.seed)
        _note(data, run, {"batches": grouped})
        return plan
    curriculum = section.curriculum
    if curriculum is None and not section.sampler:
        return None

    def measure(name: str, model: str | None) -> Floats:
        if name == "column":
            assert curriculum is not None
            assert curriculum.column is not None
            column = curriculum.column
            return check_difficulty(data.carried[column], len(data.train), column)
        return difficulty_of(name, model, config, data, kind, tokenizer, run, args)

    difficulty = pacing = weights = None
    order: Any = "easy"
    if curriculum is not None:
        difficulty, order = measure(curriculum.difficulty, curriculum.model), curriculum.order
        pacing = Pacing(
            curriculum.pacing,
            **curriculum.model_dump(include=set(Pacing.__dataclass_fields__)),
        )
    card: dict[str, Any] = {}
    for sampler in section.sampler:
        found = weights_of(sampler, data, partial(measure, measure_of(sampler, section)))
        weights = found if weights is None else weights * found
        note = sampler.model_dump(include={"by", "column"}, exclude_none=True)
        note |= {"effective_rows": round(float(found.sum() ** 2 / (found**2).sum()), 1)}
        card.setdefault("samplers", []).append(note | _shares(sampler, data, found))
    if curriculum is not None and difficulty is not None:
        quarters = np.quantile(difficulty, [0, 0.25, 0.5, 0.75, 1]).tolist()
        chosen = {"difficulty", "order", "pacing", "start", "steps"}
        card["curriculum"] = curriculum.model_dump(include=chosen)
        card["curriculum"]["quartiles"] = [round(value, 4) for value in quarters]
    _note(data, run, card)
    return OrderPlan(len(data.train), config.run.seed, difficulty, order, pacing, weights)


def _note(data: Splits, run: Run, card: dict[str, Any]) -> None:
    """Put an order on the data card, and say it."""
    data.card.order = card
    write_json(run.path / "data_card.json", data.card.as_dict())
    console.print(describe(card))


def difficulty_of(
    name: str,
    model: str | None,
    config: TrainingStage,
    data: Splits,
    kind: Kind,
    tokenizer: Any,
    run: Run,
    args: Any,
) -> Floats:
    """The difficulty of each training row; a model's are measured once, by the first process."""
    rows = data.train
    if name == "length":
        return length(rows, kind, tokenizer)
    if name == "reward_margin" and model is None:
        return own_margin(rows)
    if ":" in name:
        return by_function(rows, name)
    path = model or config.model.path
    options = config.data.curriculum
    size = 16 if options is None else options.batch_size
    kept = options.cache if options is not None else None
    folder = Path(kept) if kept else (run.shared / "difficulty")
    identity = fingerprint(path)
    # A hub model has no files here to take a fingerprint of: its name and revision stand for it.
    known = f"{path} {config.model.revision}" if identity == "none" else identity
    pairs = name == "reward_margin" or is_classifier(path)
    reader = tokenizer if model is None or pairs else load_tokenizer(path)
    read: Sequence[Any]
    if pairs:
        read = [[row["prompt"], row["chosen"], row["rejected"]] for row in rows]
    else:
        read = answer_ids(rows, kind, reader)

    def found() -> Floats:
        # Weights are drawn for heads that are then overwritten: training's numbers stay its own.
        with torch.random.fork_rng(devices=[]), loading(path):
            if pairs:
                judge = RewardModel.load(path, normalise=False, batch_size=size)
                margins = pair_margins(judge, rows)
                return -margins if name == "reward_margin" else pair_loss(margins)
            settings = model_kwargs(config.model) if model is None else {}
            policy = load_causal_lm(path, **settings)
            policy.to(args.device)
            nats, tokens = answer_nll(policy, read, reader.pad_token_id or 0, size)
        return nats if name == "loss" else perplexity(nats, tokens)

    key = cache_key(name, known, read)
    with args.main_process_first(local=False, desc="difficulty"):
        console.print(f"difficulty: {name} of {len(rows):,} rows under {path}")
        values = cached(folder, key, len(rows), found)
    run.add_parent("difficulty", path, fingerprint=identity)
    return check_difficulty(values, len(rows), name)


def weights_of(
    section: SamplerSection, data: Splits, difficulty: Callable[[str | None], Floats]
) -> Floats:
    """The weight of each training row under one sampler.

    Raises:
        DataError: its column does not hold what it reads.
    """
    column = section.column or SOURCE
    if section.by == "difficulty":
        return by_difficulty(difficulty(section.model), section.power, prefer=section.prefer)
    values = data.carried[SOURCE if section.by == "source" else column]
    if section.by == "source":
        return temperature_mix(values, section.alpha)
    if section.by == "recency":
        assert section.half_life is not None
        return recency(as_times(values, column), section.half_life)
    if section.by == "uncertainty":
        try:
            found = by_uncertainty(values, section.power, section.uniform)
        except (ValueError, TypeError) as error:
            raise DataError(f"data.sampler: {column}: {error}. Fix: mend the column.") from error
        return check_difficulty(found, len(data.train), column)
    if section.beta is not None:
        return effective_number(values, section.beta)
    return class_balanced(values, section.power)


def _shares(section: SamplerSection, data: Splits, weights: Floats) -> dict[str, Any]:
    """For classes and sources: their share of the rows, and of the draws."""
    if section.by not in ("class", "source"):
        return {}
    if section.by == "source":
        paths = [source.path for source in data.card.sources if source.role == "train"]
        names = [paths[index] for index in data.carried[SOURCE]]
    else:
        assert section.column is not None
        names = [str(value) for value in data.carried[section.column]]
    drawn: Counter[str] = Counter()
    for name, weight in zip(names, weights.tolist(), strict=True):
        drawn[name] += weight
    total = len(names)
    return {
        "shares": {
            name: {"rows": round(count / total, 4), "draws": round(drawn[name] / total, 4)}
            for name, count in Counter(names).most_common(SHOWN)
        }
    }


def describe(card: dict[str, Any]) -> str:
    """The card's entry in words."""
    lines = [describe_groups(card["batches"])] if "batches" in card else []
    if "curriculum" in card:
        found = card["curriculum"]
        low, _, middle, _, high = found["quartiles"]
        lines.append(
            f"curriculum: {found['order']} rows first by {found['difficulty']} ({low:g} to "
            f"{high:g}, half below {middle:g}), {found['pacing']} pacing from {found['start']:.0%}"
        )
    for sampler in card.get("samplers", []):
        shares = {
            name: f"{share['rows']:.1%} of rows, {share['draws']:.1%} of draws"
            for name, share in sampler.get("shares", {}).items()
        }
        text = f"; {json.dumps(shares, ensure_ascii=False)}" if shares else ""
        lines.append(
            f"sampler: by {sampler['by']}, as many effective rows as {sampler['effective_rows']:g}"
            + text
        )
    return "\n".join(lines)


def note_draws(run: Run, draws: DrawOrder | None, steps: int) -> None:
    """Keep how far a curriculum came; warn where rows were never let in."""
    if draws is None or draws.competence is None or steps < 1:
        return
    share = draws.pool_at(steps - 1) / draws.rows
    run.finish(curriculum={"competence": draws.competence((steps - 1) * draws.scale)})
    if share < 1:
        run.warn(
            f"the curriculum ended with {share:.0%} of the training rows in its pool: the others "
            "were never drawn. Lower data.curriculum.steps, or train longer."
        )

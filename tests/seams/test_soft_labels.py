"""What our soft labels take from TRL 1.16: where margins come from, where accuracies are kept.

The first tests compare with a loss written here from the models' own outputs; a TRL that runs other
forward passes, renames a metric or reads the column itself fails them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import LlamaForSequenceClassification

from align.engine.guards.ewc import EWC
from align.engine.head import completion_logprobs
from align.engine.models import peft_config
from align.engine.trainers import DPOTrainer, RewardTrainer
from reward.losses import preference_loss
from reward.score import pool_scores

LABELS = [1.0, 0.5, 2 / 3, 0.75]
STAGES = ("reward", "dpo")
ACCURACY = {"reward": "accuracy", "dpo": "rewards/accuracies"}


@pytest.fixture
def make(tmp_path, tiny_llama, tiny_tokenizer, preference_rows) -> Callable[..., Any]:
    """`make(stage, labels)`: a trainer of ours on 24 rows; `labels` repeat over the rows."""

    def build(
        stage: str, labels: Any = LABELS, lora: bool = False, guards: Any = (), **settings: Any
    ):
        common: dict[str, Any] = {
            "output_dir": str(tmp_path / stage),
            "per_device_train_batch_size": 4,
            "max_length": 96,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "seed": 1,
        }
        rows = [dict(row) for row in preference_rows]
        for place, row in enumerate(rows if labels else []):
            row["soft_label"] = labels[place % len(labels)]
        data = Dataset.from_list(rows)
        kwargs: dict[str, Any] = {"train_dataset": data, "eval_dataset": data, "guards": guards}
        kwargs["processing_class"] = tiny_tokenizer
        model = tiny_llama(seed=7)
        if stage == "reward":
            config = copy.deepcopy(model.config)
            config.num_labels = 1
            torch.manual_seed(7)
            model = LlamaForSequenceClassification(config)
            return RewardTrainer(model=model, args=trl.RewardConfig(**common | settings), **kwargs)
        if lora:
            kwargs["peft_config"] = peft_config("lora", {"r": 4}, "CAUSAL_LM")
        else:
            kwargs["ref_model"] = tiny_llama(seed=8)
        settings = {"beta": 0.3} | settings
        return DPOTrainer(model=model, args=trl.DPOConfig(**common | settings), **kwargs)

    return build


def first_batch(trainer: Any) -> dict[str, Any]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return next(iter(trainer.get_train_dataloader()))


def own_margins(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Margins of a batch from the models alone, without TRL's trainer."""
    ids, attention = batch["input_ids"], batch["attention_mask"]
    if isinstance(trainer, RewardTrainer):
        chosen, rejected = pool_scores(trainer.model, ids, attention).chunk(2)
        return chosen - rejected
    mask = batch["completion_mask"][:, 1:].float()

    def logps(model: Any) -> torch.Tensor:
        return (completion_logprobs(model, ids, attention, mask)[0] * mask).sum(dim=1)

    policy = logps(trainer.model)
    with torch.no_grad():
        if "ref_chosen_logps" in batch:
            reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
        elif trainer.ref_model is None:
            with trainer.model.disable_adapter():
                reference = logps(trainer.model)
        else:
            reference = logps(trainer.ref_model)
    chosen, rejected = (policy - reference).chunk(2)
    return trainer.beta * (chosen - rejected)


def gradients(loss: torch.Tensor, model: Any) -> list[torch.Tensor]:
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]


@pytest.mark.parametrize("case", ["reward", "dpo", "dpo lora", "dpo precomputed", "dpo weighted"])
def test_loss_and_gradients_are_the_cross_entropy(case, make):
    stage, _, variant = case.partition(" ")
    more: dict[str, dict[str, Any]] = {
        "precomputed": {"precompute_ref_log_probs": True},
        "weighted": {"loss_weights": [2.0]},
    }
    trainer = make(stage, lora=variant == "lora", **more.get(variant, {}))
    trainer.model.double()  # so that a sum's order is not what is compared
    if getattr(trainer, "ref_model", None) is not None:
        trainer.ref_model.double()
    batch = first_batch(trainer)
    if variant == "lora":  # an adapter starts as the identity, where every margin is 0
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
    labels = batch["soft_label"]
    assert len(set(labels.tolist())) > 1
    if variant == "precomputed":
        assert "ref_chosen_logps" in batch
    loss = trainer.compute_loss(trainer.model, dict(batch))
    margins = own_margins(trainer, batch)
    assert margins.abs().max() > 0.01
    expected = preference_loss(margins, labels).mean() * (2 if variant == "weighted" else 1)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    mine, theirs = gradients(loss, trainer.model), gradients(expected, trainer.model)
    assert max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True)) < 1e-6
    hard = -torch.nn.functional.logsigmoid(margins).mean()
    assert abs(hard.item() - expected.item()) > 1e-4  # the labels do matter


@pytest.mark.parametrize("stage", STAGES)
def test_labels_of_1_are_the_plain_loss_bit_for_bit(stage, make):
    soft, plain = make(stage, labels=[1.0]), make(stage, labels=None)
    one, other = first_batch(soft), first_batch(plain)
    assert set(one) - set(other) == {"soft_label"}
    assert all(torch.equal(one[k], other[k]) for k in other if isinstance(other[k], torch.Tensor))
    losses = [t.compute_loss(t.model, b) for t, b in ((soft, one), (plain, other))]
    assert torch.equal(*losses)
    pairs = zip(gradients(losses[0], soft.model), gradients(losses[1], plain.model), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def train(trainer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    trainer.train()
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return weights, trainer.state.log_history


SGD = {
    "max_steps": 3,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
}


def greatest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[n] - second[n]).abs().max()) for n in first)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_one_batch_of_8_equals_eight_of_1(stage, strength, make):
    start = make(stage).model.named_parameters()
    fisher = {name: torch.ones_like(weight) for name, weight in start}

    def run(micro: int, accumulation: int, labels: Any = LABELS) -> Any:
        trainer = make(
            stage,
            labels,
            guards=[EWC(strength, fisher)] if strength else [],
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            **SGD,
        )
        return train(trainer)

    (whole, log), (eight, small), (hard, _) = run(8, 1), run(1, 8), run(8, 1, None)
    assert greatest(whole, eight) < 1e-6
    assert greatest(whole, hard) > 1e-4
    key = ACCURACY[stage]
    assert [row[key] for row in log if key in row] == [row[key] for row in small if key in row]
    if strength:
        penalties = [row["guard/ewc"] for row in log if "guard/ewc" in row]
        assert penalties[0] == 0.0 < penalties[-1]


@pytest.mark.parametrize("stage", STAGES)
def test_padding_changes_nothing(stage, make):
    trainer = make(stage)
    batch = first_batch(trainer)
    trainer.model.eval()
    wide = dict(batch)
    for name in ("input_ids", "attention_mask", "completion_mask"):
        if name in batch:
            filler = trainer.processing_class.pad_token_id if name == "input_ids" else 0
            wide[name] = torch.nn.functional.pad(batch[name], (0, 9), value=filler)
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model, dict(b)).item() for b in (batch, wide)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_accuracy_counts_the_pairs_that_have_a_better_answer(stage, make):
    """24 rows, 6 of them ties, in batches of 8 with 2 ties each."""
    trainer = make(stage)
    found = trainer.evaluate()
    data = trainer.eval_dataset
    right = known = 0
    for start in range(0, len(data), 4):
        examples = [data[i] for i in range(start, start + 4)]
        batch = trainer.data_collator(examples)
        with torch.no_grad():
            margins = own_margins(trainer, batch)
        for margin, example in zip(margins.tolist(), examples, strict=True):
            known += example["soft_label"] != 0.5
            right += example["soft_label"] != 0.5 and margin > 0
    assert known == 18
    assert found[f"eval_{ACCURACY[stage]}"] == pytest.approx(right / known)
    everything = make(stage, labels=None).evaluate()[f"eval_{ACCURACY[stage]}"]
    assert everything * 24 != pytest.approx(found[f"eval_{ACCURACY[stage]}"] * 24)  # ties did count


@pytest.mark.parametrize("stage", STAGES)
def test_a_split_of_ties_alone_has_no_accuracy(stage, make):
    found = make(stage, labels=[0.5]).evaluate()
    assert f"eval_{ACCURACY[stage]}" not in found
    assert found["eval_loss"] > 0


def test_rows_from_outside_meet_a_precomputed_reference(make):
    """TRL hands every key of a batch to the reference; the label is none of the model's."""
    trainer = make("dpo", precompute_ref_log_probs=True)
    other = Dataset.from_list(
        [
            {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
            | {"soft_label": 0.75}
            for row in (trainer.train_dataset[i] for i in range(4))
        ]
    )
    seen: list[set[str]] = []
    reference = trainer.ref_model or trainer.model
    reference.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    assert "eval_loss" in trainer.evaluate(other)
    assert seen
    assert not any("soft_label" in names for names in seen)


def test_where_trl_keeps_its_accuracies(make):
    for stage, name in ACCURACY.items():
        trainer = make(stage, labels=None)
        trainer.compute_loss(trainer.model.train(), first_batch(trainer))
        assert len(trainer._metrics["train"][name]) == 1

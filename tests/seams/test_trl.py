"""The seams between our trainers and TRL's: a new TRL that moves one must fail here, loudly."""

from __future__ import annotations

import copy
import inspect
from importlib.metadata import version
from typing import Any

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from packaging.version import Version
from transformers import LlamaForSequenceClassification

from align.engine.finite import FiniteMixin
from align.engine.guards.base import GuardMixin
from align.engine.guards.ewc import EWC
from align.engine.trainers import DPOTrainer, RewardTrainer, SFTTrainer
from align.ppo.trainer import PPOTrainer
from reward.score import pool_scores

PAIRS = {"SFTTrainer": SFTTrainer, "RewardTrainer": RewardTrainer, "DPOTrainer": DPOTrainer}
CONFIGS = {"SFTTrainer": "SFTConfig", "RewardTrainer": "RewardConfig", "DPOTrainer": "DPOConfig"}


def test_the_version_the_seams_were_read_in():
    assert Version(version("trl")).release[:2] == (1, 16)


def test_names_we_import_exist_and_are_public():
    for name in [*PAIRS, *CONFIGS.values()]:
        assert name in trl.__all__ or hasattr(trl, name)
    from trl.data_utils import common_prefix_length  # noqa: F401
    from trl.trainer.utils import disable_dropout_in_model  # noqa: F401


@pytest.mark.parametrize(
    ("name", "scaled"), [("SFTTrainer", None), ("RewardTrainer", False), ("DPOTrainer", False)]
)
def test_who_divides_by_the_accumulation_steps(name, scaled):
    assert getattr(trl, name).loss_is_scaled_for_ga is scaled
    assert PPOTrainer.loss_is_scaled_for_ga is True


def test_the_rule_of_transformers_that_the_guard_mirrors():
    """`GuardMixin._undo_division` repeats this decision of `Trainer.training_step`."""
    source = inspect.getsource(transformers.Trainer.training_step)
    for part in (
        "self.loss_is_scaled_for_ga is not None",
        "self.model_accepts_loss_kwargs and num_items_in_batch is not None",
        ") or self.compute_loss_func is not None",
        "loss = loss / self.current_gradient_accumulation_steps",
    ):
        assert part in source, part
    loop = inspect.getsource(transformers.Trainer._run_epoch)
    assert "_set_sync_gradients(do_sync_step)" in loop
    assert loop.index("on_pre_optimizer_step") < loop.index("self.optimizer.step()")
    assert loop.index("self.optimizer.step()") < loop.index("on_optimizer_step")


@pytest.mark.parametrize("ours", [*PAIRS.values(), PPOTrainer])
def test_we_override_no_private_method(ours):
    """Only `compute_loss`, `log`, loaders and the optimizer, which are public."""
    base = next(c for c in ours.__mro__ if c.__module__.startswith(("trl.", "transformers.")))
    for cls in ours.__mro__:
        if not cls.__module__.startswith("align."):
            continue
        taken = [
            n
            for n in vars(cls)
            if n.startswith("_") and not n.startswith("__") and hasattr(base, n)
        ]
        assert [n for n in taken if n != "_abc_impl"] == [], cls


@pytest.fixture(params=list(PAIRS))
def both(request, tmp_path, tiny_llama, tiny_tokenizer, preference_rows) -> tuple[Any, Any, Any]:
    """TRL's trainer, ours with a guard, and one batch."""
    name = request.param
    model = tiny_llama(seed=7)
    rows = preference_rows[:8]
    if name == "SFTTrainer":
        rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    if name == "RewardTrainer":
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        model = LlamaForSequenceClassification(config)

    def make(cls: Any, **kwargs: Any) -> Any:
        args = getattr(trl, CONFIGS[name])(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            max_length=96,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
            seed=1,
        )
        if name == "DPOTrainer":
            kwargs["ref_model"] = tiny_llama(seed=8)
        return cls(
            model=copy.deepcopy(model),
            args=args,
            processing_class=tiny_tokenizer,
            train_dataset=Dataset.from_list(rows),
            **kwargs,
        )

    fisher = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    theirs, ours = make(getattr(trl, name)), make(PAIRS[name], guards=[EWC(2.0, fisher)])
    assert isinstance(ours, GuardMixin)
    assert isinstance(ours, FiniteMixin)
    return theirs, ours, next(iter(theirs.get_train_dataloader()))


def loss_of(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer.compute_loss(trainer.model, dict(batch))


def test_our_loss_is_trls(both):
    theirs, ours, batch = both
    assert torch.equal(loss_of(theirs, batch), loss_of(ours, batch))
    with torch.no_grad():  # once the weights have moved, gradients differ by the guard's alone
        for one, other in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
            one += 0.01
            other += 0.01
    for trainer in (theirs, ours):
        trainer.training_step(trainer.model, dict(batch))
    for one, other in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
        if one.grad is not None:
            assert torch.allclose(other.grad - one.grad, torch.tensor(2.0 * 0.01), atol=1e-4)


def test_our_batches_are_trls(both):
    _, ours, batch = both
    mine = next(iter(ours.get_train_dataloader()))
    assert mine.keys() == batch.keys()
    assert all(torch.equal(mine[k], batch[k]) for k in batch if isinstance(batch[k], torch.Tensor))


def test_evaluation_shows_the_loss_without_penalty(both):
    theirs, ours, batch = both
    with torch.no_grad():
        for one, other in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
            one += 0.01
            other += 0.01
    for trainer in (theirs, ours):
        trainer.model.eval()
    with torch.no_grad():
        plain = theirs.compute_loss(theirs.model, dict(batch))
        guarded = ours.compute_loss(ours.model, dict(batch))
    assert torch.equal(plain, guarded)


def test_dpo_starts_with_margin_0(tmp_path, tiny_llama, tiny_tokenizer, preference_rows):
    args = trl.DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=96
    )
    model = tiny_llama(seed=7)
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=args,
        processing_class=tiny_tokenizer,
        train_dataset=Dataset.from_list(preference_rows),
    )
    loss = loss_of(trainer, next(iter(trainer.get_train_dataloader())))
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)


@pytest.mark.parametrize("both", ["RewardTrainer"], indirect=True)
def test_reward_trainer_pools_where_we_do(both):
    theirs, _, batch = both
    theirs.model.eval()
    with torch.no_grad():
        logits = theirs.model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
        ours = pool_scores(theirs.model, batch["input_ids"], batch["attention_mask"])
    assert torch.allclose(logits.squeeze(-1), ours, atol=1e-6)
    assert batch["attention_mask"].min() == 0  # there was padding to get wrong

"""The seams between our GRPO and RLOO trainers and TRL's."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from trl.trainer.utils import RepeatSampler

from align.engine.finite import FiniteMixin
from align.engine.grouped import DROPPED, NAMES, AlignNames, align_names, repeat_sampler
from align.engine.guards.base import GuardMixin
from align.engine.guards.ewc import EWC
from align.engine.head import completion_logprobs
from align.engine.trainers import GRPOTrainer, RLOOTrainer
from align.stages.grouped_checks import CHOICES, OWNED, UNTRUNCATED

OURS = {"GRPO": GRPOTrainer, "RLOO": RLOOTrainer}


def even(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Share of even token ids."""
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


@pytest.fixture(params=list(OURS))
def name(request) -> str:
    return request.param


@pytest.fixture
def make(name, tmp_path, tiny_llama, tiny_tokenizer, preference_rows, policy_dir):
    def build(cls: Any, settings: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        model = tiny_llama(seed=0)
        model.config._name_or_path = str(policy_dir)  # where TRL reads the reference
        args = getattr(trl, f"{name}Config")(
            **{
                "output_dir": str(tmp_path),
                "per_device_train_batch_size": 8,
                "num_generations": 4,
                "max_completion_length": 8,
                "learning_rate": 1e-2,
                "beta": 0.1,
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "report_to": [],
                "disable_tqdm": True,
                "save_strategy": "no",
                "logging_steps": 1,
                "seed": 1,
            }
            | (settings or {})
        )
        return cls(
            model=model,
            reward_funcs=[even],
            args=args,
            processing_class=copy.deepcopy(tiny_tokenizer),
            train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in preference_rows]),
            **kwargs,
        )

    return build


def prepared(trainer: Any) -> dict[str, Any]:
    """One micro-batch of completions, drawn with a seed."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(3)
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def test_who_divides_by_the_accumulation_steps():
    assert trl.GRPOTrainer.loss_is_scaled_for_ga is True
    assert trl.RLOOTrainer.loss_is_scaled_for_ga is False


def test_our_place_among_the_bases(name):
    """Before TRL: checks, guards, resuming. After TRL's and before transformers': the names."""
    bases = OURS[name].__mro__
    theirs = bases.index(getattr(trl, f"{name}Trainer"))
    assert max(bases.index(FiniteMixin), bases.index(GuardMixin)) < theirs
    assert theirs < bases.index(AlignNames) < bases.index(transformers.Trainer)
    for cls in bases:
        if cls.__module__.startswith("align."):
            private = [n for n in vars(cls) if n.startswith("_") and not n.startswith("__")]
            taken = [n for n in private if hasattr(bases[theirs], n) and n != "_abc_impl"]
            assert taken == [], cls


def test_our_loss_is_trls_and_the_guards_gradient_on_top(make, name):
    theirs = make(getattr(trl, f"{name}Trainer"))
    fisher = {n: torch.ones_like(p) for n, p in theirs.model.named_parameters()}
    ours = make(OURS[name], guards=[EWC(2.0, fisher)])
    batches = [prepared(trainer) for trainer in (theirs, ours)]
    assert torch.equal(batches[0]["completion_ids"], batches[1]["completion_ids"])
    assert batches[0]["advantages"].abs().max() > 0
    losses = [
        t.compute_loss(t.model, dict(b)) for t, b in zip((theirs, ours), batches, strict=True)
    ]
    assert torch.equal(losses[0], losses[1])
    pair = make(getattr(trl, f"{name}Trainer")), make(OURS[name], guards=[EWC(2.0, fisher)])
    for trainer in pair:
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight += 0.01
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        torch.manual_seed(3)
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())), None)
    seen = 0
    for one, other in zip(*(trainer.model.parameters() for trainer in pair), strict=True):
        if one.grad is not None:
            seen += 1
            assert torch.allclose(other.grad - one.grad, torch.tensor(2.0 * 0.01), atol=1e-4)
    assert seen > 5


def test_trl_scores_padded_rows_as_we_do(make, name):
    trainer = make(OURS[name])
    batch = prepared(trainer)
    assert batch["prompt_mask"].min() == 0  # there is padding to get wrong
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        theirs, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, batch["completion_ids"].shape[1]
        )
        mask = batch["completion_mask"].float()
        ours, _ = completion_logprobs(trainer.model, ids, attention, mask)
    assert (theirs * mask - ours).abs().max() < 1e-5


def test_the_attributes_that_resuming_reads(make, name):
    trainer = make(OURS[name], {"steps_per_generation": 2, "max_steps": 3})
    assert trainer._step == 0
    assert trainer._buffered_inputs is None
    trainer.train()
    assert trainer._step == 3  # micro-batches, not steps times generations
    assert len(trainer._buffered_inputs) == 2
    state = trainer.extra_state()
    assert state["step"] == 3
    assert [batch["completion_ids"].shape[0] for batch in state["waiting"]] == [8, 8]
    sampler = repeat_sampler(trainer.get_train_dataloader())
    assert isinstance(sampler, RepeatSampler)
    source = inspect.getsource(RepeatSampler.__iter__)
    assert "torch.randperm(self.num_samples, generator=self.generator)" in source


def test_metrics_have_aligns_names_and_units(make, name):
    trainer = make(OURS[name], {"max_steps": 2, "gradient_accumulation_steps": 1})
    trainer.train()
    row = trainer.state.log_history[0]
    for key in (
        "reward/mean",
        "reward/std",
        "kl/reference",
        "policy/entropy",
        "policy/clip_fraction",
        "rollout/length_mean",
        "rollout/eos_rate",
    ):
        assert isinstance(row[key], float), key
    assert not any(key in NAMES or key.startswith(DROPPED) for key in row)
    assert row["kl/reference"] == pytest.approx(0.0, abs=1e-5)
    assert trainer.state.log_history[1]["kl/reference"] > 1e-3


def test_the_kl_is_in_nats_per_answer(make, name):
    """From the micro-batch itself: the sum over an answer's tokens, not their mean."""
    trainer = make(OURS[name], {"max_completion_length": 16})
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    batch = prepared(trainer)
    trainer.compute_loss(trainer.model, dict(batch))
    logs = {k: sum(v) / len(v) for k, v in trainer._metrics["train"].items()}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    mask = batch["completion_mask"].float()
    with torch.no_grad():
        policy, _ = completion_logprobs(trainer.model, ids, attention, mask)
        reference, _ = completion_logprobs(trainer.ref_model, ids, attention, mask)
    k1 = policy - reference
    tokens = k1 if name == "RLOO" else torch.exp(-k1) - 1 + k1  # TRL's GRPO estimates by k3
    wanted = (tokens * mask).sum(1).mean().item()
    assert align_names(logs)["kl/reference"] == pytest.approx(wanted, rel=1e-4)


def test_names_keep_their_prefix_and_unknown_values():
    logs = {
        "eval_kl": 0.5,
        "eval_completions/mean_length": 4.0,
        "eval_completions/clipped_ratio": 0.25,
        "completions/clipped_ratio": None,
        "kl": 0.1,
        "rewards/sum/mean": 3.0,
        "reward/brief": 1.0,
        "loss": 2.0,
    }
    assert align_names(logs) == {
        "eval_kl/reference": 2.0,
        "eval_rollout/length_mean": 4.0,
        "eval_rollout/eos_rate": 0.75,
        "rollout/eos_rate": None,
        "kl/reference": None,
        "reward/brief": 1.0,
        "loss": 2.0,
    }


def test_the_options_that_we_check_are_trls():
    source = inspect.getsource(trl.GRPOTrainer)
    for key, known in CHOICES.items():
        assert hasattr(trl.GRPOConfig, key)
        for value in known:
            assert f'"{value}"' in source, (key, value)
    for config in (trl.GRPOConfig, trl.RLOOConfig):
        for key, off in UNTRUNCATED.items():
            assert getattr(config, key) == off
        for key in ("reward_weights", "sync_ref_model", "max_completion_length", "num_iterations"):
            assert hasattr(config, key), key
    assert all(hasattr(trl.GRPOConfig, key) for key in OWNED)
    unknown = source.index("Unknown loss type")
    assert (
        source[:unknown].count("self.loss_type in [") + source[:unknown].count("self.loss_type == ")
        >= 5
    )

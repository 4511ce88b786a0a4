"""Guards on one process or two: SFT under DDP, and a plain loop under FSDP2 or DeepSpeed's ZeRO-2.

See test_processes.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from align.engine.guards.ewc import EWC
from align.engine.guards.fisher import estimate_fisher
from align.engine.guards.l2sp import L2SP
from align.engine.guards.replay import Replay
from align.engine.guards.si import SI
from align.engine.guards.weights import gathered, trained_weights
from align.engine.trainers import SFTTrainer


def fisher_of(model: nn.Module, size: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {n: size * torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}


def train(
    model_dir: Path,
    out: Path,
    rows: int,
    kinds: tuple[str, ...] = ("ewc", "si"),
    zero: bool = False,
) -> dict[str, torch.Tensor]:
    """Three steps of SFT with guards through the trainer; two micro-batches each under ZeRO.

    `kinds` are guards, "lora" being EWC on LoRA's product.
    """
    args = SFTConfig(  # before the model: ZeRO-3 splits weights while they load
        output_dir=str(out), report_to=[], bf16=False, disable_tqdm=True,
        use_cpu=not zero, ddp_backend="gloo" if zero else None,  # cpu: accelerate takes plain DDP
        save_strategy="no", optim="sgd", learning_rate=0.05, lr_scheduler_type="constant",
        per_device_train_batch_size=rows // 2 if zero else rows, max_length=64, max_steps=3,
        gradient_accumulation_steps=2 if zero else 1, seed=3, logging_steps=1,
        gradient_checkpointing=False, max_grad_norm=0.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    start = {n: p.detach() - 0.05 for n, p in model.named_parameters()}
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = [{"text": f"Where is order {n * n}, and is it late?"} for n in range(24)]
    ids = [tokenizer(row["text"], return_tensors="pt").input_ids for row in texts[:4]]
    examples = [{"input_ids": each, "labels": each} for each in ids]
    known = {
        "ewc": EWC(3.0, fisher_of(model), start),
        "lora": EWC(3.0, fisher_of(model), start),
        "si": SI(1.0, fisher_of(model), start),
        "replay": Replay(examples, example_loss, 0.5, batch_size=2),
    }
    guards = [known[kind] for kind in kinds]
    torch.manual_seed(0)  # LoRA's
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        guards=guards,
        peft_config=LoraConfig(r=2) if "lora" in kinds else None,
    )
    trainer.train()
    found = trained_parameters(trainer)
    for guard in guards:
        if isinstance(guard, SI):
            found |= {f"si/{n}": v for n, v in guard.path.items()}
        else:
            found[guard.name] = torch.tensor(trainer.state.log_history[0][f"guard/{guard.name}"])
        if isinstance(guard, SI | EWC) and "lora" not in kinds:
            guard.finish(trainer.model, examples, example_loss)
            found |= {f"{guard.name} kept/{n}": v for n, v in guard.importance.items()}
    return found


def example_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    loss: torch.Tensor = model(**batch).loss
    return loss * (batch["labels"].numel() - 1)


def trained_parameters(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    """Whole weights, wherever they are."""
    named = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    if not hasattr(next(iter(named.values())), "ds_id"):
        return {name: weight.detach().clone() for name, weight in named.items()}
    import deepspeed

    assert trainer.deepspeed.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(named.values())):
        return {name: weight.detach().clone() for name, weight in named.items()}


def loop(shard: bool) -> dict[str, torch.Tensor]:
    """Four steps of a small network with EWC in place, SI, and L2-SP's proximal step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    guards = [
        EWC(2.0, fisher_of(model), {n: p.detach() + 0.1 for n, p in model.named_parameters()},
            in_place=True),
        SI(1.0, in_place=True),
        L2SP(5.0, proximal=True),
    ]  # fmt: skip
    for guard in guards:
        guard.begin(model)
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        for guard in guards:
            guard.before_step(model)
        optimizer.step()
        for guard in guards:
            guard.after_step(model, optimizer)
    value = guards[0].penalty(model, {})
    weights = trained_weights(model)
    here = {n: p.detach() for n, p in model.named_parameters()}
    whole = {n: p.full_tensor() if shard else p for n, p in here.items()}
    path = gathered(guards[1].path, weights)
    guards[1].finish(model, [], lambda model, batch: value)
    omega = gathered(guards[1].importance, weights)
    found = whole | {f"si/{n}": v for n, v in path.items()} | {"ewc": value}
    return found | {f"omega/{n}": v for n, v in omega.items()}


def engine(out: Path, stage: int) -> None:
    """The loop's network under DeepSpeed's ZeRO, where the penalty is in the loss."""
    import deepspeed

    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    guards = [
        EWC(2.0, fisher_of(model), {n: p.detach() + 0.1 for n, p in model.named_parameters()}),
        SI(1.0),
    ]
    for guard in guards:
        guard.begin(model)
    sharded, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 16,
            # Buckets that do not hold all weights, as large models' do not; no clipping at 1.
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 20},
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
        },
    )
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(4):
        loss = sharded(x).square().mean()
        sharded.backward(loss + sum(guard.penalty(sharded, {}) for guard in guards))
        for guard in guards:
            guard.before_step(sharded)
        sharded.step()
        for guard in guards:
            guard.after_step(sharded)
    found = {n: p.detach().clone() for n, p in model.named_parameters()}
    found |= {f"si/{n}": v for n, v in guards[1].path.items()}
    kept = estimate_fisher(model, [{"x": row[None]} for row in x], square)
    torch.save(found | {f"fisher/{n}": v for n, v in kept.items()}, out)


def square(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = model(batch["x"]).square().sum()
    return found


def main() -> None:
    torch.set_num_threads(1)
    model_dir, out, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    rank = int(os.environ.get("RANK", "0"))
    if len(sys.argv) > 4:
        import deepspeed

        deepspeed.ops.__compatible_ops__ = {}  # gloo's collectives: its own compile for minutes
        split = os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
        for stage in () if split else (1, 2):
            engine(out / f"zero-{stage}-{rank}.pt", stage)
        for kind in sys.argv[4:]:
            torch.save(train(model_dir, out / kind, rows, (kind,), True), out / f"{kind}-{rank}.pt")
        sys.stdout.flush()
        os._exit(0)  # DeepSpeed's globals keep the group, and its end may abort
    torch.save(train(model_dir, out, rows), out / f"sft-{rank}.pt")
    torch.save(loop(shard=torch.distributed.is_initialized()), out / f"loop-{rank}.pt")


if __name__ == "__main__":
    main()

"""Two steps on shared prefixes, on two processes. See test_prefix_processes.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from align.engine.labelled_head import read_labels_only
from align.engine.prefix import share_prefixes

CONFIG = LlamaConfig(
    vocab_size=90, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    initializer_range=0.3,
)  # fmt: skip


def full(weight: torch.Tensor) -> torch.Tensor:
    """A weight, gathered where it is sharded."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def under_zero(model: LlamaForCausalLM, stage: int) -> Any:
    """DeepSpeed's engine, which steps by itself."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}  # gloo's collectives: its own compile for minutes
    deepspeed.init_distributed("gloo")
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 2,
            # Stage 3 splits every weight; no clipping at 1.
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
        },
    )
    return engine


def gathered(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Weights by name, whole."""
    if hasattr(next(model.parameters()), "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return {n: p.detach().clone() for n, p in model.named_parameters()}
    return {n: full(p.detach()) for n, p in model.named_parameters()}


def main() -> None:
    way, kind, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    zero = int(kind.removeprefix("zero")) if kind.startswith("zero") else 0
    if not zero:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    if not zero:
        model.double()  # DeepSpeed trains in float32
    add_fused_lm_head(model)
    shared = way == "shared"
    if shared:
        sharing, _ = share_prefixes(model.model, "on")
        assert read_labels_only(model)
    if zero:
        wrapped = under_zero(model, zero)
    rank, world = dist.get_rank(), dist.get_world_size()
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (world,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    elif kind == "ddp":
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(4, 90, (4, 30), generator=torch.Generator().manual_seed(1))
    ids[1, :20], ids[3, :25] = ids[0, :20], ids[2, :25]
    mask = torch.ones_like(ids)
    mask[1, 27:] = 0
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    start = {name: weight.clone() for name, weight in gathered(model).items()}
    for _ in range(2):
        output = wrapped(
            input_ids=ids[mine], attention_mask=mask[mine], use_cache=False, fused_lm_head=True,
            labels=ids.masked_fill(mask == 0, -100)[mine], num_items_in_batch=50,
        )  # fmt: skip
        if zero:
            wrapped.backward(output.loss)
            wrapped.step()
            continue
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if shared:
        assert (sharing.counts.shared, sharing.counts.passes) == (2, 2)
    whole = gathered(model)
    moves = [float((whole[name] - weight).abs().max()) for name, weight in start.items()]
    assert min(moves) > 1e-3, moves  # what is compared has learnt
    if rank == 0:
        torch.save(whole, out)
    if zero:
        # DeepSpeed's globals keep the group, whose threads now and then outlive the interpreter.
        dist.barrier()
        os._exit(0)
    # DDP's reducer must not be the last to hold the group: torch 2.13 frees it with the GIL held
    # then, and waits for a thread of gloo's that waits for the GIL.
    del wrapped, output
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Which backbones are packed is tried on a few tokens, and nothing is disturbed by that."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    BertConfig,
    DiffLlamaConfig,
    DistilBertConfig,
    DogeConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from reward import packed_probe
from reward.errors import ModelError
from reward.packed import can_pack, looks_packable, packed_states
from reward.packed_probe import undisturbed
from reward.pool import score_rows
from reward.shared import pooled_states

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
OTHERS = {
    "bert": lambda: BertConfig(**SIZES),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=60, dim=32, hidden_dim=48, n_layers=2, n_heads=4
    ),
    "diffllama": lambda: DiffLlamaConfig(**SIZES, num_key_value_heads=2),
    "doge": lambda: DogeConfig(**SIZES, num_key_value_heads=2),
}
ROWS = [[7, 8, 9, 10, 11, 1, 2, 3], [7, 8, 9, 10, 11, 4, 5], [20, 21, 22]]


def make(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def llama(**changes):
    return make(LlamaConfig(**SIZES | changes))


@pytest.mark.parametrize("name", OTHERS)
def test_what_packing_would_change_is_padded(name):
    model = make(OTHERS[name]())
    assert not can_pack(model, CPU)
    with torch.no_grad():
        found = torch.zeros(len(ROWS), 32)
        for places, states in pooled_states(model, ROWS, batch_tokens=100, least=2):
            found[places] = states
        for row, state in zip(ROWS, found, strict=True):
            whole = model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
            assert torch.allclose(state, whole, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_configuration_does_not_say_all(name):
    """The negative control: without the trial these would be packed, and read one way."""
    assert looks_packable(make(OTHERS[name]()))


@pytest.mark.parametrize(
    ("name", "message"),
    [("diffllama", "attention more than once"), ("doge", "a mask of its own")],
)
def test_a_packed_pass_that_would_be_wrong_is_refused(name, message):
    model = make(OTHERS[name]())
    every = torch.tensor([False, True, True, False, True])
    with torch.no_grad(), pytest.raises(ModelError, match=message):
        packed_states(model, torch.arange(5, 10), [3, 2], every)
    assert model.config._attn_implementation == "sdpa"


def test_the_trial_disturbs_nothing():
    model = llama(attention_dropout=0.5).train()
    model.layers[0].mlp.eval()  # a part that somebody froze
    was = [module.training for module in model.modules()]
    seen = []
    model.layers[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    model.norm.register_forward_hook(lambda *_: seen.append("after"))
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert can_pack(model, CPU)
        states = model(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state
    assert seen == ["before", "after"]  # of the pass outside
    assert [module.training for module in model.modules()] == was
    states.float().sum().backward()  # a cast kept from the trial would have no gradient
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.set_rng_state(before)
    fresh = copy.deepcopy(model)
    assert can_pack(fresh, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_hooks_and_modes_come_back_after_an_error():
    model = llama().train()
    model.norm.register_forward_hook(lambda *_: None)

    def fail() -> None:
        with undisturbed(model):
            assert not model.training
            assert not model.norm._forward_hooks
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert model.training
    assert len(model.norm._forward_hooks) == 1


def test_it_is_tried_once_for_each_backbone(monkeypatch):
    model, tried = llama(), []
    own = packed_probe._compare
    monkeypatch.setattr(packed_probe, "_compare", lambda *args: tried.append(args[0]) or own(*args))
    for _ in range(3):
        assert can_pack(model, CPU)
    assert tried == [model]
    assert can_pack(copy.deepcopy(model), CPU)
    assert len(tried) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_and_adapters_do_not_forbid_packing(dtype):
    model = llama(initializer_range=0.3, num_hidden_layers=4).to(dtype)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    assert can_pack(adapted.get_base_model(), CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert can_pack(copy.deepcopy(model), CPU)


def test_threads_share_a_model():
    """Two served names of one directory: one's packed pass is not another's padded one."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1)).eval()
    wanted = score_rows(model, ROWS)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(25):
                assert torch.allclose(score_rows(model, ROWS), wanted, atol=1e-6)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]

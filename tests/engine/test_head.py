"""Log-probabilities at completion positions equal those of the model's own full logits."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen3Config,
)
from trl.trainer.utils import add_fused_lm_head

from align.engine import head, token_scores
from align.engine.head import completion_logprobs, policy_logprobs, position_ids
from align.engine.labelled_head import read_labels_only
from align.engine.prefix import share_prefixes

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": lambda: GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "gemma2": lambda: Gemma2Config(
        **GROUPED,
        head_dim=8,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=None,
        query_pre_attn_scalar=8,
    ),
    "cohere": lambda: CohereConfig(**GROUPED, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**GROUPED, logits_scaling=4.0),
}


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]()).double().eval()


def plain(model, rollout, temperature: float = 1.0) -> torch.Tensor:
    """One row at a time without padding: the slow, obvious way; (B, A)."""
    rows = []
    for prompt, kept, answer, mask in zip(
        rollout.prompt_ids, rollout.prompt_mask, rollout.completion_ids, rollout.mask, strict=True
    ):
        before, after = prompt[kept.bool()], answer[mask.bool()]
        ids = torch.cat([before, after])[None]
        table = (model(input_ids=ids).logits[0].double() / temperature).log_softmax(-1)
        found = table[len(before) - 1 : -1].gather(1, after[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(found, (0, len(mask) - len(after))))
    return torch.stack(rows)


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(model, rollout, temperature: float) -> None:
    ours = completion_logprobs(
        model, rollout.input_ids, rollout.attention_mask, rollout.mask, temperature
    )[0]
    theirs = plain(model, rollout, temperature)
    assert ours.dtype == torch.float64
    assert (ours - theirs).abs().max() < 1e-10
    assert (ours[rollout.mask == 0] == 0).all()
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    first = gradients(model, (ours * weights).sum())
    second = gradients(model, (plain(model, rollout, temperature) * weights).sum())
    assert first.keys() == second.keys()
    for name, value in first.items():
        # some norms compute in float32 whatever the weights are
        assert (value - second[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_plain_forward(name, temperature, make_rollout):
    compare(make(name), make_rollout(), temperature)


@pytest.mark.parametrize(("name", "key"), [("gemma2", "final_logit_softcapping")])
def test_the_softcap_matters(name, key, make_rollout):
    model, rollout = make(name), make_rollout()
    right = completion_logprobs(model, rollout.input_ids, rollout.attention_mask, rollout.mask)[0]
    setattr(model.config, key, None)
    wrong = completion_logprobs(model, rollout.input_ids, rollout.attention_mask, rollout.mask)[0]
    assert (right - wrong).abs().max() > 1e-3


def test_the_temperature_matters(make_rollout):
    model, rollout = make("llama"), make_rollout()
    args = (model, rollout.input_ids, rollout.attention_mask, rollout.mask)
    assert (
        completion_logprobs(*args, 1.0)[0] - completion_logprobs(*args, 0.7)[0]
    ).abs().max() > 0.01


def test_position_ids_matter_under_left_padding(make_rollout, monkeypatch):
    model, rollout = make("gpt2"), make_rollout()
    monkeypatch.setattr(head, "can_pack", lambda *args: False)
    right = policy_logprobs(model, rollout)
    monkeypatch.setattr(
        head, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand_as(mask)
    )
    assert (policy_logprobs(model, rollout) - right).abs().max() > 1e-3
    assert position_ids(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist() == [
        [0, 0, 0, 1],
        [0, 1, 2, 2],
    ]


@pytest.mark.parametrize("with_entropy", [False, True])
def test_chunks_change_neither_values_nor_gradients(with_entropy, make_rollout, monkeypatch):
    model, rollout = make("llama"), make_rollout()

    def both() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        parts = completion_logprobs(
            model, rollout.input_ids, rollout.attention_mask, rollout.mask, 0.9, with_entropy
        )
        total = parts[0].sum() + 0.3 * parts[1].sum()
        return torch.stack(parts).detach(), gradients(model, total)

    whole, calls = both(), []
    monkeypatch.setattr(head, "CHUNK_LOGITS", 300 * 3)  # 14 tokens in chunks of 3
    original = token_scores.checkpoint
    monkeypatch.setattr(
        token_scores, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    chunked = both()
    assert len(calls) == 5
    assert (whole[0] - chunked[0]).abs().max() < 1e-12
    for name, value in whole[1].items():
        assert (value - chunked[1][name]).abs().max() < 1e-11, name


def test_no_logits_are_larger_than_a_chunk(make_rollout, monkeypatch, largest_logits):
    model, rollout = make("llama"), make_rollout()

    def most(chunk: int) -> int:
        monkeypatch.setattr(head, "CHUNK_LOGITS", chunk)
        with largest_logits(300, 32) as seen:
            parts = completion_logprobs(
                model, rollout.input_ids, rollout.attention_mask, rollout.mask, 0.9, True
            )
            (parts[0].sum() + 0.3 * parts[1].sum()).backward()
        return seen.most

    assert most(300 * 3) == 300 * 3
    assert most(1 << 24) == 300 * 14  # all tokens at once


@pytest.mark.parametrize("mode", ["on", "off"])
def test_nor_under_trls_trainers(mode, make_rollout, monkeypatch, largest_logits):
    model, rollout = make("llama").train(), make_rollout()
    add_fused_lm_head(model, outputs=("log_probs", *token_scores.FIELDS))
    share_prefixes(model.model, mode)
    assert read_labels_only(model, entropy_gradient=True)
    labels = rollout.input_ids.masked_fill(rollout.attention_mask == 0, -100)

    def most(chunk: int) -> int:
        monkeypatch.setattr(token_scores, "CHUNK_LOGITS", chunk)
        with largest_logits(300, 32) as seen:
            found = model(
                input_ids=rollout.input_ids,
                attention_mask=rollout.attention_mask,
                labels=labels,
                fused_lm_head=True,
            )
            (found.loss + found.entropy.sum()).backward()
        return seen.most

    assert most(300 * 3) == 300 * 3
    assert most(1 << 24) == 300 * int((labels[:, 1:] != -100).sum())


def test_entropy_is_that_of_the_whole_distribution(make_rollout):
    model, rollout = make("llama"), make_rollout()
    entropy = completion_logprobs(
        model, rollout.input_ids, rollout.attention_mask, rollout.mask, 0.8, True
    )[1]
    row, kept = 1, rollout.prompt_mask[1].bool()
    ids = torch.cat([rollout.prompt_ids[row][kept], rollout.completion_ids[row]])[None]
    table = (model(input_ids=ids).logits[0, kept.sum() - 1 : -1] / 0.8).log_softmax(-1)
    assert (entropy[row] + (table.exp() * table).sum(-1)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_the_amount_of_padding_does_not_matter(name, make_rollout):
    model, rollout = make(name), make_rollout()
    more = copy.copy(rollout)
    rows, width = len(rollout), rollout.mask.shape[1]
    more.prompt_ids = torch.cat([torch.zeros(rows, 4).long(), rollout.prompt_ids], 1)
    more.prompt_mask = torch.cat([torch.zeros(rows, 4).long(), rollout.prompt_mask], 1)
    more.completion_ids = torch.cat([rollout.completion_ids, torch.zeros(rows, 3).long()], 1)
    more.mask = torch.cat([rollout.mask, torch.zeros(rows, 3)], 1)
    found = policy_logprobs(model, more)
    assert (found[:, :width] - policy_logprobs(model, rollout)).abs().max() < 1e-11
    assert (found[:, width:] == 0).all()


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_adapters_are_seen(target, make_rollout, moved):
    base = make("llama")
    adapted = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=4, target_modules=[target], init_lora_weights=False)
    ).double()
    rollout = make_rollout()
    compare(adapted, rollout, 0.9)
    plainly = policy_logprobs(base, rollout)
    assert (policy_logprobs(adapted, rollout) - plainly).abs().max() > 1e-3
    with adapted.disable_adapter():
        assert (policy_logprobs(adapted, rollout) - plainly).abs().max() < 1e-12


def test_virtual_tokens_go_through_the_wrapper(make_rollout):
    torch.manual_seed(0)
    tuned = get_peft_model(
        make("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).double()
    rollout = make_rollout(prompts=(4, 4), lengths=(3, 3))
    ours = policy_logprobs(tuned, rollout)
    table = tuned(input_ids=rollout.input_ids).logits.log_softmax(-1)
    theirs = table[:, -4:-1].gather(2, rollout.completion_ids[..., None])[..., 0]
    assert (ours - theirs).abs().max() < 1e-9
    without = policy_logprobs(tuned.get_base_model(), rollout)
    assert (ours - without).abs().max() > 1e-3

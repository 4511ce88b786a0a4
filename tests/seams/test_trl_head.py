"""TRL's trainers on shared prefixes and our head: its losses, metrics and weights, step by step."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import LlamaForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from align.engine.head import causal_lm
from align.engine.labelled_head import SETTINGS, fused_settings, read_labels_only, read_last_only
from align.engine.prefix import share_prefixes, sharing_of
from align.engine.token_scores import FIELDS, Logits, score_states

PROMPT = "I cannot log in, my password does not work any more. What shall I do now?"
PAIRS = [
    {"prompt": PROMPT, "chosen": " Please send it again.", "rejected": " Where is my order?"},
    {"prompt": PROMPT, "chosen": " Thank you.", "rejected": " Please do not log in at noon."},
    {"prompt": "Hello.", "chosen": " The quick brown fox.", "rejected": " No"},
    {"prompt": PROMPT + " Thank you!", "chosen": " Monday", "rejected": " On Monday, at noon."},
]
STEPS = 3


def settings(kind, folder, **more):
    return getattr(trl, kind)(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=more.pop("learning_rate", 1e-3),
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=3,
        **more,
    )


def make_trainer(name, folder, model, tokenizer, reference=None, **more):
    """TRL's own trainer, unmodified."""
    rows = PAIRS
    if name == "SFT":
        rows = [{"prompt": r["prompt"], "completion": r[k]} for r in PAIRS for k in ("chosen",) * 2]
    given = {"ref_model": reference} if reference is not None else {}
    if "peft_config" in more:
        given["peft_config"] = more.pop("peft_config")
    return getattr(trl, f"{name}Trainer")(
        model=model,
        args=settings(f"{name}Config", folder, **more),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **given,
    )


def install(trainer):
    """What `align.stages.sharing` does."""
    for model in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
        inner = causal_lm(model)
        share_prefixes(inner.base_model, "on")
        assert read_labels_only(inner) or read_last_only(inner)
    return sharing_of(causal_lm(trainer.model).base_model)


def history(trainer):
    trainer.train()
    timed = ("runtime", "per_second", "flos", "epoch", "time")
    return [
        {k: v for k, v in row.items() if not any(word in k for word in timed)}
        for row in trainer.state.log_history
        if "loss" in row
    ]


CASES = {
    "SFT": {},
    "DPO": {},
    "DPO-precomputed": {"precompute_ref_log_probs": True},
    # Weighted losses are small, and Adam makes whole steps of what their gradients round to.
    "DPO-weighting": {"use_weighting": True, "optim": "sgd", "learning_rate": 1.0},
    "DPO-checkpointing": {"gradient_checkpointing": True},
    "DPO-lora": {
        "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    },
    "Reward": {},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_metrics_and_weights_are_trls(case, tmp_path, tiny_llama, tiny_tokenizer):
    name, found, weights = case.split("-")[0], [], []
    for ours in (False, True):
        torch.manual_seed(0)
        model = tiny_llama(seed=1)
        if name == "Reward":
            config = copy.deepcopy(model.config)
            config.num_labels = 1
            model = LlamaForSequenceClassification(config)
            nn.init.normal_(model.score.weight, std=0.3)
        apart = case in ("DPO", "DPO-checkpointing", "DPO-weighting")
        reference = tiny_llama(seed=1) if apart else None
        more = {"gradient_checkpointing": False} | copy.deepcopy(CASES[case])
        checkpointing = more.pop("gradient_checkpointing")
        trainer = make_trainer(name, tmp_path / str(ours), model, tiny_tokenizer, reference, **more)
        if checkpointing:
            trainer.args.gradient_checkpointing = True
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        sharing = install(trainer) if ours else None
        found.append(history(trainer))
        trained = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
        weights.append(trained)
    assert sharing is not None
    assert sharing.counts.shared == sharing.counts.passes >= 2 * STEPS
    assert sharing.counts.computed < sharing.counts.real
    assert len(found[0]) == len(found[1]) == STEPS
    for plain, ours in zip(*found, strict=True):
        assert plain.keys() == ours.keys()
        for key, value in plain.items():
            assert ours[key] == pytest.approx(value, rel=1e-4, abs=2e-5), key
    for key, value in weights[0].items():
        assert (weights[1][key] - value).abs().max() < 2e-5, key


def test_grpo_reads_completions_through_it(tmp_path, tiny_llama, tiny_tokenizer):
    found = []
    for ours in (False, True):
        trainer = trl.GRPOTrainer(
            model=tiny_llama(seed=1),
            reward_funcs=lambda completions, **_: [float(len(set(c))) for c in completions],
            args=settings(
                "GRPOConfig", tmp_path / str(ours), num_generations=2, max_completion_length=6
            ),
            train_dataset=Dataset.from_list([{"prompt": PROMPT}, {"prompt": "Hello"}]),
            processing_class=tiny_tokenizer,
        )
        sharing = install(trainer) if ours else None
        found.append(history(trainer))
    assert sharing.counts.shared >= STEPS
    for plain, mine in zip(*found, strict=True):
        for key in ("loss", "entropy", "reward", "grad_norm"):
            assert mine[key] == pytest.approx(plain[key], rel=1e-4, abs=2e-5), key


def test_what_we_read_of_trls_head_is_there(tiny_llama):
    model = tiny_llama()
    assert fused_settings(model) is None
    assert not read_labels_only(model)
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    _, found = fused_settings(model)
    assert {name: found[name] for name in SETTINGS} == {
        "temperature": 0.7,
        "outputs": ("log_probs", "entropy"),
        "logit_scale": 1.0,
        "final_logit_softcapping": None,
    }
    assert found["cast_lm_head_to_fp32"] is False


@pytest.mark.parametrize("mode", ["on", "off"])
def test_every_field_is_trls(tiny_llama, mode):
    """Those that only some losses read too, and on plain passes too."""
    model = tiny_llama()
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", *FIELDS))
    ids = torch.randint(5, 200, (4, 30), generator=torch.Generator().manual_seed(0))
    ids[2:, :20], mask = ids[:2, :20], torch.ones_like(ids)
    mask[1, 25:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :20] = -100
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False}
    theirs = model(**given, fused_lm_head=True, num_items_in_batch=7)
    share_prefixes(model.model, mode)
    assert read_labels_only(model)
    ours = model(**given, fused_lm_head=True, num_items_in_batch=7)
    assert sharing_of(model.model).counts.shared == (mode == "on")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name].float(), value.float(), atol=1e-5), name


def test_a_batch_without_labels_and_plain_calls(tiny_llama):
    model = tiny_llama()
    add_fused_lm_head(model, outputs=FIELDS)
    ids = torch.randint(5, 200, (3, 9))
    mask = torch.ones_like(ids)
    plain = model(input_ids=ids, attention_mask=mask).logits
    share_prefixes(model.model, "on")
    assert read_labels_only(model)
    assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits, plain)
    nothing = torch.full_like(ids, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=nothing, fused_lm_head=True)
    output.loss.backward()
    assert output.log_probs.shape == (3, 8)
    assert output.loss.item() == 0.0
    assert model.lm_head.weight.grad is not None
    assert float(model.lm_head.weight.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("chunk", [None, 3 * 50])
def test_scores_and_gradients_of_the_written_out_derivative(chunk):
    torch.manual_seed(0)
    head, states = nn.Linear(6, 50).double(), torch.randn(8, 6).double()
    ids, how = torch.randint(0, 50, (8,)), Logits(scale=1.5, softcap=4.0, temperature=0.7)
    results = []
    for plain in (True, False):
        head.zero_grad()
        given = states.clone().requires_grad_()
        if plain:
            table = how.of(head(given)).log_softmax(dim=-1)
            probs = table.exp()
            found = SimpleNamespace(
                log_probs=table.gather(1, ids[:, None]).squeeze(1),
                entropy=-(probs * table).sum(dim=-1),
                log_sum_sq_probs=(probs**2).sum(dim=-1).log(),
                mean_logits=how.of(head(given)).mean(dim=-1),
                is_top1=table.argmax(dim=-1) == ids,
            )
        else:
            found = score_states(head, given, ids, how, FIELDS, chunk_logits=chunk, vocabulary=50)
        (found.log_probs * torch.arange(8) + 0.3 * found.entropy).sum().backward()
        results.append((found, given.grad, head.weight.grad.clone(), head.bias.grad.clone()))
    (first, *gradients), (second, *others) = results
    for name in ("log_probs", *FIELDS):
        assert torch.allclose(getattr(first, name), getattr(second, name), atol=1e-12), name
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, atol=1e-12)

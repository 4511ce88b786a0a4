"""Memory estimates: parts by hand, parameters as the real model has them, totals as measured."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import peft
import pytest
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from align.engine.create import create_model
from align.engine.memory import count_parameters, estimate, from_config, human
from align.errors import ConfigError, ModelError

ROOT = Path(__file__).parents[2]
SIZES = {"batch": 2, "length": 10, "vocabulary": 100, "layers": 3, "hidden": 8}


def test_every_part_is_what_one_computes_by_hand():
    found = estimate(1000, 600, "float32", "dpo", **SIZES)
    tokens = 2 * 2 * 10  # pairs
    layer = 6 * 8 + 4 * 8 + 4 * 24 + 10
    assert found.weights == found.reference == 4000
    assert found.gradients == 2400
    assert found.optimizer == 4800
    assert found.activations == 4 * (3 + 1) * layer * tokens
    assert found.logits == 9 * 4 * tokens * 100 + 4 * 100 * 8
    assert found.critic == found.reward == 0
    assert found.total == sum(v for k, v in found.as_dict().items() if k != "total")


def test_the_stage_decides_which_models_are_held():
    sft, reward, dpo, ppo = (
        estimate(1000, 1000, "float32", stage, **SIZES) for stage in ("sft", "reward", "dpo", "ppo")
    )
    assert sft.reference == sft.critic == reward.reference == reward.logits == 0
    assert reward.activations == dpo.activations == 2 * sft.activations
    assert ppo.critic == ppo.weights + ppo.gradients + ppo.optimizer + ppo.activations
    shared = estimate(1000, 1000, "float32", "ppo", **SIZES, critic="shared", reward_parameters=50)
    assert (shared.critic, shared.reward) == (0, 200)
    assert estimate(1000, 1000, "float32", "dpo", **SIZES, reference=False).reference == 0


def test_savings_save_what_they_claim():
    sizes = SIZES | {"layers": 30, "hidden": 64, "length": 512}
    full = estimate(10**6, 10**6, "float32", "sft", **sizes)
    checkpointed = estimate(10**6, 10**6, "float32", "sft", **sizes, checkpointing=True)
    assert checkpointed.activations < full.activations / 5
    half = estimate(10**6, 10**6, "bfloat16", "sft", **sizes)
    assert (half.weights, half.optimizer) == (2 * 10**6, 4 * 10**6)
    eight = estimate(10**6, 10**6, "bfloat16", "sft", **sizes, optimizer="adamw_8bit")
    assert eight.optimizer == 2 * 10**6
    adapter = estimate(10**6, 10**4, "float32", "sft", **sizes)
    assert adapter.gradients + adapter.optimizer == 12 * 10**4
    mixed = estimate(10**6, 10**6, "float32", "sft", **sizes, autocast=True)
    assert 0.5 < mixed.activations / full.activations < 0.85
    triton = estimate(10**6, 10**6, "float32", "sft", **sizes, triton=True)
    assert triton.logits < full.logits / 8


def test_logits_are_bounded_by_the_chunk_however_many_tokens_there_are():
    for stage in ("sft", "dpo", "ppo"):
        a, b = (
            estimate(10, 10, "float32", stage, 8, length, 150_000, 2, 8) for length in (4096, 65536)
        )
        assert a.logits == b.logits


@pytest.mark.parametrize("name", ["llama-1m", "qwen3-30m"])
def test_parameters_are_counted_without_weights(name):
    settings = json.loads((ROOT / f"configs/models/{name}.json").read_text())
    config = AutoConfig.for_model(**settings, vocab_size=500)
    real = AutoModelForCausalLM.from_config(config)
    number = sum(p.numel() for p in real.parameters())
    assert count_parameters(config) == (number, number)
    head = real.get_input_embeddings().weight.numel()
    assert count_parameters(config, frozen=["embed_tokens"]) == (number, number - head)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    _, trained = count_parameters(config, adapter=lora)
    adapted = peft.get_peft_model(real, lora)
    assert trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad) > 0


def test_a_large_model_is_estimated_in_no_time_and_memory():
    config = ROOT / "configs/models/llama-6m.json"
    big = json.loads(config.read_text()) | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False,
    }  # fmt: skip
    total, _ = count_parameters(AutoConfig.for_model(**big))
    assert total == pytest.approx(70.6e9, rel=0.01)


def test_the_table_says_whether_it_fits():
    found = estimate(10**9, 10**9, "bfloat16", "sft", **SIZES)
    out = StringIO()
    Console(file=out, width=80).print(found.render(available=10**9))
    shown = out.getvalue()
    assert "1.9 GiB" in shown
    assert "optimizer" in shown
    assert "available" in shown
    assert "critic" not in shown
    assert human(1536) == "1.5 KiB"


def test_bad_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="optimizer='adan'"):
        estimate(10, 10, "float32", "sft", **SIZES, optimizer="adan")
    with pytest.raises(ConfigError, match="dtype"):
        estimate(10, 10, "float8", "sft", **SIZES)
    with pytest.raises(ConfigError, match="batch=0"):
        estimate(10, 10, "float32", "sft", **(SIZES | {"batch": 0}))
    with pytest.raises(ModelError, match=r"model\.path"):
        from_config(tmp_path, "sft", 1, 10)


MEASURE = """
import gc, json, sys
import torch, trl.trainer.sft_trainer, trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(1)
path, out, checkpointing = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
x = torch.randn(512, 512, requires_grad=True); (x @ x).sum().backward(); del x
gc.collect()
base = status("VmRSS")
args = trl.SFTConfig(
    output_dir=out, per_device_train_batch_size=8, max_steps=2, report_to="none", bf16=False,
    gradient_checkpointing=checkpointing, use_cpu=True, save_strategy="no", max_length=256,
)
trainer = trl.SFTTrainer(
    AutoModelForCausalLM.from_pretrained(path), args,
    train_dataset=Dataset.from_list([{"text": "the cat sat " * 400}] * 16),
    processing_class=AutoTokenizer.from_pretrained(path),
)
open("/proc/self/clear_refs", "w").write("5")
trainer.train()
print("PEAK", status("VmHWM") - base)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_within_a_factor_of_one_and_a_half_of_a_real_step(tmp_path, checkpointing):
    (tmp_path / "text.txt").write_text("the cat sat on a mat " * 50)
    place = create_model(
        ROOT / "configs/models/qwen3-30m.json",
        tmp_path / "model",
        tokenizer_data=[tmp_path / "text.txt"],
        vocab_size=300,
    )
    command = [sys.executable, "-c", MEASURE, str(place), str(tmp_path), str(checkpointing)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # glibc's heap keeps freed blocks between others, some 30 % and never the same; mapped blocks
    # go back at once, so that the peak is what the step holds.
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = next(int(line.split()[1]) for line in done.stdout.splitlines() if "PEAK" in line)
    found = from_config(place, "sft", 8, 256, checkpointing=checkpointing, triton=False).total
    assert 1 / 1.5 < found / peak < 1.5

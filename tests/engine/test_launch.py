"""The launch presets: accelerate reads each, and cpu2 really trains on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from align.engine.create import create_model
from align.engine.launch import PRESETS, launch_command, preset_path, read_preset
from align.errors import ConfigError, MissingDependencyError

ROOT = Path(__file__).parents[2]
TYPES = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "cpu2": DistributedType.MULTI_GPU,  # see the file: MULTI_CPU would start one process
}
SCRIPT = """
import json, sys
import torch, trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

model, out, rows_per_process = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
rows = [{"prompt": f"q{i}", "completion": f" a{i % 7}"} for i in range(32)]
args = trl.SFTConfig(
    output_dir=out, per_device_train_batch_size=rows_per_process, max_steps=2, report_to="none",
    bf16=False, gradient_checkpointing=False, use_cpu=True, save_strategy="no", optim="sgd",
    learning_rate=0.5, logging_steps=1, disable_tqdm=True, max_grad_norm=0,
)
trainer = trl.SFTTrainer(
    AutoModelForCausalLM.from_pretrained(model), args, train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(model),
)
trainer.train()
state = trainer.accelerator.state
trained = trainer.accelerator.unwrap_model(trainer.model)
weights = {name: weight.detach() for name, weight in trained.named_parameters()}
torch.save(weights, f"{out}/weights-{state.process_index}.pt")
facts = {"n": state.num_processes, "type": state.distributed_type.value, "backend": state.backend}
with open(f"{out}/facts-{state.process_index}.json", "w") as file:
    json.dump(facts, file)
"""


def test_every_shipped_preset_is_named_and_every_name_is_shipped():
    assert {path.stem for path in (ROOT / "configs/accelerate").glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_accelerate_reads_the_preset_as_it_is_meant(name, request, monkeypatch):
    if name.startswith("zero"):  # accelerate's parser looks for it
        monkeypatch.syspath_prepend(request.getfixturevalue("deepspeed_folder"))
    config = read_preset(preset_path(name))
    assert config.distributed_type == TYPES[name]
    arguments = ["--config_file", str(preset_path(name)), "--num_processes", "4", "train.py"]
    args = launch_command_parser().parse_args(arguments)
    args, _, _ = _validate_launch_command(args)
    assert args.num_processes == 4
    assert args.use_fsdp == (name == "fsdp2")
    assert args.use_deepspeed == name.startswith("zero")
    assert args.multi_gpu == (name in ("ddp", "cpu2")), "otherwise one process is started"
    if name == "fsdp2":
        assert str(args.fsdp_version) == "2"
    if name.startswith("zero"):
        assert str(args.zero_stage) == name[-1]


def test_the_command_is_one_accelerate_understands():
    command = launch_command(
        "ddp",
        ["sft", "a.yaml", "trainer.max_steps=3"],
        processes=16,
        machines=2,
        machine_rank=1,
        main_address="10.0.0.1",
    )
    start = command.index("launch") + 1
    args = launch_command_parser().parse_args(command[start:])
    assert (args.num_processes, args.num_machines, args.machine_rank) == (16, 2, 1)
    assert (args.main_process_ip, args.main_process_port) == ("10.0.0.1", 29500)
    assert args.module
    assert [args.training_script, *args.training_script_args] == [
        "align.cli", "sft", "a.yaml", "trainer.max_steps=3",
    ]  # fmt: skip


def test_numbers_that_do_not_fit_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        launch_command("ddp", ["sft"], processes=5, machines=2)
    assert {problem.where for problem in caught.value.problems} == {"processes", "main_address"}
    with pytest.raises(ConfigError, match="machine_rank"):
        launch_command("ddp", ["sft"], processes=4, machines=2, machine_rank=2, main_address="x")
    with pytest.raises(ConfigError, match="processes"):
        launch_command("ddp", ["sft"], processes=0)


def test_an_unknown_or_broken_preset(tmp_path):
    with pytest.raises(ConfigError, match="ddp, fsdp2"):
        launch_command("dpp", ["sft"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("distributed_type: MULTI_GPU\nmixed_precision: bf16\nnum_procs: 2\n")
    with pytest.raises(ConfigError, match="num_procs"):
        launch_command(broken, ["sft"])


def test_a_zero_preset_without_deepspeed_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("align.engine.launch.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"align-rlhf\[deepspeed\]"):
        launch_command("zero3", ["sft"])


@pytest.mark.slow
@pytest.mark.integration
def test_two_cpu_processes_train_as_one_with_twice_the_batch(tmp_path):
    (tmp_path / "text.txt").write_text("q1 a2 q3 " * 50)
    config = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    model = create_model(
        config, tmp_path / "m", tokenizer_data=[tmp_path / "text.txt"], vocab_size=300
    )
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = launch_command("cpu2", [], main_port=29611)
    two = command[: command.index("--module")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name, start, rows in (("two", two, 4), ("one", [sys.executable], 8)):
        (tmp_path / name).mkdir()
        line = [*start, str(script), str(model), str(tmp_path / name), str(rows)]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    facts = [json.loads((tmp_path / f"two/facts-{rank}.json").read_text()) for rank in (0, 1)]
    assert facts == [{"n": 2, "type": "MULTI_CPU", "backend": "gloo"}] * 2
    first, second = (torch.load(tmp_path / f"two/weights-{rank}.pt") for rank in (0, 1))
    alone = torch.load(tmp_path / "one/weights-0.pt")
    start = dict(_weights(model))
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], weight, atol=1e-5)
    moved = max(float((alone[name] - start[name].detach()).abs().max()) for name in alone)
    assert moved > 1e-2, "the comparison means nothing if nothing was learnt"


def _weights(path: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path).named_parameters()

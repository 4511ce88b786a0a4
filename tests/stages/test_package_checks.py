"""Settings whose package is missing are refused at once, as transformers would refuse them late."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
from torch import nn
from transformers import TrainingArguments
from transformers.trainer import Trainer
from transformers.training_args import OptimizerNames

from align.errors import MissingDependencyError
from align.stages import package_checks
from align.stages.package_checks import check_packages

ELSEWHERE = ("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision")  # other devices'


@pytest.mark.parametrize("name", [n.value for n in OptimizerNames if n.value not in ELSEWHERE])
def test_an_optimiser_is_refused_where_transformers_would(name, tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path), optim=name, optim_target_modules="all-linear", report_to=[],
        use_cpu=True, bf16=False,
    )  # fmt: skip
    refused = None
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, nn.Sequential(nn.Linear(2, 2)))
    except (ImportError, PackageNotFoundError, ValueError) as error:
        refused = error
    if refused is None:
        check_packages({"optim": name}, [])
    else:
        with pytest.raises(
            MissingDependencyError, match=rf"^trainer.optim={name}: \w+ is not inst"
        ):
            check_packages({"optim": name}, [])


def test_every_setting_is_named_at_once(monkeypatch):
    monkeypatch.setattr(package_checks, "find_spec", lambda module: None)
    settings = {"use_liger_kernel": True, "optim": "paged_adamw_8bit", "deepspeed": "z2.json"}
    with pytest.raises(MissingDependencyError) as caught:
        check_packages(settings, ["tensorboard", "wandb"])
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "tracking.report_to",
        "trainer.optim=paged_adamw_8bit",
        "trainer.use_liger_kernel",
        "trainer.deepspeed",
    ]
    assert "pip install 'align-rlhf[quantization]'" in lines[1]
    monkeypatch.setattr(package_checks, "find_spec", lambda module: object())
    check_packages(settings, ["wandb"])

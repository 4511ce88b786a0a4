"""Commands that start a stage on several processes, from the presets in configs/accelerate.

Leaves out schedulers: on a cluster, run the printed command once per machine (docs/launch.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from align.errors import ConfigError, MissingDependencyError, Problem

PRESETS = ("ddp", "fsdp2", "zero2", "zero3", "cpu2")
FOLDER = Path("configs/accelerate")


def launch_command(
    preset: str | Path,
    arguments: Sequence[str],
    *,
    processes: int | None = None,
    machines: int = 1,
    machine_rank: int = 0,
    main_address: str | None = None,
    main_port: int | None = None,
) -> list[str]:
    """The command that runs `align ARGUMENTS` under accelerate.

    Args:
        preset: a name of `PRESETS`, or an accelerate YAML file.
        arguments: what follows `align`, for example `["sft", "configs/sft.yaml"]`.
        processes: over all machines; default: what the preset says.
        machines: how many take part.
        machine_rank: which of them this one is, 0 being the main one.
        main_address: the main machine's address; needed with more than one.
        main_port: a port that is free there (default: accelerate's, 29500).

    Raises:
        ConfigError: an unknown preset, one that accelerate refuses, or numbers that do not fit;
            all problems at once.
        MissingDependencyError: a ZeRO preset without deepspeed.
    """
    path = preset_path(preset)
    config = read_preset(path)
    total = processes if processes is not None else config.num_processes
    problems = []
    if total < 1:
        problems.append(Problem("processes", f"is {total}; at least 1 is expected."))
    if machines < 1 or not 0 <= machine_rank < max(machines, 1):
        what = f"is {machine_rank} of {machines} machines; 0 to machines - 1 is expected."
        problems.append(Problem("machine_rank", what))
    elif total % machines:
        what = f"{total} processes do not divide over {machines} machines."
        problems.append(Problem("processes", what, "give the number over all machines."))
    if machines > 1 and not main_address:
        fix = "give the address of machine 0."
        problems.append(Problem("main_address", f"is needed with {machines} machines.", fix))
    if problems:
        raise ConfigError(problems)
    if config.deepspeed_config and find_spec("deepspeed") is None:
        raise MissingDependencyError(
            f"the preset {path.stem} needs deepspeed. Fix: pip install 'align-rlhf[deepspeed]', "
            "or use the preset fsdp2, which shards as zero3 does."
        )
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(path), "--num_processes", str(total)]
    if machines > 1:
        command += ["--num_machines", str(machines), "--machine_rank", str(machine_rank)]
        command += ["--main_process_ip", str(main_address)]
        command += ["--main_process_port", str(main_port or 29500)]
    elif main_port is not None:
        command += ["--main_process_port", str(main_port)]
    return [*command, "--module", "align.cli", *arguments]


def preset_path(preset: str | Path) -> Path:
    """The file of a preset: a path as it is, a name from the working directory or the project.

    Raises:
        ConfigError: there is none of that name.
    """
    given = Path(preset)
    if given.suffix in (".yaml", ".yml"):
        candidates = [given]
    else:
        project = Path(__file__).parents[2]
        candidates = [folder / f"{preset}.yaml" for folder in (FOLDER, project / FOLDER)]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(
        [
            Problem(
                "preset",
                f"{str(preset)!r} is no file and no preset.",
                f"use one of {', '.join(PRESETS)}, or a path to an accelerate YAML file.",
            )
        ]
    )


def read_preset(path: Path) -> ClusterConfig:
    """A preset as accelerate reads it.

    Raises:
        ConfigError: it is no YAML, has keys accelerate does not know, or is not for a cluster.
    """
    try:
        config = load_config_from_file(str(path))
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        what = f"accelerate refuses it: {str(error).splitlines()[0][:200]}"
        raise ConfigError([Problem(str(path), what)]) from error
    if not isinstance(config, ClusterConfig):
        raise ConfigError([Problem(str(path), "is not a preset for this machine or a cluster.")])
    return config

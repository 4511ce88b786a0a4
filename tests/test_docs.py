"""What the documentation says of commands, exit codes, keys and configurations is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from align import errors
from align.cli import app
from align.config import STAGES, guards, load_config, sections

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CLI = (DOCS / "cli.md").read_text()
CONFIGURATION = (DOCS / "configuration.md").read_text()
SECTIONS = [
    value
    for value in (vars(sections) | vars(guards)).values()
    if isinstance(value, type)
    and issubclass(value, sections.Section)
    and value is not sections.Section
]


def yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_every_command_is_listed_and_no_other() -> None:
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    commands |= {group.name for group in app.registered_groups}
    listed = set(re.findall(r"^\| `align ([\w-]+)", CLI, re.MULTILINE))
    assert listed == commands


def test_exit_codes_are_those_of_the_errors() -> None:
    listed = {
        name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)`", CLI, re.MULTILINE)
    }
    families = {
        name: value.exit_code
        for name in errors.__all__
        if isinstance(value := getattr(errors, name), type)
        and issubclass(value, errors.AlignError)
        and value is not errors.AlignError
    }
    assert listed == families


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_explained(section: type[sections.Section]) -> None:
    missing = [
        key for key in section.model_fields if not re.search(rf"`(?:\w+\.)?{key}`", CONFIGURATION)
    ]
    assert missing == []


def test_every_section_of_every_stage_is_explained() -> None:
    for stage in STAGES.values():
        for key in stage.model_fields:
            assert f"`{key}`" in CONFIGURATION, key


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_configurations_on_the_stage_pages_load(stage: str, tmp_path: Path) -> None:
    blocks = yaml_blocks(DOCS / "stages" / f"{stage}.md")
    assert blocks
    whole = yaml.safe_load(blocks[0])
    for block in blocks:  # later ones show a few keys to add to the first
        merged = dict(whole)
        for key, value in yaml.safe_load(block).items():
            old = merged.get(key)
            both = isinstance(value, dict) and isinstance(old, dict)
            merged[key] = {**old, **value} if both else value  # type: ignore[dict-item]
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(merged))
        load_config(STAGES[stage], file)


def test_the_configuration_error_shown_is_the_real_one(tmp_path: Path) -> None:
    shown = re.search(r"^```text\nerror: ConfigError\n(.*?)\n```", CLI, re.MULTILINE | re.DOTALL)
    assert shown
    file = tmp_path / "sft.yaml"
    file.write_text("model: {path: x}\ndata: {train: x.jsonl}\n")
    overrides = ["data.validation_fracton=0.1", "trainer.learning_rte=1"]
    with pytest.raises(errors.ConfigError) as caught:
        load_config(STAGES["sft"], file, overrides)
    assert str(caught.value) == shown.group(1)

"""docs/augmentation.md: its examples run, and its tables say what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from align.config.augment import AnyAugmentation, BalanceSection, QualitySection
from align.config.sections import DataSection
from align.data.augment.kinds import EFFECTS
from align.data.augment.labels import allowed

PAGE = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text()
KINDS = get_args(AnyAugmentation)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_examples_run(block, capsys):
    exec(block, {})  # the page's own code
    assert capsys.readouterr().out.strip()


def test_the_configuration_is_one():
    first, *_ = blocks("yaml")
    section = DataSection.model_validate(yaml.safe_load(first)["data"])
    assert [entry.kind for entry in section.augment] == ["typos", "counterfactual", "paraphrase"]


@pytest.mark.parametrize("section", [*KINDS, QualitySection, BalanceSection])
def test_every_key_is_explained(section):
    missing = [key for key in section.model_fields if f"`{key}`" not in PAGE]
    assert missing == []


def test_every_kind_has_its_line_and_its_effect():
    listed = set(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]*\|$", PAGE, re.MULTILINE))
    kinds = {get_args(section.model_fields["kind"].annotation)[0] for section in KINDS}
    assert kinds <= listed
    assert set(EFFECTS) == kinds - {"templates", "generated"}


def test_the_table_of_labels_is_the_codes():
    table = PAGE.partition("## Which labels stay true")[2].partition("Everything else")[0]
    lines = [line.strip("| ").split("|") for line in table.strip().splitlines()[2:]]
    assert len(lines) == 4
    for line in lines:
        kinds = re.findall(r"`(\w+)`", line[0])
        effect = EFFECTS[kinds[0]]
        assert set(kinds) == {kind for kind, value in EFFECTS.items() if value == effect}
        cells = [cell.strip() == "yes" for cell in line[1:]]
        pairs, sft = allowed(effect, "preference"), allowed(effect, "sft")
        names = ("prompt", "chosen", "rejected", "answers")
        found = [name in pairs for name in names] + [{"completion", "text"} <= set(sft)]
        assert cells[:5] == found
        assert (len(cells) > 5 and cells[5]) == ("all" in pairs) == ("all" in sft)

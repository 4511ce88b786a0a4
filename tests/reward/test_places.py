"""Targets in places that cannot be written, told before any work."""

from __future__ import annotations

import pytest

from reward import pool_parts
from reward.errors import RewardError


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path, locked):
    for target in (locked / "out.parquet", locked / "new" / "out.parquet"):
        with pytest.raises(RewardError, match=r"cannot be written\. Fix: choose another target"):
            pool_parts.check_target(target, resume=False, overwrite=True)
        with (
            pytest.raises(RewardError, match="cannot be written"),
            pool_parts.Parts(target, {}).locked(),
        ):
            pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RewardError, match="file is no folder"):
        pool_parts.check_target(tmp_path / "file" / "out.parquet", False, False)

"""A run never touches the folder of an earlier one."""

from __future__ import annotations

import pytest

from modules.run_folder import create_run_folder, next_run_folder


def test_the_next_free_name_is_taken(tmp_path):
    for expected in ("cats", "cats-2", "cats-3"):
        assert next_run_folder(tmp_path / "output", "cats").name == expected
        assert create_run_folder(tmp_path / "output", "cats") == tmp_path / "output" / expected


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"save\.directory: .*file.* cannot be made"):
        create_run_folder(tmp_path / "file", "cats")
    with pytest.raises(ValueError, match=r"save\.directory"):
        create_run_folder(tmp_path / "file" / "output", "cats")

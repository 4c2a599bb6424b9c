"""The current folder is known at each question, however it is asked for."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from gearmap.runtime.folder import PATIENCE, CurrentFolder


@pytest.fixture(params=[0, 2 * PATIENCE], ids=["the first questions", "after many"])
def folder(request: pytest.FixtureRequest) -> CurrentFolder:
    folder = CurrentFolder()
    for _ in range(request.param):
        folder.path()
    return folder


def test_a_changed_folder_is_seen_at_once(
    folder: CurrentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "ä b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        assert [folder.path(), folder.path()] == [os.getcwd()] * 2


def test_a_folder_that_is_renamed_is_seen_at_once(
    folder: CurrentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    folder.path()
    (tmp_path / "old").rename(tmp_path / "new")
    assert folder.path() == str(tmp_path.resolve() / "new")


def test_a_folder_that_was_removed_raises_as_it_does_in_os(
    folder: CurrentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    folder.path()
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError):
        folder.path()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no folders so deep")
def test_a_path_that_is_too_long_for_libc_is_asked_of_os(
    folder: CurrentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(25):
        os.mkdir("x" * 200)
        os.chdir("x" * 200)
    paths = folder.path(), folder.path(), os.getcwd()
    monkeypatch.undo()
    shutil.rmtree(tmp_path / ("x" * 200))
    assert len(paths[0]) > 4096
    assert paths[0] == paths[1] == paths[2]

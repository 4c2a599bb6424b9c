"""The programs that tests need, for every folder of tests: skip where one is missing, fail where it has to be there."""

from __future__ import annotations

import os
import shutil

import pytest

from gearmap.jobserver.process import find_gearmand

KINDS = ("embedded", "gearmand")


def ends_with_us(command: list[str]) -> list[str]:
    """Return a command whose process is killed should this one go first, so that a killed test run leaves nothing.

    Where there is no `setpriv`, as elsewhere than on Linux, it is the command itself. The thread that starts it has to
    last as long: it is that thread's end that kills.
    """
    setpriv = shutil.which("setpriv")
    return command if setpriv is None else [setpriv, "--pdeathsig", "KILL", *command]


def missing(what: str) -> None:
    """Skip where a program is not installed; fail where it has to be."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed, and CI is set")
    pytest.skip(f"{what} is not installed")


def require_kind(kind: str) -> None:
    """Skip or fail if the server of this kind cannot be started."""
    if kind == "gearmand" and find_gearmand() is None:
        missing("gearmand")


def require_tool(name: str) -> str:
    """Return the path of a program of gearman-tools; skip or fail without it."""
    path = shutil.which(name)
    if path is None:
        missing(name)
        raise AssertionError
    return path

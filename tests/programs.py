"""The programs that tests need, for every folder of tests: skip where one is missing, fail where it has to be there."""

from __future__ import annotations

import os
import shutil

import pytest

from gearmap.jobserver.process import find_gearmand

KINDS = ("embedded", "gearmand")


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

"""Commands, job servers, keys and clients that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance_support import Command

import gearmap
from gearmap.jobserver.process import ServerProcess, start_job_server
from gearmap.keyfile import make_key


@pytest.fixture
def start() -> Iterator[Callable[..., Command]]:
    """A function that starts a `gearmap` command."""
    started: list[Command] = []

    def start_command(*words: str, **options: Any) -> Command:
        started.append(Command(*words, **options))
        return started[-1]

    yield start_command
    for command in reversed(started):
        command.close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key file for this test."""
    path = tmp_path / "cluster.key"
    make_key(path)
    return path


@pytest.fixture
def job_server() -> Iterator[ServerProcess]:
    """An embedded job server for this test."""
    with start_job_server("embedded") as server:
        yield server


@pytest.fixture
def place(job_server: ServerProcess) -> str:
    """The address of the job server."""
    return f"{job_server.host}:{job_server.port}"


@pytest.fixture
def client(place: str, key_file: Path) -> Iterator[gearmap.Client]:
    """A client of the job server."""
    with gearmap.Client(place, key=key_file) as client:
        yield client


@pytest.fixture
def start_worker(start: Callable[..., Command], place: str, key_file: Path) -> Callable[..., Command]:
    """A function that starts a worker of the job server and waits until it is connected."""

    def start_command(*words: str, key: Path = key_file, **options: Any) -> Command:
        command = start("worker", "-s", place, "--key", str(key), *words, **options)
        command.wait_for("^connected to ")
        return command

    return start_command

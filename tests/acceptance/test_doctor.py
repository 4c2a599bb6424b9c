"""`gearmap doctor` against real job servers and nodes, and against nothing at all."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from acceptance_support import Command, eventually, free_port, run

import gearmap
from gearmap.keyfile import finish_rotation, load_keys, make_key, start_rotation, switch_keys
from gearmap.wire.seal import key_id

pytestmark = pytest.mark.slow

StartWorker = Callable[..., Command]


def doctor(*words: str) -> tuple[int, list[dict[str, str]]]:
    """Return the exit status, and the lines."""
    ended = run("doctor", "--json", *words)
    assert ended.stderr == ""
    lines: list[dict[str, str]] = json.loads(ended.stdout)
    return ended.returncode, lines


def states(lines: list[dict[str, str]]) -> dict[str, str]:
    return {line["subject"]: line["state"] for line in lines}


def test_a_cluster_that_is_well_is_said_to_be(start_worker: StartWorker, place: str, key_file: Path) -> None:
    start_worker("-w", "2", "--name", "here")

    status, lines = doctor("-s", place, "--key", str(key_file))

    assert status == 0, lines
    assert set(states(lines).values()) == {"ok"}
    said = {line["subject"]: line["says"] for line in lines}
    assert said["nodes"].startswith("1 node with your key")
    assert said["gearmap's version"] == f"{gearmap.__version__} everywhere, wire version 1"
    assert said["clocks"] == "1 node within 5 s of this machine"
    assert said["queue default"] == "2 workers for your Python and key"


def test_for_people_each_line_begins_with_its_state(start_worker: StartWorker, place: str, key_file: Path) -> None:
    start_worker("-w", "1")

    ended = run("doctor", "-s", place, "--key", str(key_file), "-q", "default", "-q", "gpu")

    assert ended.returncode == 1
    assert f"ok    server {place}: answers: embedded\n" in ended.stdout
    assert "fail  queue gpu: no worker serves queue 'gpu'" in ended.stdout
    assert f"      start one: gearmap worker -s {place} -q gpu\n" in ended.stdout
    assert ended.stderr == ""


def test_where_nothing_can_be_reached_that_is_said_in_seconds(tmp_path: Path) -> None:
    # One that refuses, one that takes connections and says nothing, one whose name is nobody's.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        places = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{silent.getsockname()[1]}", "nobody.invalid"]
        began = time.monotonic()
        status, lines = doctor(*(word for place in places for word in ("-s", place)), "--key", str(tmp_path / "none"))
        took = time.monotonic() - began

    assert status == 1
    assert [line["state"] for line in lines[:4]] == ["fail"] * 4
    assert all("gearmap server" in line["advice"] for line in lines[:3])
    assert "gearmap key new" in lines[3]["says"]
    assert not (tmp_path / "none").exists()
    assert took < 15.0


def test_a_worker_with_another_key_is_found(
    start_worker: StartWorker, place: str, key_file: Path, tmp_path: Path
) -> None:
    make_key(tmp_path / "other")
    start_worker("-w", "1", key=tmp_path / "other")

    status, lines = doctor("-s", place, "--key", str(key_file))

    assert status == 1
    (line,) = [line for line in lines if line["subject"] == "nodes"]
    other = key_id(load_keys(tmp_path / "other", "the test").current)
    assert f"1 of 1 node has another key ({other})" in line["says"]
    assert "copy the key file" in line["advice"]


@pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX thing")
def test_a_key_file_that_others_can_read_is_found(place: str, key_file: Path) -> None:
    key_file.chmod(0o644)

    status, lines = doctor("-s", place, "--key", str(key_file))

    assert status == 1
    assert [line["subject"] for line in lines if line["state"] == "fail"] == ["key"]
    assert "chmod 600" in next(line["says"] for line in lines if line["subject"] == "key")


def test_a_change_of_keys_is_followed_from_step_to_step(start_worker: StartWorker, place: str, key_file: Path) -> None:
    start_worker("-w", "1")

    def change() -> dict[str, str]:
        lines: list[Any] = doctor("-s", place, "--key", str(key_file))[1]
        found: list[dict[str, str]] = [line for line in lines if line["subject"].startswith("change of keys")]
        return found[0] if found else {"says": "", "advice": ""}

    start_rotation(key_file, "the test")
    eventually(lambda: "all nodes (1) accept it" in change()["says"], "the node accepts the next key")
    assert "gearmap key rotate --switch" in change()["advice"]
    switch_keys(key_file, "the test")
    assert "gearmap key rotate --finish" in change()["advice"]
    finish_rotation(key_file, "the test")
    assert change()["says"] == ""
    eventually(lambda: doctor("-s", place, "--key", str(key_file))[0] == 0, "the node serves the new key only")

"""The examples in deploy/: what can be checked of them without systemd or containers running here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from acceptance_support import REPOSITORY, run
from programs import missing

from gearmap.cli.worker import worker_command

DEPLOY = REPOSITORY / "deploy"
UNIT = DEPLOY / "gearmap-worker.service"

# Exposure from 0.0, where nothing is allowed, to 10.0, as systemd reckons it.
MOST_EXPOSED = 2.5


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        missing("systemd-analyze")
        raise AssertionError
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit as it would be where gearmap is installed in another place."""
    path = tmp_path / UNIT.name
    program = tmp_path / "gearmap"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gearmap "$@"\n')
    program.chmod(0o755)
    path.write_text(UNIT.read_text().replace("/opt/gearmap/bin/gearmap", str(program)))
    return path


def test_systemd_finds_nothing_wrong_with_the_unit(installed: Path) -> None:
    ended = analyze("verify", "--man=no", str(installed))
    # Not what it says of other units of this machine, nor that it is not running here.
    complaints = [line for line in (ended.stdout + ended.stderr).splitlines() if UNIT.name in line]
    assert complaints == []


def test_the_unit_is_little_exposed(installed: Path) -> None:
    ended = analyze("security", "--offline=true", "--no-pager", str(installed))
    said = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ended.stdout)
    assert said is not None, ended.stdout + ended.stderr
    assert float(said[1]) < MOST_EXPOSED


def options_in(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("-")]


def test_the_examples_use_options_that_there_are() -> None:
    known = {name for parameter in worker_command.params for name in parameter.opts}
    (start,) = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    assert set(options_in(start.split())) <= known
    services = compose()["services"]
    assert set(options_in(services["worker"]["command"])) <= known
    helped = run("server", "--help").stdout
    assert all(option in helped for option in options_in(services["server"]["command"]))


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def test_every_container_is_bounded_and_none_has_rights_that_it_does_not_need() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["ulimits"]["core"] == 0, name
        assert service["pids_limit"], name
        assert service["mem_limit"], name
        assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(service), name
        # A file that is mounted by itself would not change when the key does.
        assert [volume.split(":")[1:] for volume in service["volumes"]] == [["/etc/gearmap", "ro"]], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_built_of_what_there_is_and_runs_as_nobody_special() -> None:
    known = {"FROM", "COPY", "RUN", "USER", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"}
    parts = instructions()
    assert {word for word, _ in parts} <= known
    for word, rest in parts:
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((REPOSITORY / source).exists() for source in sources), rest
    last_stage = parts[max(at for at, (word, _) in enumerate(parts) if word == "FROM") :]
    users = [rest for word, rest in last_stage if word == "USER"]
    assert users == ["10001:10001"]
    assert "secret" not in str(parts).lower()


def test_a_key_file_in_a_mounted_folder_is_taken_and_seen_to_change(tmp_path: Path) -> None:
    """As in the container: the folder is root's or ours, and the file is replaced in it."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    place = folder / "key"
    assert run("key", "new", str(place)).returncode == 0
    first = os.stat(place).st_ino
    assert run("key", "rotate", str(place)).returncode == 0
    assert os.stat(place).st_ino != first
    assert run("key", "show-id", str(place)).stdout.count("\n") == 2

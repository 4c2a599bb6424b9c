"""The command line as a whole: help, keys, the demo, how errors end."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance_support import Command, run

import gearmap
from gearmap import cli
from gearmap.cli import demo as demo_module
from gearmap.cli.metrics import FileMetrics, add_up, measure_source
from gearmap.core.names import Lane
from gearmap.keyfile import load_key
from gearmap.overview.listing import ServerAnswer, lane_rows, node_rows
from gearmap.transport.admin import WorkerRow
from gearmap.transport.events import StatusRow
from gearmap.wire.seal import key_id

COMMANDS = ("demo", "key", "server", "status", "worker")


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = (
        "import sys; from gearmap.cli import run; run(['--help']); "
        "print([name for name in ('gearman', 'cloudpickle', 'cryptography', 'rich', 'tqdm', 'asyncio') "
        "if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert all(f"  {name} " in ended.stdout for name in COMMANDS)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: gearmap {command} ")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert gearmap.__version__ in capsys.readouterr().out


def test_an_unknown_option_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["worker", "--colour"]) == 2
    assert "--colour" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- key


def test_key_new_makes_a_file_that_only_its_owner_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sub" / "cluster.key"
    before = os.umask(0)
    try:
        assert cli.run(["key", "new", str(path)]) == 0
    finally:
        os.umask(before)

    said = capsys.readouterr().out
    secret = load_key(path, "the test")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said.startswith(f"made key {key_id(secret)}: {path}\n")
    assert secret.reveal().hex() not in said


def test_key_new_never_replaces_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.key"
    cli.run(["key", "new", str(path)])
    before = path.read_bytes()

    assert cli.run(["key", "new", str(path)]) == 2

    assert path.read_bytes() == before
    assert "there is a key file already" in capsys.readouterr().err


def test_key_show_id_tells_the_id_of_the_key_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.key"
    monkeypatch.setenv("GEARMAP_KEY_FILE", str(path))
    assert cli.run(["key", "show-id"]) == 2
    assert "gearmap key new" in capsys.readouterr().err

    cli.run(["key", "new"])
    capsys.readouterr()

    assert cli.run(["key", "show-id"]) == 0
    assert capsys.readouterr().out == key_id(load_key(path, "the test")) + "\n"


def test_key_rotate_says_after_each_step_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.key"

    def said(*words: str) -> str:
        assert cli.run(["key", *words, str(path)]) == 0
        return capsys.readouterr().out

    made = said("new").split(":")[0].removeprefix("made key ")
    first = said("rotate")
    new = re.findall("key ([0-9a-f]{8})", first)[0]
    assert first.startswith(f"step 1 of 3: key {new} is beside key {made} in {path}; clients still use {made}\n")
    assert f"gearmap key rotate --switch {path}" in first
    assert said("show-id") == f"{made}\n{new} next\n"
    assert cli.run(["key", "rotate", str(path)]) == 2
    assert "being changed already; go on with --switch, or --back" in capsys.readouterr().err
    second = said("rotate", "--switch")
    assert second.startswith(f"step 2 of 3: clients use key {new} from now on; workers still accept {made}\n")
    assert f"gearmap key rotate --finish {path}" in second
    assert said("show-id") == f"{new}\n{made} old\n"
    assert said("rotate", "--back") == first
    said("rotate", "--switch")
    third = said("rotate", "--finish")
    assert third.startswith(f"key {new} is the only one in {path} now; {made} is removed\n")
    assert said("show-id") == f"{new}\n"
    assert not re.search("[0-9a-f]{20}", first + second + third)


# --------------------------------------------------------------------------------------------------------------- demo


@pytest.mark.slow
def test_the_demo_ends_with_0_and_says_what_it_did() -> None:
    ended = run("demo", "--files", "30", "--workers", "2", "--server", "embedded")

    assert ended.returncode == 0, ended.stderr
    for word in ("30 files", "longest function", "deepest nesting", "embedded, 2 workers", "tasks/s", "speed-up"):
        assert word in ended.stdout
    assert ended.stdout.splitlines()[-1] == "The parallel results equal the serial ones."
    assert "\x1b" not in ended.stdout


@pytest.mark.slow
def test_the_demo_ends_with_1_if_the_results_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_measure(root: str) -> Callable[[str], FileMetrics]:
        return lambda name: FileMetrics(functions=os.getpid())

    monkeypatch.setattr(demo_module, "make_measure", make_measure)

    assert cli.run(["demo", "--files", "3", "--workers", "1", "--server", "embedded"]) == 1
    assert "the results differ" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_with_130_and_no_traceback(start: Callable[..., Command]) -> None:
    demo = start("demo", "--server", "embedded")
    demo.wait_for("files of Python")

    demo.send(signal.SIGINT)

    assert demo.wait() in (130, -signal.SIGINT)  # a shell says 130 to both
    assert "Traceback" not in "\n".join(demo.err)


def test_ctrl_c_while_a_class_is_made_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_class(*_: object) -> None:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(demo_module, "find_sources", make_class)

    assert cli.run(["demo"]) == 130


def test_the_demo_tells_a_speed_up_below_1_as_it_is() -> None:
    assert "slower than serial" in demo_module.explain_speed(0.8, 2)
    assert "one worker" in demo_module.explain_speed(0.8, 1)
    assert demo_module.explain_speed(1.5, 2) == ""


def test_the_demo_finds_every_source_file_but_those_of_installed_packages(tmp_path: Path) -> None:
    for name in ("a.py", "b.txt", "p/c.py", "site-packages/d.py", "p/__pycache__/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()

    assert demo_module.find_sources(str(tmp_path)) == ["a.py", os.path.join("p", "c.py")]


def test_metrics_count_functions_classes_calls_and_peaks() -> None:
    source = b"""
class A:
    async def first(self):
        return len(self.rest())
    def second(self):
        for x in self:
            if x:
                print(x)
            elif x is None:
                len(x)

        return 0
"""
    measured = measure_source(source, "a.py")

    assert (measured.functions, measured.classes) == (2, 1)
    assert (measured.longest.value, measured.longest.place) == (8, "second in a.py")
    assert measured.deepest.value == 4  # class, function, for, if; an elif nests no deeper than its if
    assert measured.calls == {"len": 2, "rest": 1, "print": 1}


def test_what_is_not_python_is_counted_and_stops_nothing() -> None:
    broken = [measure_source(source, "x.py") for source in (b"def", b"\0", b"\xff", b"(" * 500)]

    total = add_up([*broken, measure_source(b"def f(): pass", "y.py")])

    assert (total.files, total.unparsed, total.functions) == (5, 4, 1)


# ------------------------------------------------------------------------------------------------------------ listing


def test_a_lane_over_two_servers_adds_jobs_but_not_workers() -> None:
    lane = Lane("default", (3, 11), "1f3a77c0")
    answers = [
        ServerAnswer(server=server, origin="-s", functions=(StatusRow(lane.name, total, 1, workers),))
        for server, total, workers in (("a:1", 3, 4), ("b:1", 1, 4))
    ]

    (row,) = lane_rows(answers)

    assert (row.lane, row.workers, row.queued, row.running) == (lane, 4, 2, 2)


def test_a_node_on_two_servers_is_one_node() -> None:
    lane = Lane("gpu", (3, 11), "1f3a77c0")
    connections = tuple(WorkerRow(i, "10.0.0.7", f"gearmap:n-1:{i}", (lane.name,)) for i in range(2))
    control = WorkerRow(9, "10.0.0.7", "gearmap:n-1:control", ("gearmap1.node.n-1.1f3a77c0",))
    stranger = WorkerRow(10, "10.0.0.8", "-", ())
    answers = [
        ServerAnswer(server=server, origin="-s", connections=(*connections, control, stranger))
        for server in ("a:1", "b:1")
    ]

    (node,) = node_rows(answers)

    assert (node.node_id, node.workers, node.lanes, node.servers) == ("n-1", {0, 1}, {lane}, ["a:1", "b:1"])

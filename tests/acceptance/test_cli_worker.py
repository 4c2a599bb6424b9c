"""`gearmap worker` as people meet it: what it says, what it obeys, how it leaves."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance_support import DEADLINE, Command, eventually, run

import gearmap
from gearmap.jobserver.process import ServerProcess, start_job_server
from gearmap.keyfile import load_key, make_key
from gearmap.wire.seal import key_id

pytestmark = pytest.mark.slow

StartWorker = Callable[..., Command]


def make_blocking_task(folder: Path) -> Callable[[int], int]:
    """Return a task that says that it runs and then waits for a file named `go`."""

    def wait_for_go(number: int) -> int:
        (folder / "runs").touch()
        deadline = time.monotonic() + DEADLINE
        while not (folder / "go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("nobody said go")
            time.sleep(0.01)
        return number

    return wait_for_go


def test_a_worker_says_what_it_serves(start_worker: StartWorker, place: str, key_file: Path) -> None:
    worker = start_worker("-w", "3", "-q", "a", "-q", "b", "--name", "box")

    greeting = worker.wait_for("^node ")

    assert greeting.startswith(f"node box: 3 workers for queue a, b on {place} (Python 3.")
    assert key_id(load_key(key_file, "the test")) in greeting
    assert load_key(key_file, "the test").reveal().hex() not in "\n".join(worker.out)


def test_the_options_of_a_worker_reach_its_tasks(
    start_worker: StartWorker, client: gearmap.Client, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    start_worker("-w", "1", "-q", "gpu", "--cwd", str(folder), "--env", "DEVICE=cuda:{index}", "--env", "FIXED=a=b")

    def look() -> tuple[str, str | None, str | None]:
        return os.getcwd(), os.environ.get("DEVICE"), os.environ.get("FIXED")

    seen = client.options(queue="gpu").submit(look).result(DEADLINE)

    assert seen == (str(folder.resolve()), "cuda:0", "a=b")


def test_each_worker_of_a_node_has_its_own_index(
    start_worker: StartWorker, client: gearmap.Client, tmp_path: Path
) -> None:
    start_worker("-w", "2", "--env", "INDEX={index}")

    def meet(number: int) -> str:
        # Each of the two tasks waits until the other runs: one worker alone would not get on.
        (tmp_path / str(number)).touch()
        deadline = time.monotonic() + DEADLINE
        while not (tmp_path / str(1 - number)).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return os.environ["INDEX"]

    assert sorted(client.map(meet, range(2), chunksize=1, timeout=DEADLINE)) == ["0", "1"]


def test_a_worker_serves_only_the_queues_that_it_was_told(start_worker: StartWorker, client: gearmap.Client) -> None:
    start_worker("-w", "1", "-q", "gpu")

    said = "no worker serves queue 'default'.*serve 'gpu'.*gearmap worker -s"
    with pytest.warns(RuntimeWarning, match=said), pytest.raises(gearmap.RunTimeout):
        client.map(abs, [-1], timeout=4.0)

    assert client.map(abs, [-1], queue="gpu", timeout=DEADLINE) == [1]


def test_a_worker_with_another_key_is_never_asked_and_this_is_said(
    start_worker: StartWorker, client: gearmap.Client, tmp_path: Path, key_file: Path, place: str
) -> None:
    other = tmp_path / "other.key"
    make_key(other)
    worker = start_worker("-w", "1", "-v", key=other)

    said = "no worker serves .* with your key .* 1 have another key"
    with pytest.warns(RuntimeWarning, match=said), pytest.raises(gearmap.RunTimeout):
        client.map(abs, [-1], timeout=4.0)
    listed = run("status", "-s", place, "--key", str(key_file)).stdout

    assert not any("queue default" in line and "task" in line for line in worker.out)
    assert f"{key_id(load_key(other, 'the test'))} " in listed
    assert "(yours)" not in "".join(line for line in listed.splitlines() if key_id(load_key(other, "")) in line)


def test_a_verbose_worker_writes_a_line_for_each_job(start_worker: StartWorker, client: gearmap.Client) -> None:
    worker = start_worker("-w", "1", "-v", "--name", "box")

    client.map(abs, range(3), chunksize=3, timeout=DEADLINE)

    assert worker.wait_for(r"^box/0  H:\S+  queue default  3 tasks  \d+\.\d{3} s  done$")


def test_sigterm_lets_a_running_job_finish(start_worker: StartWorker, client: gearmap.Client, tmp_path: Path) -> None:
    worker = start_worker("-w", "1")
    future = client.submit(make_blocking_task(tmp_path), 7)
    eventually((tmp_path / "runs").exists, "the task runs")

    worker.send(signal.SIGTERM)
    worker.wait_for("^draining: ")
    assert not future.done()
    (tmp_path / "go").touch()

    assert worker.wait() == 0
    assert future.result(DEADLINE) == 7
    assert worker.out[-1] == "ended"


def test_a_worker_says_which_limits_it_was_given(start_worker: StartWorker) -> None:
    worker = start_worker("-w", "1", "--memory-limit", "1.5G", "--max-tasks-per-child", "100", "--grace", "7.5")

    assert worker.wait_for("^node ").endswith("; memory limit 1.5 GB; 100 tasks per child; grace 7.5 s)")


def test_what_runs_longer_than_the_grace_is_given_back(
    start_worker: StartWorker, client: gearmap.Client, tmp_path: Path
) -> None:
    worker = start_worker("-w", "1", "-v", "--grace", "0.3")
    future = client.options(max_worker_losses=1).submit(make_blocking_task(tmp_path), 7)
    eventually((tmp_path / "runs").exists, "the task runs")

    worker.send(signal.SIGTERM)

    worker.wait_for(r"^draining: running jobs may finish for 0\.3 s")
    assert worker.wait() == 0
    assert any(re.search(r"1 task .*not run \(draining\)", line) for line in worker.out)
    (tmp_path / "go").touch()
    start_worker("-w", "1")
    assert future.result(DEADLINE) == 7


def test_a_verbose_worker_says_why_a_job_was_not_run(start_worker: StartWorker, client: gearmap.Client) -> None:
    worker = start_worker("-w", "1", "-v", "--memory-limit", "200M")

    def use_memory() -> None:
        kept = bytearray(b"x") * (400 * 2**20)
        time.sleep(DEADLINE)
        del kept

    with pytest.raises(gearmap.WorkerLost, match="memory limit of 200 MB"):
        client.options(max_worker_losses=1).submit(use_memory).result(DEADLINE)
    with pytest.raises(gearmap.TaskTimeout):
        client.options(task_timeout=0.2).submit(time.sleep, DEADLINE).result(DEADLINE)

    worker.wait_for(r"not run \(child died: memory limit of 200 MB \(it used \d+ MB\)\)")
    worker.wait_for(r"not run \(timed out: stopped after 0\.\d\d s\)")


def test_a_draining_worker_takes_no_further_job(
    start_worker: StartWorker, client: gearmap.Client, tmp_path: Path
) -> None:
    first = start_worker("-w", "1")
    running = client.submit(make_blocking_task(tmp_path), 1)
    eventually((tmp_path / "runs").exists, "the task runs")

    first.send(signal.SIGTERM)
    first.wait_for("^draining: ")
    late = client.submit(os.getpid)
    (tmp_path / "go").touch()
    assert first.wait() == 0
    assert running.result(DEADLINE) == 1
    assert not late.done()

    start_worker("-w", "1")
    assert late.result(DEADLINE) != os.getpid()


def test_a_second_signal_stops_at_once(start_worker: StartWorker, client: gearmap.Client, tmp_path: Path) -> None:
    worker = start_worker("-w", "1")
    future = client.submit(make_blocking_task(tmp_path), 7)
    eventually((tmp_path / "runs").exists, "the task runs")

    worker.send(signal.SIGINT)
    worker.wait_for("^draining: ")
    worker.send(signal.SIGINT)

    assert worker.wait(15.0) == 0
    assert "stopping" in worker.out
    assert not future.done()  # given back, for another worker:
    (tmp_path / "go").touch()
    start_worker("-w", "1")
    assert future.result(DEADLINE) == 7


def test_a_worker_waits_for_its_job_server_and_comes_back_to_it(
    start: Callable[..., Command], job_server: ServerProcess, place: str, key_file: Path
) -> None:
    port = job_server.port
    worker = start("worker", "-s", place, "-w", "1", "--key", str(key_file))
    worker.wait_for("^connected to ")

    job_server.stop()
    worker.wait_for(f"^lost {place}: .*trying again")
    with start_job_server("embedded", port=port):
        worker.wait_for("^connected to ", times=2)
        with gearmap.Client(place, key=key_file) as client:
            assert client.map(abs, [-1, -2], timeout=DEADLINE) == [1, 2]

    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_worker_that_finds_no_server_says_so_and_waits(
    start: Callable[..., Command], job_server: ServerProcess, place: str, key_file: Path
) -> None:
    job_server.stop()

    worker = start("worker", "-s", place, "-w", "2", "--key", str(key_file))

    worker.wait_for(f"no job server answered at '{place}'.*trying again")
    with start_job_server("embedded", port=job_server.port):
        worker.wait_for("^connected to ")


NOT_LOOPBACK = ["192.0.2.1", "0.0.0.0", "[::]", "head.example", "127.1", "[::ffff:127.0.0.1]", socket.gethostname()]


@pytest.mark.parametrize("server", NOT_LOOPBACK)
def test_a_worker_for_another_host_needs_a_key_and_says_how_to_make_one(tmp_path: Path, server: str) -> None:
    missing = tmp_path / "missing.key"

    ended = run("worker", "-s", server, environment={"GEARMAP_KEY_FILE": str(missing)})

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"gearmap: no key file at '{missing}' (from GEARMAP_KEY_FILE)")
    assert "gearmap key new" in ended.stderr
    assert not missing.exists()


@pytest.mark.parametrize("server", NOT_LOOPBACK)
def test_a_client_for_another_host_needs_a_key_and_says_how_to_make_one(tmp_path: Path, server: str) -> None:
    with pytest.raises(gearmap.ConfigurationError, match=r"no key file at .* gearmap key new"):
        gearmap.Client(["127.0.0.1", server], key=tmp_path / "missing.key")
    assert not list(tmp_path.iterdir())


def test_nothing_goes_without_a_key() -> None:
    ended = run("worker", "-s", "192.0.2.1", "--insecure")
    assert ended.returncode == 2
    assert "No such option" in ended.stderr


def test_on_loopback_the_key_is_made_on_first_use(start: Callable[..., Command], place: str, tmp_path: Path) -> None:
    worker = start("worker", "-s", place, "-w", "1", environment={"XDG_CONFIG_HOME": str(tmp_path)})

    greeting = worker.wait_for("^node ")

    path = tmp_path / "gearmap" / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_id(load_key(path, "the test")) in greeting


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-s", "http://head"], "give HOST, HOST:PORT or tls://HOST:PORT"),
        (["-s", "head:70000"], "the port must be a number from 1 to 65535"),
        (["-s", "none"], "no job server is named: -s says 'none'"),
        (["-q", "two words"], "queue must be"),
        (["--env", "1A=2"], "--env takes NAME=VALUE"),
        (["--name", "a/b"], "--name must be"),
        (["--memory-limit", "lots"], "memory is given like 4G or 512M, got 'lots'"),
        (["--memory-limit", "1M"], "--memory-limit must be at least 64 MB"),
        (["--tasks", "no.such.module"], "cannot import no.such.module: ModuleNotFoundError: No module named 'no'"),
        (["--tasks", "json"], "module 'json' has no task; mark its functions with @gearmap.task"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(words: list[str], complaint: str) -> None:
    ended = run("worker", *words)

    assert ended.returncode == 2
    assert complaint in ended.stderr
    last = ended.stderr.splitlines()[-1]  # a module that does not import shows its traceback first
    assert last.startswith("gearmap: ")
    assert "Traceback" in ended.stderr or ended.stderr.count("\n") == 1


JOBS = """
import os, sys
import gearmap

print("imported", file=sys.stdout)

@gearmap.task
def greet(name, *, greeting="hello"):
    return f"{greeting} {name} from {os.environ.get('PLACE')}"

@gearmap.task(queue="mail")
def send(to):
    return to
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of named tasks, which is imported here, too."""
    folder = tmp_path / "project"
    (folder / "site_of_a_test").mkdir(parents=True)
    (folder / "site_of_a_test" / "gearman_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("site_of_a_test")]:
        del sys.modules[name]


def test_a_worker_serves_the_named_tasks_of_a_module_and_lists_them(
    start_worker: StartWorker, client: gearmap.Client, jobs: Path
) -> None:
    worker = start_worker(
        "-w", "1", "-v", "--tasks", "site_of_a_test.gearman_jobs", "--env", "PLACE=there", "--cwd", str(jobs)
    )
    greet = importlib.import_module("site_of_a_test.gearman_jobs").greet

    with client:
        assert greet.submit("you", greeting=0).result(DEADLINE) == "0 you from there"

    worker.wait_for(r"^\S+/0  \S+  task site_of_a_test\.greet  1 task  .* s  done$")
    assert "for queue default, mail on" in worker.wait_for("^node ")
    tasks = [line for line in worker.out if line.startswith("  task ")]
    assert tasks == ["  task site_of_a_test.greet", "  task site_of_a_test.send"]


def test_a_worker_of_a_queue_serves_the_named_tasks_of_that_queue(start_worker: StartWorker, jobs: Path) -> None:
    worker = start_worker("-w", "1", "-q", "mail", "--tasks", "site_of_a_test.gearman_jobs", "--cwd", str(jobs))

    assert [line for line in worker.out if line.startswith("  task ")] == ["  task site_of_a_test.send"]

    ended = run("worker", "-q", "other", "--tasks", "site_of_a_test.gearman_jobs", "--cwd", str(jobs))
    assert ended.returncode == 2
    assert "is in queue other; their queues are default, mail" in ended.stderr


def test_the_node_is_the_process_that_was_started(start_worker: StartWorker, client: gearmap.Client) -> None:
    worker = start_worker("-w", "1")

    def ancestors() -> list[int]:
        import psutil

        return [parent.pid for parent in psutil.Process().parents()]

    assert worker.pid in client.submit(ancestors).result(DEADLINE)


def test_nothing_secret_is_in_the_command_line_or_environment_of_a_node(
    start_worker: StartWorker, key_file: Path
) -> None:
    import psutil

    secret = load_key(key_file, "the test").reveal().hex()
    worker = start_worker("-w", "1")

    processes: list[Any] = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]

    assert len(processes) > 1
    for process in processes:
        assert secret not in " ".join(process.cmdline())
        assert secret not in str(process.environ())


OF_A_PERSON = {
    "SSH_AUTH_SOCK": "/tmp/agent",
    "NOTIFY_SOCKET": "/run/notify",
    "SUDO_USER": "somebody",
    "A_TOKEN": "of the project",
    "CUDA_HOME": "/opt/cuda",
}


@pytest.mark.parametrize(
    ("words", "kept"), [((), {"A_TOKEN", "CUDA_HOME"}), (("--clean-env", "--env", "GIVEN=1"), {"CUDA_HOME", "GIVEN"})]
)
def test_tasks_do_not_get_what_belongs_to_the_person_who_started_the_node(
    start_worker: StartWorker, client: gearmap.Client, key_file: Path, words: tuple[str, ...], kept: set[str]
) -> None:
    import psutil

    environment = {**OF_A_PERSON, "GEARMAP_KEY_FILE": str(key_file)}
    worker = start_worker("-w", "1", *words, environment=environment)

    def named() -> list[str]:
        return list(os.environ)

    names = set(client.submit(named).result(DEADLINE))

    assert names & {*OF_A_PERSON, "GEARMAP_KEY_FILE", "GIVEN"} == kept
    assert {"PATH", "PYTHONPATH"} <= names
    # Nor can they read it elsewhere.
    for process in (psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)):
        assert not set(process.environ()) & (set(environment) - kept)

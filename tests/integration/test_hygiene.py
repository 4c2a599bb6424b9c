"""What a task does to its process stays with it, and what it prints comes back with its result."""

from __future__ import annotations

import ctypes
import decimal
import gc
import io
import locale
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from programs import KINDS, require_kind

import gearmap

LIMIT = 60.0  # seconds after which a result is not waited for any longer


pytestmark = pytest.mark.usefixtures("functions_travel")


@pytest.fixture(scope="module")
def one() -> Iterator[gearmap.LocalCluster]:
    """A cluster of one worker, so that each task comes after the one before in the same process."""
    require_kind(KINDS[0])
    client = gearmap.LocalCluster(1, server=KINDS[0])
    assert call(client, len, "abc") == 3  # now it runs: what a test starts itself comes later
    yield client
    client.close()


def call(client: Any, fn: Callable[..., Any], *args: Any) -> Any:
    return client.submit(fn, *args).result(LIMIT)


# ----------------------------------------------------------------------------------------------- the state of a process


def leaves_the_folder():
    os.chdir("/")


def leaves_the_folder_by_descriptor():
    fd = os.open("/", os.O_RDONLY)
    os.fchdir(fd)
    os.close(fd)


def sets_a_variable():
    os.environ["LEFT_BEHIND"] = "1"


def empties_the_environment():
    os.environ.clear()


def replaces_the_environment():
    os.environ = {"LEFT": "BEHIND"}  # noqa: B003


def replaces_standard_output():
    sys.stdout = sys.stderr = io.StringIO()


def closes_the_standard_streams():
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def deletes_the_standard_streams():
    del sys.stdin, sys.stdout, sys.stderr


def closes_the_standard_descriptors():
    os.closerange(0, 3)


def puts_a_file_over_standard_output():
    with open(os.devnull, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 0)


def ignores_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def handles_sigusr1():
    signal.signal(signal.SIGUSR1, lambda number, frame: None)


def leaves_an_alarm():
    signal.alarm(30)


def sets_the_umask():
    os.umask(0o777)


def sets_the_locale():
    locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")


def turns_warnings_into_errors():
    warnings.simplefilter("error")


def changes_the_path():
    sys.path.insert(0, "/nowhere")
    sys.argv = ["nothing"]


def sets_the_recursion_limit():
    sys.setrecursionlimit(600)
    sys.setswitchinterval(0.5)


def traces():
    sys.settrace(lambda *args: None)
    sys.setprofile(lambda *args: None)


def stops_collecting():
    gc.disable()


def limits_sockets():
    socket.setdefaulttimeout(0.001)


def computes_roughly():
    decimal.getcontext().prec = 3


CHANGES = [
    leaves_the_folder,
    leaves_the_folder_by_descriptor,
    sets_a_variable,
    empties_the_environment,
    replaces_the_environment,
    replaces_standard_output,
    closes_the_standard_streams,
    deletes_the_standard_streams,
    closes_the_standard_descriptors,
    puts_a_file_over_standard_output,
    ignores_sigterm,
    handles_sigusr1,
    leaves_an_alarm,
    sets_the_umask,
    sets_the_locale,
    turns_warnings_into_errors,
    changes_the_path,
    sets_the_recursion_limit,
    traces,
    stops_collecting,
    limits_sockets,
    computes_roughly,
]


def surroundings() -> dict[str, Any]:
    """Return what a task finds around it."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "process": os.getpid(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "streams": [
            (type(stream).__name__, stream is sys.stdin or stream.fileno(), stream.closed)
            for stream in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "descriptors": [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in range(3)],
        "handlers": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "umask": umask,
        "locale": locale.setlocale(locale.LC_ALL),
        "filters": [(kind, category) for kind, _, category, _, _ in warnings.filters],
        "path": list(sys.path),
        "argv": list(sys.argv),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval()),
        "hooks": (sys.gettrace() is None, sys.getprofile() is None),
        "collects": gc.isenabled(),
        "timeout": socket.getdefaulttimeout(),
        "decimal": decimal.getcontext().prec,
    }


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_call_finds_its_process_as_it_was(one, change):
    before = call(one, surroundings)
    call(one, change)
    assert call(one, surroundings) == before


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_task_of_a_chunk_finds_its_process_as_it_was(one, change):
    before = call(one, surroundings)

    def task(x):
        if x % 2:
            return surroundings()
        change()
        return None

    assert one.map(task, range(6), chunksize=6)[1::2] == [before] * 3


def test_a_task_that_raises_leaves_nothing_either(one):
    before = call(one, surroundings)

    def task(x):
        if x % 2:
            return surroundings()
        for change in CHANGES:
            change()
        raise ValueError(x)

    assert one.map(task, range(6), chunksize=6, return_exceptions=True)[1::2] == [before] * 3


@pytest.mark.parametrize("change", [leaves_the_folder, sets_a_variable])
def test_among_thousands_of_tiny_tasks_none_sees_the_folder_or_the_environment_of_another(one, change):
    before = call(one, surroundings)

    def task(x):
        found = os.getcwd(), "LEFT_BEHIND" in os.environ
        if x % 777 == 555:
            change()
        return found

    assert set(one.map(task, range(10_000), chunksize=5000)) == {(before["folder"], False)}


# What is told by the function that changes it.
TOLD = [
    leaves_the_folder,
    sets_a_variable,
    ignores_sigterm,
    handles_sigusr1,
    sets_the_umask,
    sets_the_locale,
    turns_warnings_into_errors,
    sets_the_recursion_limit,
    traces,
    stops_collecting,
    limits_sockets,
    closes_the_standard_descriptors,
    puts_a_file_over_standard_output,
]


@pytest.mark.parametrize("change", TOLD)
def test_among_thousands_of_tiny_tasks_none_sees_what_another_did_by_calling_a_function(one, change):
    before = call(one, surroundings)

    def task(x):
        if x == 2555:
            change()
        return surroundings() if x == 2556 else None

    assert one.map(task, range(5000), chunksize=5000)[2556] == before


@pytest.mark.parametrize("change", [change for change in CHANGES if change is not computes_roughly])
def test_a_short_call_finds_its_process_as_it_was_before_another_of_the_same_function(one, change):
    before = call(one, surroundings)

    def task(is_changing):
        if is_changing:
            change()
            return None
        return surroundings()

    for _ in range(3):
        assert call(one, task, False) == before
    call(one, task, True)
    assert call(one, task, False) == before


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_task_of_some_milliseconds_changed_the_next_one_does_not_see_though_those_before_were_tidy(one, change):
    before = call(one, surroundings)

    def task(x):
        time.sleep(0.002)
        if x == 3:
            change()
        return surroundings() if x == 4 else None

    assert one.map(task, range(5), chunksize=5)[4] == before


def test_what_only_c_code_knows_of_is_put_back_within_some_tasks(one):
    before = call(one, surroundings)

    def task(x):
        time.sleep(0.01)
        if x == 3:
            ctypes.CDLL(None).umask(0o777)
        return surroundings() if x == 9 else None

    assert one.map(task, range(10), chunksize=10)[9] == before


def test_functions_that_tell_of_their_calls_are_themselves_to_whoever_looks(one):
    def task():
        return os.umask, signal.signal, gc.disable, os.umask.__name__, signal.signal.__doc__

    assert call(one, task) == (os.umask, signal.signal, gc.disable, "umask", signal.signal.__doc__)


def test_a_wrong_argument_of_a_function_that_tells_is_answered_by_the_function(one):
    def task():
        with pytest.raises(TypeError, match="str"):
            os.close("one")

    assert call(one, task) is None


def test_what_an_import_sets_up_stays(one, tmp_path):
    (tmp_path / "sets_up_something.py").write_text(
        "import sys, warnings\nwarnings.simplefilter('error', UserWarning)\n"
    )

    def task(x):
        if x == 0:
            sys.path.insert(0, str(tmp_path))
            import sets_up_something  # noqa: F401
        return ("error", UserWarning) in [(kind, category) for kind, _, category, _, _ in warnings.filters]

    assert one.map(task, range(4), chunksize=4) == [True] * 4


def test_what_an_initializer_changes_is_there_for_every_task(one):
    def initialize():
        os.environ["LEFT_BEHIND"] = "on purpose"
        os.umask(0o027)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    client = one.options(initializer=initialize)
    for change in (sets_the_umask, handles_sigusr1, empties_the_environment):
        client.submit(change).result(LIMIT)
        found = client.submit(surroundings).result(LIMIT)
        assert found["environment"]["LEFT_BEHIND"] == "on purpose"
        assert found["umask"] == 0o027
        assert found["handlers"][2] == signal.SIG_IGN


def test_random_state_is_left_alone(one):
    def task(x):
        if x == 0:
            random.seed(1)
        return random.random()

    expected = random.Random(1)
    assert one.map(task, range(5), chunksize=5) == [expected.random() for _ in range(5)]


def test_threads_of_a_task_go_on(one):
    def begins():
        global go_on, answered
        go_on, answered = threading.Event(), threading.Event()
        threading.Thread(target=lambda: go_on.wait(30) and answered.set(), daemon=True).start()

    def task(x):
        if x == 0:
            begins()
            return None
        go_on.set()
        return answered.wait(30)

    assert one.map(task, [0, 1], chunksize=2) == [None, True]


def test_a_process_that_cannot_be_mended_is_replaced(one):
    def task(x):
        if x == 1:
            # No descriptor can be opened any more, and none is there that standard input could be restored from.
            os.closerange(64, 70)
            os.close(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            time.sleep(0.002)  # long enough to be looked at
        return os.getpid()

    pids = one.map(task, range(4), chunksize=4)

    assert pids[0] == pids[1]
    assert pids[1] not in pids[2:]
    assert call(one, os.getpid) != pids[1]


# --------------------------------------------------------------------------------------------------------------- output


def says(text: str, error: str = "") -> int:
    print(text)
    if error:
        print(error, file=sys.stderr)
    return len(text)


def test_what_a_task_printed_comes_with_its_result(kind, cluster):
    futures = [cluster.submit(says, f"task {x}", "odd" if x % 2 else "") for x in range(20)]
    assert [future.result(LIMIT) for future in futures] == [len(f"task {x}") for x in range(20)]
    assert [future.stdout for future in futures] == [f"task {x}\n" for x in range(20)]
    assert [future.stderr for future in futures] == ["odd\n" if x % 2 else "" for x in range(20)]


def test_what_a_task_printed_before_it_failed_comes_too(one):
    def fails():
        print("so far")
        raise ValueError("no further")

    future = one.submit(fails)
    with pytest.raises(ValueError, match="no further"):
        future.result(LIMIT)
    assert future.stdout == "so far\n"


def test_a_result_that_does_not_pickle_keeps_what_was_printed(one):
    def task():
        print("made one")
        return threading.Lock()

    future = one.submit(task)
    with pytest.raises(gearmap.SerializationError):
        future.result(LIMIT)
    assert future.stdout == "made one\n"


def test_nothing_printed_is_an_empty_text(one):
    future = one.submit(len, "abc")
    assert future.stdout == ""
    assert future.result(LIMIT) == 3
    assert (future.stdout, future.stderr) == ("", "")


def test_bytes_lone_surrogates_and_other_alphabets_arrive(one):
    def task():
        sys.stdout.reconfigure(line_buffering=True)
        sys.stdout.buffer.write("bytes: é\n".encode())
        sys.stdout.buffer.flush()
        print("\ud800", "日本", flush=True)
        print(sys.stdout.isatty(), sys.stdout.encoding)

    future = one.submit(task)
    future.result(LIMIT)
    assert future.stdout == "bytes: é\n\\ud800 日本\nFalse utf-8\n"


def test_a_task_may_print_a_hundred_megabytes(one):
    def task():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = "x" * 9999
        print("the beginning")
        for _ in range(10_000):
            print(line)
        print("the end", end="")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    future = one.submit(task)
    assert future.result(LIMIT) < 20 * 1024  # kilobytes
    assert future.stdout.startswith("the beginning\nxxx")
    assert future.stdout.endswith("xxx\nthe end")
    assert len(future.stdout) < 66_000
    left_out = 14 + 100_000_000 + 7 - 65_536
    assert f"\n... {left_out} bytes left out ...\n" in future.stdout


def test_many_tasks_of_a_chunk_may_print_much(one):
    def task(x):
        print("x" * 50_000)
        return x

    assert one.map(task, range(200), chunksize=200) == list(range(200))


def test_what_c_code_writes_comes_back_also_where_the_own_output_of_the_node_is_closed(one, tmp_path):
    program = textwrap.dedent(
        """
        import ctypes, os, subprocess, sys, time, gearmap

        def writes(x):
            libc = ctypes.CDLL(None)
            libc.printf(b"from C\\n")
            libc.fflush(None)
            os.write(1, b"to a pipe")
            subprocess.run([sys.executable, "-c", "print(1)"], stderr=subprocess.DEVNULL)
            print("printed")
            return x

        if __name__ == "__main__":
            assert sys.stdin.readline()
            with gearmap.LocalCluster(1, server="embedded") as cluster:
                futures = [cluster.submit(writes, x) for x in range(3)]
                results = [future.result(50) for future in futures]
                sys.exit(results != [0, 1, 2] or futures[2].stdout != "from C\\nto a pipe1\\nprinted\\n")
        """
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    process = subprocess.Popen([sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    assert process.wait(LIMIT) == 0


# ------------------------------------------------------------------------------------------------------ copies and ends


def test_a_forked_copy_that_returns_from_the_task_ends_and_says_nothing(one):
    def task(x):
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            return "the copy"
        os.close(write)
        assert os.read(read, 1) == b"", "the copy ended"
        os.close(read)
        return os.getpid()

    pid = call(one, os.getpid)
    assert [call(one, task, x) for x in range(3)] == [pid] * 3
    assert one.map(task, range(10), chunksize=10) == [pid] * 10


def test_a_forked_copy_that_raises_ends_with_a_status(one):
    def task(error):
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            raise error
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert one.map(task, [SystemExit(7), ValueError(), SystemExit()], chunksize=3) == [7, 1, 0]
    assert call(one, task, SystemExit(3)) == 3


def test_a_forked_copy_may_outlive_its_task(one):
    def task():
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        return pid

    copy = psutil.Process(call(one, task))
    assert call(one, len, "abc") == 3
    copy.kill()


def test_a_pool_of_processes_works_inside_a_task(one):
    def task():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2])

    assert call(one, task) == [1, 2]


def test_a_program_that_outlives_its_task_holds_nothing_up(one):
    def task():
        # With all descriptors that it can inherit.
        return subprocess.Popen(["sleep", "60"], close_fds=False).pid

    program = psutil.Process(call(one, task))
    assert call(one, len, "abc") == 3
    program.kill()


def closes_everything_else():
    os.closerange(3, 256)


def closes_everything_else_and_goes_on():
    os.closerange(3, 256)
    time.sleep(0.01)  # so long that what it returns would be handed over at once


def exits():
    os._exit(3)


def exits_in_c():
    ctypes.CDLL(None).exit(3)


def crashes():
    ctypes.string_at(0)


@pytest.mark.parametrize(
    "end", [closes_everything_else, closes_everything_else_and_goes_on, exits, exits_in_c, crashes]
)
def test_a_task_that_ends_its_process_is_charged_and_the_others_finish(one, end):
    def task(x):
        if x == 2:
            end()
        return x

    results = one.map(task, range(5), chunksize=5, return_exceptions=True)
    assert isinstance(results.pop(2), gearmap.WorkerLost)
    assert results == [0, 1, 3, 4]


def raises_system_exit():
    sys.exit(3)


def uses_exit():
    exit()


def is_interrupted():
    raise KeyboardInterrupt


def recurses():
    return recurses()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (raises_system_exit, gearmap.RemoteError),
        (uses_exit, gearmap.RemoteError),
        (is_interrupted, gearmap.RemoteError),
        (recurses, RecursionError),
        (os.setsid, PermissionError),
    ],
)
def test_a_task_that_only_wants_to_end_its_process_fails(one, end, error):
    pid = call(one, os.getpid)
    with pytest.raises(error):
        call(one, end)
    assert call(one, os.getpid) == pid


# -------------------------------------------------------------------------------------------------------------- numbers


def test_no_two_workers_draw_the_same_numbers_even_if_their_starter_had_loaded_numpy(
    start_server, start_node, connect, tmp_path, monkeypatch
):
    (tmp_path / "sitecustomize.py").write_text("import random, numpy.random\nrandom.seed(1)\nnumpy.random.seed(1)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    server = start_server("embedded")
    start_node(server, workers=4)
    client = connect(server)

    def draw(x):
        was_loaded = "numpy" in sys.modules
        import numpy as np

        time.sleep(0.2)  # so that every worker gets one
        return os.getpid(), was_loaded, random.random(), np.random.random()

    rows = client.map(draw, range(8), chunksize=1)

    first = {pid: draws for pid, *draws in reversed(rows)}
    assert len(first) == 4
    assert all(was_loaded for _, was_loaded, *_ in rows)
    assert len({number for _, number, _ in first.values()}) == 4
    assert len({number for _, _, number in first.values()}) == 4


def test_threads_of_numerical_libraries_are_limited_and_the_users_own_limit_wins(
    start_server, start_node, connect, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    server = start_server("embedded")
    start_node(server, workers=2)
    client = connect(server)
    variables = call(client, lambda: dict(os.environ))
    assert variables["OMP_NUM_THREADS"] == "7"
    assert int(variables["OPENBLAS_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)


# ------------------------------------------------------------------------------------------------------------ arguments


def test_arguments_are_what_they_were_when_they_were_submitted(one):
    values = [1, 2]
    future = one.submit(sum, values)
    values.append(1000)
    assert future.result(LIMIT) == 3


def test_what_one_call_shares_it_shares_there_too(one):
    shared: list[int] = []
    assert call(one, lambda a, b, c: (a is b, c["a"] is a), shared, shared, {"a": shared}) == (True, True)
    assert one.map(lambda a, b: a is b, [shared], [shared]) == [True]


def test_tasks_of_a_chunk_share_no_argument_that_was_not_the_same_object(one):
    def task(values):
        values.append(1)
        return len(values)

    assert one.map(task, [[] for _ in range(10)], chunksize=10) == [1] * 10
    again: list[int] = []
    futures = [one.submit(task, again) for _ in range(10)]
    assert [future.result(LIMIT) for future in futures] == [1] * 10


def test_the_callers_own_objects_are_never_changed(one):
    again: list[int] = []
    one.map(lambda values: values.append(1), [again] * 10, chunksize=5)
    assert again == []


def test_the_folder_of_a_run_is_that_of_its_caller(one, tmp_path, monkeypatch):
    before = call(one, os.getcwd)
    monkeypatch.chdir(tmp_path)
    assert Path(call(one, os.getcwd)) == tmp_path
    monkeypatch.undo()
    assert call(one, os.getcwd) == before


def test_a_stream_that_a_tiny_task_replaces_is_back_after_some_hundred_microseconds(cluster):
    def replaces_at_first(number):
        found = sys.stdout
        if number == 70_000:
            sys.stdout = None
        return found is None

    seen = cluster.map(replaces_at_first, range(200_000), chunksize=200_000)
    assert 0 <= sum(seen) < 10_000  # some of its group; ten milliseconds are seventy thousand
    assert not any(seen[100_000:])

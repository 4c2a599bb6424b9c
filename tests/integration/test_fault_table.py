"""What goes wrong in a user's code, in which stage, and what its user sees: a table, as loky has one.

Each cell is one fault in one stage, for a map that gives errors in place, a map that stops at the first, `submit`
and an executor. In each of them the other tasks are done, and the next call works: nothing that a task does is left in
the way.

Law of the file: a fault that ends the process is only put where that process is a worker's.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import faults
import pytest
from integration_support import DEADLINE, lane_of, wait_until, workers_of
from programs import KINDS, ends_with_us, require_kind

import gearmap
from gearmap.jobserver.process import start_job_server
from gearmap.keyfile import load_key, make_key
from gearmap.runtime.noderun import encode_node_config

MEMORY_LIMIT = 250 * faults.MB
TASK_TIMEOUT = 0.3


@dataclass(frozen=True)
class Outcome:
    """The class of the error, and what is in its message."""

    kind: type[BaseException]
    says: str


def unloadable(what: str) -> Outcome:
    return Outcome(gearmap.SerializationError, f"cannot unpickle: {what}")


def unpicklable(what: str) -> Outcome:
    return Outcome(gearmap.SerializationError, f"cannot pickle .*{what}")


def lost(how: str, *, named: bool = True) -> Outcome:
    """A task that could be unpickled is named by its call, one that died of that only by its number."""
    task = r"task \d+ \(.*\)" if named else r"task \d+"
    while_loaded = "" if named else ".*while it was loaded"
    return Outcome(gearmap.WorkerLost, rf"{task} killed its worker once: {how}{while_loaded}.* on node/[01]")


DEATHS = {
    "exit_at_once": "exit code 5",
    "exit_well": "exit code 0",
    "exit_in_c": "exit code 6",
    "segfault": "SIGSEGV",
    "kill": "SIGKILL",
    "terminate": "SIGTERM",
    "out_of_memory": r"memory limit of 250 MB \(it used \d+ MB\)",
}
TIMED_OUT = Outcome(gearmap.TaskTimeout, r"task \d+ \(.*'bad'\)\) ran longer than task_timeout=0\.3 s on node/[01]")

# What is raised in a worker and cannot be raised in the client, where it would mean something else.
NEVER_RAISED = {
    "system_exit": "SystemExit: the culprit",
    "keyboard_interrupt": "KeyboardInterrupt: the culprit",
    "generator_exit": "GeneratorExit: the culprit",
    "stop_iteration": "StopIteration: the culprit",
}
RAISED = {
    "exception": "ValueError: the culprit",
    "unpicklable_exception": "Unpicklable: the culprit",
    "odd_exception": "Odd: the culprit with code 7",
}
NESTED = {"recursion": "RecursionError: maximum recursion depth"}

LOADED_BY_A_WORKER = {
    **{fault: unloadable(text) for fault, text in (RAISED | NEVER_RAISED | NESTED).items()},
    "keyboard_interrupt": Outcome(gearmap.RemoteError, NEVER_RAISED["keyboard_interrupt"]),
    "base_exception": Outcome(faults.Rebellious, "the culprit"),
    **{fault: lost(how, named=False) for fault, how in DEATHS.items()},
}
# The caller's own process: what its code raises there it gets as it is, unless it is an error.
PICKLED_BY_THE_CLIENT = {
    **{fault: unpicklable(text) for fault, text in RAISED.items()},
    "stop_iteration": unpicklable("StopIteration: the culprit"),
    "recursion": unpicklable("nested too deeply"),
    "base_exception": Outcome(faults.Rebellious, "the culprit"),
    "system_exit": Outcome(SystemExit, "the culprit"),
    "keyboard_interrupt": Outcome(KeyboardInterrupt, "the culprit"),
    "generator_exit": Outcome(GeneratorExit, "the culprit"),
}

TABLE: dict[str, dict[str, Outcome]] = {
    "running": {
        "exception": Outcome(ValueError, "^the culprit$"),
        "unpicklable_exception": Outcome(gearmap.RemoteError, "Unpicklable: the culprit\n.*could not be pickled"),
        "odd_exception": Outcome(faults.Odd, "^the culprit with code 7$"),
        "base_exception": Outcome(faults.Rebellious, "^the culprit$"),
        **{fault: Outcome(gearmap.RemoteError, text) for fault, text in NEVER_RAISED.items()},
        "recursion": Outcome(RecursionError, "maximum recursion depth"),
        **{fault: lost(how) for fault, how in DEATHS.items()},
        "endless": TIMED_OUT,
    },
    "loading arguments": LOADED_BY_A_WORKER,
    "loading the function": LOADED_BY_A_WORKER,
    "pickling the result": {
        **{fault: unpicklable(f"the result.*{text}") for fault, text in RAISED.items()},
        "stop_iteration": unpicklable("the result.*StopIteration: the culprit"),
        "base_exception": unpicklable(r"the result.*Rebellious\('the culprit'\)"),
        "system_exit": unpicklable(r"the result.*SystemExit\('the culprit'\)"),
        "keyboard_interrupt": unpicklable(r"the result.*KeyboardInterrupt\('the culprit'\)"),
        "generator_exit": unpicklable(r"the result.*GeneratorExit\('the culprit'\)"),
        "recursion": unpicklable("the result: it is nested too deeply"),
        **{fault: lost(how) for fault, how in DEATHS.items()},
        "endless": TIMED_OUT,
    },
    "loading the result": {
        **{
            fault: Outcome(gearmap.SerializationError, f"cannot be unpickled here: {text}")
            for fault, text in (RAISED | NEVER_RAISED | NESTED).items()
        },
        "base_exception": Outcome(faults.Rebellious, "^the culprit$"),
        "keyboard_interrupt": Outcome(KeyboardInterrupt, "^the culprit$"),
    },
    "pickling the function": PICKLED_BY_THE_CLIENT,
    "pickling arguments": PICKLED_BY_THE_CLIENT,
}
# Only in the first server's table; what a job server has a part in is who serves whom, not what a task raises.
SAMPLE = ("exception", "base_exception", "exit_at_once", "segfault", "endless")

CELLS = [
    pytest.param(kind, stage, fault, id=f"{kind}-{stage}-{fault}".replace(" ", "_"))
    for kind in KINDS
    for stage, row in TABLE.items()
    for fault in row
    if kind == KINDS[0] or fault in SAMPLE
]


def test_the_table_has_every_fault_in_every_stage_where_it_is_one() -> None:
    ending = {*DEATHS, "endless"}
    assert set(TABLE) == set(faults.STAGES)
    for stage, row in TABLE.items():
        by_client = stage in ("pickling the function", "pickling arguments", "loading the result")
        # Nobody limits how long loading may take, but for the run's own timeout.
        left_out = ending if by_client else {"endless"} if stage.startswith("loading") else set()
        assert set(row) == set(faults.FAULTS) - left_out, stage


# --------------------------------------------------------------------------------------------------------- the clusters


@pytest.fixture(autouse=True, scope="module")
def _faults_travel() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(faults)
    yield
    cloudpickle.unregister_pickle_by_value(faults)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, gearmap.Client]]:
    """The client of each kind of job server, with two limited workers; all cells share them."""
    ends: list[Callable[[], object]] = []
    for kind in KINDS:
        require_kind(kind)
    yield {kind: _start(kind, tmp_path_factory.mktemp(kind) / "key", ends) for kind in KINDS}
    for end in reversed(ends):
        end()


def _start(kind: str, key: Path, ends: list[Callable[[], object]]) -> gearmap.Client:
    make_key(key)
    server = start_job_server(kind)
    ends.append(server.stop)
    command = ends_with_us([sys.executable, "-m", "gearmap.runtime.node_main", "0"])
    node = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    ends += [node.wait, node.terminate]
    assert node.stdin is not None
    node.stdin.write(
        encode_node_config(
            servers=((server.host, server.port),),
            keys=(load_key(key, "a test"),),
            workers=2,
            queues=("default",),
            name="node",
            node_id=secrets.token_hex(4),
            memory_limit=MEMORY_LIMIT,
        ).reveal()
    )
    node.stdin.close()
    client = gearmap.Client(f"{server.host}:{server.port}", key=key)
    ends.append(client.close)
    wait_until(lambda: workers_of(server, lane_of(key)) == 2, "the node serves")
    client.map(abs, [-1])  # its driver starts now, and not with the first cell
    return client


# ------------------------------------------------------------------------------------------------------------ the cells


def check(error: object, expected: Outcome) -> None:
    assert isinstance(error, BaseException), error
    assert type(error).__name__ == expected.kind.__name__, repr(error)
    assert re.search(expected.says, str(error), re.DOTALL), str(error)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "stage", "fault"), CELLS)
def test_a_fault_is_its_tasks_own(kind: str, stage: str, fault: str, clients: dict[str, gearmap.Client]) -> None:
    client = clients[kind]
    expected = TABLE[stage][fault]
    fn, bad = faults.STAGES[stage](faults.FAULTS[fault])
    options = client.options(max_worker_losses=1, task_timeout=TASK_TIMEOUT if fault == "endless" else None)
    of_function = "the function" in stage  # no task of it can be well
    # Every worker has to say that it cannot load a function; on a busy machine one may hear of it late.
    patience = 4 * DEADLINE if of_function else DEADLINE

    _check_map(options, fn, bad, expected, of_function)
    with pytest.raises(BaseException) as stopped:
        options.map(fn, [bad] if of_function else [0, bad, 2], chunksize=1, timeout=patience)
    check(stopped.value, expected)
    with pytest.raises(BaseException) as alone:
        options.submit(fn, bad).result(patience)
    check(alone.value, expected)
    with options.executor(2) as executor:
        with pytest.raises(BaseException) as of_executor:
            executor.submit(fn, bad).result(patience)
        check(of_executor.value, expected)
        assert executor.submit(abs, -4).result(DEADLINE) == 4
        assert list(executor.map(abs, [-5, -6], timeout=DEADLINE)) == [5, 6]

    assert client.submit(abs, -1).result(DEADLINE) == 1
    assert client.map(abs, [-2, -3], timeout=DEADLINE) == [2, 3]


def _check_map(options: Any, fn: Any, bad: Any, expected: Outcome, of_function: bool) -> None:
    """A map that gives failures in place does every other task; only what its caller's own process raised ends it."""
    values = [bad] if of_function else [0, 1, bad, 3]
    try:
        results = options.map(fn, values, chunksize=1, return_exceptions=True, timeout=4 * DEADLINE)
    except BaseException as error:
        check(error, expected)
        assert not issubclass(expected.kind, gearmap.TaskError)
        return
    at = values.index(bad)
    check(results[at], expected)
    assert results[:at] + results[at + 1 :] == [-value for value in values if value is not bad]


# --------------------------------------------------------------------------------------------------------- initializers

# An initializer is nobody's task: it breaks the run or the executor that has it, and no other. Its time has no limit.
IN_INITIALIZER = {
    **(RAISED | NEVER_RAISED | NESTED),
    "base_exception": "Rebellious: the culprit",
    **{fault: f"its process ended: {how}" for fault, how in DEATHS.items()},
}


@pytest.mark.parametrize("fault", IN_INITIALIZER)
def test_a_fault_in_an_initializer_breaks_what_has_it_and_nothing_else(
    fault: str, clients: dict[str, gearmap.Client]
) -> None:
    client = clients[KINDS[0]]
    expected = Outcome(gearmap.ClusterBroken, rf"the initializer failed on node/[01]: .*{IN_INITIALIZER[fault]}")
    options = client.options(initializer=faults.FAULTS[fault], max_worker_losses=1)

    for call in (
        lambda: options.map(abs, [-1, -2], return_exceptions=True, timeout=DEADLINE),
        lambda: options.submit(abs, -1).result(DEADLINE),
    ):
        with pytest.raises(gearmap.ClusterBroken) as caught:
            call()
        check(caught.value, expected)
    with options.executor(2) as executor:
        with pytest.raises(BrokenExecutor) as of_executor:
            executor.submit(abs, -1).result(DEADLINE)
        check(of_executor.value, expected)
        with pytest.raises(BrokenExecutor):
            executor.submit(abs, -2)

    assert client.map(abs, [-2, -3], timeout=DEADLINE) == [2, 3]


def test_every_fault_that_ends_is_tried_in_an_initializer() -> None:
    assert set(IN_INITIALIZER) == set(faults.FAULTS) - {"endless"}


# ------------------------------------------------------------------------------------------- several tasks in one chunk


@pytest.mark.parametrize("stage", ["running", "pickling the result"])
def test_in_a_chunk_only_the_task_that_ends_its_process_is_lost(stage: str, clients: dict[str, gearmap.Client]) -> None:
    fn, bad = faults.STAGES[stage](faults.exit_at_once)
    values = [*range(5), bad, *range(6, 12)]

    results = (
        clients[KINDS[0]]
        .options(max_worker_losses=1)
        .map(fn, values, chunksize=12, return_exceptions=True, timeout=DEADLINE)
    )

    check(results[5], Outcome(gearmap.WorkerLost, r"task 5 \(.*\) killed its worker once: exit code 5"))
    del results[5], values[5]
    assert results == [-value for value in values]


# ----------------------------------------------------------------------------------------------------------------- idle


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_ends_while_it_is_idle_costs_nobody_anything(
    kind: str, number: int, clients: dict[str, gearmap.Client]
) -> None:
    client = clients[kind]
    options = client.options(max_worker_losses=1)
    for _ in range(5):
        os.kill(client.submit(os.getpid).result(DEADLINE), number)
        # At once: the node may not know of it yet.
        assert options.map(abs, range(-4, 0), chunksize=1, timeout=DEADLINE) == [4, 3, 2, 1]

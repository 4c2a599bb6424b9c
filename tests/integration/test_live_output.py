"""What a long task prints reaches whoever waits while it runs, and is printed once."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any

import pytest
from integration_support import in_background, wait_until

import gearmap

LIMIT = 60.0

pytestmark = pytest.mark.usefixtures("functions_travel")


@pytest.fixture
def gate(tmp_path):
    """A file that tasks wait for."""
    return str(tmp_path / "go on")


def wait_for(gate):
    until = time.monotonic() + LIMIT
    while not os.path.exists(gate) and time.monotonic() < until:
        time.sleep(0.01)


def open_gate(gate):
    open(gate, "x").close()


@pytest.fixture
def screens(monkeypatch):
    """Puts screens in the place of the standard streams; called by the test, since pytest replaces them before."""

    def put() -> tuple[io.StringIO, io.StringIO]:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return put


def talks(gate):
    print("first")
    print("oh", file=sys.stderr)
    os.write(1, b"past Python\n")
    print("half a line", end="", flush=True)
    wait_for(gate)
    print(", and the rest")
    return "done"


def test_a_map_prints_what_its_tasks_write_while_they_run_and_only_once(cluster, gate, screens):
    out, err = screens()
    result = in_background(lambda: cluster.map(talks, [gate]))
    wait_until(lambda: "first\n" in out.getvalue() and "past Python\n" in out.getvalue(), "it is printed live")
    wait_until(lambda: err.getvalue() == "oh\n", "it is printed live")
    assert "half" not in out.getvalue()
    open_gate(gate)
    assert result() == ["done"]
    assert sorted(out.getvalue().splitlines()) == ["first", "half a line, and the rest", "past Python"]
    assert err.getvalue() == "oh\n"
    assert sorted(gearmap.last().output(0).stdout.splitlines()) == sorted(out.getvalue().splitlines())


def test_an_imap_prints_live_while_its_next_result_is_waited_for(cluster, gate, screens):
    out, _ = screens()
    results = cluster.imap(talks, [gate])
    result = in_background(lambda: next(results))
    wait_until(lambda: "first\n" in out.getvalue(), "it is printed live")
    open_gate(gate)
    assert result() == "done"
    assert sorted(out.getvalue().splitlines()) == ["first", "half a line, and the rest", "past Python"]
    results.close()


def test_a_task_that_fails_after_it_has_talked_is_not_heard_twice(cluster, gate, screens):
    def task(gate):
        print("before")
        wait_for(gate)
        print("last words")
        os._exit(3)

    out, _ = screens()
    result = in_background(
        lambda: cluster.options(max_worker_losses=1).map(task, [gate], return_exceptions=True, chunksize=1)
    )
    wait_until(lambda: out.getvalue() == "before\n", "it is printed live")
    open_gate(gate)
    (error,) = result()
    assert isinstance(error, gearmap.WorkerLost)
    assert out.getvalue() == "before\nlast words\n"


def test_the_output_of_a_future_grows_while_its_task_runs(cluster, gate):
    future = cluster.submit(talks, gate)
    wait_until(lambda: sorted(future.stdout.splitlines()) == ["first", "past Python"], "the future tells")
    assert future.stderr == "oh\n"
    open_gate(gate)
    assert future.result(LIMIT) == "done"
    assert sorted(future.stdout.splitlines()) == ["first", "half a line, and the rest", "past Python"]


def test_a_flood_is_shown_in_part_while_it_lasts_and_its_end_when_it_is_over(cluster, screens):
    def task(seconds):
        until = time.monotonic() + seconds
        count = 0
        while time.monotonic() < until:
            print("x" * 99)
            count += 1
        print("the end")
        return count

    out, _ = screens()
    (count,) = cluster.map(task, [1.5])
    assert count * 100 > 2_000_000
    assert out.getvalue().endswith("x\nthe end\n")
    assert " bytes left out ..." in out.getvalue()
    assert len(out.getvalue()) < 400_000


def test_what_is_printed_for_a_map_in_the_background_is_printed_in_the_context_of_its_caller(cluster, monkeypatch):
    import contextvars

    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell")
    seen: list[Any] = []

    class Routed(io.StringIO):
        def write(self, text: str) -> int:
            seen.append(cell.get("nowhere"))
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Routed())
    cell.set("first cell")
    run = cluster.map_async(print, "ab")
    cell.set("second cell")
    run.result(LIMIT)
    assert set(seen) == {"first cell"}

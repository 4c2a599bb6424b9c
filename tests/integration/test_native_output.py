"""What C code and started programs write to the descriptors 1 and 2 is the task's output, too."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time

import psutil
import pytest

import gearmap
from gearmap import TaskTimeout, WorkerLost

LIMIT = 60.0

pytestmark = pytest.mark.usefixtures("functions_travel")


def writes(x):
    libc = ctypes.CDLL(None)
    libc.printf(b"from C %d\n", ctypes.c_int(x))
    os.write(2, b"to descriptor 2\n")
    print("from Python", x)
    subprocess.run([sys.executable, "-c", f"print('from a program', {x})"], check=True)
    libc.printf(b"no line")
    return x


def expected(x):
    return sorted([f"from C {x}", f"from Python {x}", f"from a program {x}", "no line"])


def test_what_a_call_writes_past_python_comes_with_its_result(cluster):
    futures = [cluster.submit(writes, x) for x in range(3)]
    assert [future.result(LIMIT) for future in futures] == [0, 1, 2]
    assert [sorted(future.stdout.splitlines()) for future in futures] == [expected(x) for x in range(3)]
    assert [future.stderr for future in futures] == ["to descriptor 2\n"] * 3


def test_each_task_of_a_chunk_has_its_own(cluster, capfd):
    def task(x):
        os.write(1, b"%d\n" % x)
        return x

    assert cluster.map(task, range(50), chunksize=25) == list(range(50))
    run = gearmap.last()
    assert [run.output(x).stdout for x in range(50)] == [f"{x}\n" for x in range(50)]
    assert sorted(capfd.readouterr().out.split()) == sorted(str(x) for x in range(50))


def test_what_a_task_wrote_past_python_before_it_died_comes_with_its_failure(cluster):
    def task():
        print("from Python")
        ctypes.CDLL(None).printf(b"from C\n")
        ctypes.string_at(0)

    future = cluster.options(max_worker_losses=1).submit(task)
    assert isinstance(future.exception(LIMIT), WorkerLost)
    assert sorted(future.stdout.splitlines()) == ["from C", "from Python"]


def test_what_a_long_task_wrote_past_python_is_whole_whoever_read_it(cluster):
    def task(last_words):
        for number in range(4):
            os.write(1, b"%d\n" % number)
            time.sleep(0.15)
        time.sleep(last_words)
        return "done"

    future = cluster.submit(task, 0)
    assert future.result(LIMIT) == "done"
    assert future.stdout == "0\n1\n2\n3\n"
    future = cluster.options(task_timeout=1.0).submit(task, 60)
    assert isinstance(future.exception(LIMIT), TaskTimeout)
    assert future.stdout == "0\n1\n2\n3\n"


def test_a_hundred_megabytes_past_python_neither_stop_nor_fill_anything(cluster):
    def task():
        block = b"x" * 999_999 + b"\n"
        os.write(1, b"the beginning\n")
        for _ in range(100):
            os.write(1, block)
        os.write(1, b"the end\n")
        return os.getppid()

    future = cluster.submit(task)
    starter = psutil.Process(future.result(LIMIT))
    assert future.stdout.startswith("the beginning\nxxx")
    assert future.stdout.endswith("xxx\nthe end\n")
    assert " bytes left out ..." in future.stdout
    assert len(future.stdout) < 300_000
    assert starter.parent().memory_info().rss < 300 * 1024 * 1024


def test_what_is_printed_after_a_program_has_written_stands_after_it(cluster):
    def task():
        subprocess.run(["echo", "one"], check=True)
        print("two")
        subprocess.run(["echo", "three"], check=True)

    future = cluster.submit(task)
    future.result(LIMIT)
    assert future.stdout == "one\ntwo\nthree\n"

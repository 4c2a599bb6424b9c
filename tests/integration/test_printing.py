"""What tasks of maps print comes back to whoever takes their results."""

from __future__ import annotations

import sys

import pytest

import gearmap


def speaks(x):
    print("task", x)
    if x == 2:
        print("oh", file=sys.stderr)
        raise ValueError(x)
    return x


def test_a_map_prints_what_its_tasks_printed(cluster, capsys):
    results = cluster.map(speaks, [0, 1, 2, 3], return_exceptions=True, chunksize=2)
    assert results[:2] == [0, 1]
    printed = capsys.readouterr()
    assert sorted(printed.out.splitlines()) == [f"task {x}" for x in range(4)]
    assert printed.err == "oh\n"


def test_an_imap_prints_with_each_result(cluster, capsys):
    results = cluster.imap(speaks, [0, 1, 2])
    assert next(results) == 0
    assert capsys.readouterr().out.startswith("task 0\n")
    with pytest.raises(ValueError, match="2"):
        list(results)
    assert capsys.readouterr().out.endswith("task 2\n")


def test_nothing_is_printed_to_a_stream_that_is_not_there(cluster, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cluster.map(speaks, [0, 1]) == [0, 1]


def test_tasks_with_their_own_streams_bother_nobody(cluster, capsys):
    with gearmap.GearmanExecutor(1, servers=None) as executor:
        future = executor.submit(speaks, 1)
        assert future.result() == 1
        assert future.stdout == "task 1\n"
    assert capsys.readouterr().out == ""

"""Clocks that disagree, for real: the node's is another (libfaketime)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

import gearmap

HOUR = 3600


@pytest.fixture
def shifted(tmp_path):
    """A function that makes an interpreter whose wall clock is so many seconds ahead."""
    if shutil.which("faketime") is None:
        if os.environ.get("CI"):
            pytest.fail("faketime is missing")
        pytest.skip("faketime is missing")
    # Where its library is, it knows itself.
    asked = subprocess.run(["faketime", "-f", "+0s", "env"], capture_output=True, text=True, check=True)
    (preload,) = re.findall(r"^LD_PRELOAD=(\S+)$", asked.stdout, re.M)

    def make(seconds):
        path = tmp_path / f"python{seconds}"
        path.write_text(
            "#!/bin/sh\n"
            f"export LD_PRELOAD='{preload}' FAKETIME={seconds:+d}s FAKETIME_DONT_FAKE_MONOTONIC=1\n"
            f'exec {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def server(kind, start_server):
    return start_server(kind)


def wall_clock():
    import time

    return time.time()


@pytest.mark.parametrize("hours", [-30, -2, 2, 23])
def test_clocks_that_are_apart_do_not_matter_for_a_day(server, start_node, connect, shifted, hours):
    import numpy

    start_node(server, interpreter=shifted(hours * HOUR))
    client = connect(server)
    table = numpy.arange(2**19)  # travels as a blob, which nodes ask for
    apart = client.submit(wall_clock).result(30) - wall_clock()
    assert abs(apart - hours * HOUR) < 60
    assert client.map(lambda n: int(table[n]), range(20)) == list(range(20))
    assert len(client.on_every_worker(os.getpid)) == 2


def test_a_clock_that_is_days_ahead_is_told_with_ours(server, start_node, connect, shifted):
    start_node(server, interpreter=shifted(50 * HOUR))
    client = connect(server)
    with pytest.raises(gearmap.ClockSkew, match="clocks are too far apart") as caught:
        client.map(abs, range(10))
    theirs, ours = re.findall(r"it is (\S+ \S+ UTC) on node/\d, and (\S+ \S+ UTC) here", str(caught.value))[0]
    assert theirs > ours
    with pytest.raises(gearmap.ClockSkew):
        client.submit(abs, -1).result(30)


def test_one_wrong_clock_among_right_ones_stops_nobody(server, start_node, connect, shifted, caplog):
    start_node(server, name="right")
    client = connect(server)
    client.map(abs, range(4))
    start_node(server, name="wrong", workers=1, interpreter=shifted(50 * HOUR))

    def work(number):
        import time

        time.sleep(0.05)
        return -number

    assert client.map(work, range(-100, 0), chunksize=5) == list(range(100, 0, -1))
    (told,) = {record.getMessage() for record in caplog.records if getattr(record, "action", "") == "expired"}
    assert re.search(r"it is \S+ \S+ UTC on wrong/0", told)

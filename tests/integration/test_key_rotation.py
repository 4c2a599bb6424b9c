"""The key of a cluster is changed while it works: host by host, with jobs running, without a restart of any node."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from integration_support import in_background, lane_of, wait_until, workers_of

import gearmap
from gearmap.core.names import control_name
from gearmap.keyfile import finish_rotation, load_keys, start_rotation, step_back, switch_keys
from gearmap.wire.seal import key_id

# Two nodes of two workers each.
ALL = 4


def wait_for_file(path: str) -> str:
    """A task that lasts until a file is there."""
    until = time.monotonic() + 60.0
    while not Path(path).exists() and time.monotonic() < until:
        time.sleep(0.01)
    return path


def nested(n: int) -> list[int]:
    return gearmap.map(abs, range(-n, 0), progress=False)


def total(array: np.ndarray) -> float:
    return float(array.sum())


@pytest.fixture
def hosts(kind, start_server, start_node, key_file, tmp_path):
    """A job server, and the key files of two hosts, each with a node."""
    server = start_server(kind)
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o700)
        files.append(tmp_path / name / "key")
        shutil.copy(key_file, files[-1])  # its mode is copied, too
        start_node(server, key=files[-1], key_file=str(files[-1]), name=name)
    return server, files


def copied_to(path, key_file):
    """Copy a key file to a host, as a person would: written in place, not moved there."""
    path.write_bytes(key_file.read_bytes())


def serving(server, keys):
    return [workers_of(server, lane_of_key(each)) for each in keys]


def lane_of_key(secret):
    from gearmap.core.names import Lane
    from gearmap.runtime.sessions import _PYTHON

    return Lane("default", _PYTHON, key_id(secret)).name


class Steady:
    """A client that maps all the time, and what went wrong."""

    def __init__(self, client):
        self.maps = 0
        self.wrong = []
        self._client = client
        self._ends = threading.Event()
        self._result = in_background(self._work)

    def _work(self):
        while not self._ends.is_set():
            got = self._client.map(abs, range(-40, 0), chunksize=5, progress=False)
            if got != list(range(40, 0, -1)):
                self.wrong.append(got)
            self.maps += 1

    def more(self):
        """Wait until some maps more are done."""
        wanted = self.maps + 3
        wait_until(lambda: self.maps >= wanted, "the client maps on")

    def end(self):
        self._ends.set()
        self._result()
        assert not self.wrong


def test_a_key_is_changed_host_by_host_while_clients_work(hosts, connect, key_file):
    server, files = hosts
    first = load_keys(key_file, "a test").current
    old_client, before_switch = connect(server), Steady(connect(server))
    before_switch.more()

    new = start_rotation(key_file, "a test").other
    for path in files:  # one host has the file, then both
        copied_to(path, key_file)
        before_switch.more()
    wait_until(lambda: serving(server, [first, new]) == [ALL, ALL], "all workers accept both keys")

    switch_keys(key_file, "a test")
    after_switch = Steady(connect(server))  # it seals with the new key; no node has this file yet
    for path in files:
        after_switch.more()
        copied_to(path, key_file)
        before_switch.more()
    wait_until(lambda: len(files) == 2 and serving(server, [first, new]) == [ALL, ALL], "both are still accepted")
    assert old_client.map(total, [np.ones(300_000)] * 3, progress=False) == [300_000.0] * 3  # its arrays come by a blob

    before_switch.end()
    release = key_file.parent / "release"
    lasting = old_client.submit(wait_for_file, str(release))
    wait_until(lasting.running, "the lasting task runs")
    finish_rotation(key_file, "a test")
    for path in files:
        copied_to(path, key_file)
        after_switch.more()
    # The worker that has a job gives nothing back before it is done: a job server would take the job away.
    wait_until(lambda: serving(server, [first, new]) == [1, ALL], "the old key is served by one worker")

    # What it held when its key was taken away is done, and comes back.
    release.touch()
    assert lasting.result(30) == str(release)
    wait_until(lambda: serving(server, [first, new]) == [0, ALL], "the old key is not served any more")
    after_switch.end()
    says = rf"with your key \({key_id(first)}\) .* 4 have another key \({key_id(new)}\)"
    with pytest.warns(RuntimeWarning, match=says), pytest.raises(gearmap.RunTimeout):
        old_client.map(abs, [-1], timeout=3, progress=False)


def test_whatever_derives_from_a_key_uses_the_one_that_came_in(hosts, connect, key_file):
    server, files = hosts
    clients = [connect(server)]
    keys = start_rotation(key_file, "a test")
    switch_keys(key_file, "a test")
    clients.append(connect(server))
    for path in files:
        copied_to(path, key_file)
    wait_until(lambda: serving(server, keys.accepted) == [ALL, ALL], "all workers accept both keys")

    for client in clients:
        assert client.map(nested, [3], progress=False) == [[3, 2, 1]]
        big = np.arange(400_000.0)
        assert client.map(lambda n, big=big: float(big.sum()) + n, range(4), progress=False)[0] == float(big.sum())
        assert client.map(lambda n: np.full(300_000, n), [7], progress=False)[0].sum() == 2_100_000
        everywhere = client.on_every_worker(abs, -5)
        assert list(everywhere.values()) == [5] * ALL
        status = client.status()
        assert {node.seen is not None for node in status.nodes} == {True}
        assert {node.key_id for node in status.nodes} == {", ".join(sorted(map(key_id, keys.accepted)))}


def test_a_file_that_is_spoilt_or_undone_leaves_the_node_at_work(hosts, connect, key_file):
    server, files = hosts
    client = connect(server)
    before = load_keys(key_file, "a test")
    keys = start_rotation(key_file, "a test")
    copied_to(files[0], key_file)
    wait_until(lambda: serving(server, keys.accepted) == [ALL, 2], "one node accepts both")
    files[0].write_bytes(key_file.read_bytes()[:90])  # a copy that broke off
    files[1].unlink()
    assert client.map(abs, range(-40, 0), chunksize=2, progress=False) == list(range(40, 0, -1))
    assert step_back(key_file, "a test") == before
    for path in files:
        path.write_bytes(key_file.read_bytes())
        path.chmod(0o600)
    wait_until(lambda: serving(server, keys.accepted) == [ALL, 0], "the new key is forgotten")
    assert client.map(abs, [-1], progress=False) == [1]


def test_the_names_of_a_node_that_leaves_go_with_it_for_all_keys_that_it_had(
    kind, start_server, start_node, key_file, connect
):
    server = start_server(kind)
    node = start_node(server, key_file=str(key_file))
    keys = start_rotation(key_file, "a test")
    wait_until(lambda: serving(server, keys.accepted) == [2, 2], "it accepts both")
    (described,) = connect(server).status().nodes
    names = [control_name(described.node_id, key_id(each)) for each in keys.accepted]
    assert [workers_of(server, name) for name in names] == [1, 1]
    assert lane_of(key_file) == lane_of_key(keys.current)
    switch_keys(key_file, "a test")
    finish_rotation(key_file, "a test")
    wait_until(lambda: serving(server, keys.accepted) == [0, 2], "the old key is gone")
    node.stop()

    from gearmap.transport import admin

    left = {row.function for row in admin.server_status((server.host, server.port), 5.0)}
    assert not left & set(names)

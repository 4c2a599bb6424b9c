"""Clients share workers by chunks, priorities order what waits, queues do not meet."""

from __future__ import annotations

import time

import pytest
from integration_support import in_background, wait_until
from programs import KINDS, require_kind

pytestmark = pytest.mark.parametrize("kind", KINDS)

# Of which each client should have had half.
COUNTED = 100


@pytest.fixture(autouse=True)
def _has_server(kind):
    require_kind(kind)


def logged(path):
    return path.read_text().split() if path.exists() else []


def writer(path, name, seconds=0.0):
    """A task that writes down whose it is."""

    def work(x):
        with path.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(seconds)

    return work


def test_two_clients_with_long_maps_get_equal_shares_of_chunks(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    start_node(server)
    log = tmp_path / "log"
    begin = {}
    for name in ("one", "two"):
        client, task = connect(server), writer(log, name, 0.02)
        begin[name] = in_background(lambda client=client, task=task: client.map(task, range(200), chunksize=1))
    for result in begin.values():
        result()

    names = logged(log)
    both = names[max(names.index("one"), names.index("two")) :][:COUNTED]
    assert 0.8 * COUNTED / 2 <= both.count("one") <= 1.2 * COUNTED / 2


def test_a_client_that_comes_late_does_not_wait_for_the_end_of_a_long_map(
    kind, start_server, start_node, connect, tmp_path
):
    server = start_server(kind)
    start_node(server)
    log = tmp_path / "log"
    long = in_background(lambda: connect(server).map(writer(log, "long", 0.02), range(200), chunksize=1))
    wait_until(lambda: len(logged(log)) > 20, "the long map runs")

    connect(server).map(writer(log, "late"), range(4), chunksize=1)

    assert logged(log).count("long") < 150
    long()


def test_priorities_order_what_waits(kind, start_server, start_node, connect, tmp_path):
    server = start_server(kind)
    start_node(server, workers=1)
    client = connect(server)
    log, free = tmp_path / "log", tmp_path / "free"
    held = tmp_path / "held"

    def hold():
        held.touch()
        while not free.exists():
            time.sleep(0.01)

    first = client.submit(hold)
    wait_until(held.exists, "the only worker is busy")
    futures = []
    for sent, priority in enumerate(("low", "normal", "high"), 1):
        futures.append(client.options(priority=priority).submit(writer(log, priority), 0))
        wait_until(lambda sent=sent: jobs_of(server) == 1 + sent, "it waits at the server")
    free.touch()
    for future in (first, *futures):
        future.result(30)

    assert logged(log) == ["high", "normal", "low"]


def jobs_of(server):
    from gearmap.transport import admin

    return sum(row.total for row in admin.server_status((server.host, server.port), 5.0))


def test_queues_do_not_meet(kind, start_server, start_node, connect):
    server = start_server(kind)
    start_node(server, name="plain")
    start_node(server, name="special", queue="gpu")
    client = connect(server)

    def where(x):
        import gearmap

        time.sleep(0.005)
        return gearmap.current_task().worker.partition("/")[0]

    assert set(client.map(where, range(60), chunksize=1)) == {"plain"}
    assert set(client.map(where, range(60), chunksize=1, queue="gpu")) == {"special"}

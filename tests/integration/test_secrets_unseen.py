"""The key of a cluster is where it is needed, and nowhere else: not in a child, a job server, a line, a repr."""

from __future__ import annotations

import gc
import io
import logging
import subprocess
import sys
import textwrap
import time
import traceback
from pathlib import Path

import numpy as np
import psutil
import pytest
from integration_support import wait_until
from memory_search import found_in
from programs import ends_with_us

import gearmap
from gearmap.keyfile import load_key, start_rotation
from gearmap.runtime import sessions
from gearmap.runtime.noderun import encode_node_config

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
MARKER = b"only in the memory of " + b"this task"


def nested(n):
    return sum(gearmap.map(abs, range(n), progress=False))


def forms(secret: bytes) -> dict[str, bytes]:
    """What a key could look like in memory or in a text."""
    text = secret.hex()
    return {"bytes": secret, "hex": text.encode(), "HEX": text.upper().encode(), "repr": repr(secret)[2:-1].encode()}


def shown(text: str, secret: bytes) -> list[str]:
    return [name for name, each in forms(secret).items() if each.decode("latin-1") in text]


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def everything_said_of(value: object) -> str:
    try:
        return f"{value!r}\n{value!s}"
    except Exception as error:  # some objects cannot be shown while they are made
        return repr(error)


def all_frames() -> str:
    """The local variables of every frame of every thread of this process."""
    lines = []
    for frame in sys._current_frames().values():
        at = frame
        while at is not None:
            if "gearmap" in at.f_code.co_filename and "tests" not in at.f_code.co_filename:
                lines += [f"{name} = {everything_said_of(value)}" for name, value in list(at.f_locals.items())]
            at = at.f_back
    return "\n".join(lines)


def all_objects() -> str:
    """The repr of every object of gearmap's own classes in this process."""
    return "\n".join(
        everything_said_of(each) for each in gc.get_objects() if str(type(each).__module__).startswith("gearmap")
    )


@linux_only
def test_no_child_and_no_job_server_has_the_key_in_its_memory(
    kind, start_server, start_node, connect, key_file, monkeypatch
):
    server = start_server(kind)
    node = start_node(server, key_file=str(key_file))
    drawn = []
    new_session = sessions.new_session

    def remembered(secret, queue):
        drawn.append(new_session(secret, queue))
        return drawn[-1]

    monkeypatch.setattr("gearmap.backend.new_session", remembered)
    client = connect(server)
    client.map(nested, [50, 60], progress=False)
    big = np.ones(300_000)
    client.map(lambda n: big.sum() + n, range(4), progress=False)
    client.on_every_worker(abs, -1)
    release = key_file.parent / "release"

    def keeps_something(path):
        here = bytes(MARKER)
        while not Path(path).exists():
            time.sleep(0.01)
        return len(here)

    running = client.submit(keeps_something, str(release))
    wait_until(running.running, "the task runs")
    secret = load_key(key_file, "a test").reveal()
    wanted = forms(secret) | {f"session {n}": each.key for n, each in enumerate(drawn)} | {"marker": MARKER}
    assert len(drawn) >= 3
    # That the search finds what is there: the node has the key, and a child the task's own bytes.
    assert "bytes" in found_in(node.pid, {"bytes": secret})
    found = {child.pid: found_in(child.pid, wanted) for child in node.children()}
    release.touch()
    assert running.result(30) == len(MARKER)
    assert len(found) >= 4
    assert {name for names in found.values() for name in names} == {"marker"}
    assert found_in(server.pid, forms(secret)) == set()


@linux_only
def test_no_child_of_a_local_cluster_has_the_key_in_its_memory_or_environment(kind):
    with gearmap.LocalCluster(2, server=kind) as cluster:
        assert cluster.map(nested, [3, 4], progress=False) == [3, 6]
        secret = cluster._processes.secret.reveal()
        server, node = cluster._processes.pids
        assert found_in(node, {"bytes": secret}) == {"bytes"}
        children = psutil.Process(node).children(recursive=True)
        assert len(children) >= 4
        for process in (psutil.Process(server), *children):
            assert found_in(process.pid, forms(secret)) == set()
        for process in (*family(server), *family(node)):
            assert not shown("\0".join([*process.cmdline(), *map(str, process.environ().items())]), secret)


def test_nothing_of_a_client_shows_its_key(kind, start_server, start_node, connect, key_file, caplog):
    caplog.set_level(logging.DEBUG)
    server = start_server(kind)
    start_node(server)
    client = connect(server)
    secret = load_key(key_file, "a test").reveal()
    told = io.StringIO()
    logging.getLogger().addHandler(handler := logging.StreamHandler(told))
    try:
        looks = []

        def look():
            looks.append(all_frames() + all_objects())
            return True

        assert client.map(abs, (-n for n in range(400) if n % 100 or look()), chunksize=7, progress=False) == list(
            range(400)
        )
        client.on_every_worker(abs, -1)
        client.status()
    finally:
        logging.getLogger().removeHandler(handler)
    assert len(looks) == 4
    assert "Client" in looks[0]
    for text in (*looks, told.getvalue(), caplog.text, repr(client), str(client.status())):
        assert not shown(text, secret)


def failures(client, key_file):
    """Errors as people get them, from each way in."""

    key = load_key(key_file, "a test")

    def fails(n):
        raise ValueError(n)

    calls = [
        lambda: client.map(fails, range(3), progress=False),
        lambda: client.map(abs, [-1], timeout=1.0, queue="nobody", progress=False),
        lambda: client.submit(fails, 1).result(30),
        lambda: client.map(lambda n: n, [client], progress=False),
        lambda: client.map(lambda n: repr(key), [1], progress=False),
        lambda: gearmap.Client("192.0.2.1", key=key_file.with_name("none")),
        lambda: gearmap.Client(["127.0.0.1", "a b:x"], key=key_file),
        lambda: encode_node_config(servers=(), keys=(key,), workers=object(), queues=(), name="", node_id=""),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except BaseException as error:
            yield error
        else:
            pytest.fail(f"call {number} did not fail")


@pytest.mark.filterwarnings("ignore:no worker serves")
def test_no_traceback_shows_the_key_not_with_local_variables_either(kind, start_server, start_node, connect, key_file):
    import rich.console
    import rich.traceback

    server = start_server(kind)
    start_node(server)
    client = connect(server)
    secret = load_key(key_file, "a test").reveal()
    for error in failures(client, key_file):
        console = rich.console.Console(file=io.StringIO(), width=300)
        console.print(
            rich.traceback.Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True)
        )
        texts = [console.file.getvalue()]
        while error is not None:  # what `from None` hides is there, too
            described = traceback.TracebackException(type(error), error, error.__traceback__, capture_locals=True)
            texts.append("".join(described.format()))
            error = error.__context__
        assert "key_file = " in texts[1]
        assert [shown(text, secret) for text in texts] == [[]] * len(texts)


LOOKING_NODE = """
    import sys, threading, time
    from pathlib import Path

    sys.path[:0] = {path!r}
    from test_secrets_unseen import all_frames, all_objects

    def look():
        while not Path({place!r} + "/look").exists():
            time.sleep(0.01)
        text = all_frames() + all_objects()
        Path({place!r} + "/seen.part").write_text(text)
        Path({place!r} + "/seen.part").rename({place!r} + "/seen")

    threading.Thread(target=look, daemon=True).start()
    sys.argv = ["node_main", "0"]
    from gearmap.runtime.node_main import main
    sys.exit(main())
"""


def test_nothing_of_a_node_shows_its_key(kind, start_server, connect, key_file, tmp_path):
    server = start_server(kind)
    secret = load_key(key_file, "a test")
    script = LOOKING_NODE.format(path=[entry for entry in sys.path if entry], place=str(tmp_path))
    config = encode_node_config(
        servers=((server.host, server.port),),
        keys=(secret,),
        key_file=str(key_file),
        workers=1,
        queues=("default",),
        name="node",
        node_id="1-2",
        quiet=False,
        verbose=True,
    )
    node = subprocess.Popen(
        ends_with_us([sys.executable, "-c", textwrap.dedent(script)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert node.stdin is not None
    node.stdin.write(config.reveal())
    node.stdin.close()
    node.stdin = None
    try:
        client = connect(server)
        client.wait_for_workers(1, timeout=30)
        assert client.map(nested, [2], progress=False) == [1]
        (tmp_path / "look").touch()
        wait_until((tmp_path / "seen").exists, "it has looked")
        start_rotation(key_file, "a test")
        client.map(abs, range(3), progress=False)
    finally:
        node.terminate()
        said, _ = node.communicate(timeout=30)
    seen = (tmp_path / "seen").read_text()
    assert "NodeSettings(" in seen
    assert "<Keyring " in seen
    assert not shown(seen, secret.reveal())
    assert b"ended" in said
    assert not shown(said.decode(), secret.reveal())

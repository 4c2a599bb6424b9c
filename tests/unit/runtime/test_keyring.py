"""The keys of a node: what opens under which, and what a changed key file changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gearmap.core.names import Lane, control_name
from gearmap.errors import SealError
from gearmap.keyfile import Keys, load_keys, make_key, start_rotation
from gearmap.runtime.control import ControlDesk
from gearmap.runtime.crew import Crew, Worker
from gearmap.runtime.keyring import KEPT_SESSIONS, Keyring, key_id_of
from gearmap.runtime.keywatch import KeyWatch
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.runtime.work import JobOpener
from gearmap.secret import Secret
from gearmap.transport.events import AssignedJob
from gearmap.wire import envelope, seal
from gearmap.wire.jobheader import JobHeader

OLD, NEW = Secret(b"o" * 32), Secret(b"n" * 32)
OLD_ID, NEW_ID = seal.key_id(OLD), seal.key_id(NEW)
SESSION = b"s" * 16
PYTHON = (3, 11)


def settings_of(*keys: Secret, queues: tuple[str, ...] = ("default",)) -> NodeSettings:
    return NodeSettings(
        servers=(("127.0.0.1", 4730),),
        keys=Keyring(keys),
        workers=2,
        queues=queues,
        name="host",
        node_id="1-2",
        python=PYTHON,
        grace=30.0,
    )


def job(secret: Secret, *, named: str = "") -> AssignedJob:
    """A job that was sealed with a key, for the lane of that key, or of the one that is named."""
    unique = b"u" * 32
    function = Lane("default", PYTHON, named or seal.key_id(secret)).name
    message = envelope.seal_message(
        kind=envelope.Kind.JOB,
        key=seal.job_key(seal.session_key(secret, SESSION), unique),
        session_id=SESSION,
        execution_id=bytes(16),
        expiry=2**40,
        context=envelope.make_context(function.encode(), unique),
        header=JobHeader(run="run", function_digest="ff").encode(),
    )
    return AssignedJob(("127.0.0.1", 4730), "H:1", function, unique.decode(), message.to_bytes())


def test_jobs_of_both_keys_open_and_those_of_a_key_that_was_taken_away_do_not() -> None:
    keys = Keyring([OLD, NEW])
    opener = JobOpener(keys)
    for secret in (OLD, NEW):
        assert opener.open(job(secret), execution_id=bytes(16), now=0.0).header.run == "run"
    assert keys.change([NEW]) == ((), (OLD_ID,))
    assert opener.open(job(NEW), execution_id=bytes(16), now=0.0).header.run == "run"
    with pytest.raises(SealError, match=f"a key that is not accepted here \\({OLD_ID}\\)"):
        opener.open(job(OLD), execution_id=bytes(16), now=0.0)


def test_a_job_of_one_key_does_not_open_in_the_lane_of_the_other() -> None:
    with pytest.raises(SealError):
        JobOpener(Keyring([OLD, NEW])).open(job(OLD, named=NEW_ID), execution_id=bytes(16), now=0.0)


def test_derived_keys_are_kept_in_a_bounded_number_and_go_with_their_key() -> None:
    keys = Keyring([OLD])
    first = keys.session(OLD_ID, SESSION)
    assert keys.session(OLD_ID, SESSION) is first
    for n in range(KEPT_SESSIONS):
        keys.session(OLD_ID, n.to_bytes(16, "big"))
    assert keys.session(OLD_ID, SESSION) is not first
    assert keys.change([NEW, OLD]) == ((NEW_ID,), ())
    assert keys.ids == (NEW_ID, OLD_ID)
    keys.change([NEW])
    with pytest.raises(SealError):
        keys.session(OLD_ID, SESSION)
    assert repr(keys) == f"<Keyring {NEW_ID}>"


class Links:
    """Connections that remember what is served on them."""

    def __init__(self, *names: str) -> None:
        self.served = list(names)

    def add_function(self, name: str) -> None:
        self.served.append(name)

    def remove_function(self, name: str) -> None:
        self.served.remove(name)


def crew_of(settings: NodeSettings, levels: tuple[int, ...]) -> Crew:
    crew = Crew(settings, watch=lambda *_: None, unwatch=lambda *_: None, tell=lambda _: None)
    for index, level in enumerate(levels):
        links: Any = Links(*settings.functions_at(level))
        crew.workers.append(Worker(index, f"host/{index}", links, index, level))
    return crew


def test_every_worker_serves_every_queue_for_every_key_and_then_for_the_others() -> None:
    settings = settings_of(OLD, queues=("default", "gpu"))
    crew = crew_of(settings, (0, 1, 0, 0))
    crew.workers[2].is_leaving = True
    crew.workers[3].is_closed = True
    for keys in ([OLD, NEW], [NEW, OLD], [NEW]):
        changed = crew.change_keys(*settings.keys.change(keys))
        assert [worker.index for worker in changed] == [0, 1]
        for worker in changed:
            links: Any = worker.links
            assert sorted(links.served) == sorted(settings.functions_at(worker.level))
    untouched: list[Any] = [worker.links for worker in crew.workers[2:]]
    assert all({key_id_of(name) for name in links.served} == {OLD_ID} for links in untouched)


def test_the_control_function_is_served_for_every_key() -> None:
    settings = settings_of(OLD)
    nothing: Any = SimpleNamespace()
    desk = ControlDesk(settings, dict, lambda _: True, lambda _: None, nothing)
    links: Any = Links(*settings.control_functions)
    desk.links = links
    desk.change_keys(*settings.keys.change([OLD, NEW]))
    assert links.served == [control_name("1-2", OLD_ID), control_name("1-2", NEW_ID)]
    desk.change_keys(*settings.keys.change([NEW]))
    assert tuple(links.served) == settings.control_functions == (control_name("1-2", NEW_ID),)


class Listener:
    """Somebody who is told of a key file."""

    def __init__(self, path: Path) -> None:
        self.taken: list[Keys] = []
        self.told: list[str] = []
        self._watch = KeyWatch(path, self.taken.append, self.told.append)

    def look(self) -> None:
        self._watch.look()
        self._watch.on_readable()

    def close(self) -> None:
        self._watch.close()


def test_a_changed_key_file_is_handed_over_once_and_a_spoilt_one_told_of_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path)
    listener = Listener(path)
    listener.look()
    listener.look()
    assert listener.taken == [load_keys(path, "a test")]
    keys = start_rotation(path, "a test")
    listener.look()
    listener.look()
    assert listener.taken[1:] == [keys]
    content = path.read_bytes()
    path.write_bytes(content[:40])
    listener.look()
    listener.look()
    assert len(listener.told) == 1
    assert "may have been cut short" in listener.told[0]
    assert listener.told[0].endswith("until then the keys stay as they are")
    path.unlink()
    listener.look()
    listener.look()
    assert len(listener.told) == 2
    assert "no key file" in listener.told[1]
    path.write_bytes(content)
    path.chmod(0o644)
    listener.look()
    assert "chmod 600" in listener.told[2]
    path.chmod(0o600)
    listener.look()
    assert listener.taken[2:] == [keys]
    assert len(listener.told) == 3
    listener.close()

"""The secret's file: who can read it, how it is made, and that the secret is never shown."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import pkgutil
import re
import stat
import threading
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import gearmap
from gearmap.errors import ConfigurationError
from gearmap.keyfile import (
    SECRET_BYTES,
    Keys,
    Stage,
    finish_rotation,
    load_key,
    load_keys,
    load_or_make_keys,
    make_key,
    start_rotation,
    step_back,
    switch_keys,
)
from gearmap.secret import Secret

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX thing")


def test_a_new_key_is_random_and_reads_back(tmp_path: Path) -> None:
    secret = make_key(tmp_path / "key")
    assert len(secret.reveal()) == SECRET_BYTES
    assert load_key(tmp_path / "key", "a test") == secret
    assert make_key(tmp_path / "other") != secret


@posix_only
def test_only_its_owner_can_read_a_new_key_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        make_key(tmp_path / "folder" / "key")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "folder" / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700


def test_making_a_key_leaves_nothing_else_behind(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    with pytest.raises(ConfigurationError):
        make_key(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    secret = make_key(tmp_path / "key")
    with pytest.raises(ConfigurationError, match=r"there is a key file already.*remove it first"):
        make_key(tmp_path / "key")
    assert load_key(tmp_path / "key", "a test") == secret


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666])
def test_a_key_that_others_can_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    make_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(ConfigurationError, match=r"others can read the key file .*key' \(from a test\): chmod 600"):
        load_key(tmp_path / "key", "a test")
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_or_make_keys(tmp_path / "key", "a test")


@posix_only
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_of_its_owner_is_taken(tmp_path: Path, mode: int) -> None:
    secret = make_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    assert load_key(tmp_path / "key", "a test") == secret


def test_a_missing_key_is_refused_with_its_origin_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_key(tmp_path / "key", "GEARMAP_KEY_FILE")
    assert repr(str(tmp_path / "key")) in str(caught.value)
    assert "GEARMAP_KEY_FILE" in str(caught.value)
    assert "gearmap key new" in str(caught.value)


SECRET_TEXT = "c0ffee" * 11
ONE, TWO = "1" * 64, "2" * 64


def shown_with_locals(error: BaseException) -> str:
    """Return a traceback with the local variables of every frame but the test's own."""
    assert error.__traceback__ is not None
    below = error.__traceback__.tb_next
    return "".join(traceback.TracebackException(type(error), error, below, capture_locals=True).format())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty; it may have been copied only in part"),
        (b"\n \n", "it is empty"),
        (SECRET_TEXT[:-4].encode(), "line 1 is not a key of 64 hexadecimal digits; it may have been cut short"),
        (SECRET_TEXT.encode() + b"00" * 3, "line 1 is not a key"),
        (SECRET_TEXT[:64].encode() + b" more", "line 1 is not a key"),
        (b"z" * 64, "line 1 is not a key"),
        (b"\xff" * 64, "line 1 is not a key"),
        (b"a" * 10**6, "it is longer than 1024 bytes"),
        (f"{ONE}\n{TWO}\n".encode(), "its second line must be 'next' or 'old' and a key"),
        (f"{ONE}\nlast {TWO}\n".encode(), "its second line must be 'next' or 'old' and a key"),
        (f"{ONE}\nnext\n".encode(), "its second line must be"),
        (f"{ONE}\nnext {SECRET_TEXT[:40]}".encode(), "line 2 is not a key"),
        (f"{ONE}\nnext {ONE}\n".encode(), "both of its keys are the same"),
        (f"{ONE}\nnext {TWO}\nold {SECRET_TEXT[:64]}\n".encode(), "it has 3 lines"),
    ],
)
def test_a_file_that_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is not a key file") as caught:
        load_key(path, "a test")
    assert says in str(caught.value)
    assert caught.value.__cause__ is None
    assert not re.search("c0ffee|1111|2222", shown_with_locals(caught.value))


@posix_only
def test_the_content_of_a_file_that_others_can_read_is_in_no_traceback(tmp_path: Path) -> None:
    secret = make_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigurationError) as caught:
        load_keys(tmp_path / "key", "a test")
    shown = shown_with_locals(caught.value)
    assert secret.reveal().hex() not in shown
    assert repr(secret.reveal())[2:-1] not in shown


@posix_only
def test_a_key_behind_an_own_link_is_taken(tmp_path: Path) -> None:
    secret = make_key(tmp_path / "files" / "key")
    (tmp_path / "key").symlink_to(tmp_path / "files" / "key")
    assert load_key(tmp_path / "key", "a test") == secret


@posix_only
def test_a_link_that_leads_nowhere_makes_no_key(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "files" / "key")
    with pytest.raises(ConfigurationError, match="no key file"):
        load_or_make_keys(tmp_path / "key", "a test")


@posix_only
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o707])
def test_a_key_in_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    make_key(tmp_path / "folder" / "key")
    (tmp_path / "key").symlink_to(tmp_path / "folder" / "key")
    (tmp_path / "folder").chmod(mode)
    for path in (tmp_path / "folder" / "key", tmp_path / "key"):
        with pytest.raises(ConfigurationError, match=r"others can replace the key file .*/folder'; chmod go-w"):
            load_key(path, "a test")
    (tmp_path / "folder").chmod(mode | 0o1000)  # as /tmp is: nobody else may rename what is in it
    load_key(tmp_path / "key", "a test")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_key_of_somebody_else_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path / "theirs" / "key")
    os.chown(tmp_path / "theirs" / "key", 65534, -1)
    with pytest.raises(ConfigurationError, match=r"is owned by another user \(uid 65534\); use your own"):
        load_key(tmp_path / "theirs" / "key", "a test")
    make_key(tmp_path / "mine" / "key")
    (tmp_path / "link").symlink_to(tmp_path / "mine" / "key")
    os.chown(tmp_path / "link", 65534, -1, follow_symlinks=False)
    with pytest.raises(ConfigurationError, match=r"is a symbolic link of another user \(uid 65534\)"):
        load_key(tmp_path / "link", "a test")
    os.chown(tmp_path / "mine", 65534, -1)
    with pytest.raises(ConfigurationError, match="others can replace the key file"):
        load_key(tmp_path / "mine" / "key", "a test")


@posix_only
@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(ConfigurationError, match="is not a key file, but a folder or a device"):
        load_key(tmp_path / "key", "a test")


# ----------------------------------------------------------------------------------------------------- other keys


def test_a_key_is_changed_in_three_steps_each_of_which_understands_the_next(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = make_key(path)
    steps = [load_keys(path, "a test")]
    for step in (start_rotation, switch_keys, finish_rotation):
        made = step(path, "a test")
        assert made == load_keys(path, "a test")
        steps.append(made)
    assert [keys.stage for keys in steps] == [Stage.NONE, Stage.NEXT, Stage.OLD, Stage.NONE]
    new = steps[-1].current
    assert new != first
    assert [keys.current for keys in steps] == [first, first, new, new]
    # Whoever has one file seals with what whoever has the neighbouring one accepts.
    for one, other in pairwise(steps):
        assert one.current in other.accepted
        assert other.current in one.accepted
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert os.name != "posix" or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_each_step_can_be_undone_but_the_last(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path)
    steps = [load_keys(path, "a test"), start_rotation(path, "a test")]
    switch_keys(path, "a test")
    assert step_back(path, "a test") == steps[1]
    assert step_back(path, "a test") == steps[0]
    with pytest.raises(ConfigurationError, match="are not being changed"):
        step_back(path, "a test")


@pytest.mark.parametrize(
    ("before", "step", "says"),
    [
        ([], switch_keys, "there is no next key .*; begin with gearmap key rotate"),
        ([], finish_rotation, "there is no old key .*; first comes gearmap key rotate"),
        ([start_rotation], start_rotation, "are being changed already; go on with --switch, or --back"),
        ([start_rotation], finish_rotation, "there is no old key .*; first comes --switch"),
        ([start_rotation, switch_keys], start_rotation, "are being changed already; go on with --finish, or --back"),
        ([start_rotation, switch_keys], switch_keys, "there is no next key"),
    ],
)
def test_a_step_out_of_turn_changes_nothing(tmp_path: Path, before: list[Any], step: Any, says: str) -> None:
    path = tmp_path / "key"
    make_key(path)
    for each in before:
        each(path, "a test")
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match=says):
        step(path, "a test")
    assert path.read_bytes() == content


@posix_only
def test_a_changed_key_stays_where_a_link_leads(tmp_path: Path) -> None:
    make_key(tmp_path / "files" / "key")
    (tmp_path / "key").symlink_to(tmp_path / "files" / "key")
    keys = start_rotation(tmp_path / "key", "a test")
    assert (tmp_path / "key").is_symlink()
    assert load_keys(tmp_path / "files" / "key", "a test") == keys


@pytest.mark.parametrize("name", ["folder", "file/key", "x" * 300])
def test_a_path_that_cannot_be_a_key_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        load_key(tmp_path / name, "a test")
    with pytest.raises(ConfigurationError):
        load_or_make_keys(tmp_path / name, "a test")


def test_a_key_is_made_on_first_use_and_then_kept(tmp_path: Path) -> None:
    keys = load_or_make_keys(tmp_path / "a" / "b" / "key", "a test")
    assert load_or_make_keys(tmp_path / "a" / "b" / "key", "a test") == keys


def test_of_several_that_make_the_key_at_once_all_get_the_same(tmp_path: Path) -> None:
    for turn in range(20):
        path = tmp_path / str(turn) / "key"
        barrier = threading.Barrier(4)
        found: list[Keys] = []

        def make(path: Path = path, barrier: threading.Barrier = barrier, found: list[Keys] = found) -> None:
            barrier.wait(10)
            found.append(load_or_make_keys(path, "a test"))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(found) == 4
        assert set(found) == {load_keys(path, "a test")}
        assert [one.name for one in path.parent.iterdir()] == ["key"]


# ------------------------------------------------------------------------------------------------- the secret unseen

SECRET_FIELDS = {"secret", "key", "session_key", "job_key", "outcome_key", "node_key"}

# Private to their modules and printed nowhere today; a traceback that shows locals would print them.
SHOWN = {
    "gearmap.runtime.node._Work.job_key",
    "gearmap.runtime.node._Work.session_key",
    "gearmap.runtime.outcomes._Writer.key",
    "gearmap.runtime.child.Job.job_key",
    "gearmap.runtime.child.Job.outcome_key",
}


def values_of_the_package() -> Iterator[type]:
    for info in pkgutil.walk_packages(gearmap.__path__, "gearmap."):
        if not info.name.endswith("__main__") and not info.name.startswith(("gearmap.contrib", "gearmap.notebook")):
            for value in vars(importlib.import_module(info.name)).values():
                if isinstance(value, type) and value.__module__ == info.name:
                    yield value


def fields_with_keys() -> Iterator[tuple[str, bool]]:
    """Yield (name, whether `repr` of its owner shows it) of every field that holds a key."""
    for cls in values_of_the_package():
        shown = {}
        if dataclasses.is_dataclass(cls) and cls.__dataclass_params__.repr:  # type: ignore[attr-defined]  # no stub
            shown = {field.name: field.repr for field in dataclasses.fields(cls)}
        elif issubclass(cls, tuple) and cls.__repr__.__globals__["__name__"] == "collections":  # a named tuple's own
            shown = dict.fromkeys(getattr(cls, "_fields", ()), True)
        for name, is_shown in shown.items():
            if name.lstrip("_") in SECRET_FIELDS and "bytes" in str(cls.__annotations__.get(name)):
                yield f"{cls.__module__}.{cls.__qualname__}.{name}", is_shown


KEYS = dict(fields_with_keys())
REASON = "the value's repr shows the key: field(repr=False), or a __repr__ of its own"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.xfail(reason=REASON)] if name in SHOWN else []) for name in KEYS]
)
def test_no_value_shows_a_key_when_it_is_printed(name: str) -> None:
    assert not KEYS[name]


def test_the_fields_with_keys_were_found() -> None:
    assert {"gearmap.runtime.run.RunSettings.session_key", "gearmap.runtime.sessions.Session.key"} <= set(KEYS)


def test_no_value_holds_a_secret_as_bytes() -> None:
    """`Secret` is what nothing can show; derived keys, of which each opens less, are bytes."""
    found = []
    for cls in values_of_the_package():
        for name, kind in vars(cls).get("__annotations__", {}).items():
            if name.lstrip("_") in {"secret", "secrets"} and "bytes" in str(kind):
                found.append(f"{cls.__qualname__}.{name}")
    assert not found


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret(b"do not tell")
    shown = [repr(secret), str(secret), f"{secret}", f"{[secret]!r}", ascii(secret), repr(Keys(secret, secret))]
    assert not [text for text in shown if "tell" in text or "74656c6c" in text]
    assert secret == Secret(b"do not tell") != Secret(b"tell")
    with pytest.raises(TypeError, match="a key is not pickled"):
        pickle.dumps(secret)

"""The secret's file: who can read it, how it is made, and that the secret is never shown."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import gearmap
from gearmap.errors import ConfigurationError
from gearmap.keyfile import SECRET_BYTES, load_key, load_or_make_key, make_key

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX thing")


def test_a_new_key_is_random_and_reads_back(tmp_path: Path) -> None:
    secret = make_key(tmp_path / "key")
    assert len(secret) == SECRET_BYTES
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
        load_or_make_key(tmp_path / "key", "a test")


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


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", SECRET_TEXT[:-4].encode(), SECRET_TEXT.encode() + b"00" * 3, b"z" * 64, b"\xff" * 64, b"a" * 10**6],
)
def test_a_file_that_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is not a key file") as caught:
        load_key(path, "a test")
    assert "c0ffee" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["folder", "file/key", "x" * 300])
def test_a_path_that_cannot_be_a_key_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        load_key(tmp_path / name, "a test")
    with pytest.raises(ConfigurationError):
        load_or_make_key(tmp_path / name, "a test")


def test_a_key_is_made_on_first_use_and_then_kept(tmp_path: Path) -> None:
    secret = load_or_make_key(tmp_path / "a" / "b" / "key", "a test")
    assert load_or_make_key(tmp_path / "a" / "b" / "key", "a test") == secret


def test_of_several_that_make_the_key_at_once_all_get_the_same(tmp_path: Path) -> None:
    for turn in range(20):
        path = tmp_path / str(turn) / "key"
        barrier = threading.Barrier(4)
        found: list[bytes] = []

        def make(path: Path = path, barrier: threading.Barrier = barrier, found: list[bytes] = found) -> None:
            barrier.wait(10)
            found.append(load_or_make_key(path, "a test"))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(found) == 4
        assert set(found) == {load_key(path, "a test")}
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
    assert {"gearmap.runtime.run.RunSettings.session_key", "gearmap.cluster.LocalProcesses.secret"} <= set(KEYS)

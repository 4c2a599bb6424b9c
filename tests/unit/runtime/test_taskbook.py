"""Which functions are named tasks, and what they are called."""

from __future__ import annotations

import functools
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

import gearmap
from gearmap.errors import ConfigurationError, SerializationError
from gearmap.runtime import taskbook
from gearmap.runtime.taskbook import record_of, reference_to, tasks_of
from gearmap.wire.serializer import loads


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Nothing is registered, and what a test registers is forgotten."""
    fresh: dict[str, Any] = {}
    monkeypatch.setattr(taskbook, "_records", fresh)
    return fresh


@pytest.fixture
def make_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that makes a module of source text, as if it had been imported."""

    def make(name: str, source: str) -> types.ModuleType:
        module = types.ModuleType(name)
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


SHOP = """
import gearmap

@gearmap.task
def send_mail(to, *, subject=""):
    "Send a mail."
    return to, subject

@gearmap.task(queue="images", name="shop.resize")
def resize_it(size):
    return size * 2

def no_task(): ...
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("shop.gearman_jobs", "shop.send_mail"),
        ("project.shop.gearman_jobs", "project.shop.send_mail"),
        ("gearman_jobs", "send_mail"),
        ("shop.tasks", "shop.tasks.send_mail"),
        ("shop.gearman_jobs.more", "shop.gearman_jobs.more.send_mail"),
        ("__main__", "send_mail"),
    ],
)
def test_a_task_is_called_after_its_module_without_gearman_jobs(make_module: Any, module: str, name: str) -> None:
    assert make_module(module, SHOP).send_mail.name == name


def test_a_task_is_still_its_function(make_module: Any) -> None:
    shop = make_module("shop.gearman_jobs", SHOP)
    assert shop.send_mail("a", subject=0) == ("a", 0)
    assert shop.send_mail.__doc__ == "Send a mail."
    assert (shop.resize_it.name, shop.resize_it.queue, shop.resize_it(4)) == ("shop.resize", "images", 8)
    assert repr(shop.send_mail) == "<task shop.send_mail>"


def test_what_travels_is_the_name_and_whoever_has_the_module_runs_it(make_module: Any) -> None:
    shop = make_module("shop.gearman_jobs", SHOP)
    record = record_of(shop.send_mail)
    assert record is not None
    digest, payload = reference_to(record)
    assert loads(payload) is record.function
    assert reference_to(record)[0] == digest
    assert b"Send a mail" not in b"".join(map(bytes, payload))
    assert pickle.loads(pickle.dumps(shop.send_mail)) is shop.send_mail


def test_a_task_that_is_not_here_is_looked_for_in_its_module(
    make_module: Any, records: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(make_module("shop.gearman_jobs", SHOP).send_mail)
    assert record is not None
    _, payload = reference_to(record)
    records.clear()
    with pytest.raises(SerializationError, match=r"no task is called 'shop\.send_mail' here"):
        loads(payload)  # the module is here, and does not define it any more
    monkeypatch.delitem(sys.modules, "shop.gearman_jobs")
    with pytest.raises(SerializationError, match="No module named 'shop'"):
        loads(payload)


def test_two_functions_of_one_name_are_an_error_that_names_both(make_module: Any) -> None:
    make_module("shop.gearman_jobs", SHOP)
    with pytest.raises(ConfigurationError, match=r"shop\.gearman_jobs\.send_mail and shop\.send_mail; give one"):
        make_module("shop", SHOP)


def test_a_module_may_be_loaded_anew(make_module: Any) -> None:
    first = make_module("shop.gearman_jobs", SHOP).send_mail
    second = make_module("shop.gearman_jobs", SHOP).send_mail
    assert pickle.loads(pickle.dumps(first)) is second


def test_only_functions_of_modules_can_be_named() -> None:
    with pytest.raises(ConfigurationError, match="a function of a module"):
        gearmap.task(lambda: None)
    with pytest.raises(ConfigurationError, match="a function of a module"):

        @gearmap.task
        def inside() -> None: ...

    with pytest.raises(ConfigurationError, match="a function of a module"):
        gearmap.task(functools.partial(print))


@pytest.mark.parametrize("name", ["", "send mail", "a~1", 7])
def test_a_name_that_cannot_travel_is_an_error(make_module: Any, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="a task's name must be"):
        make_module("shop", f"import gearmap\n@gearmap.task(name={name!r})\ndef f(): ...")


def test_a_queue_is_checked_at_once(make_module: Any) -> None:
    with pytest.raises(ConfigurationError, match="queue must be"):
        make_module("shop", "import gearmap\n@gearmap.task(queue='no queue')\ndef f(): ...")


def test_the_queue_of_a_task_is_no_option_of_its_calls(make_module: Any) -> None:
    with pytest.raises(ConfigurationError, match="is served by workers of queue 'images'"):
        make_module("shop.gearman_jobs", SHOP).resize_it.options(queue="mail")


def test_what_wraps_a_task_is_none(make_module: Any) -> None:
    shop = make_module("shop.gearman_jobs", SHOP)

    @functools.wraps(shop.send_mail)
    def louder(*args: Any) -> Any:
        return shop.send_mail(*args)

    assert record_of(louder) is None
    assert record_of(shop.no_task) is None
    assert record_of(print) is None


def test_the_tasks_of_modules_come_in_the_order_of_their_names(make_module: Any) -> None:
    make_module("shop.gearman_jobs", SHOP)
    make_module("empty", "x = 1")
    assert [task.name for task in tasks_of(["shop.gearman_jobs"])] == ["shop.resize", "shop.send_mail"]
    with pytest.raises(ConfigurationError, match="module 'empty' has no task"):
        tasks_of(["shop.gearman_jobs", "empty"])
    with pytest.raises(ModuleNotFoundError):
        tasks_of(["no.such.module"])

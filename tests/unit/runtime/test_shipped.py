"""Modules imported from sources that were sent."""

from __future__ import annotations

import importlib
import sys
import traceback

import pytest

from gearmap.runtime import child, shipped
from gearmap.runtime.shipped import ShippedModules, World, install, pack


@pytest.fixture
def modules():
    """What finds them, in a process that forgets everything afterwards."""
    finder = ShippedModules()
    sys.meta_path.insert(0, finder)
    yield finder
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.startswith("sent_")]:
        del sys.modules[name]


def bundle(**sources):
    """Sources as they travel; `pkg__` is a package, `pkg__sub` a module in it."""
    rows = {}
    for key, source in sources.items():
        name = key.replace("__", ".").rstrip(".")
        file = "/elsewhere/" + name.replace(".", "/") + ("/__init__.py" if key.endswith("__") else ".py")
        rows[name] = (file, source)
    return pack(rows)


def load(name):
    return importlib.import_module(name)


def test_a_module_that_was_sent_is_imported_without_a_file(modules):
    modules.add(bundle(sent_a="import sent_b\nvalue = sent_b.value + 1", sent_b="value = 1"))
    assert load("sent_a").value == 2
    assert load("sent_a").__file__ == "/elsewhere/sent_a.py"


def test_packages_relative_imports_and_stars_work(modules):
    modules.add(
        bundle(sent_p__="from .one import *\ndef late():\n    from . import two\n    return two.value",
               sent_p__one="from .two import value\nstar = value", sent_p__two="value = 7")
    )  # fmt: skip
    assert load("sent_p").star == 7
    assert load("sent_p").late() == 7


def test_a_module_is_executed_once_however_often_it_is_sent(modules):
    first = bundle(sent_a="seen = []")
    modules.add(first)
    seen = load("sent_a").seen
    modules.add(first)
    modules.add(bundle(sent_a="seen = []", sent_b="value = 1"))
    assert load("sent_a").seen is seen
    assert load("sent_b").value == 1


def test_two_versions_do_not_mix(modules):
    modules.add(bundle(sent_a="import sent_b", sent_b="version = 1"))
    old, old_world = load("sent_a"), modules.world
    modules.add(bundle(sent_a="import sent_b", sent_b="version = 2"))
    assert load("sent_a").sent_b.version == 2
    assert load("sent_a") is not old
    new_world = modules.world
    modules.enter(old_world)
    assert load("sent_a") is old
    assert load("sent_b").version == 1
    modules.enter(new_world)
    assert load("sent_b").version == 2


def test_what_was_sent_comes_before_what_the_node_has(modules, tmp_path, monkeypatch):
    (tmp_path / "sent_a.py").write_text("value = 'of the node'")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("sent_a").value == "of the node"
    modules.add(bundle(sent_a="value = 'of the caller'"))
    assert load("sent_a").value == "of the caller"
    modules.enter(World())
    importlib.invalidate_caches()
    assert load("sent_a").value == "of the node"


def test_tracebacks_show_the_source_that_was_sent(modules):
    modules.add(bundle(sent_a="def fail():\n    return 1 / 0  # here"))
    try:
        load("sent_a").fail()
    except ZeroDivisionError:
        assert "return 1 / 0  # here" in traceback.format_exc()


def test_only_a_process_that_runs_tasks_takes_modules(modules, monkeypatch):
    install(bundle(sent_a="value = 1"))
    with pytest.raises(ModuleNotFoundError):
        load("sent_a")
    monkeypatch.setattr(child, "is_child", True)
    install(bundle(sent_a="value = 1"))
    assert load("sent_a").value == 1
    assert shipped.find_sent("sent_a") == ("/elsewhere/sent_a.py", "value = 1")


@pytest.mark.parametrize(
    ("path", "wanted"), [("/a/__init__.py", True), ("C:\\a\\__init__.py", True), ("/a/my__init__.py", False)]
)
def test_a_package_is_told_by_its_file_on_any_system(path, wanted):
    assert shipped.is_package(path) is wanted

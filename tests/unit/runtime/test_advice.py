"""What a worker adds to errors that mean something is missing there."""

from __future__ import annotations

import os
import sys

import pytest

from gearmap.errors import SerializationError
from gearmap.runtime.advice import advice


def raised(code, **names):
    try:
        exec(code, names)
    except Exception as error:
        return error


def unpickling(reason):
    error = SerializationError("cannot unpickle")
    error.__cause__ = reason
    return error


@pytest.mark.parametrize("wrap", [lambda error: error, unpickling])
def test_a_missing_module_names_worker_node_python_and_what_to_install(wrap):
    note = advice(wrap(raised("import no_such_package.part")), "red/3")
    assert "worker red/3 of node red" in note
    assert sys.version.split()[0] in note
    assert sys.executable in note
    assert "install no_such_package there" in note


def test_a_missing_file_names_node_and_folder():
    note = advice(raised("open('no/such.csv')"), "red/3")
    assert note.startswith("(on node red")
    assert repr(os.path.join(os.getcwd(), "no/such.csv")) in note


def test_a_file_with_an_absolute_path_is_looked_for_there_only():
    assert "looked for '/no/such.csv' there" in advice(raised("open('/no/such.csv')"), "red/3")


def test_a_missing_name_is_told_to_travel_with_the_function():
    assert "define or import the name" in advice(raised("print(pandas)"), "red/3")


def test_a_name_that_a_module_does_not_have_may_be_another_version():
    assert "another version" in advice(raised("from os import no_such"), "red/3")
    assert "another version" in advice(unpickling(AttributeError("Can't get attribute")), "red/3")


@pytest.mark.parametrize(
    "error", [ValueError("x"), AttributeError("x"), FileNotFoundError("x"), UnboundLocalError("x"), unpickling(None)]
)
def test_other_errors_need_no_advice(error):
    assert advice(error, "red/3") is None


def test_memory_that_is_read_only_is_to_be_copied_where_something_shared_was_loaded(monkeypatch):
    import gearmap.runtime.sharing as sharing

    writing = "memoryview(b'x')[0] = 1"
    monkeypatch.setitem(sys.modules, "gearmap.runtime.sharing", sharing)
    assert "x = x.copy()" in advice(raised(writing), "red/3")
    assert "x = x.copy()" in advice(ValueError("assignment destination is read-only"), "red/3")
    monkeypatch.delitem(sys.modules, "gearmap.runtime.sharing")
    assert advice(raised(writing), "red/3") is None

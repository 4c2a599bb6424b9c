"""gearman3's exceptions: each has one of ours."""

from __future__ import annotations

import inspect

import gearman.errors
import pytest

from gearmap.errors import ConnectionLost, GearmapError, TransportError
from gearmap.transport.faults import GEARMAN_ERRORS, translate, translated

ADDRESS = ("127.0.0.1", 4730)
THEIRS = [
    each
    for _, each in inspect.getmembers(gearman.errors, inspect.isclass)
    if issubclass(each, gearman.errors.GearmanError)
]


def test_the_table_names_every_error_of_gearman3():
    assert len(THEIRS) >= 9
    assert set(GEARMAN_ERRORS) == set(THEIRS)


@pytest.mark.parametrize("their_class", THEIRS, ids=lambda each: each.__name__)
def test_every_error_of_gearman3_comes_out_as_one_of_ours_naming_the_server(their_class):
    with pytest.raises(GearmapError, match=r"'127\.0\.0\.1:4730'.*text") as caught, translated(ADDRESS):
        raise their_class("text")
    assert type(caught.value) is GEARMAN_ERRORS[their_class]
    assert isinstance(caught.value.__cause__, their_class)


def test_an_error_of_the_system_is_a_lost_connection_in_words():
    error = translate(ConnectionResetError(104, "Connection reset by peer"), ("::1", 1))
    assert type(error) is ConnectionLost
    assert str(error) == "the connection to the job server at '[::1]:1' broke: Connection reset by peer"


def test_our_own_errors_pass_unchanged():
    ours = TransportError("x")
    assert translate(ours, ADDRESS) is ours


def test_a_mistake_in_our_own_code_is_not_taken_for_a_fault_of_the_network():
    with pytest.raises(ZeroDivisionError), translated(ADDRESS):
        raise ZeroDivisionError

"""What can go wrong in a user's code, and the stages of a task's way in which it does.

What must not live here: what is expected then (`test_fault_table`). This module travels by value.

Rule 1: a fault is a function of no arguments. A stage puts it into a function and an argument: `function(argument)`
fails in that stage and in no other, and the same function is well with every other argument.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["AT_LOADING", "AT_PICKLING", "FAULTS", "STAGES", "Odd", "Rebellious", "Unpicklable"]

MB = 2**20
Fault = Callable[[], Any]


class Unpicklable(Exception):
    """An exception that holds what does not pickle."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Odd(Exception):
    """An exception whose constructor does not take its `args`."""

    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(f"{what} with code {code}")
        self.code = code


class Rebellious(BaseException):
    """An exception that `except Exception` does not catch."""


# -------------------------------------------------------------------------------------------------------------- faults


def exception() -> None:
    raise ValueError("the culprit")


def unpicklable_exception() -> None:
    raise Unpicklable("the culprit")


def odd_exception() -> None:
    raise Odd("the culprit", code=7)


def base_exception() -> None:
    raise Rebellious("the culprit")


def system_exit() -> None:
    raise SystemExit("the culprit")


def keyboard_interrupt() -> None:
    raise KeyboardInterrupt("the culprit")


def generator_exit() -> None:
    raise GeneratorExit("the culprit")


def stop_iteration() -> None:
    raise StopIteration("the culprit")


def recursion() -> None:
    recursion()


def exit_at_once() -> None:
    os._exit(5)


def exit_well() -> None:
    os._exit(0)


def exit_in_c() -> None:
    ctypes.CDLL(None).exit(6)


def segfault() -> None:
    ctypes.string_at(0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def out_of_memory() -> None:
    taken = bytearray(500 * MB)
    taken[::4096] = b"x" * len(taken[::4096])
    time.sleep(60)


def endless() -> None:
    while True:
        pass


FAULTS: dict[str, Fault] = {
    each.__name__: each
    for each in (
        exception,
        unpicklable_exception,
        odd_exception,
        base_exception,
        system_exit,
        keyboard_interrupt,
        generator_exit,
        stop_iteration,
        recursion,
        exit_at_once,
        exit_well,
        exit_in_c,
        segfault,
        kill,
        terminate,
        out_of_memory,
        endless,
    )
}


# -------------------------------------------------------------------------------------------------------------- stages


class AT_PICKLING:
    """A value whose pickling is the fault."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __reduce__(self) -> Any:
        self.fault()
        return int, (0,)  # a fault that comes back is none


class AT_LOADING:
    """A value whose unpickling is the fault."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __reduce__(self) -> Any:
        return self.fault, ()


BAD = "bad"


def _in_running(fault: Fault) -> tuple[Callable[[Any], Any], Any]:
    return lambda x: fault() if x == BAD else -x, BAD


def _in_loading_arguments(fault: Fault) -> tuple[Callable[[Any], Any], Any]:
    return lambda x: -x, AT_LOADING(fault)


def _in_loading_function(fault: Fault) -> tuple[Callable[[Any], Any], Any]:
    captured = AT_LOADING(fault)
    return lambda x: captured, 1


def _in_pickling_result(fault: Fault) -> tuple[Callable[[Any], Any], Any]:
    return lambda x: AT_PICKLING(fault) if x == BAD else -x, BAD


def _in_loading_result(fault: Fault) -> tuple[Callable[[Any], Any], Any]:
    return lambda x: AT_LOADING(fault) if x == BAD else -x, BAD


def _in_pickling_function(fault: Fault) -> tuple[Callable[[Any], Any], Any]:
    captured = AT_PICKLING(fault)
    return lambda x: captured, 1


def _in_pickling_arguments(fault: Fault) -> tuple[Callable[[Any], Any], Any]:
    return lambda x: -x, AT_PICKLING(fault)


STAGES: dict[str, Callable[[Fault], tuple[Callable[[Any], Any], Any]]] = {
    "running": _in_running,
    "loading arguments": _in_loading_arguments,
    "loading the function": _in_loading_function,
    "pickling the result": _in_pickling_result,
    "loading the result": _in_loading_result,
    "pickling the function": _in_pickling_function,
    "pickling arguments": _in_pickling_arguments,
}

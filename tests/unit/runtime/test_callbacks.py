"""The thread that makes the calls that users have left with futures."""

from __future__ import annotations

import threading

import pytest

from gearmap.runtime.callbacks import CallbackThread

LIMIT = 10.0  # seconds after which a test that hangs fails


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_whatever_stops_none_of_those_after_it(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    callbacks = CallbackThread()
    called = threading.Event()

    def fail() -> None:
        raise error("on purpose")

    callbacks.post(fail)
    callbacks.post(called.set)
    callbacks.close()
    callbacks.join(LIMIT)

    assert called.is_set()
    assert "on purpose" in caplog.text

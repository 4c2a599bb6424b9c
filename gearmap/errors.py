"""The exception tree. This module imports nothing of gearmap.

Whose fault it is decides the branch::

    GearmapError
      x ConfigurationError (ValueError)          the caller asked for something impossible
      x WireError                                bytes that we cannot or must not read
        + SerializationError (TypeError)         a function, argument or result does not pickle; names the culprit
        + EnvelopeError                          bad magic, version or length
        + SealError                              does not open: another key, damaged or forged; raised before unpickling
      x TransportError (OSError)                 the network or the job server
        + ServerUnavailable (ConnectionError)    no job server could be reached
          + TlsFailed                            it is there, and TLS with it is not: certificate, host name, no TLS
        + ConnectionLost (ConnectionError)       an open connection went away
        + ProtocolError                          the peer speaks something that is not Gearman
        + JobRejected                            the job server answered a submission with ERROR (queue full ...)
      x TaskError                                one task; carries task_index, attempts, worker
        + TaskTimeout (TimeoutError)             the task ran longer than task_timeout
        + WorkerLost                             the task's worker was lost too often
        + RemoteError                            the task's own exception could not be rebuilt here
      x RunTimeout (TimeoutError)                a map did not end within its timeout
      x ClockSkew                                client and worker clocks disagree by more than the expiry allows
      x ClusterBroken (BrokenExecutor)           the cluster cannot run anything any more

    RemoteTraceback                              never raised: the __cause__ of a task's own exception without notes

A task's own exception is never wrapped: it is raised as itself.
"""

from __future__ import annotations

import sys
from concurrent.futures import BrokenExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError

__all__ = [
    "ClockSkew",
    "ClusterBroken",
    "ConfigurationError",
    "ConnectionLost",
    "EnvelopeError",
    "GearmapError",
    "JobRejected",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "RunTimeout",
    "SealError",
    "SerializationError",
    "ServerUnavailable",
    "TaskError",
    "TaskTimeout",
    "TlsFailed",
    "TransportError",
    "WireError",
    "WorkerLost",
]


class GearmapError(Exception):
    """Root of every error that gearmap raises by itself."""


class ConfigurationError(GearmapError, ValueError):
    """The caller asked for something that cannot be: a wrong option, address, key file or environment."""


class WireError(GearmapError):
    """Bytes that cannot, or must not, be turned into values."""


class SerializationError(WireError, TypeError):
    """A function, an argument or a result does not pickle. The message names the culprit and the way to it."""


class EnvelopeError(WireError):
    """Bytes that are not a gearmap envelope of this version."""


class SealError(WireError):
    """An envelope that does not open: sealed with another key, damaged, or forged."""


class TransportError(GearmapError, OSError):
    """The network or the job server failed."""


class ServerUnavailable(TransportError, ConnectionError):
    """No job server could be reached. The message names each address and where it came from."""


class TlsFailed(ServerUnavailable):
    """There is no TLS with a job server that could be reached: one side refuses the other, or only one speaks it."""


class ConnectionLost(TransportError, ConnectionError):
    """An open connection to a job server went away."""


class ProtocolError(TransportError):
    """The peer does not speak the Gearman protocol."""


class JobRejected(TransportError):
    """The job server answered a submission with ERROR."""


class TaskError(GearmapError):
    """One task failed for a reason that is not its own exception.

    Attributes
    ----------
    task_index
        Position of the task in its run, or None where it is not known.
    attempts
        How many times the task was submitted.
    worker
        Name of the last worker that had it, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        task_index: int | None = None,
        attempts: int = 0,
        worker: str | None = None,
    ) -> None:
        super().__init__(message)
        self.task_index = task_index
        self.attempts = attempts
        self.worker = worker


# On Python 3.10 `concurrent.futures.TimeoutError` is not the builtin; users catch either, so both are bases there.
if sys.version_info >= (3, 11):

    class _AnyTimeout(TimeoutError):
        """Caught as `TimeoutError` and as `concurrent.futures.TimeoutError`."""

else:

    class _AnyTimeout(TimeoutError, FuturesTimeoutError):
        """Caught as `TimeoutError` and as `concurrent.futures.TimeoutError`."""


class TaskTimeout(TaskError, _AnyTimeout):
    """The task ran longer than `task_timeout`."""


class WorkerLost(TaskError):
    """The workers that ran the task were lost more often than `max_worker_losses` allows."""


class RemoteError(TaskError):
    """The task raised an exception that could not be rebuilt in this process; its text is in the message."""


class RunTimeout(GearmapError, _AnyTimeout):
    """What was waited for did not come within its `timeout`; a map was cancelled."""


class ClockSkew(GearmapError):
    """The clocks of client and worker are too far apart; the message gives both."""


class ClusterBroken(GearmapError, BrokenExecutor):
    """The cluster cannot run anything any more."""


class RemoteTraceback(Exception):
    """Text of a traceback from a worker, never raised: the `__cause__` of an exception whose notes are not shown.

    That is: on Python 3.10, in an IPython before 8.14, and of classes that refuse attributes.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'

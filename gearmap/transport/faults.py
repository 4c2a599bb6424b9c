"""gearman3's exceptions in our own words.

Law of the file: every class of `gearman.errors` is in the table (a test enumerates them), and none of them passes
the border of this folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import gearman.errors as theirs

from gearmap.errors import ConnectionLost, ProtocolError, ServerUnavailable, TransportError
from gearmap.transport.events import Address, show_address

__all__ = ["GEARMAN_ERRORS", "translate", "translated"]

GEARMAN_ERRORS: Mapping[type[Exception], type[TransportError]] = MappingProxyType(
    {
        theirs.GearmanError: TransportError,
        theirs.ConnectionError: ConnectionLost,
        theirs.ServerUnavailable: ServerUnavailable,
        theirs.ProtocolError: ProtocolError,
        theirs.UnknownCommandError: ProtocolError,
        # Only reached when max_retries is used up, which for us means that there is no connection.
        theirs.ExceededConnectionAttempts: ServerUnavailable,
        # The state machines of gearman3 raise these when the peer sends what cannot come now.
        theirs.InvalidClientState: ProtocolError,
        theirs.InvalidWorkerState: ProtocolError,
        theirs.InvalidAdminClientState: ProtocolError,
    }
)


def translate(error: Exception, address: Address) -> TransportError:
    """Turn what was raised while talking to `address` into one of our errors; ours pass unchanged."""
    if isinstance(error, TransportError):
        return error
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return ConnectionLost(f"the connection to the job server at {show_address(address)} broke: {reason}")
    for their_class in type(error).__mro__:
        if their_class in GEARMAN_ERRORS:
            return GEARMAN_ERRORS[their_class](f"job server at {show_address(address)}: {error}")
    raise error


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """Run a block that talks to `address`; only our errors come out of it."""
    try:
        yield
    except (theirs.GearmanError, OSError) as error:
        ours = translate(error, address)
        if ours is error:
            raise
        raise ours from error

"""The error for when no job server can be reached, from what each of them did.

Law of the file: where TLS is why, a further job server is no advice.
"""

from __future__ import annotations

from collections.abc import Sequence

from gearmap.errors import ServerUnavailable, TlsFailed, TransportError

__all__ = ["no_server"]


def no_server(problems: Sequence[TransportError]) -> ServerUnavailable:
    """Return the error that names all problems, one for each job server.

    >>> no_server([ServerUnavailable("no job server answered at 'head:4730'")])
    ServerUnavailable("no job server answered at 'head:4730'; start one: gearmap server")
    """
    said = "; ".join(map(str, problems))
    if any(isinstance(each, TlsFailed) for each in problems):
        return TlsFailed(said)
    return ServerUnavailable(f"{said}; start one: gearmap server")

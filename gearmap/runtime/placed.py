"""Payloads of which something does not travel with the job: what whoever handles payloads must know of them.

What must not live here: where the rest is (`blobs` on one machine, `blobsource` for other hosts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from gearmap.wire.framing import Buffer, Payload

__all__ = ["ArgumentPlacer", "GivenBlob", "GivenPayload", "PlacedPayload", "blobs_of", "content_bytes", "payload_here"]


class PlacedPayload(list[Buffer]):
    """A payload that names what is elsewhere.

    Attributes
    ----------
    store
        Who keeps that.
    """

    store: object

    @property
    def shared_bytes(self) -> int:
        """How much does not travel."""
        raise NotImplementedError

    def inline(self) -> list[Buffer]:
        """Return a payload that loads to the same on any machine."""
        raise NotImplementedError


class GivenBlob:
    """A buffer that is given."""

    def __init__(self, view: memoryview, digest: str, source: str) -> None:
        self.view = view
        self.digest = digest
        self.source = source

    @property
    def name(self) -> tuple[str, int]:
        """What a job's header says of it."""
        return self.digest, len(self.view)


class GivenPayload(PlacedPayload):
    """A payload, with the blobs that it names.

    `here` is what loads to the same in this process.
    """

    def __init__(self, payload: Iterable[Buffer], blobs: Sequence[GivenBlob], store: object, here: Payload) -> None:
        super().__init__(payload)
        self.blobs = tuple(blobs)
        self.store = store
        self._here = here

    @property
    def shared_bytes(self) -> int:
        """How much does not travel."""
        return sum(len(blob.view) for blob in self.blobs)

    def inline(self) -> list[Buffer]:
        """Return a payload that loads to the same on any machine."""
        return list(self._here)


def blobs_of(payload: Any) -> tuple[GivenBlob, ...]:
    """Return the blobs that a payload names."""
    return payload.blobs if type(payload) is GivenPayload else ()


class ArgumentPlacer(Protocol):
    """Puts large buffers of arguments elsewhere."""

    def place(self, payload: Payload, *, snapshot: bool = True) -> Payload:
        """Return a payload that loads to the same where tasks run.

        What stays in it is copied for a `snapshot`, else left as it is.
        """


def content_bytes(payload: Payload) -> int:
    """Return how long a payload is with what does not travel of it."""
    travels = sum(memoryview(part).nbytes for part in payload)
    return travels + payload.shared_bytes if isinstance(payload, PlacedPayload) else travels


def payload_here(payload: Payload) -> Payload:
    """Return a payload that loads to the same in the process that has made it, without shared memory."""
    return payload.inline() if isinstance(payload, PlacedPayload) else payload

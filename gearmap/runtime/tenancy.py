"""An initializer on its way to the children that run it.

Law of the file: it is pickled in the thread of the user who named it, with its arguments as they are then. Children
that have run it serve its tenant only; equal tenants have equal initializers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gearmap.wire.framing import Payload
from gearmap.wire.functions import Accompany, digest_payload
from gearmap.wire.serializer import dumps

__all__ = ["Tenancy", "make_tenancy"]


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Whose children run a pickled `(initializer, initargs)`."""

    tenant: str
    payload: Payload = field(repr=False)


def make_tenancy(
    owner: str,
    initializer: Callable[..., object],
    initargs: Sequence[Any],
    accompany: Accompany,
    *,
    is_sole: bool,
) -> Tenancy:
    """Pickle an initializer.

    Parameters
    ----------
    owner
        Id of the client or executor.
    accompany
        Gives a payload what has to travel with it.
    is_sole
        Whether the owner has this initializer only. Else its children are shared by calls with equal initializers.

    Raises
    ------
    SerializationError
        If it does not pickle.
    """
    pickled = dumps((initializer, tuple(initargs)), name="the initializer and its arguments", snapshot=True)
    payload, _ = accompany(pickled)
    return Tenancy(owner if is_sole else f"{owner}-{digest_payload(payload).hex()}", payload)

"""Bytes that must not be seen: keys, and what holds keys.

Law of the file: nothing but `reveal` gives the bytes, so a log line, a repr, a pickle and a traceback that shows local
variables cannot. Whoever reveals them does so inside an expression, and keeps them in no variable of its own.
"""

from __future__ import annotations

import hmac
from typing import NoReturn

__all__ = ["Secret"]


class Secret:
    """Bytes that are compared, handed on and not shown.

    >>> Secret(b"do not tell")
    <Secret>
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def __repr__(self) -> str:
        return "<Secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # A task that captures a client would take its key along.
        raise TypeError("a key is not pickled: it must not travel")

"""The keys that a node accepts, by their ids.

What must not live here: who reads them (`keywatch`), and what is served for them (`crew`).

Rule 1: what came in under a key is answered under that key: function names end with a key's id.
Rule 2: a key that is taken away opens nothing from then on. A job that was opened before has what it needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from gearmap.errors import SealError
from gearmap.secret import Secret
from gearmap.wire import seal

__all__ = ["Keyring", "key_id_of"]

# Session keys that are kept derived, for each key. Raised: fewer derivations with many clients; lowered: less memory.
KEPT_SESSIONS = 256


def key_id_of(function: str) -> str:
    """Return the id of the key that a function's jobs are sealed with.

    >>> key_id_of("gearmap1.default.py311.1f3a77c0")
    '1f3a77c0'
    """
    return function.rpartition(".")[2]


class _Key:
    """One key, and what was derived from it."""

    __slots__ = ("secret", "sessions")

    def __init__(self, secret: Secret) -> None:
        self.secret = secret
        self.sessions: OrderedDict[bytes, seal.Deriver] = OrderedDict()


class Keyring:
    """The keys of one node. They change when its key file does.

    Attributes
    ----------
    ids_ever
        The ids of all keys that it has had.
    """

    def __init__(self, keys: Iterable[Secret]) -> None:
        self._keys: dict[str, _Key] = {}
        self.ids_ever: set[str] = set()
        self.change(keys)

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self.ids)}>"

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    @property
    def ids(self) -> tuple[str, ...]:
        """The public ids, that of the clients' key first."""
        return tuple(self._keys)

    def change(self, keys: Iterable[Secret]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Have these keys instead; return the ids of those that are new, and of those that are gone."""
        before, self._keys = self._keys, {}
        for secret in keys:
            key_id = seal.key_id(secret)
            known = before.get(key_id)
            self._keys[key_id] = known if known is not None and known.secret == secret else _Key(secret)
        self.ids_ever |= self._keys.keys()
        added = tuple(key_id for key_id in self._keys if key_id not in before)
        return added, tuple(key_id for key_id in before if key_id not in self._keys)

    def session(self, key_id: str, session_id: bytes) -> seal.Deriver:
        """Return the key of a session, ready to derive others from.

        Raises
        ------
        SealError
            If there is no such key here.
        """
        key = self._known(key_id)
        session = key.sessions.get(session_id)
        if session is None:
            session = key.sessions[session_id] = seal.Deriver(seal.session_key(key.secret, session_id))
            if len(key.sessions) > KEPT_SESSIONS:
                key.sessions.popitem(last=False)
        return session

    def session_key(self, key_id: str, session_id: bytes) -> bytes:
        """Return the key of a session, for whoever hands it on; SealError as in `session`."""
        return seal.session_key(self._known(key_id).secret, session_id)

    def _known(self, key_id: str) -> _Key:
        try:
            return self._keys[key_id]
        except KeyError:
            raise SealError(f"it is sealed with a key that is not accepted here ({key_id[:8]})") from None

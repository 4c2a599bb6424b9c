"""`gearmap.share`: an object pickled once, for all functions and calls that it is part of.

What must not live here: how pickling knows of it (`wire.shared`), and how its memory gets to the workers.

Rule 1: what is shared is a snapshot; it is kept as long as the object that `share` returned.
Rule 2: nothing about the object changes: code that uses it need not know, in a task or outside of one.
"""

from __future__ import annotations

import secrets
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from gearmap.errors import ConfigurationError
from gearmap.runtime import child
from gearmap.wire import shared
from gearmap.wire.framing import Buffer
from gearmap.wire.serializer import copied, dumps, loads, outside

__all__ = ["load_shared", "share"]

T = TypeVar("T")

# Shared objects that a child keeps loaded. Raised: more of them need not be unpickled again; lowered: less memory.
KEPT_OBJECTS = 8

_NOT_WORTH_IT = frozenset({type(None), bool, int, float, complex, range, type(...)})


def share(obj: T) -> T:
    """Let a large object travel to each node once, however many functions and calls it is part of.

    Parameters
    ----------
    obj
        Data: an array, a data frame, a table, bytes, a list or dict of anything that pickles, an object of your own.

    Returns
    -------
    object
        What to use in its place. It is `obj` itself, except for what Python cannot mark: of a list, tuple, dict, set,
        string or bytes you get an equal one, of a subclass.

    Raises
    ------
    SerializationError
        If it does not pickle.
    ConfigurationError
        If it is a function, class or module, or of a type that cannot be marked.

    Notes
    -----
    It is a snapshot: tasks see the object as it was when it was shared. Call `share` again after a change. The object
    may stand anywhere in what a function captures or is called with; tasks get an ordinary object, the same one for all
    tasks of a process, so they should not change it. Memory is given back when the object that was returned goes.

    What one function captures travels once by itself. This saves pickling and reading it anew for each `map` and each
    function, and unpickling it for each of them; and it is for what many calls are given.

    Examples
    --------
    >>> import gearmap
    >>> table = gearmap.share({number: str(number) for number in range(1000)})
    >>> with gearmap.LocalCluster(0):
    ...     gearmap.map(lambda number: table[number], [1, 2])
    ['1', '2']
    """
    value: Any = obj  # what comes back is of its type, but nobody can tell that to a type checker
    return cast(T, _shared(value._original() if isinstance(value, _Twin) else value))


def _shared(obj: Any) -> Any:
    if type(obj) in _NOT_WORTH_IT:
        return obj
    twin = _TWINS.get(type(obj))
    if twin is not None:
        made = twin(obj)
        made._snapshot = _snapshot(obj)
        return made
    if isinstance(obj, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        raise ConfigurationError(f"share() is for data, got {obj!r:.80}; functions and classes travel by themselves")
    shared.unmark(obj)
    snapshot = _snapshot(obj)
    try:
        shared.mark(obj, snapshot)
    except TypeError:
        raise ConfigurationError(
            f"share() cannot mark a {type(obj).__qualname__}, to which Python has no weak references; "
            "share a list, dict or object that holds it"
        ) from None
    return obj


def load_shared(name: str, payload: Sequence[Buffer]) -> Any:
    """Return the object of a snapshot; a child keeps what it loaded last."""
    kept = child.shared.get(name)
    if kept is not None:
        return kept
    loaded = loads(payload)
    if child.is_child and loaded is not None:
        child.shared[name] = loaded
        while len(child.shared) > KEPT_OBJECTS:
            del child.shared[next(iter(child.shared))]
    return loaded


def _snapshot(obj: Any) -> shared.Snapshot:
    payload = [copied(part).toreadonly() for part in dumps(obj, name="what is shared")]
    return shared.Snapshot(secrets.token_hex(16), payload, outside, load_shared)


class _Twin:
    """What stands for an object that cannot be marked: our picklers, and no others, take its snapshot."""

    _base: type
    _snapshot: shared.Snapshot

    def _original(self) -> Any:
        return self._base(self)

    def __repr__(self) -> str:
        return repr(self._original())

    def __reduce_ex__(self, protocol: Any) -> Any:
        # To everybody but our picklers: what it is now, as an ordinary object.
        return self._base, (self._original(),)


def _make_twin(base: type) -> Callable[[Any], Any]:
    name = f"Shared{base.__name__.title()}"
    made = type(name, (_Twin, base), {"_base": base, "__module__": __name__, "__doc__": f"A shared {base.__name__}."})
    shared.add_twin(made)
    return made


_TWINS: dict[type, Callable[[Any], Any]] = {
    base: _make_twin(base) for base in (list, tuple, dict, set, frozenset, str, bytes, bytearray)
}

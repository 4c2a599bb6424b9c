"""Objects that are pickled once, by whoever shares them, and stand for that pickle from then on.

What must not live here: how a snapshot is made and loaded (`runtime.sharing`), and where its memory goes.

Rule 1: an object is known by its identity, and only as long as it lives: nothing here keeps it.
Rule 2: the memory of a snapshot never changes, so its name stands for its content and nobody need read it again.
"""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from gearmap.wire.framing import Buffer

__all__ = [
    "Snapshot",
    "add_twin",
    "frozen_name",
    "is_marked",
    "mark",
    "owner_of",
    "reduce_marked",
    "reducers",
    "unmark",
]

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]

_marked: dict[int, tuple[weakref.ref[Any], Snapshot]] = {}
_twins: dict[type, Callable[[Any], Any]] = {}  # classes whose instances carry their snapshots
_frozen: dict[int, tuple[weakref.ref[Any], str]] = {}  # by who owns the memory


class Snapshot:
    """What an object was when it was shared.

    Parameters
    ----------
    name
        No other snapshot has it.
    payload
        Its pickle, in memory that nobody writes to.
    pickled_as
        Returns what is pickled for a part of that.
    load
        An importable function that gets name and payload, and returns the object.
    """

    def __init__(
        self,
        name: str,
        payload: Sequence[memoryview],
        pickled_as: Callable[[memoryview], Any],
        load: Callable[[str, Sequence[Buffer]], Any],
    ) -> None:
        self._name = name
        self._payload = payload
        self._pickled_as = pickled_as
        self._load = load
        for number, part in enumerate(payload):
            _note(part, f"{name}-{number}")

    def reduce(self) -> Reduced:
        """Return what is pickled in the object's place."""
        return self._load, (self._name, [self._pickled_as(part) for part in self._payload])


def mark(thing: Any, snapshot: Snapshot) -> None:
    """Have a snapshot pickled in the place of an object, as long as that lives; TypeError if nobody can know."""
    key = id(thing)

    def forget(reference: weakref.ref[Any]) -> None:
        known = _marked.get(key)
        if known is not None and known[0] is reference:
            _marked.pop(key, None)

    _marked[key] = weakref.ref(thing, forget), snapshot


def add_twin(cls: type) -> None:
    """Have instances of a class pickled as their `_snapshot`."""
    _twins[cls] = _reduce_twin


def _reduce_twin(thing: Any) -> Any:
    return thing._snapshot.reduce()


def unmark(thing: Any) -> None:
    """Have an object pickled as itself again."""
    if type(thing) not in _twins and is_marked(thing):
        del _marked[id(thing)]


def reducers() -> dict[type, Callable[[Any], Any]]:
    """Return what reduces objects of the types of which some are marked; empty until something is shared."""
    if not _marked:
        return _twins
    return {**_twins, **{type(reference()): reduce_marked for reference, _ in list(_marked.values())}}


def reduce_marked(thing: Any) -> Any:
    """Reduce an object to its snapshot, if it is marked, else as ever."""
    if type(thing) in _twins:
        return _reduce_twin(thing)
    if is_marked(thing):
        return _marked[id(thing)][1].reduce()
    usual = copyreg.dispatch_table.get(type(thing))
    return thing.__reduce_ex__(5) if usual is None else usual(thing)


def is_marked(thing: Any) -> bool:
    """Whether a snapshot is pickled in the place of an object."""
    if type(thing) in _twins:
        return True
    known = _marked.get(id(thing))
    return known is not None and known[0]() is thing


def frozen_name(view: memoryview) -> str | None:
    """Return the name of memory that never changes, or None if it may."""
    if not _frozen:
        return None
    owner = owner_of(view)
    known = _frozen.get(id(owner))
    return known[1] if known is not None and known[0]() is owner else None


def _note(view: memoryview, name: str) -> None:
    owner = owner_of(view)
    key = id(owner)

    def forget(reference: weakref.ref[Any]) -> None:
        known = _frozen.get(key)
        if known is not None and known[0] is reference:
            _frozen.pop(key, None)

    try:
        _frozen[key] = weakref.ref(owner, forget), name
    except TypeError:
        pass  # it is small, and travels anyway


def owner_of(view: memoryview) -> Any:
    """Return the object whose memory it is."""
    owner: Any = view
    while isinstance(owner, memoryview):
        owner = owner.obj
    return owner

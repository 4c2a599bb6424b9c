"""Values to pickle-5 payloads and back.

What must not live here: framing, sealing, which bytes may be trusted. Nothing is loaded that has not been opened.

Rule 1: only this module and `functions` pickle.
Rule 2: what would be looked up by name in `__main__`, or in a module registered with
`cloudpickle.register_pickle_by_value`, goes by value; so does anything that its own module does not have under its
name, and the `functools.lru_cache` wrappers among all these. The rest goes by reference.
Rule 3: a failure is a `SerializationError` that names the smallest part that does not pickle and the way to it.

cloudpickle calls back into Python for every object that is not a builtin, which makes it three times slower than
pickle for, say, a list of dates. Therefore pickle goes first. It would name classes and functions of `__main__`
instead of sending them, so its stream is used only if no name of a by-value module occurs in it: a global cannot be
named in a pickle without the name of its module. A string in the data that looks like one costs time, nothing else.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle

from gearmap.errors import SerializationError
from gearmap.memory import LARGE_BYTES, writable
from gearmap.wire import explain, shared
from gearmap.wire.framing import Buffer, Payload, flat_view
from gearmap.wire.functions import (
    LRU_CACHE_WRAPPER,
    Accompany,
    is_importable,
    names_by_value_module,
    reduce_cached_property,
    reduce_lru_cache_wrapper,
)
from gearmap.wire.functions import FunctionCache as _FunctionCache

__all__ = [
    "Elsewhere",
    "FunctionCache",
    "Payload",
    "copied",
    "dump_call",
    "dump_function",
    "dump_snapshot",
    "dumps",
    "explain_unpicklable",
    "loads",
    "missing_module",
    "outside",
    "pickled_bytes",
    "with_elsewhere",
    "with_prelude",
]

PROTOCOL = 5

# Buffers from this size on travel beside the pickle stream. Raising it copies more on both sides; lowering it spends
# more on tables and views than the copies cost (about 4 us a buffer), and lets small arrays keep whole messages alive.
OUT_OF_BAND_BYTES = 2048

# Their pickles name no class and have no buffers.
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})


def dumps(value: Any, *, name: str = "the value", snapshot: bool = False, by_reference: bool = False) -> list[Buffer]:
    """Pickle `value`.

    Parameters
    ----------
    value
        Anything that cloudpickle can pickle.
    name
        What the error calls it: "fn", "argument 0 of task 17".
    snapshot
        Whether to copy the out-of-band buffers. Without that they are views of the memory of `value`, and what is
        sent is what they hold when they are sealed, not now.
    by_reference
        Whether functions and classes go by their names only, for a reader that may have another Python.

    Returns
    -------
    list
        The pickle stream, then its contiguous out-of-band buffers.

    Raises
    ------
    SerializationError
        If `value`, or a part of it, does not pickle.

    Examples
    --------
    >>> loads(dumps([1, {"a": 2.5}]))
    [1, {'a': 2.5}]
    """
    try:
        payload = _dump_by_reference(value) if by_reference else try_dumps(value)
    except Exception as error:
        if by_reference:
            raise SerializationError(
                f"{name} cannot go to a named task: {error}; its workers may have another Python, so functions and "
                "classes must be of modules that they can import"
            ) from error
        raise SerializationError(explain_unpicklable(value, name)) from error
    return [payload[0], *map(copied, payload[1:])] if snapshot else payload


def copied(buffer: Buffer) -> memoryview:
    """Return a writable copy of a buffer."""
    view = flat_view(buffer)
    copy = writable(len(view))
    copy[:] = view
    return copy


def pickled_bytes(value: Any) -> int:
    """Return how long the pickle stream of something is, without its large buffers; 0 if it does not pickle."""
    counted = _Counted()
    pickler = _SharingPickler if shared.reducers() else _Pickler
    try:
        pickler(counted, PROTOCOL, buffer_callback=_accept).dump(value)
    except Exception:
        return 0
    return counted.n_bytes


def outside(buffer: Buffer) -> Any:
    """Return what is pickled as a buffer beside the stream, and loads as its bytes; not to be kept.

    Before Python 3.13 the garbage collector crashes on a view that it frees before what has a buffer of that very view,
    as this has of a `memoryview`, and a view has that is made from this.
    """
    return pickle.PickleBuffer(buffer)


def loads(payload: Payload) -> Any:
    """Unpickle what `dumps` or `dump_function` made.

    Arrays use the memory of the out-of-band buffers as it is: they are writable if that is, and each keeps the whole
    message in memory that its buffer is a slice of.

    Raises
    ------
    SerializationError
        If it does not load here; `__cause__` is the reason, see `missing_module`.
    """
    if not payload:
        raise SerializationError("cannot unpickle an empty payload")
    try:
        return pickle.loads(payload[0], buffers=payload[1:])
    except MemoryError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # what is loaded does not end who loads it; Ctrl-C does
        raise SerializationError(f"cannot unpickle: {type(error).__name__}: {error}") from error


def dump_function(fn: Callable[..., Any], *, name: str = "fn") -> list[Buffer]:
    """Pickle a callable with all that it captures, as it is now: a run keeps it longer than the caller waits.

    Raises like `dumps`.
    """
    return dumps(fn, name=name, snapshot=True)


def dump_snapshot(
    value: Any, *, name: str, place: Callable[[Payload], Payload] | None = None, by_reference: bool = False
) -> Payload:
    """Pickle `value` as it is now; raises like `dumps`.

    Parameters
    ----------
    place
        Returns a payload that loads to the same and keeps no view of the user's arrays; by default they are copied.
    """
    if place is None:
        return dumps(value, name=name, snapshot=True, by_reference=by_reference)
    return place(dumps(value, name=name, by_reference=by_reference))


def dump_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    place: Callable[[Payload], Payload] | None = None,
    *,
    by_reference: bool = False,
) -> bytes | Payload:
    """Pickle the arguments of one call, as they are now; `place` is as in `dump_snapshot`, `by_reference` in `dumps`.

    Returns
    -------
    bytes or list
        The pickle stream; if there are out-of-band buffers, a list of it and them.

    Raises
    ------
    SerializationError
        Like `dumps`.
    """
    if not kwargs and _PLAIN.issuperset(map(type, args)):
        plain = pickle.dumps((args, kwargs), PROTOCOL)
        if place is None or len(plain) < LARGE_BYTES:
            return plain
        return place([plain])
    payload = dump_snapshot((args, kwargs), name="the arguments", place=place, by_reference=by_reference)
    stream = payload[0]
    # Of a payload that was placed, what it keeps is needed, too.
    return stream if type(payload) is list and len(payload) == 1 and isinstance(stream, bytes) else payload


def missing_module(error: BaseException) -> str | None:
    """The top-level module whose absence made `loads` fail, or None if the reason was another."""
    cause = error.__cause__
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        return cause.name.partition(".")[0]
    return None


def explain_unpicklable(value: Any, name: str = "fn") -> str:
    """One sentence: which part of `value` does not pickle, and what to do.

    It pickles the parts of `value` one after another, so it is for the error path only.
    """
    return explain.explain(value, name, why_not=_why_not)


class FunctionCache(_FunctionCache):
    """Functions pickled once, while what they capture cannot have changed; see `functions.FunctionCache`.

    Parameters
    ----------
    place
        Returns a payload that loads to the same and keeps no view of the user's arrays; by default they are copied.
    """

    def __init__(self, accompany: Accompany | None = None, place: Callable[[Payload], Payload] | None = None) -> None:
        if place is None:
            super().__init__(dump_function, accompany)
        else:
            super().__init__(functools.partial(dumps, name="fn"), accompany, place)


def with_prelude(payload: Payload, call: Callable[..., object], *args: Any) -> list[Buffer]:
    """Have an importable `call` made with `args` before a payload is unpickled, whose value stays what it was.

    >>> loads(with_prelude(dumps([1, 2]), print, "first"))
    first
    [1, 2]
    """
    with io.BytesIO() as file:
        pickler = pickle.Pickler(file, PROTOCOL)
        pickler.fast = True  # without entries in the memo, which what follows numbers from 0
        pickler.dump(_Call(call, args))
        prelude = file.getvalue().removesuffix(pickle.STOP) + pickle.POP
    return [prelude + bytes(payload[0]), *payload[1:]]


def with_elsewhere(stream: Buffer | Elsewhere, buffers: Sequence[Buffer | Elsewhere]) -> list[Buffer]:
    """Return a payload that loads to what `[stream, *buffers]` would, if what is elsewhere were in its place.

    >>> stream, *_ = dumps(pickle.PickleBuffer(bytes(5000)))
    >>> loads(with_elsewhere(stream, [Elsewhere(bytes, (3,))]))
    b'\\x00\\x00\\x00'
    """
    inline: list[Buffer] = []
    parts = [part if isinstance(part, Elsewhere) else pickle.PickleBuffer(part) for part in buffers]
    first = stream if isinstance(stream, Elsewhere) else bytes(stream)
    outer = pickle.dumps(_Call(_load_parts, (first, parts)), PROTOCOL, buffer_callback=_callback(inline))
    return [outer, *inline]


def _load_parts(stream: Buffer, buffers: list[Any]) -> Any:
    return pickle.loads(stream, buffers=buffers)


class _Call:
    """Unpickles to the result of a call."""

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._reduced = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return self._reduced


class Elsewhere(_Call):
    """A buffer that does not travel: an importable call, and its arguments, that returns it where it is loaded."""


def try_dumps(value: Any) -> list[Buffer]:
    """`dumps` that raises whatever pickling raised, without looking for the culprit."""
    buffers: list[Buffer] = []
    keep_in_band = _callback(buffers)
    try:
        stream = _fast_dumps(value, keep_in_band)
    except Exception:
        stream = None  # cloudpickle may know better
    if stream is None or names_by_value_module(stream):
        buffers.clear()
        with io.BytesIO() as file:
            pickler = _SharingPickler if shared.reducers() else _Pickler
            pickler(file, PROTOCOL, buffer_callback=keep_in_band).dump(value)
            stream = file.getvalue()
    return [stream, *buffers]


def _dump_by_reference(value: Any) -> list[Buffer]:
    """`dumps` by plain pickle; raises whatever pickling raised, and for what only this process has."""
    buffers: list[Buffer] = []
    stream = _fast_dumps(value, _callback(buffers))
    if names_by_value_module(stream):  # or it is the word only
        with io.BytesIO() as file:
            pickler = _ReferencePickler(file, PROTOCOL, buffer_callback=_callback([]))
            pickler.dispatch_table = {**copyreg.dispatch_table, **shared.reducers()}
            pickler.dump(value)
    return [stream, *buffers]


class _ReferencePickler(pickle.Pickler):
    """One that refuses what only this process has."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, type | types.FunctionType) and not is_importable(thing):
            raise pickle.PicklingError(f"{thing.__qualname__} is of {thing.__module__}")
        return NotImplemented


def _fast_dumps(value: Any, keep_in_band: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    reducers = shared.reducers()
    if not reducers:
        return pickle.dumps(value, PROTOCOL, buffer_callback=keep_in_band)
    with io.BytesIO() as file:
        pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=keep_in_band)
        pickler.dispatch_table = {**copyreg.dispatch_table, **reducers}
        pickler.dump(value)
        return file.getvalue()


def _reduce_text_file(file: io.TextIOWrapper) -> Any:
    """Standard streams by name; cloudpickle would send any other file as a copy of all that is in it."""
    for name in ("stdin", "stdout", "stderr"):
        if file is getattr(sys, name) or file is getattr(sys, f"__{name}__"):
            return getattr, (sys, name)
    raise pickle.PicklingError(f"cannot pickle the open file {file.name!r}")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle's pickler, which also takes apart what `functools` caches with, and sends no open files."""

    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child(
        {
            LRU_CACHE_WRAPPER: reduce_lru_cache_wrapper,
            functools.cached_property: reduce_cached_property,
            io.TextIOWrapper: _reduce_text_file,
        }
    )


class _SharingPickler(_Pickler):
    """One that also knows of shared objects."""

    def reducer_override(self, thing: Any) -> Any:
        if shared.is_marked(thing):
            return shared.reduce_marked(thing)
        return super().reducer_override(thing)


def _callback(buffers: list[Buffer]) -> Callable[[pickle.PickleBuffer], bool]:
    """A `buffer_callback` that collects large contiguous buffers and leaves the rest in the stream (true)."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: let pickle say so
            return True
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True
        source = view.obj
        if type(source) is memoryview:  # see `outside`
            view = flat_view(source) if source.c_contiguous else memoryview(bytearray(view))
        buffers.append(view)
        return False

    return keep_in_band


class _Counted:
    """A file that only counts."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def write(self, data: Buffer) -> int:
        n_bytes = memoryview(data).nbytes
        self.n_bytes += n_bytes
        return n_bytes


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Buffer) -> int:
        return len(data)


def _why_not(value: Any) -> BaseException | None:
    """The exception that pickling `value` raises, or None if it pickles."""
    try:
        _Pickler(_Nowhere(), PROTOCOL, buffer_callback=_accept).dump(value)
    except Exception as error:
        return error
    return None


def _accept(buffer: pickle.PickleBuffer) -> bool:
    return False

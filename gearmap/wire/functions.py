"""What pickling of functions needs beyond cloudpickle: `lru_cache` wrappers, and a cache of pickled functions.

What must not live here: values that are not functions (`serializer`).

Rule 1: a cached payload is used only while pickling again could not give anything else. Whoever is not known to be
immutable counts as changed.
Rule 2: a hit reads identities only and calls no user code.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import pathlib
import pickle
import re
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import cloudpickle

from gearmap.wire.framing import Payload

__all__ = [
    "LRU_CACHE_WRAPPER",
    "Accompany",
    "FunctionCache",
    "digest_payload",
    "is_importable",
    "is_imported",
    "names_by_value_module",
    "names_in",
    "reduce_cached_property",
    "reduce_lru_cache_wrapper",
]

LRU_CACHE_WRAPPER: type = type(functools.lru_cache(lambda: None))

DIGEST_BYTES = 16

# Raising it keeps more pickled functions in memory; lowering it pickles again in notebooks with many functions.
_MAX_FUNCTIONS = 256
# Larger payloads (a long string in a global, say) are pickled each time: the cache must not hold much memory.
_MAX_CACHED_BYTES = 2**20

# A pickle of protocol 4 or 5 without these bytes names nothing: STACK_GLOBAL, and the codes of `copyreg`'s extensions.
_GLOBAL_OPCODES = tuple(opcode[0] for opcode in (pickle.STACK_GLOBAL, pickle.EXT1, pickle.EXT2, pickle.EXT4))

Accompany = Callable[[Payload], "tuple[Payload, Callable[[], bool]]"]

_MISSING: Any = object()
_ATOMS = frozenset(
    {
        types.NoneType,
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        type(...),
        type(NotImplemented),
        range,
        re.Pattern,
        type(pathlib.PurePath()),
        type(pathlib.Path()),
    }
)
# Only these are asked for their module and name: others may answer with user code, or for another object.
_NAMED_TYPES = (type, types.FunctionType, types.BuiltinFunctionType, LRU_CACHE_WRAPPER)
# What `functools.lru_cache` itself puts on a wrapper; `lru_cache` does so again when the wrapper is rebuilt.
_LRU_ATTRIBUTES = frozenset({*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"})


def is_importable(thing: Any) -> bool:
    """Whether another process finds this very class or function by the name of its module and its own.

    True only if cloudpickle pickles it by reference, too.
    """
    try:
        module_name, qualname = thing.__module__, thing.__qualname__
        if type(module_name) is not str or type(qualname) is not str or module_name == "__main__":
            return False
        if _is_registered_by_value(module_name):
            return False
        return _lookup(module_name, qualname) is thing
    except Exception:  # no such name, or a module or metaclass that answers with code of its own
        return False


def _lookup(module_name: str, qualname: str) -> Any:
    """What another process finds under these names; raises whatever a module or metaclass answers with."""
    found: Any = sys.modules[module_name]
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def is_imported(module: types.ModuleType) -> bool:
    """Whether cloudpickle pickles this module by its name."""
    return sys.modules.get(module.__name__) is module and not _is_registered_by_value(module.__name__)


def names_by_value_module(stream: bytes) -> bool:
    """Whether a pickle may name a class or function of a module that has to go by value."""
    if not any(map(stream.__contains__, _GLOBAL_OPCODES)):
        return False
    # Looked for from the end, which takes CPython a third of the time.
    if stream.rfind(b"__main__") >= 0:
        return True
    registered = cloudpickle.list_registry_pickle_by_value()
    return any(stream.rfind(name.encode("utf-8", "surrogatepass")) >= 0 for name in registered)


def reduce_lru_cache_wrapper(wrapper: Any) -> str | tuple[Any, ...]:
    """Reduce a wrapper of `functools.lru_cache`: by name where it can be imported, else as a new wrapper.

    The cached results stay behind.
    """
    if is_importable(wrapper):
        return str(wrapper.__qualname__)
    parameters = wrapper.cache_parameters()
    extra = {name: value for name, value in vars(wrapper).items() if name not in _LRU_ATTRIBUTES}
    rebuild = (_rebuild_lru_cache_wrapper, (wrapper.__wrapped__, parameters["maxsize"], parameters["typed"]))
    return (*rebuild, extra) if extra else rebuild


def reduce_cached_property(descriptor: functools.cached_property[Any]) -> tuple[Any, ...]:
    """Reduce a `functools.cached_property` without the lock that it has before Python 3.12."""
    return _rebuild_cached_property, (descriptor.func, descriptor.attrname)


def digest_payload(payload: Payload) -> bytes:
    """16 bytes that stand for exactly these buffers."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for buffer in payload:
        n_bytes = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        digest.update(n_bytes.to_bytes(8, "little"))
        digest.update(buffer)
    return digest.digest()


class FunctionCache:
    """Payloads of the functions that were pickled last.

    A function is pickled once while it is the same object and all that would be pickled with it is the same and
    immutable: its code, defaults, closure, referenced globals and attributes are numbers, strings, modules, importable
    classes and functions, tuples of these, or other functions of which the same is true. A function that captures
    anything else (a list, a class of `__main__`) is pickled at each call, because looking for changes would take as
    long. Names in the code count as globals even where they are attributes; that only costs hits.

    Parameters
    ----------
    dump
        Pickles a function.
    accompany
        Gives a payload what has to travel with it, and a call that tells whether that would still be the same.
    place
        Gets the payload last, and returns one that loads to the same: large buffers may be put elsewhere.
    """

    def __init__(
        self,
        dump: Callable[[Callable[..., Any]], Payload],
        accompany: Accompany | None = None,
        place: Callable[[Payload], Payload] | None = None,
    ) -> None:
        self._dump = dump
        self._accompany = accompany
        self._place = place
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, fn: Callable[..., Any]) -> tuple[bytes, Payload] | None:
        """What `payload` returns, the same object each time, or None if `fn` has to be pickled; needs no lock."""
        key = id(fn)
        entry = self._entries.get(key)
        if entry is None or entry.function() is not fn or not entry.snapshot.is_unchanged():
            return None
        if entry.is_current is not None and not entry.is_current():
            return None
        try:
            self._entries.move_to_end(key)
        except KeyError:  # another thread has just pushed it out
            pass
        return entry.pickled

    def payload(self, fn: Callable[..., Any]) -> tuple[bytes, Payload]:
        """Digest (16 bytes) and payload of `fn`.

        Raises
        ------
        SerializationError
            If `fn` does not pickle.
        """
        found = self.find(fn)
        if found is not None:
            return found
        key = id(fn)
        # Taken before and compared after pickling: another thread may change a global in between.
        snapshot = _take_snapshot(fn)
        payload = self._dump(fn)
        is_current = None
        if self._accompany is not None:
            payload, is_current = self._accompany(payload)
        if self._place is not None:
            payload = self._place(payload)
        pickled = digest_payload(payload), payload
        if snapshot is not None and _total_bytes(payload) <= _MAX_CACHED_BYTES and snapshot.is_unchanged():
            self._keep(key, _Entry(self._watch(fn, key), snapshot, pickled, is_current))
        else:
            self._entries.pop(key, None)
        return pickled

    def _keep(self, key: int, entry: _Entry) -> None:
        self._entries.pop(key, None)  # a new key goes to the end
        self._entries[key] = entry
        while len(self._entries) > _MAX_FUNCTIONS:
            self._entries.popitem(last=False)

    def _watch(self, fn: Callable[..., Any], key: int) -> weakref.ref[Any]:
        """A weak reference that takes the entry along when the function goes."""
        entries = self._entries

        def forget(reference: weakref.ref[Any]) -> None:
            entry = entries.get(key)
            if entry is not None and entry.function is reference:
                entries.pop(key, None)

        return weakref.ref(fn, forget)


class _Entry:
    __slots__ = ("function", "is_current", "pickled", "snapshot")

    def __init__(
        self,
        function: weakref.ref[Any],
        snapshot: _Snapshot,
        pickled: tuple[bytes, Payload],
        is_current: Callable[[], bool] | None,
    ) -> None:
        self.is_current = is_current
        self.function = function
        self.snapshot = snapshot
        self.pickled = pickled


class _Snapshot:
    """Everything outside of a payload that pickling the same function again would read."""

    __slots__ = ("_importable", "_n_modules", "_registered", "_states")

    def __init__(self, states: list[_State], importable: list[Any], *, has_packages: bool) -> None:
        self._states = states
        # With the names under which they were found; that these are no modules to go by value is in `_registered`.
        self._importable = [
            (thing, thing.__module__, thing.__qualname__, tuple(thing.__qualname__.split("."))) for thing in importable
        ]
        # cloudpickle sends along which submodules of a package were imported; an import since may be one of them.
        self._n_modules = len(sys.modules) if has_packages else None
        self._registered = cloudpickle.list_registry_pickle_by_value()

    def is_unchanged(self) -> bool:
        if self._n_modules is not None and self._n_modules != len(sys.modules):
            return False
        if self._registered != cloudpickle.list_registry_pickle_by_value():
            return False
        for reference, names, seen in self._states:
            now = _observe(reference(), names)
            if len(now) != len(seen) or not all(map(operator.is_, now, seen)):
                return False
        try:
            for thing, module_name, qualname, path in self._importable:
                if thing.__qualname__ != qualname or thing.__module__ != module_name:
                    return False
                found: Any = sys.modules[module_name]
                for name in path:
                    found = getattr(found, name)
                if found is not thing:
                    return False
        except Exception:  # it has gone, or a module or metaclass answers with code of its own
            return False
        return True


_State = tuple["weakref.ref[Any]", tuple[str, ...], list[Any]]
"""A function that goes by value, the names in its code, and what was observed of it."""


def _take_snapshot(fn: Any) -> _Snapshot | None:
    """A snapshot of `fn` and the functions that it captures, or None if any part may change unseen."""
    states: list[_State] = []
    importable: list[Any] = []
    has_packages = False
    visited: set[int] = set()
    pending = [fn]
    while pending:
        thing = pending.pop()
        kind = type(thing)
        if kind in _ATOMS or thing is _MISSING or id(thing) in visited:
            continue
        visited.add(id(thing))
        if kind is tuple or kind is frozenset:
            pending.extend(thing)
        elif kind is types.ModuleType and is_imported(thing):
            has_packages = has_packages or "__path__" in vars(thing)
        elif isinstance(thing, _NAMED_TYPES) and is_importable(thing):
            importable.append(thing)
        elif kind is types.FunctionType or kind is LRU_CACHE_WRAPPER:
            names = names_in(thing.__code__) if kind is types.FunctionType else ()
            states.append((weakref.ref(thing), names, _observe(thing, names)))
            pending.extend(_captured(thing, names))
        else:
            return None
    return _Snapshot(states, importable, has_packages=has_packages)


def _observe(fn: Any, names: tuple[str, ...]) -> list[Any]:
    """What pickling reads of `fn`, to be compared by identity."""
    if type(fn) is not types.FunctionType:  # a wrapper of lru_cache: its attributes are all that it is
        return [*vars(fn), *vars(fn).values()] if fn is not None else []
    observed = [fn.__code__, fn.__module__, fn.__qualname__, fn.__defaults__, *fn.__annotations__.values()]
    if fn.__kwdefaults__:
        observed += fn.__kwdefaults__
        observed += fn.__kwdefaults__.values()
    closure = fn.__closure__
    if closure:
        try:
            observed += [cell.cell_contents for cell in closure]
        except ValueError:  # one is not assigned yet
            observed += map(_contents, closure)
    if fn.__dict__:
        observed += fn.__dict__
        observed += fn.__dict__.values()
    if names:
        observed += map(fn.__globals__.get, names, repeat(_MISSING))
    return observed


def _captured(fn: Any, names: tuple[str, ...]) -> Iterable[Any]:
    """The values in `fn` that have to be immutable.

    Annotations are not among them: `_observe` compares them, but nobody waits for their insides to change.
    """
    if type(fn) is not types.FunctionType:
        extra = [value for name, value in vars(fn).items() if name not in _LRU_ATTRIBUTES]
        return [*extra, vars(fn)["__wrapped__"]]
    captured = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values(), *fn.__dict__.values()]
    captured += map(_contents, fn.__closure__ or ())
    captured += map(fn.__globals__.get, names, repeat(_MISSING))
    return captured


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


def _is_registered_by_value(module_name: str) -> bool:
    """Whether the module or a package that it is in was given to `cloudpickle.register_pickle_by_value`."""
    registered = cloudpickle.list_registry_pickle_by_value()
    while registered and module_name:
        if module_name in registered:
            return True
        module_name = module_name.rpartition(".")[0]
    return False


def names_in(code: types.CodeType) -> tuple[str, ...]:
    """All names in `code` and in the code nested in it; its globals are among them."""
    names: dict[str, None] = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if type(constant) is types.CodeType:
            names.update(dict.fromkeys(names_in(constant)))
    return tuple(names)


def _total_bytes(payload: Payload) -> int:
    """How much memory a payload holds; one that was placed says what it holds elsewhere."""
    inside = sum(buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in payload)
    return inside + int(getattr(payload, "shared_bytes", 0))


def _rebuild_cached_property(func: Callable[[Any], Any], name: str | None) -> functools.cached_property[Any]:
    descriptor = functools.cached_property(func)
    if name is not None:
        descriptor.__set_name__(object, name)
    return descriptor


def _rebuild_lru_cache_wrapper(fn: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(fn)

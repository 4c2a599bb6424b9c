"""Which part of a value does not pickle, and what to do about it.

What must not live here: pickling itself; a probe is handed in.

Rule 1: the answer is always one sentence; whatever user code raises on the way is part of the answer, never raised.
Rule 2: work is bounded: long containers are halved instead of searched through, and after `_MAX_PROBES` tries the
part found so far is the answer.
"""

from __future__ import annotations

import copyreg
import functools
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gearmap.wire.functions import LRU_CACHE_WRAPPER, names_in

__all__ = ["explain"]

Probe = Callable[[Any], "BaseException | None"]
"""The exception that pickling a value raises, or None."""

# Raising it searches longer before giving an answer; lowering it gives answers that are less exact.
_MAX_PROBES = 1000
_MAX_DEPTH = 40


class _Step(NamedTuple):
    """One step into a value: a `phrase` ("its global 'db'") or a `suffix` ("['db']", ".db")."""

    phrase: str
    suffix: str


class _Part(NamedTuple):
    step: _Step
    value: Any


def explain(value: Any, name: str, *, why_not: Probe) -> str:
    """Say which part of `value` does not pickle.

    Parameters
    ----------
    value
        Something that did not pickle.
    name
        What to call it.
    why_not
        Tries to pickle a value and returns what that raised, or None.

    Returns
    -------
    str
        Like "cannot pickle fn: its global 'db' is a sqlite3.Connection; open it inside the function".
    """
    budget = _Budget(why_not)
    error = budget.why_not(value)
    if error is None:
        return f"cannot pickle {name}, though each try afterwards succeeded; is another thread changing it?"
    if _is_recursion(error):
        return f"cannot pickle {name}: it is nested too deeply; flatten it, or raise sys.setrecursionlimit"
    try:
        steps, culprit = _find(value, budget, [value]) or ([], value)
        return f"cannot pickle {name}: {_place(steps)} {_verdict(culprit, budget.why_not(culprit) or error)}"
    except Exception:  # an object that raises whatever it is asked
        return f"cannot pickle {name}: {_one_line(error)}"


def _find(value: Any, budget: _Budget, path: list[Any]) -> tuple[list[_Step], Any] | None:
    """The way to the smallest unpicklable part of `value`, and that part; None if all ways lead back to `path`."""
    if len(path) > _MAX_DEPTH or _known_kind(value) is not None:
        return [], value
    leads_back = False
    for part in budget.unpicklable(_parts(value)):
        if any(part.value is above for above in path):
            leads_back = True
            continue
        found = _find(part.value, budget, [*path, part.value])
        if found is not None:
            return [part.step, *found[0]], found[1]
        leads_back = True
    return None if leads_back else ([], value)


class _Budget:
    """Counts the tries."""

    def __init__(self, why_not: Probe) -> None:
        self._why_not = why_not
        self._left = _MAX_PROBES

    def why_not(self, value: Any) -> BaseException | None:
        self._left -= 1
        return self._why_not(value)

    def unpicklable(self, parts: Sequence[_Part]) -> Iterator[_Part]:
        """The parts that do not pickle, found by halving; none are found when the tries are used up."""
        if not parts or self._left <= 0 or self.why_not([part.value for part in parts]) is None:
            return
        if len(parts) == 1:
            yield parts[0]
            return
        half = len(parts) // 2
        yield from self.unpicklable(parts[:half])
        yield from self.unpicklable(parts[half:])


def _parts(value: Any) -> Sequence[_Part]:
    """What `value` consists of for pickle, one level down."""
    try:
        if type(value) in (list, tuple):
            return [_Part(_Step("", f"[{index}]"), item) for index, item in enumerate(value)]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return [_Part(_Step("", f".{name}"), getattr(value, name)) for name in value._fields]
        if type(value) is dict:
            return _dict_parts(value)
        if type(value) in (set, frozenset):
            return [_Part(_Step(f"its element {_short(item)}", ""), item) for item in value]
        if isinstance(value, types.FunctionType):
            return list(_function_parts(value))
        if isinstance(value, types.MethodType):
            return [
                _Part(_Step("its object", ""), value.__self__),
                _Part(_Step("its function", ""), value.__func__),
            ]
        if type(value) is LRU_CACHE_WRAPPER:
            return [_Part(_Step("", ""), vars(value)["__wrapped__"])]
        if type(value) is functools.partial:
            return list(_partial_parts(value))
        if isinstance(value, type):
            return list(_class_parts(value))
        return list(_reduced_parts(value))
    except Exception:  # user code: properties, __reduce__, iteration
        return []


def _dict_parts(value: Mapping[Any, Any]) -> list[_Part]:
    keys = [_Part(_Step(f"its key {_short(key)}", ""), key) for key in value]
    return keys + [_Part(_Step("", f"[{_short(key)}]"), item) for key, item in value.items()]


def _function_parts(fn: types.FunctionType) -> Iterator[_Part]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield _Part(_Step(f"its closure variable {name!r}", ""), cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    for name in names_in(fn.__code__):
        if name in fn.__globals__ and fn.__globals__[name] is not fn:
            yield _Part(_Step(f"its global {name!r}", ""), fn.__globals__[name])
    defaults = fn.__defaults__ or ()
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    for name, value in [
        *zip(names[len(names) - len(defaults) :], defaults, strict=True),
        *(fn.__kwdefaults__ or {}).items(),
    ]:
        yield _Part(_Step(f"the default of its argument {name!r}", ""), value)
    for name, value in fn.__dict__.items():
        yield _Part(_Step(f"its attribute {name!r}", ""), value)
    for name, value in fn.__annotations__.items():
        yield _Part(_Step(f"the annotation of its argument {name!r}", ""), value)


def _class_parts(cls: type) -> Iterator[_Part]:
    for name, value in vars(cls).items():
        if name in ("__dict__", "__weakref__"):
            continue
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if isinstance(value, property):
            for accessor in (value.fget, value.fset, value.fdel):
                yield _Part(_Step(f"its property {name!r}", ""), accessor)
        elif isinstance(value, types.FunctionType):
            yield _Part(_Step(f"its method {name!r}", ""), value)
        elif not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            yield _Part(_Step(f"its class attribute {name!r}", ""), value)
    for base in cls.__bases__:
        yield _Part(_Step(f"its base class {base.__name__!r}", ""), base)


def _reduced_parts(value: Any) -> Iterator[_Part]:
    """What `__reduce_ex__` gives to pickle; nothing if it raises."""
    reduce = copyreg.dispatch_table.get(type(value))
    reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return
    _, args, state, items, pairs = (*reduced, None, None, None)[:5]
    yield _Part(_Step(f"its class {type(value).__name__!r}", ""), type(value))
    attributes, slots = state if _is_pair(state) else (state, None)
    for mapping in (attributes, slots):
        if isinstance(mapping, dict):
            for name, attribute in mapping.items():
                yield _Part(_Step("", f".{name}"), attribute)
        elif mapping is not None:
            yield _Part(_Step("its state", ""), mapping)
    for index, item in enumerate(items or ()):
        yield _Part(_Step("", f"[{index}]"), item)
    for key, item in pairs or ():
        yield _Part(_Step("", f"[{_short(key)}]"), item)
    for arg in args or ():
        if arg is not type(value):
            yield _Part(_Step(f"what it is rebuilt from ({_short(arg)})", ""), arg)


def _partial_parts(value: functools.partial[Any]) -> Iterator[_Part]:
    yield _Part(_Step("its function", ""), value.func)
    for index, arg in enumerate(value.args):
        yield _Part(_Step(f"its argument {index}", ""), arg)
    for name, arg in value.keywords.items():
        yield _Part(_Step(f"its argument {name!r}", ""), arg)


def _is_pair(state: Any) -> bool:
    """Whether a state is the (attributes, slots) of `copyreg`."""
    return type(state) is tuple and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state)


def _place(steps: Sequence[_Step]) -> str:
    """The way to the culprit: "its global 'helper', ['db'].file of its closure variable 'config'"."""
    groups: list[tuple[str, str]] = []
    for step in steps:
        if step.phrase:
            groups.append((step.phrase, step.suffix))
        elif groups:
            groups[-1] = (groups[-1][0], groups[-1][1] + step.suffix)
        elif step.suffix:
            groups.append(("", step.suffix))
    texts = [f"{suffix} of {phrase}" if phrase and suffix else phrase or suffix for phrase, suffix in groups]
    return ", ".join(texts) or "it"


def _verdict(value: Any, error: BaseException) -> str:
    """What the culprit is, and the advice."""
    type_name = _type_name(type(value))
    known = _known_kind(value)
    if known is not None:
        kind, advice = known
        detail = _describe(value)
        kind = f"{kind} ({detail})" if kind and detail not in kind else kind or f"a {type_name}"
        return f"is {kind}; {advice}"
    own_error = _raised_by_its_own_code(value)
    if own_error is not None:
        return f"is a {type_name} whose pickling raised {type(own_error).__name__}: {_one_line(own_error)}"
    if _is_recursion(error):
        return f"is a {type_name} that is nested too deeply; flatten it, or raise sys.setrecursionlimit"
    return f"is a {type_name} ({_one_line(error)}); {_advice(type_name)}"


def _raised_by_its_own_code(value: Any) -> BaseException | None:
    """What the value's own `__reduce__` or `__getstate__` raised; None if it has none or they did not raise."""
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    own = [name for name in names if isinstance(getattr(type(value), name, None), types.FunctionType)]
    if not own:
        return None
    try:
        value.__reduce_ex__(4)
    except Exception as error:
        return error
    return None


def _known_kind(value: Any) -> tuple[str, str] | None:
    for cls in type(value).__mro__:
        known = _KINDS.get(_type_name(cls))
        if known is not None:
            return known
    return None


def _advice(type_name: str) -> str:
    words = type_name.rpartition(".")[2].lower()
    if any(word in words for word in _OPENED):
        return _OPEN_INSIDE
    return "make it inside the function, or pass what it is made from"


def _is_recursion(error: BaseException) -> bool:
    """cloudpickle turns a RecursionError into a PicklingError."""
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def _type_name(cls: type) -> str:
    module = cls.__module__
    return cls.__qualname__ if module in ("builtins", "__main__") else f"{module}.{cls.__qualname__}"


def _describe(value: Any) -> str:
    """The type of a file and its name, the type of anything else."""
    file_name = getattr(value, "name", None) if hasattr(value, "fileno") else None
    if isinstance(file_name, (str, int)):
        return f"{type(value).__name__} {file_name!r}"
    return _type_name(type(value))


def _short(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _one_line(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:
        return "its message cannot be shown"
    return text if len(text) <= 200 else text[:200] + "..."


_OPEN_INSIDE = "open it inside the function"
_MAKE_INSIDE = "make it inside the function"
_OPENED = (
    "connection",
    "cursor",
    "client",
    "session",
    "engine",
    "socket",
    "file",
    "reader",
    "writer",
    "database",
)
_LOCK = ("a lock", "leave it out (no task shares it), or make it inside the function")
_FILE = ("an open file", _OPEN_INSIDE)
_GENERATOR = ("a generator", "make it a list, or make it inside the function")
_FUTURE = ("something that is still running", "pass its result")

# By name, so that nothing has to be imported to compare with it. An empty kind is the name of the type itself.
_KINDS: Mapping[str, tuple[str, str]] = {
    "_io._IOBase": _FILE,
    "_thread.lock": _LOCK,
    "_thread.RLock": _LOCK,
    "threading._RLock": _LOCK,
    "threading.Condition": _LOCK,
    "threading.Event": _LOCK,
    "threading.Semaphore": _LOCK,
    "threading.Barrier": _LOCK,
    "multiprocessing.synchronize.SemLock": _LOCK,
    "queue.Queue": ("a queue between threads", "return the values instead"),
    "_queue.SimpleQueue": ("a queue between threads", "return the values instead"),
    "threading.Thread": ("a thread", "start it inside the function"),
    "_thread._local": ("thread-local data", _MAKE_INSIDE),
    "generator": _GENERATOR,
    "async_generator": _GENERATOR,
    "coroutine": ("a coroutine", "pass the function that makes it, or await it first"),
    "_asyncio.Future": _FUTURE,
    "_asyncio.Task": _FUTURE,
    "concurrent.futures._base.Future": _FUTURE,
    "concurrent.futures._base.Executor": ("an executor", _MAKE_INSIDE),
    "subprocess.Popen": ("a running process", "start it inside the function"),
    "socket.socket": ("a socket", _OPEN_INSIDE),
    "_socket.socket": ("a socket", _OPEN_INSIDE),
    "sqlite3.Connection": ("", _OPEN_INSIDE),
    "sqlite3.Cursor": ("", _OPEN_INSIDE),
    "ssl.SSLContext": ("", _MAKE_INSIDE),
    "mmap.mmap": ("a memory map", "map the file inside the function"),
    "traceback": ("a traceback", "keep its text (traceback.format_exception)"),
    "frame": ("a stack frame", "leave it out"),
    "weakref.ReferenceType": ("a weak reference", "leave it out, or hold the object itself"),
}

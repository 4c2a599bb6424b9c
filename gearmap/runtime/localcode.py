"""The user's own modules, as source that travels with functions: which they are, and what they import.

What must not live here: pickling, and what a worker does with the sources (`runtime.shipped`).

A module is local if it is a `.py` file outside of the standard library, of `site-packages` and of gearmap: it lies
beside the notebook or script, or is an editable install. What has an extension module in its package is not.

Law of the file: a module's source is read once for each time that it is imported or reloaded. So what travels is what
was loaded, not what an editor has saved since. Only of modules that are not loaded here the file itself is watched.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import re
import site
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gearmap.runtime.shipped import find_sent, is_package, pack

__all__ = ["Bundle", "LocalCode", "LocalModule"]

# Raised: larger packages of one's own travel with each job; lowered: more of them must be installed on workers.
MAX_SOURCE_BYTES = 2**20

# Files that nobody has loaded here are looked at for each call that comes after a pause, and so often while calls come
# in a row (seconds). Raised: less work at each submit; lowered: what an editor saves meanwhile counts sooner.
PAUSE_SECONDS = 0.005
LOOK_SECONDS = 0.25

# Raised: functions of many different sets of modules are packed once; lowered: less memory.
_KEPT_BUNDLES = 32

# A short string in a pickle of protocol 4 or 5, if it looks like the name of a module.
_NAME = re.compile(rb"\x8c.([A-Za-z_][\w.]*)", re.DOTALL)
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages(?:[/\\]|$)")
_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)
# How often in a row others may disturb a parser. Raised: more threads may parse all the time; lowered: nothing.
_PARSE_TRIES = 20
_NEVER = frozenset({"__main__", "__mp_main__", "gearmap"})


@dataclass(frozen=True, slots=True, eq=False)
class LocalModule:
    """A module's source as it was imported.

    Attributes
    ----------
    path
        Its file; of a package the `__init__.py`, whether that exists or not.
    uses
        Names that it imports; some may be of no module.
    """

    name: str
    path: str
    source: str
    uses: frozenset[str] = field(repr=False)

    @property
    def is_package(self) -> bool:
        """Whether it may have submodules."""
        return is_package(self.path)


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Modules that travel together.

    Attributes
    ----------
    data
        What `shipped.install` takes.
    """

    modules: tuple[LocalModule, ...]
    data: bytes = field(repr=False)


class LocalCode:
    """Finds what local modules a pickle needs; one for each client.

    Parameters
    ----------
    by_value
        Modules that are taken for local whatever they are, with all submodules that are loaded; they may be large.
    by_reference
        Modules that are not, with their submodules.
    """

    def __init__(self, by_value: Iterable[str] = (), by_reference: Iterable[str] = ()) -> None:
        self._by_value = tuple(by_value)
        self._by_reference = tuple(by_reference)
        self._modules: dict[str, tuple[Any, LocalModule | None]] = {}
        self._folders: dict[str, tuple[int, frozenset[str]]] = {}
        self._tops: dict[str, tuple[Any, bool]] = {}
        self._bundles: dict[tuple[LocalModule, ...], Bundle] = {}
        self._recent: dict[frozenset[str], tuple[Bundle | None, Callable[[], bool]]] = {}
        self._roots: tuple[str, ...] = ()
        self._installed: dict[str, bool] = {}
        self._beside: list[tuple[str, frozenset[str]]] = []

    def bundle(self, stream: bytes) -> tuple[Bundle | None, Callable[[], bool]]:
        """Return what a pickle needs beside itself, or None; and a call that tells whether that is still the answer.

        What `__main__` has imported goes along as well: arguments may be of its classes.
        """
        names = frozenset((*self._named(stream), *self._imported_by_main(), *self._forced()))
        known = self._recent.get(names)
        if known is not None and known[1]():
            return known
        self._beside = [(folder, self._names_in(folder)) for folder in self._search_path()]
        n_modules = len(sys.modules)
        found = self._closure(set(names))
        folders = [(folder, self._folders[folder][0]) for folder, _ in self._beside if folder in self._folders]
        watch = _Watch(n_modules, [(name, self._modules[name][0]) for name in found], folders)
        self._recent[names] = answer = self._bundle(found), watch.is_current
        if len(self._recent) > _KEPT_BUNDLES:
            del self._recent[next(iter(self._recent))]
        return answer

    def _bundle(self, found: dict[str, LocalModule]) -> Bundle | None:
        """The modules in one, or None if there are none, or they are too large to send them unasked."""
        modules = tuple(found[name] for name in sorted(found))
        if not modules or (not self._by_value and sum(len(module.source) for module in modules) > MAX_SOURCE_BYTES):
            return None
        bundle = self._bundles.get(modules)
        if bundle is None:
            data = pack({module.name: (module.path, module.source) for module in modules})
            bundle = self._bundles[modules] = Bundle(modules, data)
            if len(self._bundles) > _KEPT_BUNDLES:
                del self._bundles[next(iter(self._bundles))]
        return bundle

    # ------------------------------------------------------------------------------------------- which names to look at

    def _named(self, stream: bytes) -> Iterator[str]:
        for name in set(_NAME.findall(stream)):
            yield name.decode().rstrip(".")

    def _imported_by_main(self) -> Iterator[str]:
        """Names of the modules that a notebook or script has imported, itself or something from them."""
        main = sys.modules.get("__main__")
        for value in list(vars(main).values()) if main is not None else ():
            if type(value) is types.ModuleType:
                name = vars(value).get("__name__")
            elif type(value) is types.FunctionType:
                name = value.__module__
            elif issubclass(type(value), type):
                name = vars(value).get("__module__")
            else:
                continue
            if type(name) is str:
                yield name

    def _forced(self) -> Iterator[str]:
        yield from self._by_value
        for name in list(sys.modules) if self._by_value else ():
            if any(_is_in(name, forced) for forced in self._by_value):
                yield name

    # ------------------------------------------------------------------------------------------------- what they are

    def _closure(self, names: set[str]) -> dict[str, LocalModule]:
        """The local modules of these names, what they import, and the packages that these are in."""
        found: dict[str, LocalModule] = {}
        visited: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in visited:
                continue
            visited.add(name)
            parent = name.rpartition(".")[0]
            if parent:
                pending.append(parent)
            module = self._module(name)
            if module is not None:
                found[name] = module
                pending += module.uses
        return {name: module for name, module in found.items() if _parents(name) <= found.keys()}

    def _module(self, name: str) -> LocalModule | None:
        """The module of that name, or None if there is none or it is not local."""
        loaded = sys.modules.get(name)
        if loaded is None:
            return self._not_loaded(name)
        spec = getattr(loaded, "__spec__", None)
        known = self._modules.get(name)
        if known is not None and known[0] is spec:
            return known[1]
        module = None
        if isinstance(spec, importlib.machinery.ModuleSpec) and self._is_local(name, spec):
            module = _read(name, spec)
        self._modules[name] = spec, module
        return module

    def _not_loaded(self, name: str) -> LocalModule | None:
        """A module that only the code inside functions imports."""
        sent = find_sent(name)  # this process runs tasks
        if sent is not None:
            self._modules[name] = sent, LocalModule(name, *sent, frozenset(_imports(sent[1], _package(name, sent[0]))))
            return self._modules[name][1]
        parent, _, tail = name.rpartition(".")
        if parent:
            package = self._module(parent)
            folders = [os.path.dirname(package.path)] if package is not None and package.is_package else []
        elif name in sys.stdlib_module_names:
            return None
        else:
            folders = [folder for folder, names in self._beside if tail in names]
        for folder in folders:
            for path in (os.path.join(folder, tail, "__init__.py"), os.path.join(folder, f"{tail}.py")):
                state = _file_state(path)
                if state is None:
                    continue
                known = self._modules.get(name)
                if known is not None and known[0] == state:
                    return known[1]
                spec = importlib.util.spec_from_file_location(name, path)
                module = _read(name, spec) if spec is not None and self._is_local(name, spec) else None
                self._modules[name] = state, module
                return module
        return None

    def _search_path(self) -> list[str]:
        return [folder for folder in map(os.path.abspath, sys.path) if not self._is_installed(folder)]

    def _names_in(self, folder: str) -> frozenset[str]:
        """What may be modules in a folder."""
        try:
            changed = _changed_at(folder)
            known = self._folders.get(folder)
            if known is None or known[0] != changed:
                names = (entry.removesuffix(".py") for entry in os.listdir(folder))
                known = self._folders[folder] = changed, frozenset(filter(str.isidentifier, names))
            return known[1]
        except OSError:  # no folder: an archive, or gone
            return frozenset()

    def _is_local(self, name: str, spec: importlib.machinery.ModuleSpec) -> bool:
        top = name.partition(".")[0]
        if top in _NEVER or any(_is_in(name, other) for other in self._by_reference):
            return False
        if any(_is_in(name, other) for other in self._by_value):
            return True
        places = [spec.origin] if spec.origin and spec.has_location else list(spec.submodule_search_locations or ())
        if not places or any(self._is_installed(place) for place in places):
            return False
        return not self._has_extension(name, top, places[0])

    def _has_extension(self, name: str, top: str, place: str) -> bool:
        """Whether the top-level package of a module has an extension module; a module without package has none."""
        package = sys.modules.get(top)
        folders = list(getattr(package, "__path__", ()))
        if package is None and name == top and is_package(place):
            folders = [os.path.dirname(place)]
        known = self._tops.get(top)
        if known is None or known[0] != folders:
            files = (file for folder in folders for *_, files in os.walk(folder) for file in files)
            known = self._tops[top] = folders, any(file.endswith(_EXTENSIONS) for file in files)
        return known[1]

    def _is_installed(self, path: str) -> bool:
        known = self._installed.get(path)
        if known is None:
            if not self._roots:
                self._roots = tuple(_roots())
            real = os.path.realpath(path) + os.sep
            known = self._installed[path] = _INSTALLED.search(path) is not None or real.startswith(self._roots)
        return known


def _roots() -> Iterator[str]:
    """The folders of what is installed."""
    import sysconfig

    paths = sysconfig.get_paths()
    folders = {paths.get(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    for folder in folders:
        if folder:
            yield os.path.realpath(folder) + os.sep


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:stop]) for stop in range(1, len(parts))}


def _changed_at(folder: str) -> int:
    return os.stat(folder).st_mtime_ns


def _file_state(path: str) -> tuple[str, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return path, status.st_mtime_ns, status.st_size


class _Watch:
    """Tells whether modules are what they were.

    Parameters
    ----------
    n_modules
        How many were loaded.
    seen
        Their names, each with the spec of the loaded module, or the state of the file of one that is not.
    folders
        Where others may appear, each with the time of its last change.
    """

    def __init__(self, n_modules: int, seen: list[tuple[str, Any]], folders: list[tuple[str, int]]) -> None:
        self._n_modules = n_modules
        self._folders = folders
        self._specs = [(name, state) for name, state in seen if type(state) is not tuple]
        self._files = [state for _, state in seen if type(state) is tuple]
        self._last_look = self._last_call = time.monotonic()
        self._is_over = False

    def is_current(self) -> bool:
        """Whether they are. Asked at every submit, so it must not give the interpreter lock away."""
        modules = sys.modules
        if self._is_over or self._n_modules != len(modules):
            return False
        for name, spec in self._specs:
            if getattr(modules.get(name), "__spec__", None) is not spec:
                return False
        now = time.monotonic()
        pause, self._last_call = now - self._last_call, now
        if pause >= PAUSE_SECONDS or now - self._last_look >= LOOK_SECONDS:
            self._last_look = now
            self._is_over = self._has_changed()
        return not self._is_over

    def _has_changed(self) -> bool:
        if any(_file_state(state[0]) != state for state in self._files):
            return True
        try:
            return any(_changed_at(folder) != changed for folder, changed in self._folders)
        except OSError:  # one has gone
            return True


def _read(name: str, spec: importlib.machinery.ModuleSpec) -> LocalModule | None:
    """The source of a module, or None if it has none that is Python."""
    path = spec.origin if spec.has_location else None
    if path is None:  # a folder without __init__.py
        folder = next(iter(spec.submodule_search_locations or ()), None)
        return None if folder is None else LocalModule(name, os.path.join(folder, "__init__.py"), "", frozenset())
    if not path.endswith(".py"):
        return None
    try:
        get_source = getattr(spec.loader, "get_source", None)
        if get_source is not None:
            source = get_source(name)
        else:
            with open(path, "rb") as file:
                source = importlib.util.decode_source(file.read())
    except Exception:  # the file has gone, or a loader answers with code of its own
        return None
    if type(source) is not str:
        return None
    return LocalModule(name, path, source, frozenset(_imports(source, _package(name, path))))


def _package(name: str, path: str) -> str:
    """What relative imports in a module are relative to."""
    return name if is_package(path) else name.rpartition(".")[0]


def _parsed(source: str) -> ast.Module:
    """Parse. Python 3.11 fails if another thread does so meanwhile: https://github.com/python/cpython/issues/106905."""
    for _ in range(_PARSE_TRIES):
        try:
            return ast.parse(source)
        except SystemError:
            continue
    return ast.parse(source)


def _imports(source: str, package: str) -> Iterator[str]:
    """The names of modules that a source may import, wherever in it."""
    try:
        tree = _parsed(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            parts = parts[: len(parts) - node.level + 1] if node.level else parts
            base = ".".join([*parts, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")

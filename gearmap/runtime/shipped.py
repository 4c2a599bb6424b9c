"""Modules that came with a function: imported in a child from the source that its run has sent.

What must not live here: which modules are sent (`localcode`).

Rule 1: what was sent comes before what the node has under the same name: every worker runs what the caller has.
Rule 2: two versions never mix. Each set of sources that fit each other is a world with modules of its own, and a child
is in one world at a time: that of the function whose tasks it runs. A module is executed once in its world.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import zlib
from types import CodeType, ModuleType

from gearmap.runtime import child

__all__ = ["ShippedModules", "World", "find_sent", "install", "is_package", "pack"]


def pack(sources: dict[str, tuple[str, str]]) -> bytes:
    """Return what `install` takes: path and source of each module; equal bytes for equal sources."""
    return zlib.compress(json.dumps(sources).encode())


def _unpack(data: bytes) -> dict[str, tuple[str, str]]:
    return {name: (path, source) for name, (path, source) in json.loads(zlib.decompress(data)).items()}


class World:
    """Sources that fit each other, and, while another world is the current one, the modules made of them."""

    __slots__ = ("bundles", "modules", "sources")

    def __init__(self) -> None:
        self.bundles: set[bytes] = set()
        self.sources: dict[str, tuple[str, str]] = {}
        self.modules: dict[str, ModuleType] = {}


class ShippedModules:
    """Finds modules among the sources that were sent; stands first in `sys.meta_path`.

    Attributes
    ----------
    world
        The current one.
    """

    def __init__(self) -> None:
        self.world = World()

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Answer the import system."""
        found = self.world.sources.get(name)
        if found is None:
            return None
        file, source = found
        folders = [os.path.dirname(file)] if is_package(file) else None
        loader = _Loader(name, file, source)
        return importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=folders)

    def add(self, data: bytes) -> None:
        """Let the modules of a bundle be found: in this world, or in a new one if another version of any is in this."""
        if data in self.world.bundles:
            return
        sources = _unpack(data)
        if any(self.world.sources.get(name, source) != source for name, source in sources.items()):
            self.enter(World())
        world = self.world
        for name in sources.keys() - world.sources.keys():
            sys.modules.pop(name, None)  # what the node itself has under this name
        world.sources.update(sources)
        world.bundles.add(data)

    def enter(self, world: World) -> None:
        """Make another world the current one."""
        left = self.world
        tops = {name.partition(".")[0] for name in left.sources}
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            left.modules[name] = sys.modules.pop(name)
        sys.modules.update(world.modules)
        world.modules.clear()
        self.world = world


class _Loader(importlib.machinery.SourceFileLoader):
    """Makes a module of a source that was sent; files beside it are where the caller has them, if they are here."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_source(self, fullname: str) -> str:
        """Return what was sent; tracebacks show it."""
        return self._source

    def get_code(self, fullname: str) -> CodeType:
        """Compile it; nothing is cached in files."""
        code: CodeType = self.source_to_code(self._source.encode(), self.path)
        return code


def install(data: bytes) -> None:
    """Let the modules of a bundle be imported, if this process runs tasks; a pickled function begins with this call."""
    if not child.is_child:
        return  # whoever sent them has them
    finder = _finder()
    if finder is not None:
        finder.add(data)


def find_sent(name: str) -> tuple[str, str] | None:
    """Return path and source of a module that was sent to this process, in its current world."""
    finder = _finder()
    return None if finder is None else finder.world.sources.get(name)


def is_package(path: str) -> bool:
    """Whether a module of this file is a package; the file may be one of another system."""
    return path.replace("\\", "/").endswith("/__init__.py")


def _finder() -> ShippedModules | None:
    return next((finder for finder in sys.meta_path if type(finder) is ShippedModules), None)

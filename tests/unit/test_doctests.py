"""Every example in a docstring of the package does what it says. None may start a server: a few run in this process."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import gearmap

# They need what is installed only beside them.
OPTIONAL = ("gearmap.contrib", "gearmap.notebook")

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def module_names() -> Iterator[str]:
    yield "gearmap"
    for info in pkgutil.walk_packages(gearmap.__path__, "gearmap."):
        if not info.name.endswith("__main__"):
            yield info.name


def examples_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs={"gearmap": gearmap})
    return [one for one in found if one.examples]


@pytest.mark.parametrize("name", sorted(module_names()))
def test_the_examples_of_a_module_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # An example that would start a cluster by itself is refused instead.
    monkeypatch.setenv("GEARMAP_SERVERS", "none")
    if name.startswith(OPTIONAL):
        try:
            importlib.import_module(name)
        except ImportError as error:
            pytest.skip(str(error))
    for example in examples_of(name):
        said: list[str] = []
        doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
        assert not said, "".join(said)


def test_the_examples_were_found() -> None:
    assert {one.name for one in examples_of("gearmap.api")} >= {"gearmap.api.map", "gearmap.api.submit"}


def test_an_example_that_does_not_hold_is_found() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(optionflags=FLAGS).run(example, out=lambda text: None).failed == 1

"""What people see of the package: its names, their help, its errors, and what it costs to import it."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import importlib
import importlib.resources
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gearmap
from gearmap import api, errors
from gearmap.client import BoundOptions
from gearmap.config import MAP_ONLY, RunOptions

LAZY: dict[str, str] = gearmap._HOME
PUBLIC = sorted({*gearmap.__all__, *LAZY})

# Not keywords of `map`: they come through `gearmap.options(...)` only.
OPTION_ONLY = {
    "retry_delay",
    "max_worker_losses",
    "initializer",
    "initargs",
    "max_tasks_per_child",
    "by_value",
    "by_reference",
    "log_level",
}

MAPS = ("map", "starmap", "map_async", "imap", "imap_unordered")

# Keywords that are no options: what they mean is known to one kind of map only.
OF_ITS_OWN = {"imap": {"buffersize": None}, "imap_unordered": {"buffersize": None}}


def submodules() -> set[str]:
    return {info.name for info in pkgutil.iter_modules(gearmap.__path__)}


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", gearmap.__all__)
def test_a_star_import_brings_classes_only_and_shadows_no_builtin(name: str) -> None:
    assert inspect.isclass(getattr(gearmap, name))
    assert not hasattr(builtins, name)


def test_a_star_import_leaves_map_alone() -> None:
    namespace: dict[str, Any] = {}
    exec("from gearmap import *", namespace)
    assert eval("map", namespace) is map
    assert set(namespace) - {"__builtins__"} == set(gearmap.__all__)


def test_the_list_of_names_is_sorted_and_has_each_once() -> None:
    assert gearmap.__all__ == sorted(set(gearmap.__all__))
    assert list(LAZY) == sorted(LAZY)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(gearmap.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_resolves_and_is_what_its_home_calls_so(name: str) -> None:
    home = LAZY.get(name, "gearmap.errors")
    assert getattr(gearmap, name) is getattr(importlib.import_module(home), name)
    assert name in importlib.import_module(home).__all__


def test_a_name_of_the_star_import_is_lazy_or_an_error() -> None:
    assert set(gearmap.__all__) == {*errors.__all__} | {name for name in LAZY if name[0].isupper()}


@pytest.mark.parametrize("name", PUBLIC)
def test_dir_shows_it(name: str) -> None:
    assert name in dir(gearmap)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_not_that_of_a_submodule(name: str) -> None:
    """Importing the submodule would put it in the place of the callable."""
    assert name not in submodules()


def test_the_submodules_were_found() -> None:
    assert {"errors", "client", "core"} <= submodules()


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'gearmap' has no attribute 'imap_sorted'"):
        gearmap.imap_sorted  # noqa: B018  # the access is the test


# ---------------------------------------------------------------------------------------------------------- docstrings

_UNDERLINE = re.compile(r"^([A-Z][A-Za-z ]+)\n(-{3,})$", re.M)
_SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "See Also", "Notes", "Examples")


def sections(text: str) -> dict[str, str]:
    """Return the numpydoc sections of a docstring by title; the text before the first is under ''."""
    parts = {"": text}
    marks = list(_UNDERLINE.finditer(text))
    if marks:
        parts[""] = text[: marks[0].start()]
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        parts[mark.group(1)] = text[mark.end() : end]
    return parts


def names_in(section: str) -> list[str]:
    """The entries of a Parameters or Attributes section: what stands at the margin."""
    return [
        name.strip().lstrip("*")
        for line in section.splitlines()
        if line and not line.startswith(" ")
        for name in line.partition(":")[0].split(",")
    ]


def methods_of(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod)):
            yield f"{cls.__name__}.{name}", getattr(value, "__func__", value)


def documented() -> list[Any]:
    found = [(name, getattr(gearmap, name)) for name in PUBLIC]
    for _, value in list(found):
        if inspect.isclass(value):
            found += methods_of(value)
    return [pytest.param(value, id=name) for name, value in dict(found).items()]


@pytest.mark.parametrize("value", documented())
def test_what_is_public_has_help_in_the_house_style(value: Any) -> None:
    text = inspect.getdoc(value) if not inspect.isclass(value) else inspect.cleandoc(vars(value).get("__doc__") or "")
    assert text, "no docstring of its own"
    parts = sections(text)
    assert re.search(r"[.;:]$", parts[""].strip().splitlines()[-1]) or ">>>" in parts[""]
    assert text[0].isupper() or text[0] in '`"'
    titles = [title for title in parts if title]
    assert set(titles) <= set(_SECTIONS)
    assert titles == sorted(titles, key=_SECTIONS.index)
    for title, length in _UNDERLINE.findall(text):
        assert len(title) == len(length)


def parameters_of(value: Any) -> list[str]:
    return [name for name in inspect.signature(value).parameters if name != "self"]


@pytest.mark.parametrize("value", [one for one in documented() if callable(one.values[0])])
def test_documented_parameters_are_those_of_the_signature(value: Any) -> None:
    text = inspect.getdoc(value) or ""
    named = names_in(sections(text).get("Parameters", ""))
    if named:
        assert named == parameters_of(value)


@pytest.mark.parametrize("name", ["map", "submit", "starmap", "connect", "options", "Client", "LocalCluster"])
def test_what_people_call_first_tells_its_errors_or_shows_an_example(name: str) -> None:
    parts = sections(inspect.getdoc(getattr(gearmap, name)) or "")
    assert "Examples" in parts or "Raises" in parts


# ------------------------------------------------------------------------------------------------------------- options


def keywords_of(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


@pytest.mark.parametrize("name", MAPS)
def test_the_options_of_a_map_are_those_of_run_options_with_the_same_defaults(name: str) -> None:
    defaults = {field.name: field.default for field in fields(RunOptions) if field.name not in OPTION_ONLY}
    assert keywords_of(getattr(api, name)) == defaults | OF_ITS_OWN.get(name, {})


@pytest.mark.parametrize("name", MAPS)
def test_the_options_of_a_map_have_the_types_of_run_options(name: str) -> None:
    types = {field.name: field.type for field in fields(RunOptions)}
    annotations = inspect.get_annotations(getattr(api, name))
    shared = set(keywords_of(getattr(api, name))) - set(OF_ITS_OWN.get(name, ()))
    assert {key: annotations[key] for key in shared} == {key: types[key] for key in shared}


@pytest.mark.parametrize("name", MAPS)
def test_every_option_of_a_map_reaches_its_client(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    asked: dict[str, Any] = {}

    class Asked(BoundOptions):
        def __init__(self) -> None: ...

        def _ask(self, fn: Any, /, *iterables: Any, **options: Any) -> Any:
            asked.update(options)

        map = starmap = map_async = imap = imap_unordered = _ask

    monkeypatch.setattr(api, "current_client", Asked)
    given = {option: object() for option in keywords_of(getattr(api, name))}
    # when
    getattr(api, name)(abs, [], **given)
    # then
    assert asked == given


def test_every_option_is_documented_once_in_the_dataclass_and_once_in_map() -> None:
    in_dataclass = names_in(sections(inspect.getdoc(RunOptions) or "")["Attributes"])
    assert in_dataclass == [field.name for field in fields(RunOptions)]
    in_map = names_in(sections(inspect.getdoc(api.map) or "")["Parameters"])
    assert in_map == ["fn", "iterables", *keywords_of(api.map)]


def options_table() -> dict[str, tuple[str, str]]:
    """Read the README's table: option -> (default, where it is given)."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| ([^|]+) \| [^|]+ \|$", _readme(), re.M)
    return {name: (default, where.strip()) for name, default, where in rows}


def test_the_table_of_options_is_that_of_run_options() -> None:
    # given
    in_maps = set(keywords_of(api.map))
    defaults = {field.name: field.default for field in fields(RunOptions)}
    # when
    table = options_table()
    # then
    assert list(table) == list(defaults)
    assert {name: eval(default) for name, (default, _) in table.items()} == defaults
    for name, (_, where) in table.items():
        wanted = "maps" if name in MAP_ONLY else "everywhere" if name in in_maps else "`options()`"
        assert (name, where) == (name, wanted)


def test_submit_takes_no_option_of_ours() -> None:
    kinds = [one.kind for one in inspect.signature(api.submit).parameters.values()]
    Kind = inspect.Parameter
    assert kinds == [Kind.POSITIONAL_ONLY, Kind.VAR_POSITIONAL, Kind.VAR_KEYWORD]


def test_a_function_may_have_keywords_that_are_called_like_ours() -> None:
    def task(fn: str, queue: str, timeout: int) -> tuple[str, str, int]:
        return fn, queue, timeout

    with gearmap.LocalCluster(0) as cluster:
        assert gearmap.submit(task, fn="f", queue="q", timeout=3).result() == ("f", "q", 3)
        assert cluster.submit(task, "f", timeout=3, queue="q").result() == ("f", "q", 3)


# ------------------------------------------------------------------------------------------------------------- imports

HEAVY = (
    "gearman",
    "cloudpickle",
    "cryptography",
    "tqdm",
    "IPython",
    "ipywidgets",
    "anywidget",
    "click",
    "rich",
    "asyncio",
    "multiprocessing",
    "numpy",
)


def loaded_after(statement: str, *, names: tuple[str, ...]) -> list[str]:
    """Return which modules a fresh interpreter has loaded after a statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps([n for n in {names!r} if n in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=_root()
    )
    loaded: list[str] = json.loads(run.stdout)
    return loaded


def _root() -> str:
    return str(next(iter(gearmap.__path__)).rpartition("gearmap")[0])


def _readme() -> str:
    return (Path(_root()) / "README.md").read_text(encoding="utf-8")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import gearmap", names=(*HEAVY, "gearmap.client", "gearmap.api", "gearmap.config")) == []


def test_importing_the_client_loads_no_frontend() -> None:
    frontends = ("IPython", "ipywidgets", "anywidget", "tqdm", "click", "rich", "numpy")
    assert loaded_after("import gearmap.client, gearmap.api", names=frontends) == []


def test_importing_the_client_loads_nothing_that_only_some_need() -> None:
    assert loaded_after("import gearmap.client, gearmap.api", names=("asyncio", "configparser")) == []


def test_a_node_needs_no_frontend_and_no_client() -> None:
    names = ("IPython", "ipywidgets", "anywidget", "tqdm", "rich", "gearmap.client", "gearmap.api", "gearmap.display")
    assert loaded_after("import gearmap.runtime.noderun, gearmap.runtime.node", names=names) == []


def test_what_is_loaded_is_found() -> None:
    assert loaded_after("import asyncio", names=HEAVY) == ["asyncio"]


# -------------------------------------------------------------------------------------------------------------- errors

_DRAWN = re.compile(r"^ +(?P<mark>[x+] )?(?P<name>[A-Z]\w+)(?: \((?P<base>\w+)\))?(?:  +\S.*)?$")


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Read the tree of the docstring: class -> (parent in the tree, base of the standard library)."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = _DRAWN.match(line)
        if match:
            depth = line.index(match["mark"] or match["name"])
            parents = [name for other, name in above.items() if other < depth]
            above = {other: name for other, name in above.items() if other < depth} | {depth: match["name"]}
            tree[match["name"]] = (parents[-1] if parents else None, match["base"])
        elif re.match(r"^ +RemoteTraceback ", line):
            tree["RemoteTraceback"] = (None, None)
    return tree


def _standard(name: str) -> type:
    for module in (builtins, concurrent.futures):
        if hasattr(module, name):
            found: type = getattr(module, name)
            return found
    raise AssertionError(f"no such class in the standard library: {name}")


def test_every_error_is_drawn_and_nothing_else() -> None:
    assert set(drawn_tree()) == set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_has_the_bases_that_are_drawn_and_no_other(name: str) -> None:
    cls = getattr(errors, name)
    parent, standard = drawn_tree()[name]
    if parent is not None:
        assert getattr(errors, parent) in cls.__mro__[1:]
        nearest = next(base for base in cls.__mro__[1:] if base.__name__ in errors.__all__)
        assert nearest.__name__ == parent
    if standard is not None:
        assert issubclass(cls, _standard(standard))
    drawn_above = {_standard(base) for _, base in _trail(name) if base}
    special = {base for base in cls.__mro__ if base.__module__ == "builtins"} - {Exception, BaseException, object}
    assert all(any(issubclass(above, base) for above in drawn_above) for base in special)


def _trail(name: str) -> Iterator[tuple[str, str | None]]:
    current: str | None = name
    while current is not None:
        parent, base = drawn_tree()[current]
        yield current, base
        current = parent


def test_everything_we_raise_has_one_root() -> None:
    stray = [name for name in errors.__all__ if not issubclass(getattr(errors, name), errors.GearmapError)]
    assert stray == ["RemoteTraceback"]


@pytest.mark.parametrize("cls", [errors.TaskTimeout, errors.RunTimeout])
@pytest.mark.parametrize("caught_as", [TimeoutError, concurrent.futures.TimeoutError, errors.GearmapError])
def test_a_timeout_is_caught_as_each_of_the_classes_that_people_catch(cls: type, caught_as: type) -> None:
    with pytest.raises(caught_as):
        raise cls("too long")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there asyncio's is a third class")
def test_a_timeout_is_caught_as_that_of_asyncio() -> None:
    assert issubclass(errors.TaskTimeout, asyncio.TimeoutError)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_is_made_from_a_text_and_shows_it(name: str) -> None:
    assert "the text" in str(getattr(errors, name)("the text"))


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_survives_pickle_with_what_it_carries(name: str) -> None:
    import pickle

    error = getattr(errors, name)("the text")
    if isinstance(error, errors.TaskError):
        error = type(error)("the text", task_index=17, attempts=2, worker="node/0")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_a_lost_task_knows_which_it_was() -> None:
    error = errors.WorkerLost("gone", task_index=17, attempts=3, worker="node/0")
    assert (error.task_index, error.attempts, error.worker, str(error)) == (17, 3, "node/0", "gone")


def test_the_package_is_typed_and_says_its_version() -> None:
    assert isinstance(gearmap, ModuleType)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", gearmap.__version__)
    assert (importlib.resources.files("gearmap") / "py.typed").is_file()

"""The shape of the package, read from its source: layers, purity, state, size. Nothing of gearmap is imported here.

Each rule is a function of a module's syntax tree that returns what is wrong. A second group of tests gives each rule a
small module that breaks it, so that a rule that cannot fail is found.
"""

from __future__ import annotations

import ast
import builtins
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gearmap"

LAYERS = {
    "errors": 0,
    "secret": 0,
    "config": 1,
    "keyfile": 1,
    "tls": 1,
    "memory": 1,
    "rarelog": 1,
    "servers": 2,
    "core": 2,
    "wire": 2,
    "transport": 3,
    "jobserver": 3,
    "runtime": 4,
    "display": 5,
    "cluster": 5,
    "current": 5,
    "backend": 6,
    "mapping": 7,
    "choice": 7,
    "waiting": 7,
    "everywhere": 7,
    "overview": 7,
    "client": 8,
    "executor": 8,
    "api": 8,
    "named": 8,
    "cli": 9,
    "demo": 9,
    "notebook": 9,
    "contrib": 9,
    "__main__": 9,
    "": 9,  # `gearmap` itself, which can load anything
}

# Within one layer nobody knows the others, but for these.
NEIGHBOURS = {
    ("api", "client"),
    ("named", "api"),
    ("named", "client"),
    ("api", "executor"),
    ("client", "executor"),
    ("config", "tls"),
    ("__main__", "cli"),
    ("cli", ""),
    ("cli", "demo"),
    ("demo", ""),
    ("notebook", ""),
    ("contrib", ""),
}

# Upward for the sake of an annotation alone, where a Protocol would repeat the whole surface of the class.
ANNOTATIONS = {("gearmap.current", "gearmap.client")}

PURE_FOLDERS = ("core", "wire")

# What a pure module may import; everything else reaches a clock, a thread, a file or chance sooner or later.
PURE_MODULES = {
    "__future__", "abc", "bisect", "collections", "contextlib", "copyreg", "ctypes", "dataclasses", "difflib", "enum",
    "functools", "hashlib", "heapq", "hmac", "io", "itertools", "json", "math", "operator", "pathlib", "re", "reprlib",
    "struct", "sys", "traceback", "types", "typing", "weakref", "zlib",
}  # fmt: skip
WIRE_MODULES = {"cryptography", "os"}
CORE_FORBIDDEN = {"ctypes", "io", "pathlib", "sys", "traceback", "weakref", "json", "hmac", "hashlib", "copyreg"}
# Of `os` and its like only what is arithmetic on text.
ALLOWED_NAMES = {
    "os": {"path", "fspath", "sep", "PathLike"},
    "os.path": {"join", "dirname", "basename", "splitext", "normcase", "normpath", "sep",
                "abspath"},  # of `__file__`
    "io": {"TextIOWrapper", "BytesIO", "StringIO"},
    "sys": {"modules", "version_info", "byteorder", "maxsize", "exc_info", "builtin_module_names", "prefix",
            "base_prefix", "exec_prefix", "stdlib_module_names", "path"},
    "pathlib": {"Path", "PurePath"},
}  # fmt: skip
IMPURE_BUILTINS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
IMPURE_CALLS = {
    "now", "today", "utcnow", "urandom", "getrandbits", "token_bytes", "token_hex", "uuid4", "sleep", "monotonic",
    "perf_counter", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir", "cwd", "home",
    "expanduser",
}  # fmt: skip

PICKLES = {"pickle", "cloudpickle", "_pickle", "shelve", "dill"}
MAY_PICKLE = {"gearmap.wire.serializer", "gearmap.wire.functions"}
# Plain values between a node and its own children; a million jobs a minute pass there.
MAY_MARSHAL = {"gearmap.runtime.child"}

MAY_PRINT = re.compile(r"gearmap\.(cli(\..*)?|demo|runtime\.noderun|runtime\.node_main|jobserver\.__main__)")

# Module-level state. Each entry is there because the process itself is the scope of what it holds.
MAY_HOLD_STATE = {
    "gearmap.current": "which client is current, and the last map",
    "gearmap.display.registry": "who shows runs in notebooks",
    "gearmap.api": "the client that was started by itself",
    "gearmap.wire.shared": "which objects of this process are shared",
    "gearmap.client": "whose unfinished calls are told of when the interpreter ends",
    "gearmap.executor": "whose work is to be finished before the interpreter ends",
    "gearmap.runtime.child": "whether this process is a child",
    "gearmap.runtime.task": "the job that this process runs",
    "gearmap.runtime.taskbook": "which function runs under which name",
    "gearmap.runtime.forking": "who is told in a process that was forked",
    "gearmap.transport.connection": "sockets to close in a forked child",
    "gearmap.tls": "what was made of files that have not changed since",
}

MAX_LINES = 550


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    text: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.text)

    @property
    def unit(self) -> str:
        """The entry of the layer table: the first part below `gearmap`."""
        return self.name.partition(".")[2].partition(".")[0]

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def module_at(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, path.read_text(encoding="utf-8"))


@cache
def modules() -> tuple[Module, ...]:
    return tuple(module_at(path) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def module_names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def example(name: str, text: str) -> Module:
    """A module that is not there, for trying the rules."""
    return Module(name, ROOT / (name.replace(".", "/") + ".py"), text)


every_module = pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)


# ------------------------------------------------------------------------------------------------------------- reading


def imports(module: Module, *, at_run_time: bool = False, at_import: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, module name) of imports: all, those at run time, or those that run when the module is imported."""
    for node in _nodes(module.tree, typing=not (at_run_time or at_import), functions=not at_import):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in module_names() else base
        elif isinstance(node, ast.Call) and _last_name(node.func) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _nodes(tree: ast.AST, *, typing: bool, functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if not typing and isinstance(child, ast.If) and _last_name(child.test) == "TYPE_CHECKING":
            for alternative in child.orelse:
                yield alternative
                yield from _nodes(alternative, typing=typing, functions=functions)
            continue
        yield child
        yield from _nodes(child, typing=typing, functions=functions)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = module.package.split(".")
    base = base[: len(base) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


# -------------------------------------------------------------------------------------------------------------- layers


def upward_imports(module: Module) -> list[str]:
    """Annotations count too: who names a class of a higher layer depends on it; that is what a Protocol is for."""
    found = []
    run_time = {name for _, name in imports(module, at_run_time=True)}
    for line, name in imports(module):
        if (module.name, name) in ANNOTATIONS and name not in run_time:
            continue
        if name.partition(".")[0] != "gearmap":
            continue
        other = name.partition(".")[2].partition(".")[0]
        if other not in LAYERS:
            found.append(f"{module.name}:{line} imports {name}, which has no layer")
        elif other == module.unit or LAYERS[other] < LAYERS[module.unit] or (module.unit, other) in NEIGHBOURS:
            continue
        else:
            found.append(f"{module.name}:{line} imports {name}: layer {LAYERS[module.unit]} -> {LAYERS[other]}")
    return found


@every_module
def test_a_module_has_a_layer(module: Module) -> None:
    assert module.unit in LAYERS, f"{module.name}: give it a layer in LAYERS, and in ARCHITECTURE.md"


@every_module
def test_imports_point_down_the_layers(module: Module) -> None:
    if module.name == "gearmap":
        pytest.skip("has a rule of its own")
    assert upward_imports(module) == []


def test_the_package_itself_imports_nothing_but_errors_before_it_is_asked() -> None:
    (package,) = (module for module in modules() if module.name == "gearmap")
    ours = {name for _, name in imports(package, at_run_time=True) if name.startswith("gearmap")}
    assert ours == {"gearmap.errors"}


def test_errors_import_nothing_of_ours() -> None:
    (errors,) = (module for module in modules() if module.name == "gearmap.errors")
    assert [name for _, name in imports(errors) if name.startswith("gearmap")] == []


def import_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one cycle, or nothing."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if cycle := visit(other, [*trail, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := visit(name, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    """When they are imported. Within a folder a function may import what imports its module; that breaks nothing."""
    graph = {
        module.name: {name for _, name in imports(module, at_import=True) if name in module_names()}
        for module in modules()
        if module.name != "gearmap"
    }
    assert import_cycle(graph) == []


# -------------------------------------------------------------------------------------------------------------- purity


def impurities(module: Module) -> list[str]:
    """What a pure module must not reach: by import, by attribute, by builtin."""
    allowed = PURE_MODULES - CORE_FORBIDDEN if module.unit == "core" else PURE_MODULES | WIRE_MODULES
    if module.name in MAY_PICKLE:
        allowed = allowed | PICKLES
    found = [
        f"{module.name}:{line} imports {name}"
        for line, name in imports(module)
        if name.partition(".")[0] not in {*allowed, "gearmap"}
    ]
    aliases: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ALLOWED_NAMES:
            for alias in node.names:
                if alias.name not in ALLOWED_NAMES[node.module]:
                    found.append(f"{module.name}:{node.lineno} imports {node.module}.{alias.name}")
    bound = {
        node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            base = _dotted(node.value)
            base = aliases.get(base, base)
            if base in ALLOWED_NAMES and node.attr not in ALLOWED_NAMES[base]:
                found.append(f"{module.name}:{node.lineno} uses {base}.{node.attr}")
        elif isinstance(node, ast.Name) and node.id in IMPURE_BUILTINS - bound:
            found.append(f"{module.name}:{node.lineno} uses {node.id}()")
        if isinstance(node, ast.Call) and _last_name(node.func) in IMPURE_CALLS:
            found.append(f"{module.name}:{node.lineno} calls {ast.unparse(node.func)}")
    return found


@pytest.mark.parametrize(
    "module", [module for module in modules() if module.unit in PURE_FOLDERS], ids=lambda module: module.name
)
def test_a_pure_module_reaches_no_clock_thread_file_or_chance(module: Module) -> None:
    assert impurities(module) == []


def importers_of(roots: set[str]) -> set[str]:
    return {module.name for module in modules() for _, name in imports(module) if name.partition(".")[0] in roots}


def test_only_the_transport_imports_gearman() -> None:
    importers = importers_of({"gearman"})
    assert importers
    assert {name for name in importers if not name.startswith("gearmap.transport.")} == set()


def test_only_the_serializer_and_its_functions_pickle() -> None:
    assert importers_of(PICKLES) == MAY_PICKLE
    assert importers_of({"marshal"}) <= MAY_MARSHAL


# Where the bytes come from that a module unpickles: out of an opened seal, or this process has pickled them.
MAY_UNPICKLE = {
    "gearmap.runtime.childrun": "the body of the job that it has opened",
    "gearmap.runtime.futures": "results that `runtime.outcomes` has opened, or that were pickled here",
    "gearmap.wire.failure": "exceptions in outcomes that were opened",
    "gearmap.runtime.inline": "what it has pickled itself",
    "gearmap.runtime.maprecord": "arguments that were pickled here, for the description of a call",
    "gearmap.runtime.sentcall": "the same",
    "gearmap.runtime.sharing": "a snapshot that a payload of an opened job names",
}
# Who may open what comes from a job server.
MAY_OPEN = re.compile(
    r"gearmap\.(runtime\.(work|childrun|outcomes|control|controlrequest|blobdesk|blobsource)|wire\.\w+)"
)


def names_used(module: Module) -> set[str]:
    """Every name and attribute in a module's code."""
    nodes = list(ast.walk(module.tree))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


def users_of(name: str, *, outside: str = "-") -> set[str]:
    return {module.name for module in modules() if name in names_used(module) and not module.name.startswith(outside)}


def test_every_unpickling_is_known_with_where_its_bytes_come_from() -> None:
    importers = {
        module.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "gearmap.wire.serializer"
        if any(alias.name == "loads" for alias in node.names)
    }
    assert importers == set(MAY_UNPICKLE)
    through_the_module = {
        module.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) == ("serializer", "loads")
    }
    assert through_the_module == set()


def test_only_opened_outcomes_become_results() -> None:
    made = {
        module.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ResultBatch"
    }
    assert made == {"gearmap.runtime.outcomes"}


def test_only_these_open_what_a_job_server_gives() -> None:
    for name in ("open_message", "open_header", "open_body", "open_arriving", "open_body_into"):
        assert {user for user in users_of(name) if not MAY_OPEN.fullmatch(user)} == set()


def test_a_child_opens_a_job_before_it_unpickles_anything_of_it() -> None:
    (childrun,) = (module for module in modules() if module.name == "gearmap.runtime.childrun")
    (runner,) = (node for node in childrun.tree.body if isinstance(node, ast.ClassDef) and node.name == "Runner")
    (run,) = (node for node in runner.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    calls = [node for node in ast.walk(run) if isinstance(node, ast.Call)]
    lines = {ast.unparse(call.func): call.lineno for call in sorted(calls, key=lambda call: -call.lineno)}
    opened = lines.pop("_open")
    loading = {name: line for name, line in lines.items() if "load" in name or "run_" in name or "initialize" in name}
    assert len(loading) >= 4
    assert all(line > opened for line in loading.values()), loading
    # Nobody else is given the payloads of a job.
    assert users_of("unframe", outside="gearmap.wire") == {"gearmap.runtime.childrun"}


def test_the_job_server_stands_alone() -> None:
    known = {
        name
        for module in modules()
        if module.unit == "jobserver"
        for _, name in imports(module)
        if name.partition(".")[0] in ("gearmap", "gearman")
    }
    allowed = ("gearmap.jobserver", "gearmap.errors", "gearmap.rarelog", "gearmap.tls")
    assert {name for name in known if not name.startswith(allowed)} == set()


# --------------------------------------------------------------------------------------------------------------- state

_MUTATORS = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove",
    "setdefault", "sort", "update", "move_to_end",
}  # fmt: skip
_STATEFUL = {
    "Barrier", "Condition", "ContextVar", "Counter", "Event", "Lock", "OrderedDict", "Queue", "RLock", "Semaphore",
    "SimpleQueue", "WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "count", "defaultdict", "deque", "local",
}  # fmt: skip
_CACHES = {"cache", "lru_cache"}


def module_state(module: Module) -> list[str]:
    """Module-level names whose value changes while the program runs."""
    tree = module.tree
    names: set[str] = set()
    found = []
    for statement in tree.body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        value = statement.value
        if isinstance(value, ast.Call) and _last_name(value.func) in _STATEFUL:
            found.append(f"{module.name}:{statement.lineno} makes a {_last_name(value.func)}")
    for function in _functions(tree):
        local = _locals_of(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                found.append(f"{module.name}:{node.lineno} rebinds {', '.join(node.names)}")
            changed = _changed_name(node)
            if changed in names - local:
                found.append(f"{module.name}:{getattr(node, 'lineno', 0)} changes {changed}")
        for decorator in function.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if _last_name(called) in _CACHES:
                found.append(f"{module.name}:{function.lineno} remembers calls of {function.name}")
    return found


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _locals_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    rebound = {name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names}
    return (arguments | stored) - rebound


def _changed_name(node: ast.AST) -> str:
    """The name whose value a node changes in place, or nothing."""
    if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
        return _dotted(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATORS:
        return _dotted(node.func.value)
    return ""


@every_module
def test_a_module_holds_no_state_unless_it_says_which(module: Module) -> None:
    if module.name not in MAY_HOLD_STATE:
        assert module_state(module) == []


def test_the_list_of_modules_with_state_is_up_to_date() -> None:
    stateful = {module.name for module in modules() if module_state(module)}
    assert stateful == set(MAY_HOLD_STATE)


# ------------------------------------------------------------------------------------------------------------ printing


def printing(module: Module) -> list[str]:
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            name = _dotted(node.func)
            if name == "print" or re.fullmatch(r"sys\.(__)?(stdout|stderr)(__)?(\.buffer)?\.write(lines)?", name):
                found.append(f"{module.name}:{node.lineno} {name}")
    return found


@every_module
def test_a_library_module_prints_nothing(module: Module) -> None:
    if not MAY_PRINT.fullmatch(module.name):
        assert printing(module) == []


# ---------------------------------------------------------------------------------------------------------------- form


def bare_places(module: Module) -> list[str]:
    """Return where an address loses what it says of TLS on its way to a connection; that takes `.endpoint`."""
    return [
        f"{module.name}:{node.lineno} leaves TLS out of an address"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Tuple) and [getattr(each, "attr", "") for each in node.elts] == ["host", "port"]
    ]


# Where `.endpoint` is made, and what a server of our own is started with.
MAY_LEAVE_TLS_OUT = {"gearmap.config", "gearmap.cluster", "gearmap.jobserver.process"}


@every_module
def test_no_address_becomes_a_plain_one_on_its_way_to_a_connection(module: Module) -> None:
    if module.name not in MAY_LEAVE_TLS_OUT:
        assert bare_places(module) == []


@every_module
def test_a_module_says_what_it_is_for(module: Module) -> None:
    text = ast.get_docstring(module.tree) or ""
    assert len(text.splitlines()[0]) > 15 if text else False, f"{module.name} has no docstring"


@every_module
def test_a_module_is_not_too_long(module: Module) -> None:
    lines = module.text.count("\n")
    assert lines <= MAX_LINES, f"{module.name} has {lines} lines: two ideas"


@every_module
def test_a_name_that_a_module_offers_is_there(module: Module) -> None:
    """`__all__` is read by people and by star imports: it lists names that exist, sorted, each once."""
    offered: list[str] = []
    for statement in module.tree.body:
        if isinstance(statement, ast.Assign) and _last_name(statement.targets[0]) == "__all__":
            offered = ast.literal_eval(statement.value)
    assert len(set(offered)) == len(offered)
    defined = {
        name.id for name in ast.walk(module.tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    defined |= {getattr(statement, "name", "") for statement in module.tree.body}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {alias.asname or alias.name for alias in node.names}
    assert set(offered) - defined == set()


# ---------------------------------------------------------------------------------------------- paths of one's machine

# Put together from parts, so that this file does not match.
_HOMES = "|".join(("home", "root", "Users", "work", "workspace", "workspaces", "mnt", "data", "private/var"))
MACHINE_PATH = re.compile(rf"(?<![\w./:~\]}}>$-])/(?:{_HOMES})/[\w.-]+|[A-Za-z]:\\+Users\\+\w+")
# Such a path may stand for one of a reader's own, or be a value that a test hands in.
EXAMPLE_PATH = re.compile(r"/(?:home|Users)/(?:you|user|me|ada|alice|bob|u|somebody)\b|/data/")
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".cfg",
    ".ini",
    ".txt",
    ".yml",
    ".yaml",
    ".json",
    ".ipynb",
    ".rst",
    ".sh",
    ".js",
}


def tracked_files() -> list[Path]:
    """What git tracks; without git, everything that is not hidden."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True)
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def machine_paths(text: str) -> list[str]:
    return [found for found in MACHINE_PATH.findall(text) if not EXAMPLE_PATH.match(found)]


def test_no_tracked_file_names_a_path_of_the_machine_that_it_was_written_on() -> None:
    found = {}
    for path in tracked_files():
        if path.suffix in TEXT_SUFFIXES and path.is_file():
            paths = machine_paths(path.read_text(encoding="utf-8", errors="replace"))
            if paths:
                found[str(path.relative_to(ROOT))] = paths[:3]
    assert found == {}


# ------------------------------------------------------------------------------------------------ the rules themselves


def test_the_sources_were_found() -> None:
    assert len(modules()) > 40
    assert {"gearmap", "gearmap.core.engine", "gearmap.wire.seal"} <= module_names()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gearmap.core.x", "from gearmap.wire import seal"),
        ("gearmap.wire.x", "from gearmap.core.events import Block"),
        ("gearmap.wire.x", "def f():\n    from gearmap.runtime import futures"),
        ("gearmap.transport.x", "from gearmap.jobserver import process"),
        (
            "gearmap.runtime.x",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gearmap.client import Client",
        ),
        ("gearmap.runtime.x", "from .. import client"),
        ("gearmap.runtime.x", "import gearmap"),
        ("gearmap.display.x", "from gearmap.cluster import LocalProcesses"),
        ("gearmap.client", "from gearmap import api"),
        ("gearmap.current", "from gearmap.client import Client"),
        ("gearmap.config", "from gearmap.keyfile import load_key"),
        ("gearmap.client", "import importlib\nimportlib.import_module('gearmap.api')"),
        ("gearmap.errors", "from gearmap import unheard_of"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_found(name: str, text: str) -> None:
    assert len(upward_imports(example(name, text))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gearmap.core.x", "from gearmap.core import events"),
        ("gearmap.runtime.x", "from ..wire import seal\nfrom . import parts"),
        ("gearmap.api", "from gearmap.client import Client"),
        ("gearmap.cli.x", "from gearmap import __version__, errors"),
        ("gearmap.config", "import os, gearman"),
    ],
)
def test_an_import_that_points_down_is_not(name: str, text: str) -> None:
    assert upward_imports(example(name, text)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gearmap.core.x", "import time"),
        ("gearmap.core.x", "def f():\n    import random"),
        ("gearmap.core.x", "import pickle"),
        ("gearmap.core.x", "import os"),
        ("gearmap.core.x", "text = open('x').read()"),
        ("gearmap.core.x", "def f(path):\n    return path.read_text()"),
        ("gearmap.wire.x", "import os\nos.urandom(8)"),
        ("gearmap.wire.x", "import os as o\no.environ"),
        ("gearmap.wire.x", "from os import getpid"),
        ("gearmap.wire.x", "import sys\nsys.stdout"),
        ("gearmap.wire.x", "import pickle"),
        ("gearmap.wire.x", "from secrets import token_bytes"),
        ("gearmap.wire.x", "__import__('time')"),
    ],
)
def test_an_impurity_is_found(name: str, text: str) -> None:
    assert impurities(example(name, text)) != []


@pytest.mark.parametrize(
    "text",
    [
        "x = 0\ndef f():\n    global x\n    x = 1",
        "x = {}\ndef f():\n    x['a'] = 1",
        "x: list[int] = []\ndef f():\n    x.append(1)",
        "x = []\ndef f():\n    del x[0]",
        "class C: pass\nx = C()\ndef f():\n    x.y = 1",
        "import threading\nx = threading.Lock()",
        "import functools\n@functools.lru_cache(None)\ndef f(): ...",
        "from functools import cache\n@cache\ndef f(): ...",
    ],
)
def test_state_of_a_module_is_found(text: str) -> None:
    assert module_state(example("gearmap.core.x", text)) != []


@pytest.mark.parametrize(
    "text",
    [
        "X = {1: 2}\ndef f():\n    return X[1]",
        "x = []\ndef f(x):\n    x.append(1)",
        "x = []\ndef f():\n    x = []\n    x.append(1)",
        "class C:\n    def f(self):\n        self.x = 1\n        self.y.append(2)",
    ],
)
def test_constants_and_locals_are_not_state(text: str) -> None:
    assert module_state(example("gearmap.core.x", text)) == []


def test_a_circle_of_imports_is_found() -> None:
    assert import_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert import_cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_an_address_that_loses_its_tls_is_found() -> None:
    assert bare_places(example("gearmap.x", "connect((each.address.host, each.address.port))"))
    assert not bare_places(example("gearmap.x", "connect(each.address.endpoint)"))


def test_a_print_is_found() -> None:
    text = "import sys\nprint(1)\nsys.stderr.write('x')\nself.print()"
    assert len(printing(example("gearmap.core.x", text))) == 2


@pytest.mark.parametrize("path", ["/" + "root/x", "'/" + "home/jane/x'", "C:" + "\\Users\\jane", " /" + "work/main"])
def test_a_path_of_a_machine_is_found(path: str) -> None:
    assert machine_paths(f"see {path}") != []


@pytest.mark.parametrize(
    "text", ["https://x.example/" + "home/page", "~/project/x", "/" + "home/you/x", "a/" + "root/b", "/dev/null"]
)
def test_other_paths_are_not(text: str) -> None:
    assert machine_paths(text) == []


def test_the_impure_builtins_exist() -> None:
    assert all(hasattr(builtins, name) for name in IMPURE_BUILTINS)

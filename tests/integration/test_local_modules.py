"""Modules beside a script run on nodes that do not have them, as they are when they were imported last."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

FILES = {
    "helper.py": """
        import collections, dataclasses, enum
        from shapes import Square, double

        LOADED = []

        class Color(enum.Enum):
            RED = 1

        Pair = collections.namedtuple("Pair", "a b")

        class HelperError(Exception):
            def __init__(self, code, text):
                super().__init__(text)
                self.code = code

        def work(x):
            import lazy
            from tools import deep
            LOADED.append(x)
            return {"square": Square(double(x)), "color": Color.RED, "pairs": [Pair(lazy.WHAT, deep.level())]}

        def fail(x):
            raise HelperError(7, f"no {x}")  # here

        def version(x):
            import lazy
            return lazy.WHAT, 1

        def nested(x):
            import gearmap
            return gearmap.map(work, [x])[0]

        if __name__ == "__main__":
            raise RuntimeError("a module that is imported is not run")
        """,
    "shapes.py": """
        import dataclasses

        @dataclasses.dataclass
        class Square:
            side: int

            def area(self):
                return self.side ** 2

        def double(x):
            return 2 * x
        """,
    "lazy.py": "WHAT = 'first'\n",
    "tools/__init__.py": "from .base import NAME\n",
    "tools/base.py": "NAME = 'tools'\n",
    "tools/deep.py": "def level():\n    from .base import NAME\n    from . import base\n    return NAME + base.NAME\n",
}

START = """
import importlib, json, pathlib, sys, traceback
import gearmap, helper, shapes
from helper import work
client = gearmap.Client(sys.argv[1], key=sys.argv[2]) if len(sys.argv) > 1 else gearmap.LocalCluster(2)
here = pathlib.Path(__file__).parent
said = {}
"""

END = """
client.close()
print(json.dumps(said))
"""


@pytest.fixture(params=["a node elsewhere", "a local cluster"])
def run(request, tmp_path):
    """A function that runs a script beside these files and returns what it said."""
    folder = tmp_path / "notebooks"
    words = []
    if request.param == "a node elsewhere":
        start_server, start_node, key_file = map(request.getfixturevalue, ("start_server", "start_node", "key_file"))
        server = start_server("embedded")
        start_node(server, workers=1)
        words = [f"{server.host}:{server.port}", str(key_file)]
    for name, source in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(source))

    def run_it(source):
        script = folder / "script.py"
        script.write_text(START + textwrap.dedent(source) + END)
        command = [sys.executable, "-B", str(script), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run_it


def test_functions_of_local_modules_run_and_return_instances_of_the_callers_classes(run):
    said = run(
        """
        results = client.map(work, [1, 2, 3])
        said["sides"] = [result["square"].side for result in results]
        said["pair"] = results[0]["pairs"][0]
        said["same"] = [type(results[0]["square"]) is shapes.Square, results[0]["color"] is helper.Color.RED,
                        type(results[0]["pairs"][0]) is helper.Pair]
        said["arguments"] = client.map(lambda square: square.area(), [shapes.Square(4)])
        """
    )
    assert said == {"sides": [2, 4, 6], "pair": ["first", "toolstools"], "same": [True] * 3, "arguments": [16]}


def test_exceptions_of_local_modules_come_back_as_themselves_with_their_lines(run):
    said = run(
        """
        try:
            client.map(helper.fail, [1])
        except helper.HelperError as error:
            said["code"] = error.code
            said["text"] = traceback.format_exc()
        """
    )
    assert said["code"] == 7
    assert 'raise HelperError(7, f"no {x}")  # here' in said["text"]


def test_a_function_of_the_script_may_import_them_when_it_runs(run):
    said = run(
        """
        def task(x):
            import lazy
            from tools.deep import level
            return [lazy.WHAT, level(), x]
        said["result"] = client.submit(task, 1).result()
        """
    )
    assert said == {"result": ["first", "toolstools", 1]}


def test_an_edit_and_a_reload_change_what_runs_and_versions_do_not_mix(run):
    said = run(
        """
        said["before"] = client.map(helper.version, [0])[0]
        def kept(x):
            import lazy, helper
            return lazy.WHAT, helper.version(x)
        def states(x):
            import helper
            return len(helper.LOADED)
        file = here / "helper.py"
        file.write_text(file.read_text().replace("lazy.WHAT, 1", "lazy.WHAT, 'a new helper'"))
        importlib.reload(helper)
        said["helper"] = client.map(helper.version, [0])[0]
        (here / "lazy.py").write_text("WHAT = 'changed'\\n")
        said["lazy"] = client.map(helper.version, [0])[0]
        said["kept"] = client.map(kept, [0])[0]
        """
    )
    assert said["before"] == ["first", 1]
    assert said["helper"] == ["first", "a new helper"]
    assert said["lazy"] == ["changed", "a new helper"]
    assert said["kept"] == ["changed", ["changed", "a new helper"]]


def test_what_a_module_keeps_is_made_once_in_a_process(run):
    said = run(
        """
        with client:
            client.map(work, range(20), chunksize=1)
            said["seen"] = max(client.map(lambda x: len(helper.LOADED), range(4)))
        """
    )
    assert said["seen"] >= 10


def test_tasks_that_use_the_cluster_send_them_on(run):
    said = run("said['side'] = client.submit(helper.nested, 5).result()['square'].side")
    assert said == {"side": 10}


def test_an_initializer_may_be_of_a_local_module(run):
    said = run(
        """
        options = client.options(initializer=helper.work, initargs=("begun",))
        said["first"] = options.map(lambda x: helper.LOADED[0], [0])
        """
    )
    assert said == {"first": ["begun"]}


def test_modules_that_are_to_go_by_reference_are_asked_for_with_advice(run):
    said = run(
        """
        apart = client.options(by_reference=[shapes])
        try:
            said["result"] = apart.submit(shapes.double, 2).result()
        except Exception as error:
            said["error"] = type(error).__name__
            said["text"] = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        """
    )
    if "result" in said:  # a local cluster imports from where the caller does
        assert said == {"result": 4}
    else:
        assert said["error"] == "SerializationError"
        assert "No module named 'shapes'" in said["text"]
        assert "gearmap.options(by_value=['shapes'])" in said["text"]

"""Definitions of a `__main__` without a file reach a process that cannot see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gearmap.wire import serializer

from .by_value_cases import CASES

pytestmark = pytest.mark.slow

_ROOT = Path(serializer.__file__).parents[2]


# A `__main__` as a notebook has it: no file, one compiled cell after another in the same namespace.
DEFINE = """
import json, sys, __main__
from gearmap.wire.envelope import frame
from gearmap.wire.serializer import dump_function, dumps
folder, cases = sys.argv[1], json.load(sys.stdin)
for number, (name, source) in enumerate(cases.items()):
    space = __main__.__dict__
    exec(compile(source, f"<cell {number}>", "exec"), space)
    body = frame([dump_function(space["fn"]), dumps(space["args"]), dumps(space["want"])])
    with open(f"{folder}/{number}", "wb") as file:
        file.writelines(body)
"""

LOAD = """
import json, sys
from gearmap.wire.envelope import unframe
from gearmap.wire.serializer import loads
answers = []
for number in range(int(sys.argv[2])):
    with open(f"{sys.argv[1]}/{number}", "rb") as file:
        payloads = unframe(bytearray(file.read()))
    try:
        fn, args, want = map(loads, payloads)
        got = fn(*args)
        answers.append("" if got == want else f"{got!r} instead of {want!r}")
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
json.dump(answers, sys.stdout)
"""


def _run(source, *args, stdin=""):
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-c", source, *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the loading process says of each case; empty is good."""
    pytest.importorskip("numpy")
    folder = tmp_path_factory.mktemp("by_value")
    _run(DEFINE, folder, stdin=json.dumps(CASES))
    return dict(zip(CASES, json.loads(_run(LOAD, folder, len(CASES))), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_notebook_definition_runs_in_a_process_that_never_saw_it(answers, case):
    assert answers[case] == ""


THERE_AND_BACK = """
import json, subprocess, sys
from gearmap.wire.envelope import frame, unframe
from gearmap.wire.serializer import dumps, loads
class Result:
    pass
def make():
    return Result()
loader = '''
import sys
from gearmap.wire.envelope import frame, unframe
from gearmap.wire.serializer import dumps, loads
(payload,) = unframe(sys.stdin.buffer.read())
sys.stdout.buffer.write(b"".join(frame([dumps([loads(payload)()])])))
'''
done = subprocess.run([sys.executable, "-c", loader], input=b"".join(frame([dumps(make)])), stdout=-1, timeout=30)
(payload,) = unframe(done.stdout)
print(isinstance(loads(payload)[0], Result))
"""


def test_a_returned_instance_is_of_the_class_that_the_caller_has():
    assert _run(THERE_AND_BACK).strip() == "True"

"""Which modules are the user's own, and what travels of them."""

from __future__ import annotations

import ast
import gc
import importlib
import importlib.machinery
import os
import sys

import pytest

from gearmap.runtime import localcode
from gearmap.runtime.localcode import MAX_SOURCE_BYTES, LocalCode
from gearmap.wire.serializer import dump_function


class Folder:
    """A folder beside a notebook."""

    def __init__(self, path):
        self.path = path

    def write(self, name, source):
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        # An edit within the same second has to be seen as one, too.
        self.age = getattr(self, "age", 0) + 10
        os.utime(file, (self.age, self.age))
        importlib.invalidate_caches()
        return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Folder(tmp_path)
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def load(name):
    return importlib.import_module(name)


def sent(fn, code=None):
    """Names and sources of what travels with a function."""
    bundle, _ = (code or LocalCode()).bundle(bytes(dump_function(fn)[0]))
    return {} if bundle is None else {module.name: module.source for module in bundle.modules}


def in_a_cell(source):
    """The function `fn` of a cell."""
    space = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), space)
    return space["fn"]


def test_a_module_beside_the_notebook_travels_with_its_function(folder):
    folder.write("own_helper.py", "def fn(): pass\n")
    assert sent(load("own_helper").fn) == {"own_helper": "def fn(): pass\n"}


def test_what_it_imports_travels_wherever_the_import_stands(folder):
    folder.write("own_a.py", "import own_b\ndef fn():\n    from own_c import x\n")
    folder.write("own_b.py", "import json, own_a\n")
    folder.write("own_c.py", "x = 1\n")
    folder.write("own_d.py", "unused = 1\n")
    assert set(sent(load("own_a").fn)) == {"own_a", "own_b", "own_c"}
    assert "own_c" not in sys.modules


def test_of_a_package_travels_what_is_imported_with_its_parents(folder):
    folder.write("own_p/__init__.py", "")
    folder.write("own_p/one.py", "from . import two\nfrom .deep.three import *\ndef fn(): pass\n")
    folder.write("own_p/two.py", "")
    folder.write("own_p/deep/__init__.py", "")
    folder.write("own_p/deep/three.py", "from ..four import x\n")
    folder.write("own_p/four.py", "x = 1\n")
    folder.write("own_p/unused.py", "")
    wanted = {"own_p", "own_p.one", "own_p.two", "own_p.deep", "own_p.deep.three", "own_p.four"}
    assert set(sent(load("own_p.one").fn)) == wanted


def test_an_import_inside_a_function_of_a_cell_is_found(folder):
    folder.write("own_late.py", "x = 1\n")
    assert set(sent(in_a_cell("def fn():\n    import own_late\n    return own_late.x"))) == {"own_late"}


def test_modules_of_python_and_of_packages_do_not_travel(folder):
    assert sent(in_a_cell("import json, numpy, gearmap\ndef fn():\n    return json, numpy, gearmap")) == {}


def test_a_package_with_an_extension_module_goes_by_reference(folder):
    folder.write("own_fast/__init__.py", "def fn(): pass\n")
    folder.write("own_fast/deep/kernel" + importlib.machinery.EXTENSION_SUFFIXES[0], "")
    assert sent(load("own_fast").fn) == {}


def test_what_an_installer_put_into_a_folder_goes_by_reference(folder, monkeypatch):
    folder.write("lib/site-packages/own_installed.py", "def fn(): pass\n")
    monkeypatch.syspath_prepend(str(folder.path / "lib/site-packages"))
    assert sent(load("own_installed").fn) == {}


def test_an_edit_travels_after_a_reload(folder):
    code = LocalCode()
    folder.write("own_edited.py", "def fn(): return 1\n")
    module = load("own_edited")
    assert sent(module.fn, code) == {"own_edited": "def fn(): return 1\n"}
    folder.write("own_edited.py", "def fn(): return 22\n")
    assert sent(module.fn, code) == {"own_edited": "def fn(): return 1\n"}
    importlib.reload(module)
    assert sent(module.fn, code) == {"own_edited": "def fn(): return 22\n"}


def test_an_answer_is_current_until_a_module_is_reloaded_or_a_file_changes(folder, monkeypatch):
    monkeypatch.setattr(localcode, "PAUSE_SECONDS", 0.0)
    folder.write("own_main.py", "def fn():\n    import own_lazy\n")
    folder.write("own_lazy.py", "x = 1\n")
    code = LocalCode()
    stream = bytes(dump_function(load("own_main").fn)[0])
    _, is_current = code.bundle(stream)
    assert is_current()
    folder.write("own_lazy.py", "x = 22\n")
    assert not is_current()
    bundle, is_current = code.bundle(stream)
    assert "x = 22\n" in [module.source for module in bundle.modules]
    importlib.reload(sys.modules["own_main"])
    assert not is_current()


def test_a_file_that_appears_where_modules_are_looked_for_ends_an_answer(folder, monkeypatch):
    monkeypatch.setattr(localcode, "PAUSE_SECONDS", 0.0)
    folder.write("own_main.py", "def fn():\n    import own_later\n")
    code = LocalCode()
    stream = bytes(dump_function(load("own_main").fn)[0])
    _, is_current = code.bundle(stream)
    assert is_current()
    folder.write("own_later.py", "x = 1\n")
    assert not is_current()
    bundle, _ = code.bundle(stream)
    assert "own_later" in [module.name for module in bundle.modules]


def test_calls_in_a_row_do_not_look_at_files(folder, monkeypatch):
    monkeypatch.setattr(localcode, "PAUSE_SECONDS", 60.0)
    monkeypatch.setattr(localcode, "LOOK_SECONDS", 60.0)
    folder.write("own_main.py", "def fn():\n    import own_lazy\n")
    folder.write("own_lazy.py", "x = 1\n")
    _, is_current = LocalCode().bundle(bytes(dump_function(load("own_main").fn)[0]))
    monkeypatch.setattr(localcode.os, "stat", None)
    assert is_current()


def test_equal_modules_make_equal_bytes(folder):
    folder.write("own_a.py", "def fn(): pass\n")
    stream = bytes(dump_function(load("own_a").fn)[0])
    assert LocalCode().bundle(stream)[0].data == LocalCode().bundle(stream)[0].data


def test_more_source_than_should_travel_with_every_job_goes_by_reference(folder):
    folder.write("own_large.py", "def fn(): pass\n" + "#" * MAX_SOURCE_BYTES)
    assert sent(load("own_large").fn) == {}


def test_a_source_that_does_not_parse_travels_alone(folder):
    file = folder.write("own_broken.py", "def fn(): pass\n")
    module = load("own_broken")
    file.write_text("def fn(:\n")
    assert sent(module.fn) == {"own_broken": "def fn(:\n"}


def test_what_the_main_module_has_imported_travels_for_the_sake_of_arguments(folder, monkeypatch):
    folder.write("own_shapes.py", "class Square: pass\n")
    monkeypatch.setattr(sys.modules["__main__"], "Square", load("own_shapes").Square, raising=False)
    assert set(sent(in_a_cell("def fn(x):\n    return x"))) == {"own_shapes"}


def test_modules_that_are_chosen_by_value_travel_wherever_they_are(folder, monkeypatch):
    folder.write("lib/site-packages/own_installed/__init__.py", "def fn(): pass\n")
    folder.write("lib/site-packages/own_installed/plugin.py", "#" * MAX_SOURCE_BYTES)
    monkeypatch.syspath_prepend(str(folder.path / "lib/site-packages"))
    load("own_installed.plugin")
    fn = load("own_installed").fn
    assert set(sent(fn, LocalCode(by_value=["own_installed"]))) == {"own_installed", "own_installed.plugin"}


def test_modules_that_are_chosen_by_reference_stay(folder):
    folder.write("own_a.py", "import own_b.deep\ndef fn(): pass\n")
    folder.write("own_b/__init__.py", "")
    folder.write("own_b/deep.py", "")
    assert set(sent(load("own_a").fn, LocalCode(by_reference=["own_b"]))) == {"own_a"}


def test_code_that_parses_meanwhile_disturbs_nobody(folder):
    # What another thread does in the middle of a parse, the collector does here at a time that is known.
    parsed = []

    def disturb(phase, info):
        if len(parsed) < 3:
            parsed.append(ast.parse("x = 1"))

    folder.write("own_a.py", "import own_b\n" + "def fn(): return [1, (2, 3)]\n" * 300)
    folder.write("own_b.py", "")
    fn = load("own_a").fn
    threshold = gc.get_threshold()
    gc.callbacks.append(disturb)
    gc.set_threshold(50)
    try:
        assert set(sent(fn)) == {"own_a", "own_b"}
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(disturb)
    assert parsed

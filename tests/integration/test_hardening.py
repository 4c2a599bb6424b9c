"""What tasks get of their node's process, and what one child can do to another."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and memfd")

SIZE = 300_000  # numbers of 8 bytes: more than a MiB, so they are shared


def core_limit(_):
    import resource

    return resource.getrlimit(resource.RLIMIT_CORE)


def test_neither_a_node_nor_its_children_leave_core_files(kind, start_server, start_node, connect):
    import resource

    server = start_server(kind)
    node = start_node(server)
    assert connect(server).map(core_limit, range(2), progress=False) == [(0, 0)] * 2
    assert resource.prlimit(node.pid, resource.RLIMIT_CORE) == (0, 0)


def test_no_child_of_a_local_cluster_leaves_a_core_file_and_this_process_may(cluster):
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    assert cluster.map(core_limit, range(2), progress=False) == [(0, 0)] * 2
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


def attack(array, owners):
    """Try to change what others see of a shared array; return what was tried, and what it came to."""
    import errno
    import fcntl
    import glob
    import mmap
    import os

    tried = {}

    def attempt(name, call):
        try:
            call()
            outcome = "done"
        except OSError as error:
            outcome = errno.errorcode[error.errno]
        except Exception as error:  # ValueError, where Python refuses
            outcome = repr(error)
        tried.setdefault(name, set()).add(outcome)

    def memories():
        for owner in (os.getpid(), os.getppid(), *owners):
            for path in glob.glob(f"/proc/{owner}/fd/*"):
                try:
                    if "memfd:gearmap-blob" in os.readlink(path):
                        yield path
                except OSError:
                    pass

    def shared_and_writable(fd):
        mmap.mmap(fd, 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    count = 0
    for path in memories():
        count += 1
        fd = os.open(path, os.O_RDWR)
        attempt("write", lambda fd=fd: os.pwrite(fd, b"x" * 64, 0))
        attempt("grow", lambda fd=fd: os.ftruncate(fd, 2**24))
        attempt("shrink", lambda fd=fd: os.ftruncate(fd, 0))
        attempt("shared mapping", lambda fd=fd: shared_and_writable(fd))
        attempt("punch", lambda fd=fd: os.posix_fallocate(fd, 0, 2**24))
        attempt("seals", lambda fd=fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0))
        os.close(fd)
    array[:] = -1.0  # its own copy
    return os.getpid(), count, tried


def read(array):
    import os

    return os.getpid(), float(array.min()), float(array.max())


def check_attacks(client, owners):
    array = np.arange(float(SIZE))
    seen = client.map(lambda n: (read(array), attack(array, owners), n)[1], range(4), chunksize=1, progress=False)
    for _, count, tried in seen:
        assert count >= 1
        assert set(tried) == {"write", "grow", "shrink", "shared mapping", "punch", "seals"}
        for name, outcomes in tried.items():
            assert outcomes <= {"EPERM", "EACCES"}, (name, outcomes)
    # The same memory, for other functions, in children that did not write to theirs, and in those that did.
    everybody = client.map(lambda n: read(array), range(8), chunksize=1, progress=False)
    assert {(low, high) for _, low, high in everybody} == {(0.0, SIZE - 1.0)}
    assert array[1] == 1.0


@linux_only
def test_no_child_changes_what_others_see_of_an_array_of_a_local_cluster(kind):
    import os

    with gearmap.LocalCluster(2, server=kind) as cluster:
        check_attacks(cluster, [os.getpid()])


@linux_only
def test_no_child_changes_what_others_see_of_an_array_that_its_node_keeps(kind, start_server, start_node, connect):
    server = start_server(kind)
    node = start_node(server)
    client = connect(server)
    client.map(abs, [-1], progress=False)
    check_attacks(client, [node.pid])
    assert psutil.Process(node.pid).is_running()


def test_a_nested_run_has_a_key_of_its_own_each_time(cluster):
    def keys(n):
        from gearmap.runtime.sessions import session_from_node

        drawn = [session_from_node("default") for _ in range(3)]
        return [(each.id, each.key) for each in drawn]

    drawn = [each for keys_of_one in cluster.map(keys, range(3), progress=False) for each in keys_of_one]
    assert len({key for _, key in drawn}) == len({name for name, _ in drawn}) == 9


def test_a_child_is_given_the_two_keys_of_its_execution_and_no_other(cluster):
    """Everything that gearmap holds in a child, searched for bytes as long as a key."""

    def held(n):
        import gc

        from gearmap.runtime import childrun
        from gearmap.runtime.child import Job

        jobs = [each for each in gc.get_objects() if type(each) is Job]
        modules = [name for name in sys.modules if name in ("gearmap.keyfile", "gearmap.runtime.keyring")]
        return len(jobs), modules, childrun.__name__

    for jobs, modules, _ in cluster.map(held, range(4), chunksize=1, progress=False):
        assert jobs <= 1
        assert modules == []

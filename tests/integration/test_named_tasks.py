"""Named tasks, called on workers that have them: whatever Python those have, and nothing else travels."""

from __future__ import annotations

import re
import sys
import textwrap
import warnings

import pytest
from integration_support import wait_until

import gearmap
from gearmap.core.names import TaskLane
from gearmap.runtime.taskbook import record_of
from gearmap.transport.admin import server_status

JOBS = """
    import os

    import gearmap

    WHERE = "client"

    @gearmap.task
    def send_mail(to, *, subject="no subject", state=None, args=(), kwargs=None, priority=0, unique=""):
        return WHERE, to, subject, state, args, kwargs, priority, unique

    @gearmap.task(queue="images", name="{name}.resize")
    def resize_it(size):
        return size * 2

    @gearmap.task
    def both(number):
        return sum(resize_it.map(range(number))), gearmap.map(lambda each: each + number, range(2))

    @gearmap.task
    def fails(number):
        raise LookupError(number)

    @gearmap.task
    def process():
        return os.getpid()
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """An application's module with tasks, here and on workers, where its `WHERE` is another."""
    name = re.sub(r"\W", "_", f"shop_{tmp_path.name}")  # a module is imported once
    for folder, where in (("here", "client"), ("there", "worker")):
        package = tmp_path / folder / name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        text = textwrap.dedent(JOBS).replace("{name}", name).replace('"client"', f'"{where}"')
        (package / "gearman_jobs.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    module = __import__(f"{name}.gearman_jobs").gearman_jobs
    module.there = str(tmp_path / "there")
    yield module
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[each]


@pytest.fixture
def serve(kind, start_server, start_node, connect, shop):
    """Start a server, a node that serves the module's tasks, and a client that is the current one."""
    tasks = tuple(record.name for record in map(record_of, vars(shop).values()) if record is not None)

    def start(*, tasks=tasks, **options):
        server = start_server(kind)
        node = start_node(server, tasks=tasks, task_modules=(shop.__name__,), cwd=shop.there, **options)
        client = connect(server)
        client.__enter__()
        return client, server, node

    return start


def test_any_arguments_come_as_they_are_also_falsy_ones_and_of_any_name(serve, shop):
    serve()
    mail = shop.send_mail
    assert mail.submit("a").result(30) == ("worker", "a", "no subject", None, (), None, 0, "")
    assert mail.submit(0, subject="", state=[]).result(30)[1:4] == (0, "", [])
    sent = mail.submit(None, args=(1,), kwargs={"a": 2}, priority=3, unique="u").result(30)
    assert sent == ("worker", None, "no subject", None, (1,), {"a": 2}, 3, "u")
    assert mail("a")[0] == "client"  # a call is a call


def test_every_kind_of_map_calls_by_name(serve, shop):
    client, _, _ = serve()
    resize = shop.resize_it
    assert resize.map(range(100)) == [2 * number for number in range(100)]
    assert resize.starmap([(1,), (2,)]) == [2, 4]
    assert list(resize.imap(range(5))) == [0, 2, 4, 6, 8]
    assert sorted(resize.imap_unordered(range(5))) == [0, 2, 4, 6, 8]
    assert resize.map_async(range(3)).result(30) == [0, 2, 4]
    assert client.map(shop.send_mail, ["b"])[0][:2] == ("worker", "b")  # so does a task in the place of a function
    assert resize.options(retries=1, task_timeout=20).submit(4).result(30) == 8


def test_workers_of_another_python_serve_named_tasks(serve, shop):
    client, _, _ = serve(python=(3, 99))
    assert shop.resize_it.submit(2).result(30) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(gearmap.RunTimeout):  # of closures they do not
            client.map(abs, [-1], timeout=1.0)


def test_a_task_may_call_tasks_and_closures_itself(serve, shop):
    serve(workers=1)
    assert shop.both.submit(4).result(60) == (12, [4, 5])


def test_an_error_of_a_task_is_raised_as_itself(serve, shop):
    serve()
    with pytest.raises(LookupError, match="7") as caught:
        shop.fails.submit(7).result(30)
    told = "\n".join([*getattr(caught.value, "__notes__", ()), str(caught.value.__cause__)])
    assert "gearman_jobs.py" in told


def test_a_task_that_nobody_serves_is_told_with_what_is_like_it(serve, shop):
    name = shop.__name__.partition(".")[0]
    _, server, _ = serve(tasks=(f"{name}.send_mails",))
    wait_until(lambda: [row for row in server_status((server.host, server.port)) if "mails" in row.function], "it is")
    said = rf"no worker serves task '{name}\.send_mail'.*did you mean '{name}\.send_mails'"
    with pytest.warns(RuntimeWarning, match=said), pytest.raises(gearmap.RunTimeout):
        shop.send_mail.map(["a"], timeout=4.0)


def test_the_names_on_the_server_are_the_tasks_with_the_key(serve, shop):
    client, server, _ = serve()
    key_id = client._backend.open_session("default").lane.key_id
    served = {row.function for row in server_status((server.host, server.port)) if row.workers}
    assert {TaskLane(shop.resize_it.name, key_id).name, TaskLane(shop.send_mail.name, key_id).name} <= served


def test_a_worker_without_the_module_says_so(kind, start_server, start_node, connect, shop, tmp_path):
    server = start_server(kind)
    start_node(server, tasks=(shop.send_mail.name,), task_modules=(shop.__name__,), cwd=str(tmp_path))
    with connect(server), pytest.raises(gearmap.SerializationError, match="No module named 'shop_"):
        shop.send_mail.submit("a").result(30)


def test_a_local_cluster_runs_named_tasks_without_being_told(cluster, shop):
    with_current = cluster.options()
    assert with_current.submit(shop.send_mail, "a").result(30)[:2] == ("client", "a")
    assert with_current.map(shop.resize_it, range(3)) == [0, 2, 4]
    assert with_current.submit(shop.both, 3).result(60) == (6, [3, 4])


def test_named_tasks_run_inline(shop):
    with gearmap.LocalCluster(0):
        assert shop.send_mail.submit("a", subject=0).result() == ("client", "a", 0, None, (), None, 0, "")
        assert shop.resize_it.map(range(3)) == [0, 2, 4]


class Note:
    """Of a module that workers do not have."""


def test_arguments_go_by_name_or_not_at_all(serve, shop):
    serve()
    mail, resize = shop.send_mail, shop.resize_it
    said = "cannot go to a named task.*modules that they can import"
    with pytest.raises(gearmap.SerializationError, match=rf"the arguments {said}"):
        mail.submit("a", subject=lambda: None)
    with pytest.raises(gearmap.SerializationError, match=rf"argument 0 of task 1 {said}"):
        resize.map([1, lambda: None, 3])
    with pytest.raises(gearmap.SerializationError, match=said):
        list(resize.imap([lambda: None]))
    assert mail.submit("__main__", subject=sys.version_info[:2]).result(30)[1] == "__main__"  # the word is none

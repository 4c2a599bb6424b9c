"""What tasks display, and the figures that they leave open, come back as outputs of these tasks."""

from __future__ import annotations

import base64
import os

import pytest

import gearmap

pytestmark = pytest.mark.usefixtures("functions_travel")

PNG = b"\x89PNG"


def is_png(bundle):
    return base64.b64decode(bundle["image/png"]).startswith(PNG)


def shows_html(x):
    from IPython.display import HTML, display

    display(HTML(f"<b>{x}</b>"))
    print("beside")
    display({"raw": x})
    return x


def plots(n_figures):
    import matplotlib.pyplot as plt

    for number in range(n_figures):
        _, axes = plt.subplots(figsize=(1, 1))
        axes.plot([number, 1])


def test_what_a_task_displays_is_among_its_outputs_and_not_printed(cluster):
    future = cluster.submit(shows_html, 3)
    assert future.result() == 3
    html, plain = future.outputs
    assert html["text/html"] == "<b>3</b>"
    assert plain == {"text/plain": "{'raw': 3}"}
    assert (future.stdout, future.stderr) == ("beside\n", "")


def test_display_need_not_be_imported(cluster):
    future = cluster.submit(eval, "display(1, 2)")
    assert future.result() is None
    assert [bundle.text for bundle in future.outputs] == ["1", "2"]


def test_open_figures_are_outputs_and_are_closed(cluster):
    for _ in range(2):
        future = cluster.submit(plots, 2)
        future.result()
        assert len(future.outputs) == 2
        assert all(map(is_png, future.outputs))
        assert future.outputs[0].text == "<Figure size 100x100 with 1 Axes>"
        assert future.stderr == ""


def test_a_figure_that_is_shown_is_an_output_once_and_warns_of_nothing(cluster):
    def task():
        import matplotlib.pyplot as plt
        from IPython.display import display

        figure = plt.figure(figsize=(1, 1))
        plt.show()
        display(figure)

    future = cluster.submit(task)
    future.result()  # a warning would be an error here
    assert [is_png(bundle) for bundle in future.outputs] == [True, True]


def test_each_task_of_a_map_keeps_what_it_displayed(cluster):
    cluster.map(shows_html, range(6))
    assert [gearmap.last().output(x).outputs[0]["text/html"] for x in range(6)] == [f"<b>{x}</b>" for x in range(6)]


def test_a_task_that_fails_keeps_what_it_displayed(cluster):
    def task():
        plots(1)
        raise KeyError("no")

    future = cluster.submit(task)
    with pytest.raises(KeyError):
        future.result()
    assert [is_png(bundle) for bundle in future.outputs] == [True]


def test_an_output_may_be_changed_until_the_task_ends(cluster):
    def task():
        from IPython.display import display

        handle = display("begun", display_id=True)
        handle.update("done")

    future = cluster.submit(task)
    future.result()
    assert [bundle.text for bundle in future.outputs] == ["'done'"]


def test_of_many_or_large_outputs_the_first_are_kept_and_the_others_counted(cluster):
    def many():
        from IPython.display import display

        for number in range(30):
            display(number)

    def large():
        from IPython.display import display

        for _ in range(5):
            display({"text/plain": "x" * 1_000_000}, raw=True)

    future = cluster.submit(many)
    future.result()
    assert [bundle.text for bundle in future.outputs] == [*map(str, range(20)), "... and 10 more outputs left out"]
    future = cluster.submit(large)
    future.result()
    assert [len(bundle.text) for bundle in future.outputs[:-1]] == [1_000_000] * 2
    assert future.outputs[-1].text == "... and 3 more outputs left out"


def test_what_cannot_be_shown_is_said_and_the_task_goes_on(cluster):
    class Odd:
        def __repr__(self):
            return "an odd thing"

        def _repr_html_(self):
            raise ValueError("no")

    def task():
        display(Odd())  # noqa: F821  # it is there in a task, as in a notebook
        return "done"

    future = cluster.submit(task)
    assert future.result() == "done"
    assert future.outputs[0].text == "an odd thing"


def test_a_process_that_a_task_forks_displays_nothing_in_its_name(cluster):
    def task():
        pid = os.fork()
        if not pid:
            display("of the copy")  # noqa: F821  # it is there in a task
            os._exit(0)
        os.waitpid(pid, 0)
        display("of the task")  # noqa: F821  # it is there in a task

    future = cluster.submit(task)
    future.result()
    assert [bundle.text for bundle in future.outputs] == ["'of the task'"]

"""What the tests of a node's rules share: nodes to begin with, and time that passes."""

from __future__ import annotations

from typing import TypeVar

from gearmap.core.node_engine import NodeEngine
from gearmap.core.node_events import ChildReady, Instruction, JobNeeds, JobTaken, RunJob, Start, StartChild, Tick

I = TypeVar("I")  # noqa: E741  # an instruction's class

ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16


def of_kind(kind: type[I], instructions: list[Instruction]) -> list[I]:
    return [one for one in instructions if isinstance(one, kind)]


def started(workers: int = 1, spares: int = 1, **limits: int) -> NodeEngine:
    """A node whose children are all ready; worker n has child n, the spares come after."""
    engine = NodeEngine(workers=workers, spares=spares, **limits)
    for start in of_kind(StartChild, engine.handle(Start(), 0.0)):
        engine.handle(ChildReady(start.child), 0.0)
    return engine


def running(
    workers: int = 1, *, foreground: bool = True, needs: JobNeeds | None = None, n_tasks: int = 1, **limits: int
) -> NodeEngine:
    """A node whose worker 0 runs execution ONE on child 0 since 0.0."""
    engine = started(workers, **limits)
    job = JobTaken(0, ONE, foreground=foreground, n_tasks=n_tasks, needs=needs)
    assert engine.handle(job, 0.0) == [RunJob(0, 0)]
    return engine


def ticks(engine: NodeEngine, until: float) -> list[tuple[float, Instruction]]:
    """Let time pass, tick by tick as the engine asks for it; return what it did, and when."""
    done: list[tuple[float, Instruction]] = []
    while engine.deadline is not None and engine.deadline <= until:
        now = engine.deadline
        done += [(now, one) for one in engine.handle(Tick(), now)]
        assert engine.deadline is None or engine.deadline > now, "a tick that is due again at once would spin"
    return done


def times_of(kind: type[Instruction], done: list[tuple[float, Instruction]]) -> list[float]:
    return [round(when, 3) for when, one in done if isinstance(one, kind)]

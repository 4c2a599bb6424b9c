"""What is compared, in which figure, and what is asked for.

Law of the file: values only. Adding a row is adding an entry, and a measure in `contestant`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.peers import DISTRIBUTED

__all__ = ["FASTEST", "FASTEST_DISTRIBUTED", "OURS", "ROWS", "Figure", "Goal", "Row"]

# Contestants that are gearmap; in place of a contestant's name in a goal: the best of all others, or of those that run
# tasks on other machines, too.
OURS = ("gearmand", "embedded", "gearmand-closure", "embedded-closure")
FASTEST = "the best"
FASTEST_DISTRIBUTED = "the best distributed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """How one figure is shown: divided by `unit`, under `label`."""

    name: str
    label: str
    unit: float = 1.0
    digits: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is asked of a figure.

    Attributes
    ----------
    figure
        Its name.
    against
        The same figure of this contestant is what it is divided by (or of `FASTEST`, `FASTEST_DISTRIBUTED`); empty if
        the figure stands for itself.
    at_least, at_most
        The limit of the ratio; one of the two.
    allowance
        Taken off the figure before it is divided.
    unit
        What a figure that stands for itself is divided by.
    """

    figure: str
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None
    allowance: float = 0.0
    unit: float = 1.0

    def best(self, values: Iterable[float]) -> float:
        """Return the best of several contestants' figures."""
        return min(values) if self.at_least is None else max(values)

    def ratio(self, value: float, base: float) -> float:
        """Return what is compared with the limit."""
        return (value - self.allowance) / (base if self.against else self.unit)

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        if self.at_least is not None:
            return ratio >= self.at_least
        return self.at_most is None or ratio <= self.at_most

    def __str__(self) -> str:
        limit = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return (
            limit + (f" x {self.against}" if self.against else "") + (f" + {self.allowance:g}" * bool(self.allowance))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison.

    Attributes
    ----------
    contestants
        In the order of their turns.
    peers
        Other libraries that take their turns after them, where they are installed.
    goals
        For each contestant that has any; its first goal with `against` is the ratio shown.
    """

    name: str
    title: str
    contestants: tuple[str, ...]
    figures: tuple[Figure, ...]
    peers: tuple[str, ...] = ()
    goals: dict[str, tuple[Goal, ...]] = field(default_factory=dict)


def _both(*goals: Goal) -> dict[str, tuple[Goal, ...]]:
    return {"gearmand": goals, "embedded": goals}


_PER_SECOND = Figure(name="per_second", label="k tasks/s", unit=1000, digits=1)
_FIRST = Figure(name="first_per_second", label="first, k tasks/s", unit=1000, digits=1)
_SUBMITS = Goal(figure="per_second", against="executor", at_least=4.0)
_SUBMITS_OF_ALL = Goal(figure="per_second", against=FASTEST, at_least=3.0)
_LATENCY = Goal(figure="p50", against="executor", at_most=3.0)
_LATENCY_OF_DISTRIBUTED = Goal(figure="p50", against=FASTEST_DISTRIBUTED, at_most=0.25)
_MEMORY = Goal(figure="peak_payloads", at_most=3.0)

ROWS = (
    Row(
        name="map",
        title="map of 1,000,000 small ints with a trivial function, warm",
        contestants=("pool", "executor", "gearmand", "embedded"),
        peers=("loky", "mpire", *DISTRIBUTED),
        figures=(_PER_SECOND, _FIRST, Figure(name="cpu_per_task", label="CPU ns/task", unit=1e-9, digits=0)),
        goals=_both(
            Goal(figure="per_second", against="pool", at_least=0.8),
            Goal(figure="per_second", against=FASTEST, at_least=1.1),
            Goal(figure="cpu_per_task", against=FASTEST_DISTRIBUTED, at_most=1.0),
        ),
    ),
    Row(
        name="submits",
        title="10,000 single submits, then their results",
        contestants=("executor", "pool", "gearmand", "embedded", "gearmand-closure", "embedded-closure"),
        peers=("loky", "mpire", *DISTRIBUTED),
        figures=(_PER_SECOND, _FIRST),
        goals=_both(_SUBMITS, _SUBMITS_OF_ALL) | {"gearmand-closure": (_SUBMITS,), "embedded-closure": (_SUBMITS,)},
    ),
    Row(
        name="latency",
        title="submit().result(), one at a time, 500 times",
        contestants=("executor", "pool", "gearmand", "embedded", "gearmand-closure", "embedded-closure"),
        peers=("loky", "mpire", *DISTRIBUTED),
        figures=(
            Figure(name="p50", label="p50 ms", unit=1e-3, digits=3),
            Figure(name="p99", label="p99 ms", unit=1e-3),
        ),
        goals=_both(_LATENCY, _LATENCY_OF_DISTRIBUTED)
        | {"gearmand-closure": (_LATENCY,), "embedded-closure": (_LATENCY,)},
    ),
    Row(
        name="payload",
        title="a numpy array of 64 MB there and back",
        contestants=("bare-gearmand", "gearmand", "bare-embedded", "embedded", "executor"),
        figures=(
            Figure(name="bytes_per_second", label="MB/s", unit=1e6, digits=0),
            Figure(name="first_bytes_per_second", label="first, MB/s", unit=1e6, digits=0),
            Figure(name="peak_payloads", label="client's peak, payloads"),
        ),
        goals={
            kind: (Goal(figure="bytes_per_second", against=f"bare-{kind}", at_least=0.7), _MEMORY)
            for kind in ("gearmand", "embedded")
        },
    ),
    Row(
        name="large",
        title="a numpy array of 256 MB as an argument, and as a result",
        contestants=("executor", "gearmand", "embedded"),
        peers=("loky", "ipyparallel", "ray"),
        figures=(
            Figure(name="there_bytes_per_second", label="there, MB/s", unit=1e6, digits=0),
            Figure(name="back_bytes_per_second", label="back, MB/s", unit=1e6, digits=0),
        ),
        goals=_both(
            Goal(figure="there_bytes_per_second", against=FASTEST, at_least=1.0),
            Goal(figure="back_bytes_per_second", against=FASTEST, at_least=1.0),
        ),
    ),
    Row(
        name="capture",
        title="200 tasks that need an array of 50 MB",
        contestants=("gearmand", "embedded"),
        peers=("loky", "ray"),
        figures=(
            Figure(name="first", label="first map, ms", unit=1e-3, digits=0),
            Figure(name="again", label="others, ms", unit=1e-3, digits=0),
            Figure(name="peak_arrays", label="client's peak, arrays"),
        ),
        goals=_both(
            Goal(figure="first", against="loky", at_most=1.0),
            Goal(figure="again", against="loky", at_most=1.0),
            Goal(figure="peak_arrays", at_most=1.3),
        ),
    ),
    Row(
        name="transport",
        title="tiny jobs through gearmand, transport alone, against gearman3 with only its reading repaired",
        contestants=("gearman3", "gearmap"),
        figures=(
            Figure(name="per_second", label="k jobs/s", unit=1000),
            Figure(name="client_cpu", label="client, CPU us/job", unit=1e-6, digits=0),
            Figure(name="worker_cpu", label="workers, CPU us/job", unit=1e-6, digits=0),
        ),
        goals={"gearmap": (Goal(figure="per_second", against="gearman3", at_least=4.0),)},
    ),
    Row(
        name="startup",
        title="fresh interpreter, new cluster of 2, first result, clean exit",
        contestants=("executor", "gearmand", "embedded"),
        peers=("loky", "mpire", *DISTRIBUTED),
        figures=(Figure(name="wall", label="s", digits=3),),
        goals=_both(
            Goal(figure="wall", against="executor", at_most=1.5, allowance=0.5),
            Goal(figure="wall", at_most=0.5),
            Goal(figure="wall", against=FASTEST_DISTRIBUTED, at_most=1 / 3),
        ),
    ),
    Row(
        name="import",
        title="an interpreter that imports the package and ends",
        contestants=("bare", "gearmap"),
        peers=("joblib", "mpire", "distributed", "ipyparallel", "ray"),
        figures=(Figure(name="wall", label="ms", unit=1e-3, digits=1),),
        goals={"gearmap": (Goal(figure="wall", against="bare", at_most=1.0, allowance=0.06),)},
    ),
    Row(
        name="lazy",
        title="200,000 items of 1 kB from a generator, fast; then a consumer that takes one each 5 ms",
        contestants=("pool", "executor", "gearmand", "embedded"),
        peers=("loky", "mpire", "ray"),
        figures=(
            Figure(name="per_second", label="k items/s", unit=1000, digits=1),
            Figure(name="ahead", label="k items ahead", unit=1000),
            Figure(name="grown", label="grown, MB", unit=1e6, digits=1),
        ),
        goals=_both(
            Goal(figure="per_second", against="pool", at_least=1.0),
            Goal(figure="grown", at_most=2.0, unit=1e6),
        ),
    ),
    Row(
        name="sleeps",
        title="200 lognormal sleeps (median 50 ms, sigma 1) over 2 workers",
        contestants=("executor", "gearmand", "embedded"),
        peers=("loky", "mpire", *DISTRIBUTED),
        figures=(Figure(name="of_ideal", label="of ideal", digits=3), Figure(name="makespan", label="s")),
        goals=_both(Goal(figure="of_ideal", at_most=1.10), Goal(figure="of_ideal", at_most=1.05)),
    ),
    Row(
        name="cpu",
        title="400 tasks of 5 ms processor time over 2 workers",
        contestants=("pool", "executor", "gearmand", "embedded"),
        peers=("loky", "mpire", *DISTRIBUTED),
        figures=(
            Figure(name="efficiency", label="of the wall clock", digits=3),
            Figure(name="cpu_efficiency", label="of all processor time", digits=3),
            Figure(name="workers_busy", label="workers busy", digits=3),
        ),
        goals=_both(Goal(figure="efficiency", at_least=0.93), Goal(figure="efficiency", against="pool", at_least=1.0)),
    ),
)

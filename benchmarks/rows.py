"""What is compared, in which figure, and what is asked for.

Law of the file: values only. Adding a row is adding an entry, and a measure in `contestant`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ROWS", "Figure", "Goal", "Row"]


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
        The same figure of this contestant is what it is divided by; empty if the figure stands for itself.
    at_least, at_most
        The limit of the ratio; one of the two.
    allowance
        Taken off the figure before it is divided.
    """

    figure: str
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None
    allowance: float = 0.0

    def ratio(self, value: float, base: float) -> float:
        """Return what is compared with the limit."""
        return (value - self.allowance) / (base if self.against else 1.0)

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
    goals
        For each contestant that has any; its first goal with `against` is the ratio shown.
    """

    name: str
    title: str
    contestants: tuple[str, ...]
    figures: tuple[Figure, ...]
    goals: dict[str, tuple[Goal, ...]] = field(default_factory=dict)


def _both(*goals: Goal) -> dict[str, tuple[Goal, ...]]:
    return {"gearmand": goals, "embedded": goals}


_PER_SECOND = Figure(name="per_second", label="k tasks/s", unit=1000, digits=1)
_FIRST = Figure(name="first_per_second", label="first, k tasks/s", unit=1000, digits=1)
_SUBMITS = Goal(figure="per_second", against="executor", at_least=4.0)
_LATENCY = Goal(figure="p50", against="executor", at_most=3.0)
_MEMORY = Goal(figure="peak_payloads", at_most=3.0)

ROWS = (
    Row(
        name="map",
        title="map of 1,000,000 small ints with a trivial function, warm",
        contestants=("pool", "gearmand", "embedded"),
        figures=(_PER_SECOND, _FIRST),
        goals=_both(Goal(figure="per_second", against="pool", at_least=0.8)),
    ),
    Row(
        name="submits",
        title="10,000 single submits, then their results",
        contestants=("executor", "pool", "gearmand", "embedded", "gearmand-closure", "embedded-closure"),
        figures=(_PER_SECOND, _FIRST),
        goals=_both(_SUBMITS) | {"gearmand-closure": (_SUBMITS,), "embedded-closure": (_SUBMITS,)},
    ),
    Row(
        name="latency",
        title="submit().result(), one at a time, 500 times",
        contestants=("executor", "pool", "gearmand", "embedded", "gearmand-closure", "embedded-closure"),
        figures=(
            Figure(name="p50", label="p50 ms", unit=1e-3, digits=3),
            Figure(name="p99", label="p99 ms", unit=1e-3),
        ),
        goals=_both(_LATENCY) | {"gearmand-closure": (_LATENCY,), "embedded-closure": (_LATENCY,)},
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
        figures=(Figure(name="wall", label="s", digits=3),),
        goals=_both(Goal(figure="wall", against="executor", at_most=1.5, allowance=0.5)),
    ),
    Row(
        name="sleeps",
        title="200 lognormal sleeps (median 50 ms, sigma 1) over 2 workers",
        contestants=("executor", "gearmand", "embedded"),
        figures=(Figure(name="of_ideal", label="of ideal", digits=3), Figure(name="makespan", label="s")),
        goals=_both(Goal(figure="of_ideal", at_most=1.10)),
    ),
    Row(
        name="cpu",
        title="400 tasks of 5 ms processor time over 2 workers",
        contestants=("pool", "executor", "gearmand", "embedded"),
        figures=(
            Figure(name="efficiency", label="of the wall clock", digits=3),
            Figure(name="cpu_efficiency", label="of all processor time", digits=3),
            Figure(name="workers_busy", label="workers busy", digits=3),
        ),
        goals=_both(Goal(figure="efficiency", at_least=0.93)),
    ),
)

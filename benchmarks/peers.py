"""Other libraries as contenders, each used as its documentation recommends for the kind of work at hand.

Law of the file: nothing is imported before a contender is opened, and whatever was started ends with it. `map` is for
many small tasks, `spread` for fewer that take long: some libraries have one call for each.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["DISTRIBUTED", "PACKAGES", "PEERS", "is_installed", "open_peer"]

# Contenders, and the packages that each needs.
_NEEDS = {
    "loky": ("joblib", "loky"),
    "mpire": ("mpire",),
    "dask": ("distributed",),
    "ipyparallel": ("ipyparallel",),
    "ray": ("ray",),
}

PEERS = tuple(_NEEDS)
PACKAGES = tuple(package for packages in _NEEDS.values() for package in packages)

# Those that run tasks on other machines, too.
DISTRIBUTED = ("dask", "ipyparallel", "ray")

# Parts of a bag of a million tiny tasks. Dask's default is about 100; with these it took less time here.
_DASK_PARTITIONS = 8


def is_installed(name: str) -> bool:
    """Whether a peer, or a package, can be measured here."""
    return all(find_spec(package) is not None for package in _NEEDS.get(name, (name,)))


@contextmanager
def open_peer(name: str, workers: int) -> Iterator[Any]:
    """Start a peer with so many workers."""
    with _OPENERS[name](workers) as contender:
        yield contender


class _Got:
    """A result under the executor's name."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self.result = get


# ----------------------------------------------------------------------------------------------------------- joblib


class _Loky:
    """joblib, with its default backend, for maps; the executor that this is made of for single tasks."""

    def __init__(self, parallel: Any, workers: int) -> None:
        self._parallel = parallel
        self._workers = workers

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        from joblib import delayed

        results: list[Any] = self._parallel(delayed(fn)(item) for item in items)
        return results

    spread = map

    def map_with(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """Run `fn` over items and an array, which joblib writes to a file that its processes map."""
        from joblib import delayed

        results: list[Any] = self._parallel(delayed(fn)(array, item) for item in items)
        return results

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        from loky import get_reusable_executor

        return get_reusable_executor(max_workers=self._workers).submit(fn, *args)

    def imap(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        from joblib import Parallel, delayed

        parallel = Parallel(n_jobs=self._workers, return_as="generator")
        results: Iterator[Any] = parallel(delayed(fn)(item) for item in items)
        return results


@contextmanager
def _open_loky(workers: int) -> Iterator[_Loky]:
    from joblib import Parallel
    from loky import get_reusable_executor

    with Parallel(n_jobs=workers) as parallel:
        yield _Loky(parallel, workers)
    get_reusable_executor(max_workers=workers).shutdown(wait=True)


# ------------------------------------------------------------------------------------------------------------ mpire


class _Mpire:
    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.map = self.spread = pool.map

    def submit(self, fn: Callable[..., Any], *args: Any) -> _Got:
        return _Got(self._pool.apply_async(fn, args).get)

    def imap(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self._pool.imap(fn, items, chunk_size=100)
        return results


@contextmanager
def _open_mpire(workers: int) -> Iterator[_Mpire]:
    from mpire import WorkerPool

    with WorkerPool(n_jobs=workers) as pool:
        yield _Mpire(pool)


# ------------------------------------------------------------------------------------------------------------- dask


class _Dask:
    """A bag for many tiny tasks, futures for the others."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        import dask.bag

        results: list[Any] = dask.bag.from_sequence(items, npartitions=_DASK_PARTITIONS).map(fn).compute()
        return results

    def spread(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self._client.gather(self._client.map(fn, items, pure=False))
        return results

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._client.submit(fn, *args, pure=False)


@contextmanager
def _open_dask(workers: int) -> Iterator[_Dask]:
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, local_directory=folder
        ) as cluster,
        Client(cluster) as client,
    ):
        yield _Dask(client)


# ------------------------------------------------------------------------------------------------------ ipyparallel


class _IPyParallel:
    """The direct view splits a map once; the balanced view hands tasks out one by one."""

    def __init__(self, client: Any) -> None:
        self._all = client[:]
        self._balanced = client.load_balanced_view()

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self._all.map_sync(fn, items)
        return results

    def spread(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self._balanced.map_sync(fn, items)
        return results

    def submit(self, fn: Callable[..., Any], *args: Any) -> _Got:
        return _Got(self._balanced.apply_async(fn, *args).get)


@contextmanager
def _open_ipyparallel(workers: int) -> Iterator[_IPyParallel]:
    import ipyparallel

    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder
        # Engines start in their profile's folder and have to find the tasks.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
        )
        with ipyparallel.Cluster(n=workers, log_level=40) as client:
            client.wait_for_engines(workers, timeout=60)
            yield _IPyParallel(client)


# -------------------------------------------------------------------------------------------------------------- ray


class _Ray:
    """Its pool, which puts tiny tasks together, for maps; its own tasks for the others."""

    def __init__(self, ray: Any, pool: Any) -> None:
        self._ray = ray
        self._remotes: dict[Any, Any] = {}
        self.map = pool.map
        self._pool = pool

    def _remote(self, fn: Callable[..., Any]) -> Any:
        if fn not in self._remotes:
            self._remotes[fn] = self._ray.remote(fn)
        return self._remotes[fn]

    def spread(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        remote = self._remote(fn)
        results: list[Any] = self._ray.get([remote.remote(item) for item in items])
        return results

    def submit(self, fn: Callable[..., Any], *args: Any) -> _Got:
        reference = self._remote(fn).remote(*args)
        return _Got(lambda: self._ray.get(reference))

    def imap(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self._pool.imap(fn, items, chunksize=100)
        return results


@contextmanager
def _open_ray(workers: int) -> Iterator[_Ray]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util.multiprocessing import Pool

    top = str(Path(__file__).resolve().parent.parent)
    # Its pool holds processors of its own, beside those of the tasks.
    ray.init(
        num_cpus=2 * workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([top, os.environ.get("PYTHONPATH", "")])}},
    )
    pool = Pool(processes=workers)
    try:
        yield _Ray(ray, pool)
    finally:
        pool.terminate()
        ray.shutdown()


_OPENERS: dict[str, Callable[[int], Any]] = {
    "loky": _open_loky,
    "mpire": _open_mpire,
    "dask": _open_dask,
    "ipyparallel": _open_ipyparallel,
    "ray": _open_ray,
}

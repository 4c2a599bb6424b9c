"""What type checkers know of results. Never run."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gearmap

if TYPE_CHECKING:
    from typing_extensions import assert_type


def area(width: int, height: float = 1.0) -> float:
    return width * height


async def fetch(url: str) -> bytes:
    return url.encode()


def single_calls(client: gearmap.Client, cluster: gearmap.LocalCluster) -> None:
    assert_type(gearmap.submit(area, 2, height=3.0), gearmap.Future[float])
    assert_type(gearmap.submit(area, 2).result(timeout=1.0), float)
    assert_type(gearmap.options(retries=2).submit(area, 2).result(), float)
    assert_type(client.submit(str, 5).result(), str)
    assert_type(cluster.submit(lambda: 5).result(), int)
    assert_type(client.submit(area, 2).exception(), BaseException | None)
    assert_type(client.submit(area, 2).duration, float | None)


@gearmap.task
def named(width: int, height: float = 1.0) -> float:
    return width * height


@gearmap.task(queue="images")
def resized(size: int) -> int:
    return size


def named_tasks() -> None:
    assert_type(named(2, height=3.0), float)
    assert_type(named.submit(2, height=3.0), gearmap.Future[float])
    assert_type(resized.map([1, 2]), list[int])
    assert_type(resized.options(retries=1).submit(2).result(), int)
    assert_type(resized.imap([1, 2]), Iterator[int])


async def awaited(client: gearmap.Client) -> None:
    assert_type(await client.submit(area, 2), float)
    assert_type(await asyncio.wrap_future(client.submit(area, 2)), float)


def maps(client: gearmap.Client) -> None:
    assert_type(gearmap.map(area, [1, 2], [0.5, 1.5], retries=1), list[float])
    assert_type(gearmap.starmap(area, [(1, 0.5)]), list[float])
    assert_type(gearmap.imap(area, [1, 2]), Iterator[float])
    assert_type(gearmap.imap_unordered(str, [1, 2]), Iterator[str])
    assert_type(client.map(len, ["a"]), list[int])
    assert_type(client.options(queue="gpu").map(len, ["a"]), list[int])
    assert_type(client.imap(len, ["a"]), Iterator[int])


def executors(client: gearmap.Client) -> None:
    with gearmap.GearmanExecutor(4, initializer=area, initargs=(1,)) as executor:
        assert_type(executor, gearmap.GearmanExecutor)
        assert_type(executor.submit(area, 2, height=1.0), gearmap.Future[float])
        assert_type(executor.submit(area, 2).result(), float)
        assert_type(executor.map(area, [1, 2], timeout=3.0, chunksize=5, buffersize=10), Iterator[float])
    assert_type(client.executor(2).submit(len, "a").result(), int)
    anything: concurrent.futures.Executor = client.executor()
    assert_type(anything.submit(len, "a").result(), int)
    future: concurrent.futures.Future[float] = client.submit(area, 1)
    assert_type(concurrent.futures.wait([future]).done, set[concurrent.futures.Future[float]])


def clusters() -> None:
    with gearmap.LocalCluster(2) as cluster:
        assert_type(cluster, gearmap.LocalCluster)
    with gearmap.connect("head:4730") as client:
        assert_type(client, gearmap.Client)


def sharing() -> None:
    assert_type(gearmap.share({"a": 1}), dict[str, int])

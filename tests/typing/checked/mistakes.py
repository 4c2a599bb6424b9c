"""What type checkers find. Never run; each line that ends with `# wrong` must be an error, and no other."""

from __future__ import annotations

import gearmap


def area(width: int, height: float = 1.0) -> float:
    return width * height


def single_calls(client: gearmap.Client) -> None:
    gearmap.submit(area, "2")  # wrong
    gearmap.submit(area)  # wrong
    gearmap.submit(area, 2, 3.0, 4)  # wrong
    gearmap.submit(area, 2, depth=3)  # wrong
    gearmap.submit(5)  # wrong
    client.submit(area, 2, retries=1)  # wrong
    gearmap.options(retries=1).submit(area, None)  # wrong
    text: str = client.submit(area, 2).result()  # wrong
    print(text)


def maps() -> None:
    gearmap.map(area, 5)  # wrong
    gearmap.map(5, [1])  # wrong
    gearmap.map(area, [1], retrys=1)  # wrong
    gearmap.map(area, [1], priority=1)  # wrong
    names: list[str] = gearmap.map(area, [1])  # wrong
    print(names)


def executors(executor: gearmap.GearmanExecutor) -> None:
    executor.submit(area, "2")  # wrong
    executor.submit(area, 2, depth=3)  # wrong
    executor.submit(fn=area)  # wrong
    executor.map(area, [1], chunksize="many")  # wrong
    executor.shutdown(True, True)  # wrong
    gearmap.GearmanExecutor("head:4730")  # wrong
    gearmap.GearmanExecutor(4, servers=5)  # wrong

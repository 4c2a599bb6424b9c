"""Large bodies: bytes that lie in blocks, and the blocks that wait for the next body.

What lives here: where the bytes of a large packet are while the server has it. What must not: sockets, packets.

Rule 1: memory follows the bytes that came. Nothing grows by being copied, and nothing is cleared for bytes that replace
it anyhow: fresh pages cost more than all that the server does with them.
Rule 2: a block belongs to one body until the last reference to that body goes. So a view of a block is kept only
together with the `LargeData` that it came from.
"""

from __future__ import annotations

import mmap
from itertools import islice
from typing import Final

__all__ = ["BLOCK_BYTES", "BlockPool", "LargeData"]

# One read of a large body ends with its block. Larger: fewer system calls; smaller: less that a last block leaves
# unused, and what was just received is still in a processor's cache.
BLOCK_BYTES: Final = 1 << 20
# Most that waits for the next bodies. Larger: more large jobs at a time find pages that are there; smaller: a server
# between two of them looks smaller. What is not used goes back to the system after two looks of `BlockPool.trim`.
SPARE_BYTES: Final = 160 << 20


class BlockPool:
    """Blocks that nobody uses at the moment, the one used last first."""

    def __init__(self, spare_bytes: int = SPARE_BYTES) -> None:
        self._most = spare_bytes // BLOCK_BYTES
        self._spare: list[memoryview] = []
        # The fewest that were spare since the last look: so many were not needed.
        self._n_idle = 0

    @property
    def spare_bytes(self) -> int:
        """What waits for the next bodies."""
        return len(self._spare) * BLOCK_BYTES

    def take(self) -> memoryview:
        """Return a block with any content."""
        if not self._spare:
            self._n_idle = 0
            # A mapping: pages come when they are written.
            return memoryview(mmap.mmap(-1, BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        block = self._spare.pop()
        self._n_idle = min(self._n_idle, len(self._spare))
        return block

    def give_back(self, blocks: list[memoryview]) -> None:
        """Take blocks back that nobody looks at any more."""
        self._spare += islice(blocks, max(0, self._most - len(self._spare)))

    def trim(self) -> None:
        """Let the system have what was not needed since the last look."""
        del self._spare[: self._n_idle]
        self._n_idle = len(self._spare)


class _Lease:
    """Blocks that go back when the last body that lies in them has gone."""

    __slots__ = ("_blocks", "_pool")

    def __init__(self, pool: BlockPool, blocks: list[memoryview]) -> None:
        self._pool = pool
        self._blocks = blocks

    def __del__(self) -> None:
        self._pool.give_back(self._blocks)


class LargeData:
    """Bytes in several places, that nobody changes any more.

    Attributes
    ----------
    views
        The bytes, in order. Good for as long as this object is there.

    Examples
    --------
    >>> data = LargeData([memoryview(b"some"), memoryview(b"where")])
    >>> len(data), bytes(data), bytes(data.behind(3))
    (9, b'somewhere', b'ewhere')
    """

    __slots__ = ("_lease", "_n_bytes", "views")

    def __init__(self, views: list[memoryview], lease: _Lease | None = None) -> None:
        self.views = views
        self._lease = lease
        self._n_bytes = sum(map(len, views))

    @classmethod
    def in_blocks(cls, pool: BlockPool, blocks: list[memoryview], n_bytes: int) -> LargeData:
        """Return the first `n_bytes` of blocks that were taken from `pool`; the last one has the end."""
        last = n_bytes - (len(blocks) - 1) * BLOCK_BYTES
        return cls([*blocks[:-1], blocks[-1][:last]], _Lease(pool, blocks))

    def __len__(self) -> int:
        return self._n_bytes

    def __bytes__(self) -> bytes:
        return b"".join(self.views)

    def behind(self, n_bytes: int) -> LargeData:
        """Return what follows the first `n_bytes`, which the first view has."""
        return LargeData([self.views[0][n_bytes:], *self.views[1:]], self._lease)

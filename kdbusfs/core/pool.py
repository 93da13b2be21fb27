"""A connection's pool: which parts of it are in use, and who still needs them.

A slice stays allocated while the core (`held`), the client (`published`) or another slice needs it: the slice of a
message keeps the one with its payload (`child`), so that one FREE gives both back (FREE-2), and a payload that was
peeked at stays readable as long as any message slice that refers to it (RECV-12, ACT-11).  The bytes live in a
`ports.Memory`, which the core only ever writes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from errno import ENOBUFS, ENXIO
from typing import TYPE_CHECKING, Final

from ..abi.errors import KdbusError

if TYPE_CHECKING:
    from .ports import Memory
    from .quota import Account

SLICE_COST: Final = 256
"""What the bookkeeping of one slice is charged with, in bytes."""


class Slice:
    """`size` bytes of a pool from `offset` on; both are multiples of 8, and neighbours form a list by address."""

    __slots__ = ("after", "before", "child", "free", "held", "offset", "parents", "published", "size")

    def __init__(
        self, offset: int, size: int, before: Slice | None, after: Slice | None, *, free: bool = False
    ) -> None:
        self.offset = offset
        self.size = size
        self.before = before
        self.after = after
        self.free = free
        self.held = False
        self.published = False
        self.parents = 0
        self.child: Slice | None = None


_Free = tuple[int, int, Slice]
"""A free part by size, then offset, which no two have in common."""


class Pool:
    """The allocator of one pool (POOL-8): best fit, lowest part of it, neighbours merged on release.

    `account` is charged for the part of the memory that was ever in use and for the bookkeeping.
    """

    __slots__ = ("_charged", "_free", "_high", "_slices", "account", "busy", "memory", "size")

    def __init__(self, size: int, memory: Memory, account: Account) -> None:
        self.size = size
        self.memory = memory
        self.account = account
        self.busy = 0
        self._high = 0
        self._charged = 0
        self._free: list[_Free] = [(size, 0, Slice(0, size, None, None, free=True))]
        self._slices: dict[int, Slice] = {}  # allocated ones, by offset

    @property
    def remaining(self) -> int:
        """Bytes that are not allocated, in one piece or many (POOL-9)."""
        return self.size - self.busy

    @property
    def slices(self) -> int:
        """How many slices are allocated."""
        return len(self._slices)

    def allocate(self, size: int) -> Slice:
        """A slice of ALIGN8(size) bytes, held by the core.  `size` is greater than 0.

        Raises KdbusError(ENOBUFS) when no free part is big enough, or the user's memory limit is reached.
        """
        size = (size + 7) & ~7
        free = self._free
        # Most pools are free in one piece.
        index = 0 if len(free) == 1 and free[0][0] >= size else bisect_left(free, (size,))
        if index == len(free):
            raise KdbusError(ENOBUFS, "no room in the pool")
        found, offset, part = free[index]
        end = offset + size
        if end > self._high:
            self._grow(end)
        self.account.charge(SLICE_COST)
        self._charged += SLICE_COST
        if found > size:
            rest = part
            before = part.before
            part = Slice(offset, size, before, rest)
            if before is not None:
                before.after = part
            rest.before = part
            rest.offset = end
            rest.size = found - size
            if len(free) == 1:
                free[0] = (found - size, end, rest)
            else:
                self._replace_free(index, rest)
        else:
            del free[index]
            part.free = False
        part.held = True
        self._slices[offset] = part
        self.busy += size
        return part

    def put(self, data: bytes) -> Slice:
        """A held slice with `data` in it.  Raises KdbusError(ENOBUFS), or ENOMEM when the host has no memory."""
        part = self.allocate(len(data))
        try:
            self.memory.store(part.offset, data)
        except KdbusError:
            self.release(part)
            raise
        return part

    def publish(self, part: Slice, payload: Slice | None = None) -> None:
        """Hand a held slice to the client: it stays until FREE, and `payload` at least as long."""
        part.published = True
        part.held = False
        if payload is not None:
            part.child = payload
            payload.parents += 1

    def release(self, part: Slice) -> None:
        """The core needs a held slice no more."""
        part.held = False
        if not part.parents:
            self._drop(part)

    def free(self, offset: int) -> None:
        """The client's FREE of a published slice (FREE-1).  Raises KdbusError(ENXIO) for every other offset."""
        part = self._slices.get(offset)
        if part is None or not part.published:
            raise KdbusError(ENXIO, "no published slice there")
        part.published = False
        self._drop(part)

    def close(self) -> None:
        """Forget all slices, give the charge back (FREE-5); the memory belongs to the open file."""
        self.account.uncharge(self._charged)
        self._charged = 0
        self._slices.clear()
        self._free.clear()
        self.busy = self.size

    def _grow(self, end: int) -> None:
        """Charge for memory up to `end`, with room for the slice that wants it.  Raises KdbusError(ENOBUFS)."""
        amount = end - self._high
        self.account.check(amount + SLICE_COST)
        self.account.charge(amount)
        self._charged += amount
        self._high = end

    def _replace_free(self, index: int, part: Slice) -> None:
        """Let `part` take the place of the free part at `index`, or the one that its size asks for."""
        free = self._free
        entry = (part.size, part.offset, part)
        if (index == 0 or free[index - 1] < entry) and (index + 1 == len(free) or entry < free[index + 1]):
            free[index] = entry
        else:
            del free[index]
            insort(free, entry)

    def _drop(self, part: Slice) -> None:
        """Give `part` back if nobody needs it, with the payload that hangs on it."""
        if part.held or part.published or part.parents or self._slices.pop(part.offset, None) is None:
            return
        self.busy -= part.size
        self.account.uncharge(SLICE_COST)
        self._charged -= SLICE_COST
        child, part.child = part.child, None
        part.free = True
        free = self._free
        before, after = part.before, part.after
        index = -1  # of the free part that this one grows
        if after is not None and after.free:
            index = bisect_left(free, (after.size, after.offset)) if len(free) > 1 else 0
            part.size += after.size
            part.after = after = after.after
            if after is not None:
                after.before = part
        if before is not None and before.free:
            if index >= 0:
                del free[index]
            index = bisect_left(free, (before.size, before.offset))
            before.size += part.size
            before.after = after
            if after is not None:
                after.before = before
            part = before
        if index < 0:
            insort(free, (part.size, part.offset, part))
        elif len(free) == 1:
            free[0] = (part.size, part.offset, part)
        else:
            self._replace_free(index, part)
        if child is not None:
            child.parents -= 1
            self._drop(child)

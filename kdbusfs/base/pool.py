"""The allocator of a pool: which slices are in use, and by whom.

A slice stays allocated while the core (`held`), the client (`published`) or another slice (`parents`) has a reference
to it.  A parent refers to one `child`, so that freeing the parent frees both, and the child stays readable as long as
any parent exists.  The bytes live in a `ports.Memory`, which the core only ever writes.
"""

from __future__ import annotations

from errno import ENOBUFS, ENXIO
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from .errors import CommandError

if TYPE_CHECKING:
    from .account import Account
    from .ports import Memory, Turn

SLICE_COST: Final = 256
"""Bytes charged for the bookkeeping of one slice."""


@mypyc_attr(free_list_len=1)
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


class Pool:
    """The allocator of one pool: best fit, lowest part of it, neighbours merged on release.

    `account` is charged up to the high-water mark of the memory, and for the bookkeeping.
    full: errno where no free part is big enough; slices: how many slices are allocated.
    """

    __slots__ = (
        "_charged",
        "_first",
        "_free",
        "_high_water",
        "_is_closed",
        "_published",
        "account",
        "busy",
        "full",
        "memory",
        "size",
        "slices",
    )

    def __init__(self, size: int, memory: Memory, account: Account, full: int = ENOBUFS) -> None:
        self.size = size
        self.full = full
        self.memory = memory
        self.account = account
        self.busy = 0
        self._high_water = 0
        self._charged = 0
        self._is_closed = False
        self._first = Slice(0, size, None, None, free=True)
        self._free = [self._first]  # by (size, offset): no two are equal
        self._published: dict[int, Slice] = {}  # by offset
        self.slices = 0

    @property
    def remaining(self) -> int:
        """Bytes that are not allocated, in one piece or many."""
        return self.size - self.busy

    def allocate(self, size: int) -> Slice:
        """A slice of ALIGN8(size) bytes, held by the core.  `size` is greater than 0.

        Raises CommandError: `full` when no free part is big enough, ENOBUFS when the user's memory limit is reached.
        """
        size = (size + 7) & ~7
        free = self._free
        # Most pools are free in one piece.
        index = 0 if len(free) == 1 and free[0].size >= size else self._place(size, 0)
        if index == len(free):
            raise CommandError(self.full, "no room in the pool")
        part = free[index]
        found = part.size
        offset = part.offset
        end = offset + size
        if end > self._high_water:
            self._grow(end)
        self.account.charge(SLICE_COST)
        self._charged += SLICE_COST
        if found > size:
            rest = part
            before = part.before
            part = Slice(offset, size, before, rest)
            if before is None:
                self._first = part
            else:
                before.after = part
            rest.before = part
            rest.offset = end
            rest.size = found - size
            if len(free) > 1:
                self._reinsert(index)
        else:
            del free[index]
            part.free = False
        part.held = True
        self.slices += 1
        self.busy += size
        return part

    def put(self, data: bytes) -> Slice:
        """A held slice with `data` in it.  Raises CommandError(ENOBUFS), or ENOMEM when the host has no memory."""
        part = self.allocate(len(data))
        try:
            self.memory.store(part.offset, data)
        except CommandError:
            self.release(part)
            raise
        return part

    def publish(self, part: Slice, payload: Slice | None = None) -> None:
        """Give a held slice to the client: it stays allocated until `free`, and `payload` at least as long."""
        part.published = True
        part.held = False
        self._published[part.offset] = part
        if payload is not None:
            part.child = payload
            payload.parents += 1

    def show(self, part: Slice) -> None:
        """Give a slice to the client while the core holds it, too: it stays allocated until both have released it."""
        part.published = True
        self._published[part.offset] = part

    def release(self, part: Slice) -> None:
        """Drop the reference of the core."""
        part.held = False
        if not part.parents:
            self._drop(part)

    def free(self, offset: int) -> Slice:
        """Drop the reference of the client to a published slice, which may still be held.  Returns the slice.

        Raises CommandError(ENXIO) for every other offset.
        """
        part = self._published.pop(offset, None)
        if part is None:
            raise CommandError(ENXIO, "no published slice there")
        part.published = False
        self._drop(part)
        return part

    def published_offsets(self) -> list[int]:
        """Offsets of the published slices."""
        return list(self._published)

    def has_room(self, size: int) -> bool:
        """Whether a slice of `size` bytes would fit, whatever the account says."""
        return self._place((size + 7) & ~7, 0) < len(self._free)

    def close(self, turn: Turn) -> None:
        """Forget all slices, and give the charge back.  The memory itself belongs to the open file.

        Neighbours form reference cycles, so each slice is taken out of the list by itself.  There may be millions:
        other commands may run meanwhile.
        """
        self._is_closed = True
        self.slices = 0
        self.busy = self.size
        self._free.clear()
        published = self._published
        part: Slice | None = self._first
        while part is not None:
            after = part.after
            part.before = part.after = None
            published.pop(part.offset, None)
            part = after
            turn.spend()
        self._first = Slice(0, 0, None, None)
        self.account.uncharge(self._charged)
        self._charged = 0

    def _grow(self, end: int) -> None:
        """Charge for memory up to `end`, with room for the slice that wants it.  Raises CommandError(ENOBUFS)."""
        amount = end - self._high_water
        self.account.check(amount + SLICE_COST)
        self.account.charge(amount)
        self._charged += amount
        self._high_water = end

    def _place(self, size: int, offset: int) -> int:
        """The index of the first free part that is not smaller or, of the same size, not before `offset`."""
        free = self._free
        low = 0
        high = len(free)
        while low < high:
            middle = (low + high) // 2
            part = free[middle]
            if part.size < size or (part.size == size and part.offset < offset):
                low = middle + 1
            else:
                high = middle
        return low

    def _reinsert(self, index: int) -> None:
        """Restore the order after the free part at `index`, one of several, has changed."""
        part = self._free.pop(index)
        self._free.insert(self._place(part.size, part.offset), part)

    def _extend(self, part: Slice, offset: int, size: int) -> None:
        """Merge: a free part is `size` bytes from `offset` on now."""
        index = self._place(part.size, part.offset) if len(self._free) > 1 else 0
        part.offset = offset
        part.size = size
        if len(self._free) > 1:
            self._reinsert(index)

    def _drop(self, part: Slice) -> None:
        """Free `part` if there is no reference to it, and then drop its reference to its child."""
        if part.held or part.published or part.parents or part.free or self._is_closed:
            return
        size = part.size
        self.slices -= 1
        self.busy -= size
        self.account.uncharge(SLICE_COST)
        self._charged -= SLICE_COST
        child, part.child = part.child, None
        part.free = True
        before, after = part.before, part.after
        free = self._free
        if before is not None and before.free:
            if after is not None and after.free:
                del free[self._place(after.size, after.offset)]
                size += after.size
                after.before = None  # `part` is gone as well: no cycle of the two
                after = after.after
            before.after = after
            if after is not None:
                after.before = before
            self._extend(before, before.offset, before.size + size)
        elif after is not None and after.free:
            after.before = before
            if before is None:
                self._first = after
            else:
                before.after = after
            self._extend(after, part.offset, size + after.size)
        else:
            free.insert(self._place(size, part.offset), part)
        if child is not None:
            child.parents -= 1
            self._drop(child)

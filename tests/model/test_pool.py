"""POOL-8: the pool allocator against a naive model, a list of used ranges."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from kdbusfs.base.account import Account
from kdbusfs.base.errors import CommandError
from kdbusfs.base.pool import Pool, Slice
from tests.support.fake_host import FakeMemory, FakeTurn

SIZE = 2048


@dataclass(eq=False)
class Used:
    """A slice as the model knows it."""

    part: Slice
    offset: int
    size: int
    held: bool = True
    published: bool = False
    parents: int = 0
    child: Used | None = None


class PoolMachine(RuleBasedStateMachine):
    held: Bundle[Used] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        memory = FakeMemory()
        memory.resize(SIZE)
        self.account = Account(1, 1 << 40)
        self.pool = Pool(SIZE, memory, self.account)
        self.used: list[Used] = []
        self.closed = False

    def gaps(self) -> list[tuple[int, int]]:
        """(size, offset) of the free parts."""
        result, at = [], 0
        for each in sorted(self.used, key=lambda used: used.offset):
            if each.offset > at:
                result.append((each.offset - at, at))
            at = each.offset + each.size
        if at < SIZE:
            result.append((SIZE - at, at))
        return result

    @rule(target=held, size=st.integers(1, 700))
    def allocate(self, size: int) -> Used | MultipleResults[Used]:
        aligned = -(-size // 8) * 8
        fitting = sorted(gap for gap in self.gaps() if gap[0] >= aligned)
        if not fitting:
            with pytest.raises(CommandError):
                self.pool.allocate(size)
            return multiple()
        part = self.pool.allocate(size)
        assert (part.offset, part.size) == (fitting[0][1], aligned)
        used = Used(part, part.offset, aligned)
        self.used.append(used)
        return used

    @rule(used=consumes(held), payload=st.none() | held)
    def publish(self, used: Used, payload: Used | None) -> None:
        if payload is not None and not payload.held:
            payload = None
        self.pool.publish(used.part, payload.part if payload else None)
        used.held, used.published = False, True
        if payload is not None:
            used.child = payload
            payload.parents += 1

    @rule(used=consumes(held))
    def release(self, used: Used) -> None:
        self.pool.release(used.part)
        used.held = False
        self.collect()

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        published = [used for used in self.used if used.published]
        if published:
            used = data.draw(st.sampled_from(published))
            self.pool.free(used.offset)
            used.published = False
            self.collect()

    @rule(offset=st.integers(0, SIZE + 16) | st.integers())
    def free_something_else(self, offset: int) -> None:
        if any(used.offset == offset and used.published for used in self.used):
            return
        with pytest.raises(CommandError):
            self.pool.free(offset)

    def collect(self) -> None:
        """Drop slices without a reference, with their children."""
        while gone := [used for used in self.used if not (used.held or used.published or used.parents)]:
            for used in gone:
                self.used.remove(used)
                if used.child is not None:
                    used.child.parents -= 1

    @invariant()
    def agrees(self) -> None:
        pool = self.pool
        assert pool.busy == sum(used.size for used in self.used)
        assert pool.remaining == SIZE - pool.busy
        assert pool.slices == len(self.used)
        assert [(part.size, part.offset) for part in pool._free] == sorted(self.gaps())
        assert self.account.used >= len(self.used)

    def teardown(self) -> None:
        self.pool.close(FakeTurn())
        assert self.account.used == 0
        assert self.pool.slices == 0


TestPool = PoolMachine.TestCase

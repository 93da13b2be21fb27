"""The policy database against a naive model (POL-1 to POL-7, POL-19, POL-23)."""

from __future__ import annotations

from dataclasses import dataclass
from errno import E2BIG, EEXIST, EINVAL
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kdbusfs.abi.v3.items import decode_items
from kdbusfs.abi.values import Item
from kdbusfs.base.account import Account
from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import Creds
from kdbusfs.core.policy import PinnedCredentials, PolicyDb
from tests.support import items as i
from tests.support.fake_host import FakeCaller, FakeProcess

NAMES = (b"a.b", b"a.c", b"a.b.c", b"x.y")
PATTERNS = (*NAMES, b"a.*", b"a.b.*", b"x.*")
INVALID = (b"a", b"*", b"a.", b".a", b"a.*.b", b"a.1")
IDS = (1, 2, 3)
OWNERS = ("first", "second", "third")
ACCOUNT = Account(1, 1 << 40)
CALLER = FakeCaller(FakeProcess(uid_map={1: 1, 2: 2, 3: 3}))


@dataclass
class Entry:
    """An entry as it was uploaded: pattern, (kind, level, id) in order, owner."""

    pattern: bytes
    accesses: list[tuple[int, int, int]]
    owner: str


class Model:
    """A list of entries that every query scans."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def replace(self, owner: str, items: list[tuple[object, ...]], only_one: bool, wildcards: bool) -> int:
        new: list[Entry] = []
        for what, *values in items:
            if what == "name":
                (pattern,) = values
                assert isinstance(pattern, bytes)
                if new and only_one:
                    return E2BIG
                if pattern in INVALID or (pattern.endswith(b"*") and not wildcards):
                    return EINVAL
                new.append(Entry(pattern, [], owner))
            else:
                kind, level, id = values
                assert isinstance(kind, int) and isinstance(level, int) and isinstance(id, int)
                if not new or not 1 <= kind <= 3 or not 0 <= level <= 2 or (kind < 3 and id not in IDS):
                    return EINVAL
                new[-1].accesses.append((kind, level, id))
        patterns = [entry.pattern for entry in self.entries if entry.owner != owner] + [
            e.pattern for e in new
        ]
        if len(set(patterns)) < len(patterns):
            return EEXIST
        self.remove(owner)
        self.entries += new
        return 0

    def remove(self, owner: str) -> None:
        self.entries = [entry for entry in self.entries if entry.owner != owner]

    def level(self, euid: int, gids: set[int], name: bytes) -> int:
        parent = b".".join(name.split(b".")[:-1]) + b".*"
        found = [entry for entry in self.entries if entry.pattern == name]
        found = found or [entry for entry in self.entries if entry.pattern == parent]
        granted = [
            level
            for entry in found
            for kind, level, id in entry.accesses
            if kind == 3 or (kind == 1 and id == euid) or (kind == 2 and id in gids)
        ]
        return max(granted, default=-1)


def to_items(items: list[tuple[Any, ...]]) -> list[Item]:
    data = b"".join(i.name(*item[1:]) if item[0] == "name" else i.access(*item[1:]) for item in items)
    return decode_items(data, 0, len(data))


good_access = st.tuples(st.just("access"), st.integers(1, 3), st.integers(0, 2), st.sampled_from(IDS))
bad_access = st.tuples(st.just("access"), st.integers(0, 4), st.integers(0, 3), st.sampled_from((*IDS, 4)))
good_name = st.tuples(st.just("name"), st.sampled_from(PATTERNS))
bad_name = st.tuples(st.just("name"), st.sampled_from(INVALID))
group = st.builds(lambda name, accesses: [name, *accesses], good_name, st.lists(good_access, max_size=3))
lists = st.one_of(
    st.lists(group, max_size=3).map(lambda groups: [item for some in groups for item in some]),
    st.lists(st.one_of(good_name, good_access, bad_name, bad_access), max_size=5),
)
steps = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.one_of(st.none(), lists), st.booleans(), st.booleans()), max_size=12
)
subjects = st.tuples(st.sampled_from((*IDS, 9)), st.sampled_from((*IDS, 9)), st.sets(st.sampled_from(IDS)))


@given(steps, st.lists(subjects, min_size=1, max_size=3))
@settings(max_examples=600)
def test_the_database_answers_as_the_model_does(
    actions: list[tuple[str, list[tuple[Any, ...]] | None, bool, bool]],
    who: list[tuple[int, int, set[int]]],
) -> None:
    """POL-1 to POL-7, POL-19, POL-23"""
    database, model = PolicyDb(), Model()
    for owner, items, only_one, wildcards in actions:
        if items is None:
            database.remove(owner)
            model.remove(owner)
        else:
            errno = 0
            try:
                database.replace(owner, to_items(items), CALLER, ACCOUNT, only_one=only_one, wildcards=wildcards)
            except CommandError as error:
                errno = error.errno
            assert errno == model.replace(owner, items, only_one, wildcards)
        assert len(database) == len(model.entries)
        for euid, egid, groups in who:
            subject = PinnedCredentials(Creds(7, euid, 7, 7, 7, egid, 7, 7), tuple(groups))
            for name in (*NAMES, b"a.b.c.d", b"x.z", b"q.q"):
                assert database.level(subject, name) == model.level(euid, groups | {egid}, name)
    for owner in OWNERS:
        database.remove(owner)
    assert len(database) == 0

"""Policy databases: who may see, talk to, and own which well-known names (POL-1 to POL-23)."""

from __future__ import annotations

from collections.abc import Iterable
from errno import E2BIG, EEXIST, EINVAL
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..abi import constants as c
from ..abi.names import is_valid_name
from ..base.account import Account
from ..base.errors import CommandError

if TYPE_CHECKING:
    from ..abi.values import Item
    from ..base.identity import Creds
    from ..base.ports import Caller

DENIED = -1
ENTRY_COST: Final = 512
ACCESS_COST: Final = 128
"""Bytes charged for an entry, and for each access in it."""


class Subject(Protocol):
    """The subject of a policy check: the calling thread, or a connection's credentials of HELLO (POL-13, POL-14).

    None of its credentials changes while a command lasts.
    """

    def ids(self) -> Creds: ...

    def groups(self) -> tuple[int, ...]: ...


class GroupedSubject:
    """A subject with its groups as a set, made on first use: there may be 65536."""

    __slots__ = ("_gids",)

    def __init__(self) -> None:
        self._gids: frozenset[int] | None = None

    def ids(self) -> Creds:
        raise NotImplementedError

    def groups(self) -> tuple[int, ...]:
        raise NotImplementedError

    def gids(self) -> frozenset[int]:
        """The supplementary groups."""
        gids = self._gids
        if gids is None:
            gids = self._gids = frozenset(self.groups())
        return gids


class _CallingThread(GroupedSubject):
    """The calling thread, for as long as its command lasts."""

    __slots__ = ("_subject",)

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._subject = subject

    def ids(self) -> Creds:
        return self._subject.ids()

    def groups(self) -> tuple[int, ...]:
        return self._subject.groups()


def _grouped(subject: Subject) -> GroupedSubject:
    return subject if isinstance(subject, GroupedSubject) else _CallingThread(subject)


class PinnedCredentials(GroupedSubject):
    """The credentials of a connection's maker, as they were at HELLO (HELLO-20).

    Connections with equal credentials share one object (`SharedCredentials`), so its identity can stand for them.
    holders: the reference count.
    """

    __slots__ = ("_groups", "_ids", "holders")

    def __init__(self, ids: Creds, groups: tuple[int, ...]) -> None:
        super().__init__()
        self._ids = ids
        self._groups = groups
        self.holders = 0

    def ids(self) -> Creds:
        return self._ids

    def groups(self) -> tuple[int, ...]:
        return self._groups


class SharedCredentials:
    """The pinned credentials of all connections of a domain: one object for all that are equal."""

    __slots__ = ("_shared",)

    def __init__(self) -> None:
        self._shared: dict[tuple[Creds, tuple[int, ...]], PinnedCredentials] = {}

    def __len__(self) -> int:
        return len(self._shared)

    def take(self, ids: Creds, groups: tuple[int, ...]) -> PinnedCredentials:
        """The object for these credentials, with one reference more."""
        key = (ids, groups)
        pinned = self._shared.get(key)
        if pinned is None:
            pinned = self._shared[key] = PinnedCredentials(ids, groups)
        pinned.holders += 1
        return pinned

    def give_back(self, pinned: PinnedCredentials) -> None:
        """Drop a reference; the last one removes the object."""
        pinned.holders -= 1
        if not pinned.holders:
            del self._shared[(pinned.ids(), pinned.groups())]


_EMPTY: Final[dict[int, int]] = {}
"""Sentinel: empty, and never written to."""


class _Entry:
    """The grants of one item list: for each user and group the highest level, so that no check walks the items.

    An entry is complete before the database has it, and never changes after that.
    """

    __slots__ = ("accesses", "groups", "highest_group", "users", "world")

    def __init__(self) -> None:
        self.world = DENIED
        self.users = _EMPTY
        self.groups = _EMPTY
        self.highest_group = DENIED
        self.accesses = 0

    def grant(self, kind: int, level: int, wanted: int) -> None:
        """Add one access item: `kind` POLICY_ACCESS_*, `level` POLICY_*, global id."""
        self.accesses += 1
        if kind == c.POLICY_ACCESS_WORLD:
            self.world = max(self.world, level)
        elif kind == c.POLICY_ACCESS_USER:
            if not self.users:
                self.users = {}
            self.users[wanted] = max(self.users.get(wanted, DENIED), level)
        else:
            if not self.groups:
                self.groups = {}
            self.groups[wanted] = max(self.groups.get(wanted, DENIED), level)
            self.highest_group = max(self.highest_group, level)

    def level_of(self, subject: GroupedSubject) -> int:
        """The highest right that any item grants (POL-3).  Groups are asked for only where they can matter."""
        highest = self.world
        if self.users:
            highest = max(highest, self.users.get(subject.ids().euid, DENIED))
        if self.highest_group > highest:
            highest = max(highest, self.groups.get(subject.ids().egid, DENIED))
        if self.highest_group > highest:
            gids = subject.gids()
            for gid, level in self.groups.items():
                if level > highest and gid in gids:
                    highest = level
        return highest


_Key = tuple[bytes, bool]  # name, whether it stands for the names one level below it


class _Owned(NamedTuple):
    keys: frozenset[_Key]
    account: Account
    cost: int


class PolicyDb:
    """The entries of a bus or of a custom endpoint; at most one for each name and wildcard (POL-1).

    changes: a generation count, by which a cached answer is known to be stale (POL-18).
    """

    __slots__ = ("_entries", "_owned", "changes")

    def __init__(self) -> None:
        self._entries: dict[_Key, _Entry] = {}
        self._owned: dict[object, _Owned] = {}
        self.changes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: bytes) -> _Entry | None:
        """The entry that counts for `name`.

        An exact entry hides a wildcard even where it grants nothing (POL-23).
        """
        entry = self._entries.get((name, False))
        if entry is None:
            entry = self._entries.get((name[: name.rfind(b".")], True))
        return entry

    def level(self, subject: Subject, name: bytes) -> int:
        """What `subject` may do with `name`: POLICY_SEE, _TALK, _OWN, or DENIED."""
        entry = self.find(name) if self._entries else None
        return DENIED if entry is None else entry.level_of(_grouped(subject))

    def grants_any(self, subject: Subject, names: Iterable[bytes], wanted: int) -> bool:
        """Whether `subject` has the right `wanted` for at least one of `names` (POL-10, POL-17)."""
        return bool(self._entries) and View(self, subject).grants_any(names, wanted)

    def replace(
        self,
        owner: object,
        items: list[Item],
        caller: Caller,
        account: Account,
        *,
        only_one: bool,
        wildcards: bool,
    ) -> None:
        """Put the NAME and POLICY_ACCESS groups of `items` in the place of all that `owner` had (POL-4, POL-6).

        account: is charged for them.  Raises CommandError: EINVAL (access before a name, invalid name, access or id),
        E2BIG (second name where `only_one`), EEXIST (an entry of that name exists), ENOBUFS (memory of the account);
        then the old entries stay.
        """
        wanted = _parse(items, caller, only_one=only_one, wildcards=wildcards)
        former = self._owned.get(owner)
        mine = former.keys if former is not None else frozenset()  # an endpoint may have over a thousand
        seen: set[_Key] = set()
        for key, _ in wanted:
            if key in seen or (key in self._entries and key not in mine):
                raise CommandError(EEXIST, "policy entry exists")
            seen.add(key)
        cost = sum(ENTRY_COST + len(key[0]) + ACCESS_COST * entry.accesses for key, entry in wanted)
        account.charge(cost)
        self.remove(owner)
        self.changes += 1
        for key, entry in wanted:
            self._entries[key] = entry
        if wanted:
            self._owned[owner] = _Owned(frozenset(seen), account, cost)

    def remove(self, owner: object) -> None:
        """Drop every entry of `owner` (POL-19)."""
        owned = self._owned.pop(owner, None)
        if owned is not None:
            self.changes += 1
            owned.account.uncharge(owned.cost)
            for key in owned.keys:
                del self._entries[key]


class View:
    """The rights of one subject by one database, cached while a command lasts: each entry is evaluated once.

    The cache is keyed by entries, which never change, and the entry of a name is looked up every time: a view stays
    correct whatever happens to the database meanwhile.
    """

    __slots__ = ("_database", "_levels", "_subject")

    def __init__(self, database: PolicyDb, subject: Subject) -> None:
        self._database = database
        self._subject = _grouped(subject)
        self._levels: dict[_Entry, int] = {}

    def level(self, name: bytes) -> int:
        """As `PolicyDb.level`."""
        entry = self._database.find(name)
        if entry is None:
            return DENIED
        level = self._levels.get(entry)
        if level is None:
            level = self._levels[entry] = entry.level_of(self._subject)
        return level

    def grants_any(self, names: Iterable[bytes], wanted: int) -> bool:
        """As `PolicyDb.grants_any`."""
        return any(self.level(name) >= wanted for name in names)


def _parse(
    items: list[Item], caller: Caller, *, only_one: bool, wildcards: bool
) -> list[tuple[_Key, _Entry]]:
    groups: list[tuple[_Key, _Entry]] = []
    for item in items:
        if item.kind == c.ITEM_NAME:
            if only_one and groups:
                raise CommandError(E2BIG, "more than one name")
            name = item.text
            if not is_valid_name(name, wildcard=wildcards):
                raise CommandError(EINVAL, "invalid name in a policy")
            wildcard = name.endswith(b".*")
            groups.append(((name[:-2] if wildcard else name, wildcard), _Entry()))
        elif item.kind == c.ITEM_POLICY_ACCESS:
            if not groups:
                raise CommandError(EINVAL, "access before any name")
            _grant(groups[-1][1], item.numbers, caller)
    return groups


def _grant(entry: _Entry, numbers: tuple[int, ...], caller: Caller) -> None:
    """Add an access item to `entry` (POL-2).  Raises CommandError(EINVAL)."""
    kind, level, wanted = numbers
    if level not in (c.POLICY_SEE, c.POLICY_TALK, c.POLICY_OWN):
        raise CommandError(EINVAL, "unknown access")
    translated: int | None
    if kind == c.POLICY_ACCESS_USER:
        translated = caller.uid_to_global(wanted & 0xFFFFFFFF)
    elif kind == c.POLICY_ACCESS_GROUP:
        translated = caller.gid_to_global(wanted & 0xFFFFFFFF)
    elif kind == c.POLICY_ACCESS_WORLD:
        translated = 0
    else:
        raise CommandError(EINVAL, "unknown kind of access")
    if translated is None:
        raise CommandError(EINVAL, "id without a mapping")
    entry.grant(kind, level, translated)

"""Policy databases: who may see, talk to, and own which well-known names (POL-1 to POL-23)."""

from __future__ import annotations

from errno import E2BIG, EEXIST, EINVAL
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..abi import constants as c
from ..abi.errors import KdbusError
from ..abi.items import Item
from ..abi.layouts import POLICY_ACCESS
from .names import is_valid_name
from .quota import Account

if TYPE_CHECKING:
    from ..abi.identity import Creds
    from .ports import Caller

DENIED = -1
ENTRY_COST: Final = 512
ACCESS_COST: Final = 128
"""What the bookkeeping of an entry, and of each access in it, is charged with, in bytes."""


class Subject(Protocol):
    """Whose rights are asked about: the calling thread, or a connection's credentials of HELLO (POL-13, POL-14)."""

    def ids(self) -> Creds: ...

    def groups(self) -> tuple[int, ...]: ...


class PinnedCredentials:
    """The credentials of a connection's maker, as they were at HELLO (HELLO-20)."""

    __slots__ = ("_groups", "_ids")

    def __init__(self, ids: Creds, groups: tuple[int, ...]) -> None:
        self._ids = ids
        self._groups = groups

    def ids(self) -> Creds:
        return self._ids

    def groups(self) -> tuple[int, ...]:
        return self._groups


class Access(NamedTuple):
    """One access item: to whom (`kind` POLICY_ACCESS_*, global id) which right (`level` POLICY_*) is granted."""

    kind: int
    level: int
    id: int


class _Entry:
    __slots__ = ("accesses", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.accesses: list[Access] = []

    def level_of(self, subject: Subject) -> int:
        """The highest right that any item grants (POL-3)."""
        highest = DENIED
        for kind, level, wanted in self.accesses:
            if level <= highest:
                continue
            if (
                kind == c.POLICY_ACCESS_WORLD
                or (kind == c.POLICY_ACCESS_USER and subject.ids().euid == wanted)
                or (
                    kind == c.POLICY_ACCESS_GROUP
                    and (subject.ids().egid == wanted or wanted in subject.groups())
                )
            ):
                highest = level
        return highest


_Key = tuple[bytes, bool]  # name, whether it stands for the names one level below it


class _Owned(NamedTuple):
    keys: frozenset[_Key]
    account: Account
    cost: int


class PolicyDb:
    """The entries of a bus or of a custom endpoint; at most one for each name and wildcard (POL-1)."""

    __slots__ = ("_entries", "_owned")

    def __init__(self) -> None:
        self._entries: dict[_Key, _Entry] = {}
        self._owned: dict[object, _Owned] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def level(self, subject: Subject, name: bytes) -> int:
        """What `subject` may do with `name`: POLICY_SEE, _TALK, _OWN, or DENIED.

        An exact entry hides a wildcard even where it grants nothing (POL-23).
        """
        if not self._entries:
            return DENIED
        entry = self._entries.get((name, False))
        if entry is None:
            entry = self._entries.get((name[: name.rfind(b".")], True))
        return DENIED if entry is None else entry.level_of(subject)

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

        account: is charged for them.  Raises KdbusError: EINVAL (access before a name, invalid name, access or id),
        E2BIG (second name where `only_one`), EEXIST (an entry of that name exists), ENOBUFS (memory of the account);
        then the old entries stay.
        """
        wanted = _parse(items, owner, caller, only_one=only_one, wildcards=wildcards)
        former = self._owned.get(owner)
        mine = former.keys if former is not None else frozenset()  # an endpoint may have over a thousand
        seen: set[_Key] = set()
        for key, _ in wanted:
            if key in seen or (key in self._entries and key not in mine):
                raise KdbusError(EEXIST, "policy entry exists")
            seen.add(key)
        cost = sum(ENTRY_COST + len(key[0]) + ACCESS_COST * len(entry.accesses) for key, entry in wanted)
        account.charge(cost)
        self.remove(owner)
        for key, entry in wanted:
            self._entries[key] = entry
        if wanted:
            self._owned[owner] = _Owned(frozenset(seen), account, cost)

    def remove(self, owner: object) -> None:
        """Drop every entry of `owner` (POL-19)."""
        owned = self._owned.pop(owner, None)
        if owned is not None:
            owned.account.uncharge(owned.cost)
            for key in owned.keys:
                del self._entries[key]


def _parse(
    items: list[Item], owner: object, caller: Caller, *, only_one: bool, wildcards: bool
) -> list[tuple[_Key, _Entry]]:
    groups: list[tuple[_Key, _Entry]] = []
    for kind, payload in items:
        if kind == c.ITEM_NAME:
            if only_one and groups:
                raise KdbusError(E2BIG, "more than one name")
            name = payload[:-1]
            if not is_valid_name(name, wildcard=wildcards):
                raise KdbusError(EINVAL, "invalid name in a policy")
            wildcard = name.endswith(b".*")
            groups.append(((name[:-2] if wildcard else name, wildcard), _Entry(owner)))
        elif kind == c.ITEM_POLICY_ACCESS:
            if not groups:
                raise KdbusError(EINVAL, "access before any name")
            groups[-1][1].accesses.append(_access(payload, caller))
    return groups


def _access(payload: bytes, caller: Caller) -> Access:
    """POL-2."""
    kind, level, wanted = POLICY_ACCESS.unpack(payload)
    if level not in (c.POLICY_SEE, c.POLICY_TALK, c.POLICY_OWN):
        raise KdbusError(EINVAL, "unknown access")
    translated: int | None
    if kind == c.POLICY_ACCESS_USER:
        translated = caller.uid_to_global(wanted & 0xFFFFFFFF)
    elif kind == c.POLICY_ACCESS_GROUP:
        translated = caller.gid_to_global(wanted & 0xFFFFFFFF)
    elif kind == c.POLICY_ACCESS_WORLD:
        translated = 0
    else:
        raise KdbusError(EINVAL, "unknown kind of access")
    if translated is None:
        raise KdbusError(EINVAL, "id without a mapping")
    return Access(kind, level, translated)

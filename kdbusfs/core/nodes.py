"""What bus directories and endpoint files have in common: inode numbers, names, permission bits."""

from __future__ import annotations

from errno import EINVAL
from typing import Final

from ..abi.constants import MAKE_ACCESS_GROUP, MAKE_ACCESS_WORLD
from ..base.errors import CommandError

ROOT_INO: Final = 1
CONTROL_INO: Final = 2


class InodeNumbers:
    """The inode numbers of a domain: each node has the smallest that was free (FS-11)."""

    __slots__ = ("_first_free", "_free")

    def __init__(self) -> None:
        # A byte for each number, 1 where it is free.  A list would keep an object of each that was ever in use, and
        # with it the whole arena of memory that the object is in.
        self._free = bytearray(CONTROL_INO + 1)
        self._first_free = CONTROL_INO + 1  # no lower number is free

    def take(self) -> int:
        ino = self._free.find(b"\1", self._first_free)
        if ino < 0:
            ino = len(self._free)
            self._free.append(0)
        else:
            self._free[ino] = 0
        self._first_free = ino + 1
        return ino

    def give(self, ino: int) -> None:
        """`ino` is free again."""
        self._free[ino] = 1
        self._first_free = min(self._first_free, ino)


def access_mode(access: int, owner: int, group: int, world: int) -> int:
    """Permission bits for MAKE flags: WORLD implies GROUP (FS-6 to FS-8)."""
    mode = owner
    if access & (MAKE_ACCESS_GROUP | MAKE_ACCESS_WORLD):
        mode |= group
    if access & MAKE_ACCESS_WORLD:
        mode |= world
    return mode


def check_uid_prefix(name: bytes, uid: int | None) -> None:
    """Names of buses and endpoints start with the maker's uid and '-' (BUS-5).  Raises CommandError(EINVAL)."""
    if uid is None or not name.startswith(b"%d-" % uid):
        raise CommandError(EINVAL, "name lacks the uid of its maker")

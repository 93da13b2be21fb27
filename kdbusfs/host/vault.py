"""What outlives a daemon: a memfd that a keeper holds beside /dev/fuse, and gives to the daemon's successor.

It is the successor's only knowledge of its predecessor, and may be in any state: a daemon is killed between two stores.
So each value is written before the kernel or a client can see what it stands for, and is right at any moment.  It has
ids and credentials of clients in it, which is why it is never a file with a name.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kdbusfs.native._native import Kept

_MAGIC: Final = b"kdbusfs1"  # with the version of this layout
_EPOCH_AT: Final = 8
_INIT_SIZE_AT: Final = 12
_GRANTED_AT: Final = 16
_NODES_AT: Final = 24
_LAST_BACKING_AT: Final = 32
_USED_AT: Final = 36
_INIT_AT: Final = 256
_INIT_MAX: Final = 1024
_KEPT_AT: Final = 4096
_BACKINGS_AT: Final = 64 << 20
_BACKINGS: Final = 1 << 20
_SIZE: Final = _BACKINGS_AT + 4 * _BACKINGS
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")


class VaultError(Exception):
    """A descriptor that is no vault of this version."""


class Vault:
    """The memfd, mapped.  fd: stays the caller's; `Vault.create` makes one.  Raises VaultError."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        if os.fstat(fd).st_size != _SIZE:
            raise VaultError("of another size")
        self._map = mmap.mmap(fd, _SIZE)
        if self._map[: len(_MAGIC)] != _MAGIC:
            raise VaultError("of another version")
        self.backings = Backings(self._map)

    @classmethod
    def create(cls) -> Vault:
        """An empty one, with a descriptor of its own.  Raises OSError."""
        fd = os.memfd_create("kdbusfs-vault", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        os.pwrite(fd, _MAGIC, 0)
        return cls(fd)

    @property
    def epoch(self) -> int:
        """How many daemons have begun to serve the mount."""
        epoch: int = _U32.unpack_from(self._map, _EPOCH_AT)[0]
        return epoch

    def begin(self) -> None:
        """A daemon begins to serve the mount."""
        _U32.pack_into(self._map, _EPOCH_AT, self.epoch + 1)

    @property
    def init(self) -> tuple[bytes, int] | None:
        """The kernel's INIT request, which comes but once, and the flags that it was granted; None before that."""
        size: int = _U32.unpack_from(self._map, _INIT_SIZE_AT)[0]
        granted: int = _U64.unpack_from(self._map, _GRANTED_AT)[0]
        return (self._map[_INIT_AT : _INIT_AT + size], granted) if size else None

    def keep_init(self, request: bytes, granted: int) -> None:
        """To be called before INIT is answered.  Raises VaultError for one that has no room."""
        if len(request) > _INIT_MAX:
            raise VaultError("INIT is too long to be kept")
        self._map[_INIT_AT : _INIT_AT + len(request)] = request
        _U64.pack_into(self._map, _GRANTED_AT, granted)
        _U32.pack_into(self._map, _INIT_SIZE_AT, len(request))

    @property
    def nodeids(self) -> int:
        """No node id from this one on was ever given out; 0: none at all."""
        reserved: int = _U64.unpack_from(self._map, _NODES_AT)[0]
        return reserved

    def reserve_nodeids(self, end: int) -> None:
        """Node ids below `end` may be given out."""
        _U64.pack_into(self._map, _NODES_AT, end)

    def kept(self) -> Kept:
        """What the channel keeps here."""
        from kdbusfs.native._native import ffi  # not for who only makes a vault

        return ffi.from_buffer("struct kfs_kept *", memoryview(self._map)[_KEPT_AT:_BACKINGS_AT])

    def poll_handles(self) -> Iterator[int]:
        """What wakes the pollers of the predecessor's files; each is forgotten when the next one is asked for."""
        kept = self.kept()
        for slot in range(kept.slots):
            handle = kept.poll_handles[slot]
            if handle:
                yield handle
                kept.poll_handles[slot] = 0

    def close(self) -> None:
        """Close the descriptor.  The mapping stays, as long as it is used."""
        os.close(self.fd)


class Backings:
    """The backing ids that are registered, as a table of u32 with 0 for none.

    The kernel gives ids in turn, so that the one which may have been registered without being noted is known as well.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._places = memoryview(memory)[_BACKINGS_AT:].cast("I")
        self._place_of: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0

    def add(self, backing_id: int) -> None:
        """It was registered.  One for which there is no place is not noted."""
        place = self._free.pop() if self._free else self._used
        if place < _BACKINGS:
            if place == self._used:
                self._used += 1
                _U32.pack_into(self._memory, _USED_AT, self._used)
            self._place_of[backing_id] = place
            self._places[place] = backing_id
        _U32.pack_into(self._memory, _LAST_BACKING_AT, backing_id)

    def remove(self, backing_id: int) -> None:
        """It was closed."""
        place = self._place_of.pop(backing_id, None)
        if place is not None:
            self._places[place] = 0
            self._free.append(place)

    def left(self) -> Iterator[int]:
        """Those of the predecessor, before the first `add`.  Some may not exist."""
        last: int = _U32.unpack_from(self._memory, _LAST_BACKING_AT)[0]
        yield last + 1
        used: int = _U32.unpack_from(self._memory, _USED_AT)[0]
        yield from (backing_id for backing_id in self._places[:used].tolist() if backing_id)
        self._places[:used] = memoryview(bytes(4 * used)).cast("I")
        _U32.pack_into(self._memory, _USED_AT, 0)

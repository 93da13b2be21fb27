"""A minimal tree: a file of the domain, a text file, and a name whose lookup never answers."""

from __future__ import annotations

import errno
import stat

import pyfuse3
import trio

from kdbusfs.fuse.files import OpenFiles
from kdbusfs.fuse.protocol import FOPEN_DIRECT_IO, FOPEN_NOFLUSH
from tests.support.channel_fakes import Domain

FILE_INO = 77
FIRST_NODEID = 1000
TEXT = b"text of a file that is not the core's\n"
TEXT_NODEID = 3


class Tree(pyfuse3.Operations):
    """`bus` gets a new node id at every lookup; `text` is an ordinary file; `stuck` never answers."""

    def __init__(self, domain: Domain, files: OpenFiles) -> None:
        super().__init__()
        self.domain = domain
        self.files = files
        self.next_nodeid = FIRST_NODEID
        self.forgotten = 0

    def ino_of(self, nodeid: int) -> int:
        return FILE_INO if nodeid >= FIRST_NODEID else nodeid

    def set_up(self, granted: int) -> None:
        """No effect."""

    def _attributes(self, nodeid: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(nodeid)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o666)
        if nodeid == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555)
        entry.st_nlink = 1
        entry.st_size = len(TEXT) if nodeid == TEXT_NODEID else 0
        entry.entry_timeout = 0
        entry.attr_timeout = 0
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name == b"stuck":
            await trio.sleep_forever()
        if name == b"text":
            return self._attributes(TEXT_NODEID)
        if name != b"bus":
            raise pyfuse3.FUSEError(errno.ENOENT)
        self.next_nodeid += 1
        return self._attributes(self.next_nodeid)

    def forget_nodes(self, nodes: list[tuple[int, int]]) -> None:
        self.forgotten += len(nodes)

    def close_file(self, fh: int) -> None:
        self.files.remove(fh)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = self._attributes(inode)
        entry.st_ino = pyfuse3.InodeT(self.ino_of(inode))
        return entry

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(1)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        names = [(b"bus", self._attributes(FILE_INO)), (b"text", self._attributes(TEXT_NODEID))]
        for at, (name, entry) in enumerate(names, 1):
            if at > start_id and not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, at):
                break

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        if inode == TEXT_NODEID:
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(2))
        fh = self.files.add(self.domain.open(), FOPEN_DIRECT_IO | FOPEN_NOFLUSH, 0)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return TEXT[off : off + size]

"""The tree of a domain for pyfuse3: translates requests to the core, and the core's objects to attributes.

The kernel checks permissions (default_permissions), so a request that arrives here was allowed by the modes of FS-4 to
FS-8.  Every handler runs while the reader waits for its answer, and may therefore access the core.
"""

from __future__ import annotations

import errno
import functools
import heapq
import mmap
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Concatenate, NamedTuple, NoReturn, ParamSpec, TypeVar

import pyfuse3

from kdbusfs.base.errors import CommandError
from kdbusfs.bus1.abi import POOL_SIZE
from kdbusfs.fuse.introspection import AttachFlagsMask, Connections, PeerList, Statistics, TextFile
from kdbusfs.fuse.nodes import (
    WORLD,
    Access,
    Admission,
    BusNode,
    EndpointNode,
    FileNode,
    Node,
    NodeIds,
    NodeTable,
    PeerNode,
    PrivateNode,
    StaticDirectory,
    memory_of,
)
from kdbusfs.fuse.protocol import DIRECT_IO_ALLOW_MMAP, FOPEN_DIRECT_IO, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH

if TYPE_CHECKING:
    from kdbusfs.base.handle import Handle
    from kdbusfs.bus1.world import World
    from kdbusfs.core.bus import Bus
    from kdbusfs.core.domain import Domain
    from kdbusfs.fuse.files import OpenFiles
    from kdbusfs.host.host import LinuxHost
    from kdbusfs.host.installer import Installer

# With DIRECT_IO only mmap accesses the memory or the page cache; read and write arrive here, for FS-16.
_PLAIN_FLAGS = FOPEN_DIRECT_IO | FOPEN_NOFLUSH
_POOL_FLAGS = FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO | FOPEN_NOFLUSH
# A pool without passthrough: data stored in the page cache stays there, whoever maps it.
_COPIED_FLAGS = FOPEN_NOFLUSH

_UNCHANGING = 1e6  # seconds: attributes never change, nor do permanent entries
_LISTED_AT_ONCE = 512  # entries
_PRUNED_AT_ONCE = 256  # node ids
_FORGET_UNITS = 2
_LATER_DIRECTORIES = 1 << 63  # in the fh of a directory that is not opened by the first daemon of the mount
_POOL_PREFIX = ".conn-"
_PEER_FILE = "bus1"  # names of buses begin with a uid
# The errno reported when the daemon runs out of a resource; any other OSError is a defect.
_SHORTAGES = {
    errno.EMFILE: errno.ENFILE,
    errno.ENFILE: errno.ENFILE,
    errno.ENOMEM: errno.ENOMEM,
    errno.ENOSPC: errno.ENOSPC,
}

P = ParamSpec("P")
R = TypeVar("R")


def _handler(
    function: Callable[Concatenate[Tree, P], Awaitable[R]],
) -> Callable[Concatenate[Tree, P], Coroutine[None, None, R]]:
    """Turn every exception of a handler into an errno: any but FUSEError would end pyfuse3's loop."""

    @functools.wraps(function)
    async def guarded(self: Tree, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await function(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except CommandError as fault:
            raise pyfuse3.FUSEError(fault.errno) from None
        except Exception as fault:
            shortage = _shortage(fault)
            if shortage is None:
                self._report(f"the tree's {function.__name__} failed unexpectedly")
            raise pyfuse3.FUSEError(shortage or errno.EIO) from None

    return guarded


class Guest(NamedTuple):
    """A thread that is served a domain of its own: it sees `control` and the buses of `domain`."""

    tid: int
    domain: Domain


class Tree(pyfuse3.Operations):
    """The files of one domain.

    installer: has the threads of the daemon that move clients to private nodes; other threads cannot find those.
    realtime: CLOCK_REALTIME in nanoseconds. report: logs the exception that is being handled, rate-limited. more_stats:
    values for the `stats` file beside the core's. prune: asks the kernel to forget unused node ids; returns whether the
    kernel can. spend: reports work in long loops (`base.ports.Turn`). access: of the root directory and `control`;
    owner: of what is below `.kdbusfs`. peers: opens peers of bus1, None if the mount has no file of it; lists_peers:
    the root lists that file. ids: of nodes; epoch: tells the opens of directories from those of an earlier daemon of
    the mount. files: has to be set before the first request. guest: the client by which the daemon tests
    itself.
    """

    files: OpenFiles
    guest: Guest | None = None

    supports_dot_lookup = False

    def __init__(
        self,
        domain: Domain,
        host: LinuxHost,
        installer: Installer,
        realtime: Callable[[], int],
        report: Callable[[str], None],
        more_stats: Callable[[], Mapping[str, object]] = dict,
        owner: tuple[int, int] = (0, 0),
        access: Access = WORLD,
        prune: Callable[[list[int]], bool] = lambda nodeids: False,
        spend: Callable[[int], object] = lambda units: None,
        peers: World | None = None,
        lists_peers: bool = False,
        ids: NodeIds | None = None,
        epoch: int = 0,
    ) -> None:
        super().__init__()
        self._prune = prune
        self._to_prune: list[int] = []  # node ids that the kernel has still to be asked to forget
        self._spend = spend
        self._prunes: bool | None = None  # whether the kernel can; None: not asked yet
        self._endpoint_flags = _COPIED_FLAGS
        self._report = report
        self._domain = domain
        self._host = host
        self._installer = installer
        self._nodes = NodeTable(realtime, owner, access, ids)
        self._peers = peers
        self._peer_file = self._nodes.add_peer_file(_PEER_FILE) if peers is not None else None
        self._lists_peers = lists_peers and peers is not None
        self._directories: dict[int, tuple[Node, int]] = {}  # open directories, and the uid that opened each
        self._directory_numbers = _LATER_DIRECTORIES | epoch << 32 if epoch else 0
        self._next_directory = 1
        hidden = self._nodes.add_directory(self._nodes.root, ".kdbusfs")
        parameters = self._nodes.add_directory(hidden, "parameters")
        mask = self._nodes.add_file(parameters, "attach_flags_mask", 0o644)
        statistics = self._nodes.add_file(hidden, "stats", 0o400)
        connections = self._nodes.add_file(hidden, "connections", 0o400)
        self._text_files: dict[int, Callable[[int], TextFile]] = {
            mask.nodeid: lambda _: AttachFlagsMask(domain),
            statistics.nodeid: lambda _: Statistics(domain, lambda: {**self.counts(), **more_stats()}),
            connections.nodeid: lambda tid: Connections(domain, host.caller(tid).pid_ns),
        }
        if peers is not None:
            list_of_peers = self._nodes.add_file(hidden, "peers", 0o400)
            self._text_files[list_of_peers.nodeid] = lambda tid: PeerList(peers, host.caller(tid).pid_ns)

    def set_up(self, granted: int) -> None:
        """Take the flags of FUSE_INIT that the mount has and pyfuse3 does not know."""
        # If such a file cannot be mapped, read(2) of an endpoint reads its empty page cache.
        self._endpoint_flags = _PLAIN_FLAGS if granted & DIRECT_IO_ALLOW_MMAP else _COPIED_FLAGS

    def ino_of(self, nodeid: int) -> int:
        """The st_ino that programs see for a node id (FS-11), which LOOKUP's answer is amended with."""
        node = self._nodes.get(nodeid)
        return nodeid if node is None else node.ino

    def node_of(self, fh: int) -> int:
        """The node id that `fh` is an open of; 0 for files that are no endpoint."""
        return self._nodes.node_of(fh)

    def only_node_of(self, fh: int) -> int:
        """The same if `fh` is the only open of it: then its page cache can show the pool of its connection; else 0."""
        return self._nodes.only_node_of(fh)

    def handle_of(self, nodeid: int) -> Handle | None:
        """The open file of node id `nodeid`; None if it has no pool, or is not the only open."""
        return self._nodes.handle_of(nodeid)

    def counts(self) -> dict[str, object]:
        """Values for the `stats` file: the node ids that the kernel knows, whether it supports FUSE_NOTIFY_PRUNE (null:
        not tried yet), and the open directories.
        """
        return {"nodes": len(self._nodes), "prunes": self._prunes, "open_directories": len(self._directories)}

    @_handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        parent = self._node(parent_inode)
        self._prune_nodes()
        text = os.fsdecode(name)
        if isinstance(parent, BusNode):
            endpoint = parent.bus.endpoints.get(text) if self._is_present(parent.bus) else None
            if endpoint is not None:
                return _entry(self._nodes.look_up_endpoint(endpoint, ctx.pid), 0)
        elif isinstance(parent, StaticDirectory):
            child = parent.children.get(text)
            if child is not None:
                return _entry(child, _UNCHANGING)
            if parent is self._nodes.root:
                return _entry(self._look_up_in_root(text, ctx.pid), 0)
        raise pyfuse3.FUSEError(errno.ENOENT)

    def _prune_nodes(self) -> None:
        """Ask the kernel to forget some node ids, at each lookup: each takes a microsecond or more."""
        if self._prunes is False:
            return
        if not self._to_prune:
            self._to_prune = self._nodes.prunable()
        if self._to_prune:
            self._prunes = self._prune(self._to_prune[:_PRUNED_AT_ONCE])
            del self._to_prune[:_PRUNED_AT_ONCE]

    def _look_up_in_root(self, name: str, tid: int) -> Node:
        bus = self._domain_of(tid).buses.get(name)
        if bus is not None:
            return self._nodes.look_up_bus(bus)
        if self._peer_file is not None and name == self._peer_file.name:
            return self._nodes.look_up_peer_file(self._peer_file, tid)
        if name.startswith(_POOL_PREFIX) and tid in self._installer.tids:
            number = name.removeprefix(_POOL_PREFIX)
            handle = self._nodes.endpoint_handle(int(number)) if number.isdecimal() else None
            node = self._nodes.look_up_pool(handle) if handle is not None else None
            if node is not None:
                return node
        raise pyfuse3.FUSEError(errno.ENOENT)

    def forget_nodes(self, nodes: Iterable[tuple[int, int]]) -> None:
        """The kernel forgets lookups: node ids, each with a count.  The reader calls this itself: FORGET has no answer,
        so pyfuse3 would run concurrently with the reader.

        There may be thousands, and others may be served in between: a count is a difference, so a node that was looked
        up again meanwhile stays.
        """
        for nodeid, count in nodes:
            self._nodes.forget(nodeid, count)
            self._spend(_FORGET_UNITS)

    @_handler
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        # A removed bus or endpoint keeps its attributes for open files (FS-27).
        node = self._node(inode)
        return _attributes(node, node.ino)

    @_handler
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self._node(inode)
        if isinstance(node, PrivateNode):
            fh = self._open_pool(node, ctx.pid)
            return pyfuse3.FileInfo(fh=fh, direct_io=True, keep_cache=False)
        self.files.check_room(ctx.uid)
        if isinstance(node, PeerNode):
            fh = self._open_peer(node, ctx.pid, ctx.uid)
        elif isinstance(node, EndpointNode):
            fh = self._open_endpoint(node, ctx.pid, ctx.uid)
        elif node is self._nodes.control:
            handle = self._domain_of(ctx.pid).open_control(self._host.caller(ctx.pid))
            fh = self._add_file(handle, _PLAIN_FLAGS, 0, ctx.uid)
        elif node.nodeid in self._text_files:
            fh = self._add_file(self._text_files[node.nodeid](ctx.pid), _PLAIN_FLAGS, 0, ctx.uid)
        else:
            raise pyfuse3.FUSEError(errno.EISDIR)
        return pyfuse3.FileInfo(fh=fh, direct_io=True, keep_cache=False)

    def _admit(self, node: EndpointNode | PeerNode, tid: int) -> None:
        admission = self._nodes.admit(node, tid)
        if admission is Admission.STALE:
            raise pyfuse3.FUSEError(errno.ESTALE)
        if admission is Admission.BUSY:
            raise pyfuse3.FUSEError(errno.EBUSY)

    def _open_peer(self, node: PeerNode, tid: int, user: int) -> int:
        """B1-FILE-2; the pool is the backing of this open (B1-FUSE-2)."""
        assert self._peers is not None
        self._admit(node, tid)
        handle = self._peers.open(self._host.caller(tid), self._host.memory())
        backing_id = memory_of(handle).backing_id
        fh = self._add_file(handle, _POOL_FLAGS if backing_id else _COPIED_FLAGS, backing_id, user)
        self._nodes.opened(node, fh, handle)
        return fh

    def _open_endpoint(self, node: EndpointNode, tid: int, user: int) -> int:
        endpoint = node.endpoint
        bus = endpoint.bus
        if not self._is_present(bus) or bus.endpoints.get(endpoint.name) is not endpoint:
            raise pyfuse3.FUSEError(errno.ESHUTDOWN)  # FS-21
        self._admit(node, tid)
        handle = self._domain.open_endpoint(endpoint, self._host.caller(tid), self._host.memory())
        fh = self._add_file(handle, self._endpoint_flags, 0, user)
        self._nodes.opened(node, fh, handle)
        return fh

    def _open_pool(self, node: PrivateNode, tid: int) -> int:
        # A client that reopens its own descriptor through /proc gets here as well.
        if tid not in self._installer.tids or node.handle is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        backing_id = memory_of(node.handle).backing_id
        fh = self.files.add(node.handle, _POOL_FLAGS if backing_id else _COPIED_FLAGS, backing_id)
        self._nodes.opened(node, fh, node.handle)
        return fh

    def _add_file(self, handle: Handle, open_flags: int, backing_id: int, user: int) -> int:
        """Allocate the fh of a new handle; if that fails the handle is released."""
        try:
            return self.files.add(handle, open_flags, backing_id, user)
        except BaseException:
            handle.release()
            raise

    def close_file(self, fh: int) -> None:
        """The last descriptor of `fh` is closed.  The reader calls this itself, without pyfuse3."""
        directory = self._directories.pop(fh, None)
        if directory is not None:
            self.files.discharge(directory[1])
            return
        try:
            self.files.remove(fh)
        finally:
            self._nodes.closed(fh)

    @_handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self.files.get(fh)
        if isinstance(file, TextFile):
            return file.read(off, size)
        pool = self._nodes.copied_by(fh)
        if pool is None:
            raise pyfuse3.FUSEError(errno.ESTALE if file is None else errno.EINVAL)  # FS-16
        return pool.read(off, size)

    @_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self.files.get(fh)
        if not isinstance(file, TextFile):
            raise pyfuse3.FUSEError(errno.ESTALE if file is None else errno.EINVAL)  # FS-16
        return file.write(buf)

    @_handler
    async def flush(self, fh: int) -> None:
        # Only a kernel without FOPEN_NOFLUSH (before 5.16) asks, and never again after ENOSYS.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        raise pyfuse3.FUSEError(errno.EINVAL)

    @_handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        raise pyfuse3.FUSEError(errno.EINVAL)

    @_handler
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        node = self._node(inode)
        if not node.is_directory:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        self.files.check_room(ctx.uid)
        # Numbers below 2**32 never name a handle: an ioctl on a directory cannot reach a connection.
        fh = self._directory_numbers | self._next_directory
        self._next_directory = self._next_directory % 0xFFFFFFFF + 1
        while self._directory_numbers | self._next_directory in self._directories:
            self._next_directory = self._next_directory % 0xFFFFFFFF + 1
        self._directories[fh] = (node, ctx.uid)
        self.files.charge(ctx.uid)
        return fh

    @_handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        # Entries are ordered by st_ino, and a position is the st_ino of the previous entry + 2: stable whatever is
        # added or removed between two calls.  The channel clears the node ids, so no lookup is counted.
        directory = self._directories.get(fh)
        if directory is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        for position, name, ino, mode in self._listing(directory[0], start_id):
            attributes = pyfuse3.EntryAttributes()
            attributes.st_ino = ino
            attributes.st_mode = mode
            if not pyfuse3.readdir_reply(token, os.fsencode(name), attributes, position):
                return

    def _listing(self, node: Node, after: int) -> Iterable[tuple[int, str, int, int]]:
        """Position, name, st_ino and mode of the entries of a directory behind position `after` (FS-12).

        A directory may have many thousands of entries: no call sorts more than one answer can hold.
        """
        parent_ino = node.parent_ino if isinstance(node, StaticDirectory) else self._nodes.root.ino
        if after < 1:
            yield 1, ".", node.ino, stat.S_IFDIR
        if after < 2:
            yield 2, "..", parent_ino, stat.S_IFDIR
        least = after - 2
        children: list[tuple[int, str, int, int]] = []
        if isinstance(node, BusNode):
            if self._is_present(node.bus):
                children = [
                    (child.ino + 2, child.name, child.ino, stat.S_IFREG)
                    for child in node.bus.endpoints_behind(least, _LISTED_AT_ONCE)
                ]
        elif isinstance(node, StaticDirectory):
            children = [
                (child.ino + 2, name, child.ino, child.mode)
                for name, child in node.children.items()
                if child.ino > least and not name.startswith(".")
            ]
            if node is self._nodes.root:
                children += [
                    (bus.ino + 2, bus.name, bus.ino, stat.S_IFDIR)
                    for bus in self._domain.buses.values()
                    if bus.ino > least
                ]
                file = self._peer_file
                if file is not None and self._lists_peers and file.ino > least:
                    children.append((file.ino + 2, file.name, file.ino, stat.S_IFREG))
        yield from heapq.nsmallest(_LISTED_AT_ONCE, children)

    @_handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        # All counts are 0 (FS-20).
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = mmap.PAGESIZE
        data.f_namemax = 255
        return data

    @_handler
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel has checked it (default_permissions)

    @_handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        raise pyfuse3.FUSEError(errno.EACCES)  # FS-14

    @_handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        _refuse()  # FS-15

    @_handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _refuse()

    @_handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _refuse()

    @_handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _refuse()

    @_handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _refuse()

    @_handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _refuse()

    @_handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _refuse()

    @_handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        _refuse()

    # Extended attributes: pyfuse3 answers ENOSYS for handlers that are not defined, which the kernel reports as
    # EOPNOTSUPP (FS-19) and remembers.

    def _node(self, nodeid: int) -> Node:
        node = self._nodes.get(nodeid)
        if node is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return node

    def _domain_of(self, tid: int) -> Domain:
        """The domain that serves thread `tid`."""
        guest = self.guest
        return guest.domain if guest is not None and guest.tid == tid else self._domain

    def _is_present(self, bus: Bus) -> bool:
        guest = self.guest
        return self._domain.buses.get(bus.name) is bus or (
            guest is not None and guest.domain.buses.get(bus.name) is bus
        )


def _shortage(fault: Exception) -> int | None:
    """The errno for a client if `fault` says that the daemon has run out of a resource; None for other errors."""
    if isinstance(fault, MemoryError):
        return errno.ENOMEM
    return _SHORTAGES.get(fault.errno or 0) if isinstance(fault, OSError) else None


def _refuse() -> NoReturn:
    """Refuse an operation that kdbus does not have (FS-14, FS-15)."""
    raise pyfuse3.FUSEError(errno.EPERM)


def _entry(node: Node, entry_timeout: float) -> pyfuse3.EntryAttributes:
    """The answer of a LOOKUP: pyfuse3 has one field for node id and st_ino; `ino_of` supplies the latter."""
    attributes = _attributes(node, node.nodeid)
    attributes.entry_timeout = entry_timeout
    return attributes


def _attributes(node: Node, ino: int) -> pyfuse3.EntryAttributes:
    """The attributes of FS-9 and FS-10."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = ino
    attributes.st_mode = node.mode
    attributes.st_nlink = 2 if node.is_directory else 1
    if isinstance(node, PeerNode):
        attributes.st_size = POOL_SIZE
    elif isinstance(node, FileNode):
        shown = node.copied_handle
        # The kernel maps no further than that; with passthrough it uses the size of the memory (FS-9).
        attributes.st_size = 0 if shown is None else memory_of(shown).size
    attributes.st_uid = node.uid
    attributes.st_gid = node.gid
    attributes.st_blksize = mmap.PAGESIZE
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = node.changed_ns
    attributes.attr_timeout = _UNCHANGING
    return attributes

"""The node table: the object of every FUSE node id, and its opens.

The kernel binds page cache and passthrough backing to the inode, and an inode to a node id; kdbus gives every open of
an endpoint a pool of its own.  The file that a client opens has no backing: HELLO swaps its descriptor for one of a
private inode (`PrivateNode`), whose backing is the connection's pool.  If that is impossible, the client reads copies
of its pool in the page cache of the inode that it opened, which then must have no other open.  So each LOOKUP of an
endpoint answers with a node id that nobody has open: every open of a path has an inode of its own, while st_ino, which
programs see, is that of the endpoint (FS-33).

A node id gets a second open if two threads looked it up before either opened it, or if there is no LOOKUP in between:
an endpoint file that is bind-mounted, an O_PATH descriptor, /proc/self/fd/N.  `NodeTable.admit` decides on that open:

1. The thread is refused once, with ESTALE.  The kernel then walks the path again, and if the path leads through this
   file system the walk ends at a fresh node id, for this thread alone.
2. If the thread returns with the same node id, there is no other inode for it, and the open joins the present ones.
   None of them can have copies then.
3. While a present open is a connection that has not moved to its private inode, or has copies here, it keeps the inode
   for itself: EBUSY.  So does every open of the file of bus1, which is a peer with its pool from the start.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from kdbusfs.bus1.peer import Peer
    from kdbusfs.core.bus import Bus
    from kdbusfs.core.endpoint import Endpoint
    from kdbusfs.core.handle import EndpointHandle
    from kdbusfs.host.memory import PoolMemory

ROOT_ID = 1
CONTROL_ID = 2
_FIRST_STATIC_ID = 3
_FIRST_DYNAMIC_ID = 64
_STATIC_INO = 0x7FFFFF00  # for nodes that the core does not number: far from the small integers of FS-11
_REFUSALS_KEPT = 4096
_SPARE_NODES = 1024
_RESERVED_AT_ONCE = 1 << 16


H = TypeVar("H", "EndpointHandle", "Peer")


def memory_of(handle: EndpointHandle | Peer) -> PoolMemory:
    """The memory of an open file's pool: a port for a bus, but always made by the host."""
    return cast("PoolMemory", handle.memory)


@dataclass(frozen=True, slots=True)
class Access:
    """The owner and the permissions of the root directory and of `control`: who may enter a domain and make buses in
    it.
    """

    uid: int = 0
    gid: int = 0
    mode: int = 0o555
    control_mode: int = 0o666


WORLD = Access()
"""kdbus' own permissions."""


class Node:
    """One node id: its attributes, and the number of LOOKUPs that the kernel has not forgotten yet."""

    __slots__ = ("changed_ns", "gid", "ino", "lookups", "mode", "nodeid", "uid")

    def __init__(self, nodeid: int, ino: int, mode: int, uid: int, gid: int, changed_ns: int) -> None:
        self.nodeid = nodeid
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.changed_ns = changed_ns
        self.lookups = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class StaticDirectory(Node):
    """A directory that exists as long as the domain, with the children that do so as well (FS-1)."""

    __slots__ = ("children", "parent_ino")

    def __init__(
        self, nodeid: int, ino: int, owner: tuple[int, int], changed_ns: int, parent_ino: int, mode: int = 0o555
    ) -> None:
        super().__init__(nodeid, ino, stat.S_IFDIR | mode, *owner, changed_ns)
        self.parent_ino = parent_ino
        self.children: dict[str, Node] = {}


class BusNode(Node):
    """The directory of a bus (FS-6), which may have been removed (FS-28)."""

    __slots__ = ("bus",)

    def __init__(self, nodeid: int, bus: Bus, changed_ns: int) -> None:
        super().__init__(nodeid, bus.ino, stat.S_IFDIR | bus.mode, bus.uid, bus.gid, changed_ns)
        self.bus = bus


@dataclass(slots=True)
class PeerFile:
    """The file of bus1 in the root."""

    name: str
    ino: int
    uid: int
    gid: int
    mode: int = 0o666


class FileNode(Node, Generic[H]):
    """A node of an endpoint's file, or of bus1's, with its `opens`: file handle number -> handle.

    has_copies: the page cache may contain copies of an open's pool, or of a former open's.
    """

    __slots__ = ("file", "has_copies", "opens")

    def __init__(self, nodeid: int, file: Endpoint | PeerFile, changed_ns: int) -> None:
        super().__init__(nodeid, file.ino, stat.S_IFREG | file.mode, file.uid, file.gid, changed_ns)
        self.lookups = 1
        self.file = file
        self.opens: dict[int, H] = {}
        self.has_copies = False

    @property
    def only_handle(self) -> H | None:
        """The handle of the only open; None if there is none, or more than one."""
        return next(iter(self.opens.values())) if len(self.opens) == 1 else None

    @property
    def copied_handle(self) -> H | None:
        """The handle whose pool the page cache may have copies of; None if there is none."""
        raise NotImplementedError


class EndpointNode(FileNode["EndpointHandle"]):
    """One LOOKUP of an endpoint file (FS-7, FS-8)."""

    __slots__ = ("endpoint",)

    def __init__(self, nodeid: int, endpoint: Endpoint, changed_ns: int) -> None:
        super().__init__(nodeid, endpoint, changed_ns)
        self.endpoint = endpoint

    @property
    def copied_handle(self) -> EndpointHandle | None:
        handle = self.only_handle
        return handle if handle is not None and handle.connection is not None else None


class PeerNode(FileNode["Peer"]):
    """One LOOKUP of the file of bus1, which has its pool from the open on."""

    __slots__ = ()

    @property
    def copied_handle(self) -> Peer | None:
        handle = self.only_handle
        return None if handle is None or memory_of(handle).backing_id else handle


class PrivateNode(FileNode["EndpointHandle"]):
    """The private inode that a connection moves to at HELLO; to its client it looks like the endpoint.

    handle: None once it has been opened and closed: the kernel may keep the inode for long after that.
    """

    __slots__ = ("handle",)

    def __init__(self, nodeid: int, handle: EndpointHandle, changed_ns: int) -> None:
        super().__init__(nodeid, handle.endpoint, changed_ns)
        self.handle: EndpointHandle | None = handle

    @property
    def copied_handle(self) -> EndpointHandle | None:
        handle = self.handle
        return handle if handle is not None and not memory_of(handle).backing_id else None


AnyFileNode: TypeAlias = "FileNode[EndpointHandle] | FileNode[Peer]"


class Admission(enum.Enum):
    """The decision on an OPEN of an endpoint's node id."""

    FIRST = "the inode is free"
    STALE = "let the kernel look the path up again"
    SHARED = "no other inode is to be had: the open joins the present ones"
    BUSY = "a connection needs the inode for itself"


class _InodeCount:
    """The number of inodes of an endpoint, and when the first of them was made."""

    __slots__ = ("changed_ns", "nodes")

    def __init__(self, changed_ns: int) -> None:
        self.changed_ns = changed_ns
        self.nodes = 0


class NodeIds:
    """Gives out node ids.  Never one twice within a mount, so an id names one inode for ever and needs no generation.

    reserved: none from this one on was given out before; reserve: is told of such a limit before it is passed.
    """

    __slots__ = ("_end", "_next", "_reserve")

    def __init__(self, reserved: int = 0, reserve: Callable[[int], None] = lambda end: None) -> None:
        self._next = self._end = max(reserved, _FIRST_DYNAMIC_ID)
        self._reserve = reserve

    def fresh(self) -> int:
        """One that nobody has seen."""
        if self._next == self._end:
            self._end += _RESERVED_AT_ONCE
            self._reserve(self._end)
        self._next += 1
        return self._next - 1


class NodeTable:
    """All node ids of a mount.

    realtime: CLOCK_REALTIME in nanoseconds; owner: uid and gid of what is below `.kdbusfs`; access: of the root
    directory and `control` (FS-4, FS-5); ids: where node ids come from.
    """

    def __init__(
        self,
        realtime: Callable[[], int],
        owner: tuple[int, int] = (0, 0),
        access: Access = WORLD,
        ids: NodeIds | None = None,
    ) -> None:
        self._ids = ids or NodeIds()
        self._realtime = realtime
        self._owner = owner
        self._nodes: dict[int, Node] = {}
        # by identity of the core's object, which a node here keeps alive
        self._of_bus: dict[int, BusNode] = {}
        self._of_file: dict[int, _InodeCount] = {}
        self._of_open: dict[int, AnyFileNode] = {}  # by fh
        self._latest: dict[int, AnyFileNode] = {}  # of each file, by identity
        self._moved: dict[int, PrivateNode] = {}  # by identity of the handle, which an open here keeps alive
        self._refused: dict[int, int] = {}  # thread -> the node id that it was last refused with ESTALE
        self._next_static_id = _FIRST_STATIC_ID
        self._prune_at = _SPARE_NODES
        now = realtime()
        owner_ids = (access.uid, access.gid)
        self.root = StaticDirectory(ROOT_ID, ROOT_ID, owner_ids, now, ROOT_ID, access.mode)
        self.control = Node(CONTROL_ID, CONTROL_ID, stat.S_IFREG | access.control_mode, *owner_ids, now)
        self._nodes[ROOT_ID] = self.root
        self._nodes[CONTROL_ID] = self.control
        self.root.children["control"] = self.control

    def __len__(self) -> int:
        """The number of node ids, including the permanent ones."""
        return len(self._nodes)

    def get(self, nodeid: int) -> Node | None:
        """The node of `nodeid`, or None if the kernel has never seen it or has forgotten it."""
        return self._nodes.get(nodeid)

    def add_directory(self, parent: StaticDirectory, name: str) -> StaticDirectory:
        """Add a directory that exists as long as the table, with a name in `parent`."""
        nodeid = self._static_nodeid()
        node = StaticDirectory(nodeid, _STATIC_INO + nodeid, self._owner, parent.changed_ns, parent.ino)
        self._nodes[nodeid] = parent.children[name] = node
        return node

    def add_file(self, parent: StaticDirectory, name: str, mode: int) -> Node:
        """Add a file of the owner, with permissions `mode`, that exists as long as the table."""
        nodeid = self._static_nodeid()
        node = Node(nodeid, _STATIC_INO + nodeid, stat.S_IFREG | mode, *self._owner, parent.changed_ns)
        self._nodes[nodeid] = parent.children[name] = node
        return node

    def look_up_bus(self, bus: Bus) -> BusNode:
        """The node of `bus`; counts a lookup."""
        node = self._of_bus.get(id(bus))
        if node is None:
            node = BusNode(self._ids.fresh(), bus, self._realtime())
            self._nodes[node.nodeid] = self._of_bus[id(bus)] = node
        node.lookups += 1
        return node

    def add_peer_file(self, name: str) -> PeerFile:
        """The file of bus1; `look_up_peer_file` gives its nodes."""
        return PeerFile(name, _STATIC_INO + self._static_nodeid(), *self._owner)

    def look_up_endpoint(self, endpoint: Endpoint, tid: int) -> EndpointNode:
        """A node of `endpoint` for thread `tid` that nobody has open; counts a lookup.

        The latest node is reused while it has no opens: the kernel looks up each time that it walks the path, and walks
        once more if the node id has changed.  A thread that was refused with ESTALE gets a node that no other thread is
        given: the kernel retries only once.
        """
        node = self._free_node(endpoint, tid)
        if not isinstance(node, EndpointNode):
            node = EndpointNode(self._ids.fresh(), endpoint, self._count_inode(endpoint))
            self._add_file_node(node, tid)
        return node

    def look_up_peer_file(self, file: PeerFile, tid: int) -> PeerNode:
        """A node of bus1's file for thread `tid`, chosen as `look_up_endpoint` does."""
        node = self._free_node(file, tid)
        if not isinstance(node, PeerNode):
            node = PeerNode(self._ids.fresh(), file, self._count_inode(file))
            self._add_file_node(node, tid)
        return node

    def _free_node(self, file: Endpoint | PeerFile, tid: int) -> AnyFileNode | None:
        """The latest node of `file`, if thread `tid` can have it; counts a lookup."""
        node = None if tid in self._refused else self._latest.get(id(file))
        if node is None or node.opens or node.has_copies:
            return None
        node.lookups += 1
        return node

    def _add_file_node(self, node: AnyFileNode, tid: int) -> None:
        self._nodes[node.nodeid] = node
        if tid not in self._refused:
            self._latest[id(node.file)] = node

    def endpoint_handle(self, fh: int) -> EndpointHandle | None:
        """The handle of `fh`, if that is an open of an endpoint file."""
        node = self._of_open.get(fh)
        return node.opens[fh] if isinstance(node, EndpointNode | PrivateNode) else None

    def look_up_pool(self, handle: EndpointHandle) -> PrivateNode | None:
        """A fresh private node for the pool of `handle`, with one lookup; None if the connection has one already.

        So a lookup after the open makes the kernel drop the name, and with it the inode at its last close.
        """
        if id(handle) in self._moved:
            return None
        node = PrivateNode(self._ids.fresh(), handle, self._count_inode(handle.endpoint))
        self._nodes[node.nodeid] = node
        return node

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel forgets `count` lookups of `nodeid`; a node without lookups is removed."""
        node = self._nodes.get(nodeid)
        if node is None or nodeid < _FIRST_DYNAMIC_ID:
            return
        node.lookups -= count
        if node.lookups > 0:
            return
        del self._nodes[nodeid]
        self._prune_at = min(self._prune_at, self._next_prune_at())
        if isinstance(node, BusNode):
            del self._of_bus[id(node.bus)]
        elif isinstance(node, FileNode):
            key = id(node.file)
            if self._latest.get(key) is node:
                del self._latest[key]
            inodes = self._of_file[key]
            inodes.nodes -= 1
            if not inodes.nodes:
                del self._of_file[key]

    def prunable(self) -> list[int]:
        """Node ids without opens that the kernel should be asked to forget, if there are many.

        Files precede their buses: a directory is not forgotten before its entries.  The kernel keeps the names of
        removed files until it needs memory, and so does the table.
        """
        if len(self._nodes) < self._prune_at:
            return []
        files = [node.nodeid for node in self._nodes.values() if isinstance(node, FileNode) and not node.opens]
        buses = [node.nodeid for node in self._nodes.values() if isinstance(node, BusNode)]
        self._prune_at = self._next_prune_at()
        return files + buses

    def _next_prune_at(self) -> int:
        """The number of nodes at which to look for prunable ones again."""
        return len(self._nodes) + max(_SPARE_NODES, len(self._nodes) // 2)

    def admit(self, node: EndpointNode | PeerNode, tid: int) -> Admission:
        """Decide on an OPEN of `node` by thread `tid`, by the rules in the module's docstring."""
        last_refused = self._refused.pop(tid, None)
        if not node.opens:
            return Admission.FIRST
        if last_refused != node.nodeid:
            self._remember_refusal(tid, node.nodeid)
            return Admission.STALE
        if isinstance(node, PeerNode):
            return Admission.BUSY
        connections = [handle for handle in node.opens.values() if handle.connection is not None]
        if node.has_copies or any(id(handle) not in self._moved for handle in connections):
            return Admission.BUSY
        return Admission.SHARED

    def opened(self, node: FileNode[H], fh: int, handle: H) -> None:
        """Record that the file handle number `fh` is an open of `node`."""
        if not node.opens:
            node.has_copies = False  # the kernel empties the page cache for a first open
        node.opens[fh] = handle
        self._of_open[fh] = node
        if isinstance(node, PrivateNode):
            self._moved[id(handle)] = node
        if isinstance(node, PrivateNode | PeerNode) and not memory_of(handle).backing_id:
            self._copy(node, handle)

    def _copy(self, node: AnyFileNode, handle: EndpointHandle | Peer) -> None:
        node.has_copies = True
        handle.is_copied = True
        memory_of(handle).copy_to(node.nodeid)

    def copied_by(self, fh: int) -> PoolMemory | None:
        """The pool that the open file `fh` shows by copies in its page cache, from now on; None if it shows none."""
        node = self._of_open.get(fh)
        handle = None if node is None else node.copied_handle
        if node is None or handle is None:
            return None
        self._copy(node, handle)
        return memory_of(handle)

    def only_node_of(self, fh: int) -> int:
        """The node id that `fh` is the only open of; 0 if there is none."""
        node = self._of_open.get(fh)
        return node.nodeid if node is not None and len(node.opens) == 1 else 0

    def handle_of(self, nodeid: int) -> EndpointHandle | Peer | None:
        """The open file of node id `nodeid`, if it is the only one."""
        node = self._nodes.get(nodeid)
        return node.only_handle if isinstance(node, FileNode) else None

    def node_of(self, fh: int) -> int:
        """The node id that `fh` is an open of; 0 if it is not an endpoint file."""
        node = self._of_open.get(fh)
        return 0 if node is None else node.nodeid

    def closed(self, fh: int) -> None:
        """The last descriptor of `fh` is closed.  Also called for files that are no endpoint."""
        node = self._of_open.pop(fh, None)
        if node is None:
            return
        handle = node.opens.pop(fh)
        if node.opens:
            return
        memory_of(handle).forget_copies(node.nodeid)
        if isinstance(node, PrivateNode):
            del self._moved[id(handle)]
            node.handle = None

    def _count_inode(self, file: Endpoint | PeerFile) -> int:
        """Count one more inode of `file`; returns the time that all of them show (FS-10)."""
        inodes = self._of_file.get(id(file))
        if inodes is None:
            inodes = self._of_file[id(file)] = _InodeCount(self._realtime())
        inodes.nodes += 1
        return inodes.changed_ns

    def _remember_refusal(self, tid: int, nodeid: int) -> None:
        # A thread that does not retry leaves its entry behind; the oldest are removed first.
        while len(self._refused) >= _REFUSALS_KEPT:
            del self._refused[next(iter(self._refused))]
        self._refused[tid] = nodeid

    def _static_nodeid(self) -> int:
        self._next_static_id += 1
        return self._next_static_id - 1

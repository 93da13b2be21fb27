"""The tree's handlers, called as pyfuse3 calls them but without a mount."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from kdbusfs.base.errors import CommandError
from kdbusfs.fuse.protocol import DIRECT_IO_ALLOW_MMAP, FOPEN_DIRECT_IO, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH
from kdbusfs.fuse.tree import Tree
from tests.support.fake_tree import FakeBus, FakeDomain, FakeFiles, FakeHost, FakeInstaller

ROOT = 1
CONTROL = 2
CLIENT = 100
WORKER = 900
ENDPOINT_FLAGS = FOPEN_DIRECT_IO | FOPEN_NOFLUSH
POOL_FLAGS = FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO | FOPEN_NOFLUSH


def run(handler: Callable[..., Awaitable[Any]], *arguments: object) -> Any:
    return trio.run(functools.partial(handler, *arguments))


class Mount:
    """A tree and its surroundings; its methods do in short what the kernel would do."""

    def __init__(self, **more: Any) -> None:
        """more: further parameters of the tree."""
        self.domain = FakeDomain()
        self.host = FakeHost()
        self.files = FakeFiles()
        self.installer = FakeInstaller()
        self.faults: list[str] = []
        self.tree = Tree(
            cast("Any", self.domain),
            cast("Any", self.host),
            cast("Any", self.installer),
            itertools.count(10**18).__next__,
            self.faults.append,
            lambda: {"requests": 7},
            **more,
        )
        self.tree.files = cast("Any", self.files)
        self.tree.set_up(DIRECT_IO_ALLOW_MMAP)

    def context(self, tid: int = CLIENT, uid: int = 0) -> Any:
        return SimpleNamespace(uid=uid, gid=0, pid=tid, umask=0)

    def lookup(self, path: str, tid: int = CLIENT) -> Any:
        """The entry of the last name of a path; those before it are looked up as well."""
        nodeid = ROOT
        for name in path.split("/"):
            entry = run(self.tree.lookup, nodeid, os.fsencode(name), self.context(tid))
            nodeid = entry.st_ino
        return entry

    def open(self, nodeid: int, tid: int = CLIENT, flags: int = os.O_RDWR, uid: int = 0) -> Any:
        return run(self.tree.open, nodeid, flags, self.context(tid, uid))

    def getattr(self, nodeid: int) -> Any:
        return run(self.tree.getattr, nodeid, self.context())


@pytest.fixture
def mount() -> Iterator[Mount]:
    mount = Mount()
    yield mount
    assert mount.faults == []


@pytest.fixture
def bus(mount: Mount) -> FakeBus:
    return mount.domain.make_bus("1000-test", uid=1000, gid=1001, mode=0o550)


def refused(number: int, handler: Callable[..., Any], *arguments: object) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        handler(*arguments)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


def listing(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, nodeid: int, a_call: int = 1000
) -> list[tuple[str, int, int]]:
    """A whole directory, read `a_call` entries at a time: name, st_ino, type."""
    entries: list[tuple[str, int, int]] = []
    room = [0]
    position = [0]

    def reply(token: object, name: bytes, attributes: Any, next_id: int) -> bool:
        if not room[0]:
            return False
        room[0] -= 1
        position[0] = next_id
        entries.append((name.decode(), attributes.st_ino, stat.S_IFMT(attributes.st_mode)))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    fh = run(mount.tree.opendir, nodeid, mount.context())
    count = -1
    while count != len(entries):
        count = len(entries)
        room[0] = a_call
        run(mount.tree.readdir, fh, position[0], None)
    mount.tree.close_file(fh)
    return entries


class TestAttributes:
    def test_of_the_root(self, mount: Mount) -> None:
        """FS-4, FS-9"""
        found = mount.getattr(ROOT)
        assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFDIR | 0o555, 0, 0)
        assert (found.st_ino, found.st_nlink, found.st_size, found.st_blocks) == (1, 2, 0, 0)
        assert found.st_blksize == os.sysconf("SC_PAGESIZE")

    def test_of_control(self, mount: Mount) -> None:
        """FS-5"""
        assert mount.lookup("control").st_ino == CONTROL
        found = mount.getattr(CONTROL)
        assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o666, 0, 0)
        assert (found.st_ino, found.st_nlink) == (2, 1)

    def test_of_a_bus_and_its_endpoints_are_the_core_s(self, mount: Mount, bus: FakeBus) -> None:
        """FS-6, FS-7, FS-8"""
        mount.domain.make_endpoint(bus, "1000-ep", uid=7, gid=8, mode=0o660)
        for path, kind, mode, owner, links in (
            ("1000-test", stat.S_IFDIR, 0o550, (1000, 1001), 2),
            ("1000-test/bus", stat.S_IFREG, 0o666, (0, 0), 1),
            ("1000-test/1000-ep", stat.S_IFREG, 0o660, (7, 8), 1),
        ):
            entry = mount.lookup(path)
            found = mount.getattr(entry.st_ino)
            for attributes in (entry, found):
                assert attributes.st_mode == kind | mode
                assert (attributes.st_uid, attributes.st_gid) == owner
                assert attributes.st_nlink == links

    def test_times_are_one(self, mount: Mount, bus: FakeBus) -> None:
        """FS-10"""
        found = mount.getattr(mount.lookup("1000-test/bus").st_ino)
        assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns >= 10**18

    def test_st_ino_is_the_node_s_number_whatever_the_node_id(self, mount: Mount, bus: FakeBus) -> None:
        """FS-11"""
        first = mount.lookup("1000-test/bus")
        mount.open(first.st_ino)
        second = mount.lookup("1000-test/bus")
        assert first.st_ino != second.st_ino
        for entry in (first, second):
            assert mount.tree.ino_of(entry.st_ino) == bus.endpoints["bus"].ino
            assert mount.getattr(entry.st_ino).st_ino == bus.endpoints["bus"].ino
        assert mount.tree.ino_of(ROOT) == 1

    def test_of_a_removed_bus_stay_for_open_files(self, mount: Mount, bus: FakeBus) -> None:
        """FS-27"""
        directory = mount.lookup("1000-test").st_ino
        endpoint = mount.lookup("1000-test/bus").st_ino
        mount.domain.remove_bus(bus)
        assert mount.getattr(directory).st_uid == 1000
        assert mount.getattr(endpoint).st_mode == stat.S_IFREG | 0o666

    def test_of_an_unknown_node(self, mount: Mount) -> None:
        refused(errno.ESTALE, mount.getattr, 4711)

    def test_of_the_file_system(self, mount: Mount) -> None:
        """FS-20"""
        found = run(mount.tree.statfs, mount.context())
        assert (found.f_bsize, found.f_namemax) == (os.sysconf("SC_PAGESIZE"), 255)
        assert not any(
            (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_favail)
        )


class TestLookup:
    def test_of_what_is_not_there(self, mount: Mount, bus: FakeBus) -> None:
        for path in ("nothing", "1000-test/nothing", ".kdbusfs/nothing", "1000-test/control", "bus"):
            refused(errno.ENOENT, mount.lookup, path)

    def test_of_bytes_that_are_no_text(self, mount: Mount) -> None:
        refused(errno.ENOENT, mount.lookup, os.fsdecode(b"\xff\xfe"))

    def test_in_a_removed_bus(self, mount: Mount, bus: FakeBus) -> None:
        """FS-13, FS-21"""
        directory = mount.lookup("1000-test").st_ino
        mount.domain.remove_bus(bus)
        refused(errno.ENOENT, mount.lookup, "1000-test")
        refused(errno.ENOENT, run, mount.tree.lookup, directory, b"bus", mount.context())

    def test_in_a_removed_bus_whose_name_is_taken_again(self, mount: Mount, bus: FakeBus) -> None:
        """FS-30"""
        old = mount.lookup("1000-test").st_ino
        endpoints = dict(bus.endpoints)
        mount.domain.remove_bus(bus)
        mount.domain.make_bus("1000-test")
        bus.endpoints.update(endpoints)
        refused(errno.ENOENT, run, mount.tree.lookup, old, b"bus", mount.context())
        assert mount.lookup("1000-test").st_ino != old
        mount.lookup("1000-test/bus")

    def test_entries_that_may_vanish_are_never_cached(self, mount: Mount, bus: FakeBus) -> None:
        """FS-24, FS-30"""
        assert mount.lookup("1000-test").entry_timeout == 0
        assert mount.lookup("1000-test/bus").entry_timeout == 0

    def test_forgetting_gives_the_node_back(self, mount: Mount, bus: FakeBus) -> None:
        entries = [mount.lookup("1000-test/bus") for _ in range(3)]
        directory = mount.lookup("1000-test")
        mount.tree.forget_nodes([(entry.st_ino, 1) for entry in entries])
        refused(errno.ESTALE, mount.getattr, entries[0].st_ino)
        mount.tree.forget_nodes([(directory.st_ino, 4)])
        refused(errno.ESTALE, mount.getattr, directory.st_ino)


class TestReaddir:
    def test_of_the_root(self, mount: Mount, bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
        """FS-12: the entries of the domain, without .kdbusfs"""
        other = mount.domain.make_bus("1000-other")
        assert listing(mount, monkeypatch, ROOT) == [
            (".", 1, stat.S_IFDIR),
            ("..", 1, stat.S_IFDIR),
            ("control", 2, stat.S_IFREG),
            ("1000-test", bus.ino, stat.S_IFDIR),
            ("1000-other", other.ino, stat.S_IFDIR),
        ]

    def test_of_a_bus(self, mount: Mount, bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
        mount.domain.make_endpoint(bus, "1000-ep")
        entries = listing(mount, monkeypatch, mount.lookup("1000-test").st_ino)
        assert [name for name, _, _ in entries] == [".", "..", "bus", "1000-ep"]
        assert {kind for _, _, kind in entries[2:]} == {stat.S_IFREG}

    def test_of_a_removed_bus(self, mount: Mount, bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
        """FS-28"""
        nodeid = mount.lookup("1000-test").st_ino
        mount.domain.remove_bus(bus)
        assert [name for name, _, _ in listing(mount, monkeypatch, nodeid)] == [".", ".."]

    def test_of_the_hidden_directory(self, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
        nodeid = mount.lookup(".kdbusfs").st_ino
        assert {name for name, _, _ in listing(mount, monkeypatch, nodeid)} == {
            ".",
            "..",
            "parameters",
            "stats",
            "connections",
        }

    @pytest.mark.parametrize("a_call", [1, 2, 7])
    def test_in_pieces_gives_each_entry_once(
        self, mount: Mount, monkeypatch: pytest.MonkeyPatch, a_call: int
    ) -> None:
        names = {mount.domain.make_bus(f"0-{number}").name for number in range(20)}
        found = [name for name, _, _ in listing(mount, monkeypatch, ROOT, a_call)]
        assert len(found) == len(set(found))
        assert set(found) == names | {".", "..", "control"}

    def test_numbers_of_open_directories_never_name_a_handle(self, mount: Mount) -> None:
        fhs = {run(mount.tree.opendir, ROOT, mount.context()) for _ in range(10)}
        assert len(fhs) == 10
        assert all(0 < fh < 1 << 32 for fh in fhs)


class TestOpen:
    def test_control(self, mount: Mount) -> None:
        info = mount.open(CONTROL, tid=123)
        assert mount.files.answers[info.fh] == (FOPEN_DIRECT_IO | FOPEN_NOFLUSH, 0)
        assert mount.domain.openers == [123]
        assert (info.direct_io, info.keep_cache) == (True, False)

    def test_control_of_a_domain_that_is_gone(self, mount: Mount) -> None:
        """FS-22"""
        mount.domain.is_active = False
        refused(errno.ESHUTDOWN, mount.open, CONTROL)

    def test_an_endpoint_has_nothing_behind_it(self, mount: Mount, bus: FakeBus) -> None:
        """POOL-3: what a client may have open for writing is never a pool."""
        infos = [mount.open(mount.lookup("1000-test/bus").st_ino) for _ in range(3)]
        assert [mount.files.answers[info.fh] for info in infos] == [(ENDPOINT_FLAGS, 0)] * 3
        for info in infos:
            mount.tree.close_file(info.fh)
        assert [memory.closed for memory in mount.host.memories] == [1, 1, 1]
        assert mount.files.handles == {}

    def test_a_removed_endpoint(self, mount: Mount, bus: FakeBus) -> None:
        """FS-21"""
        nodeid = mount.lookup("1000-test/bus").st_ino
        mount.domain.remove_bus(bus)
        refused(errno.ESHUTDOWN, mount.open, nodeid)
        assert mount.host.memories == []

    def test_where_the_kernel_maps_no_file_without_a_page_cache(self, mount: Mount, bus: FakeBus) -> None:
        mount.tree.set_up(0)
        info = mount.open(mount.lookup("1000-test/bus").st_ino)
        assert mount.files.answers[info.fh] == (FOPEN_NOFLUSH, 0)

    def test_a_user_has_a_bounded_number_of_files_and_directories_open(self, mount: Mount, bus: FakeBus) -> None:
        """Other users are not affected, and a refused open allocates nothing."""
        mount.files.room[1000] = 3
        endpoint = mount.lookup("1000-test/bus").st_ino
        fh = mount.open(endpoint, uid=1000).fh
        mount.open(CONTROL, uid=1000)
        directory = run(mount.tree.opendir, ROOT, mount.context(uid=1000))
        for nodeid in (CONTROL, mount.lookup("1000-test/bus").st_ino, mount.lookup(".kdbusfs/stats").st_ino):
            refused(errno.EMFILE, mount.open, nodeid, CLIENT, os.O_RDWR, 1000)
            mount.open(nodeid)
        refused(errno.EMFILE, run, mount.tree.opendir, ROOT, mount.context(uid=1000))
        assert len(mount.host.memories) == 2
        mount.tree.close_file(directory)
        mount.open(CONTROL, uid=1000)
        refused(errno.EMFILE, mount.open, CONTROL, CLIENT, os.O_RDWR, 1000)
        mount.tree.close_file(fh)
        mount.open(CONTROL, uid=1000)

    @pytest.mark.parametrize("path", ["control", "1000-test/bus"])
    def test_without_room_for_another_file_releases_the_handle(
        self, mount: Mount, bus: FakeBus, path: str
    ) -> None:
        nodeid = mount.lookup(path).st_ino
        mount.files.is_full = True
        refused(errno.ENOMEM, mount.open, nodeid)
        assert all(memory.closed == 1 for memory in mount.host.memories)
        mount.files.is_full = False
        mount.open(nodeid)

    @pytest.mark.parametrize(
        ("fault", "number"),
        [
            (OSError(errno.EMFILE, "too many"), errno.ENFILE),
            (OSError(errno.ENOMEM, "none left"), errno.ENOMEM),
            (CommandError(errno.EPERM, "not allowed"), errno.EPERM),
        ],
    )
    def test_what_the_host_wants(self, mount: Mount, bus: FakeBus, fault: Exception, number: int) -> None:
        nodeid = mount.lookup("1000-test/bus").st_ino
        mount.host.fault = fault
        refused(number, mount.open, nodeid)
        assert mount.files.handles == {}

    def test_a_second_open_of_one_node_joins_the_first(self, mount: Mount, bus: FakeBus) -> None:
        nodeid = mount.lookup("1000-test/bus").st_ino
        first = mount.open(nodeid)
        assert mount.tree.only_node_of(first.fh) == nodeid
        refused(errno.ESTALE, mount.open, nodeid)
        second = mount.open(nodeid)
        assert mount.files.answers[first.fh] == mount.files.answers[second.fh]
        assert mount.tree.only_node_of(first.fh) == 0 and mount.tree.node_of(first.fh) == nodeid
        mount.tree.close_file(first.fh)
        mount.tree.close_file(second.fh)
        assert [memory.closed for memory in mount.host.memories] == [1, 1]
        mount.open(nodeid)

    def test_a_connection_that_keeps_its_file_has_copies_there(self, mount: Mount, bus: FakeBus) -> None:
        """POOL-3, FS-9: from the first page that the kernel asks for"""
        nodeid = mount.lookup("1000-test/bus").st_ino
        fh = mount.open(nodeid).fh
        handle = mount.files.handles[fh]
        memory = mount.host.memories[0]
        memory.size = 8192
        refused(errno.EINVAL, run, mount.tree.read, fh, 0, 8)
        assert (mount.getattr(nodeid).st_size, memory.copies) == (0, set())
        handle.connection = object()
        assert (mount.getattr(nodeid).st_size, memory.copies, handle.is_copied) == (8192, set(), False)
        assert run(mount.tree.read, fh, 2, 8) == b"olpoolpo"
        assert (memory.copies, handle.is_copied) == ({nodeid}, True)
        refused(errno.ESTALE, mount.open, nodeid)
        refused(errno.EBUSY, mount.open, nodeid)
        assert mount.lookup("1000-test/bus").st_ino != nodeid
        mount.tree.close_file(fh)
        assert memory.copies == set()
        assert mount.lookup("1000-test/bus").st_ino != nodeid

    def test_clients_that_share_a_node_see_no_copies_there(self, mount: Mount, bus: FakeBus) -> None:
        """Not even of its own pool: other clients would see them."""
        nodeid = mount.lookup("1000-test/bus").st_ino
        first = mount.open(nodeid).fh
        refused(errno.ESTALE, mount.open, nodeid)
        second = mount.open(nodeid).fh
        for fh in (first, second):
            mount.files.handles[fh].connection = object()
        assert mount.getattr(nodeid).st_size == 0
        for fh in (first, second):
            refused(errno.EINVAL, run, mount.tree.read, fh, 0, 8)
        assert [memory.copies for memory in mount.host.memories] == [set(), set()]

    def test_a_node_with_a_connection_is_busy(self, mount: Mount, bus: FakeBus) -> None:
        nodeid = mount.lookup("1000-test/bus").st_ino
        mount.files.handles[mount.open(nodeid).fh].connection = object()
        refused(errno.ESTALE, mount.open, nodeid)
        refused(errno.EBUSY, mount.open, nodeid)


class TestPrivateNodes:
    def test_only_the_daemon_s_threads_find_and_open_them(self, mount: Mount, bus: FakeBus) -> None:
        fh = mount.open(mount.lookup("1000-test/bus").st_ino).fh
        path = f".conn-{fh}"
        refused(errno.ENOENT, mount.lookup, path)
        mount.installer.tids = frozenset({WORKER})
        refused(errno.ENOENT, mount.lookup, path)
        nodeid = mount.lookup(path, tid=WORKER).st_ino
        refused(errno.ENOENT, mount.open, nodeid, CLIENT)
        mount.open(nodeid, tid=WORKER)

    @pytest.mark.parametrize("name", [".conn-", ".conn-1", ".conn-x", ".conn--1", ".conn-\u0663"])
    def test_of_nothing(self, mount: Mount, name: str) -> None:
        mount.installer.tids = frozenset({WORKER})
        refused(errno.ENOENT, mount.lookup, name, WORKER)

    def test_the_connection_moves_and_the_endpoint_s_node_is_free(self, mount: Mount, bus: FakeBus) -> None:
        mount.installer.tids = frozenset({WORKER})
        nodeid = mount.lookup("1000-test/bus").st_ino
        first = mount.open(nodeid).fh
        handle = mount.files.handles[first]
        handle.connection = object()
        private = mount.lookup(f".conn-{first}", tid=WORKER)
        assert mount.tree.ino_of(private.st_ino) == bus.endpoints["bus"].ino
        second = mount.open(private.st_ino, tid=WORKER, flags=os.O_RDONLY).fh
        assert mount.files.answers[second] == (POOL_FLAGS, 1)
        refused(errno.EINVAL, run, mount.tree.read, second, 0, 8)
        assert not handle.is_copied
        assert mount.files.handles[second] is handle
        refused(errno.ENOENT, mount.lookup, f".conn-{first}", WORKER)
        mount.tree.close_file(first)
        assert handle.released == 0
        assert mount.files.answers[mount.open(nodeid).fh] == (ENDPOINT_FLAGS, 0)
        mount.tree.close_file(second)
        assert handle.released == 1
        refused(errno.ENOENT, mount.open, private.st_ino, WORKER)


    def test_without_passthrough_the_private_node_has_copies_from_the_start(self, mount: Mount, bus: FakeBus) -> None:
        """FS-9"""
        mount.installer.tids = frozenset({WORKER})
        first = mount.open(mount.lookup("1000-test/bus").st_ino).fh
        handle = mount.files.handles[first]
        handle.connection = object()
        memory = mount.host.memories[0]
        memory.backing_id, memory.size = 0, 4096
        private = mount.lookup(f".conn-{first}", tid=WORKER)
        assert private.st_size == 4096
        second = mount.open(private.st_ino, tid=WORKER).fh
        assert mount.files.answers[second] == (FOPEN_NOFLUSH, 0)
        assert (memory.copies, handle.is_copied) == ({private.st_ino}, True)
        assert run(mount.tree.read, second, 0, 4) == b"pool"
        mount.tree.close_file(first)
        assert memory.copies == {private.st_ino}
        mount.tree.close_file(second)
        assert memory.copies == set()


class TestRefusals:
    @pytest.mark.parametrize("path", ["control", "1000-test/bus"])
    def test_read_write_and_fsync(self, mount: Mount, bus: FakeBus, path: str) -> None:
        """FS-16"""
        fh = mount.open(mount.lookup(path).st_ino).fh
        refused(errno.EINVAL, run, mount.tree.read, fh, 0, 10)
        refused(errno.EINVAL, run, mount.tree.write, fh, 0, b"x")
        refused(errno.EINVAL, run, mount.tree.fsync, fh, False)

    def test_everything_that_makes_or_removes_names(self, mount: Mount, bus: FakeBus) -> None:
        """FS-14"""
        tree, context = mount.tree, mount.context()
        refused(errno.EACCES, run, tree.create, ROOT, b"x", 0o644, os.O_RDWR, context)
        refused(errno.EPERM, run, tree.mkdir, ROOT, b"x", 0o755, context)
        refused(errno.EPERM, run, tree.mknod, ROOT, b"x", stat.S_IFIFO, 0, context)
        refused(errno.EPERM, run, tree.symlink, ROOT, b"x", b"y", context)
        refused(errno.EPERM, run, tree.link, CONTROL, ROOT, b"x", context)
        refused(errno.EPERM, run, tree.unlink, ROOT, b"control", context)
        refused(errno.EPERM, run, tree.rmdir, ROOT, b"1000-test", context)
        refused(errno.EPERM, run, tree.rename, ROOT, b"control", ROOT, b"x", 0, context)

    def test_setattr(self, mount: Mount) -> None:
        """FS-15"""
        refused(errno.EPERM, run, mount.tree.setattr, CONTROL, None, None, None, mount.context())

    def test_extended_attributes_are_unknown(self, mount: Mount) -> None:
        """FS-19: the kernel makes EOPNOTSUPP of ENOSYS"""
        tree, context = mount.tree, mount.context()
        refused(errno.ENOSYS, run, tree.getxattr, CONTROL, b"user.x", context)
        refused(errno.ENOSYS, run, tree.listxattr, CONTROL, context)
        refused(errno.ENOSYS, run, tree.setxattr, CONTROL, b"user.x", b"y", context)
        refused(errno.ENOSYS, run, tree.removexattr, CONTROL, b"user.x", context)

    def test_a_directory_with_thousands_of_entries(self, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
        """FS-12: no call sorts more than it returns, and all calls together return each entry once."""
        for number in range(1300):
            mount.domain.make_bus(f"0-{number}")
        entries = listing(mount, monkeypatch, ROOT)
        assert [name for name, _, _ in entries] == [".", "..", "control", *(f"0-{number}" for number in range(1300))]

    def test_files_are_no_directories_and_directories_no_files(self, mount: Mount) -> None:
        refused(errno.ENOTDIR, run, mount.tree.opendir, CONTROL, mount.context())
        refused(errno.EISDIR, mount.open, ROOT)


class TestForgetting:
    def test_the_kernel_is_asked_in_pieces(self) -> None:
        """One lookup does not ask about many thousands of node ids."""
        asked: list[list[int]] = []

        def prune(nodeids: list[int]) -> bool:
            asked.append(nodeids)
            return True

        mount = Mount(prune=prune)
        buses = [mount.domain.make_bus(f"0-{number}") for number in range(1100)]
        for bus in buses:
            mount.lookup(bus.name)
        for _ in range(10):
            mount.lookup("control")
        assert max(map(len, asked)) <= 256
        known = [nodeid for some in asked for nodeid in some]
        assert len(set(known)) == len(known) > 1000

    def test_a_kernel_that_cannot_is_asked_once(self) -> None:
        asked: list[list[int]] = []

        def prune(nodeids: list[int]) -> bool:
            asked.append(nodeids)
            return False

        mount = Mount(prune=prune)
        for number in range(1100):
            mount.domain.make_bus(f"0-{number}")
            mount.lookup(f"0-{number}")
        assert len(asked) == 1

    def test_others_are_served_while_many_are_forgotten(self) -> None:
        """A node that is looked up again meanwhile stays."""
        units: list[int] = []
        mount = Mount(spend=units.append)
        nodes = []
        for number in range(300):
            mount.domain.make_bus(f"0-{number}")
            nodes.append(mount.lookup(f"0-{number}").st_ino)
        mount.lookup("0-7")
        mount.tree.forget_nodes([(nodeid, 1) for nodeid in nodes])
        assert len(units) == 300
        assert mount.tree.counts()["nodes"] == len(Mount().tree._nodes) + 1


class TestIntrospection:
    MASK = ".kdbusfs/parameters/attach_flags_mask"
    STATS = ".kdbusfs/stats"

    def test_modes(self, mount: Mount) -> None:
        """MASK-1"""
        assert mount.lookup(self.MASK).st_mode == stat.S_IFREG | 0o644
        assert mount.lookup(self.STATS).st_mode == stat.S_IFREG | 0o400
        assert mount.lookup(".kdbusfs").st_mode == stat.S_IFDIR | 0o555

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            (b"0", 0),
            (b"17\n", 17),
            (b"0x1f\n", 31),
            (b"0XFF", 255),
            (b"010", 8),
            (b"18446744073709551615", (1 << 64) - 1),
        ],
    )
    def test_the_mask_is_live_both_ways(self, mount: Mount, written: bytes, value: int) -> None:
        fh = mount.open(mount.lookup(self.MASK).st_ino).fh
        assert run(mount.tree.write, fh, 0, written) == len(written)
        assert mount.domain.attach_flags_mask == value
        mount.domain.attach_flags_mask += 1
        text = f"{value + 1}\n".encode()
        assert run(mount.tree.read, fh, 0, 4096) == text
        assert run(mount.tree.read, fh, 1, 2) == text[1:3]
        assert run(mount.tree.read, fh, 100, 4096) == b""

    @pytest.mark.parametrize(
        ("written", "number"),
        [
            (b"", errno.EINVAL),
            (b"\n", errno.EINVAL),
            (b"x", errno.EINVAL),
            (b"1 2", errno.EINVAL),
            (b"1\n\n", errno.EINVAL),
            (b"-1", errno.EINVAL),
            (b"0x", errno.EINVAL),
            (b"08", errno.EINVAL),
            (b"1\0", errno.EINVAL),
            (b"1" * 5000, errno.EINVAL),
            (b"1" * 4000, errno.ERANGE),
            (b"18446744073709551616", errno.ERANGE),
        ],
    )
    def test_garbage_changes_nothing(self, mount: Mount, written: bytes, number: int) -> None:
        fh = mount.open(mount.lookup(self.MASK).st_ino).fh
        refused(number, run, mount.tree.write, fh, 0, written)
        assert mount.domain.attach_flags_mask == 0

    def test_stats_are_those_of_the_open(self, mount: Mount, bus: FakeBus) -> None:
        fh = mount.open(mount.lookup(self.STATS).st_ino).fh
        mount.domain.remove_bus(bus)
        text = run(mount.tree.read, fh, 0, 10) + run(mount.tree.read, fh, 10, 1 << 20)
        found = json.loads(text)
        assert (found["users"], found["requests"], found["buses"]) == (1, 7, [])
        refused(errno.EINVAL, run, mount.tree.write, fh, 0, b"0")

    def test_stats_are_made_while_they_are_read(self, mount: Mount) -> None:
        for number in range(200):
            mount.domain.make_bus(f"0-{number}")
        fh = mount.open(mount.lookup(self.STATS).st_ino).fh
        text = b""
        while more := run(mount.tree.read, fh, len(text), 1 << 17):
            assert len(more) < 4_400, "a read makes no more than that, whatever is asked for"
            text += more
        buses = json.loads(text)["buses"]
        assert [bus["name"] for bus in buses] == [f"0-{number}" for number in range(200)]
        assert all([each["id"] for each in bus["connections"]] == [0, 1, 2] for bus in buses)
        assert all(bus["endpoints"] == [f"1000-{number}" for number in range(200)] for bus in buses)

    CONNECTIONS = ".kdbusfs/connections"

    def test_connections_are_made_while_they_are_read(self, mount: Mount) -> None:
        for number in range(1000):
            mount.domain.make_bus(f"0-{number}")
        fh = mount.open(mount.lookup(self.CONNECTIONS).st_ino, tid=77).fh
        refused(errno.EINVAL, run, mount.tree.read, fh, 1, 4096)
        first = run(mount.tree.read, fh, 0, 1 << 17)
        assert 1 << 12 <= len(first) < 5_000, "a read makes no more than that, whatever is asked for"
        text = first
        while more := run(mount.tree.read, fh, len(text), 1 << 17):
            text += more
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["bus"] for line in lines] == [f"0-{number}" for number in range(1000)]
        assert {line["pid_ns"] for line in lines} == {77}, "the namespace of whoever has opened the file"
        assert run(mount.tree.read, fh, 0, 10) == text[:10], "what was made stays"
        refused(errno.EINVAL, run, mount.tree.write, fh, 0, b"0")

    def test_only_its_owner_may_see_the_connections(self, mount: Mount) -> None:
        assert mount.lookup(self.CONNECTIONS).st_mode == stat.S_IFREG | 0o400

    def test_the_files_take_no_command_and_are_always_ready(self, mount: Mount) -> None:
        handle: Any = mount.files.handles[mount.open(mount.lookup(self.STATS).st_ino).fh]
        assert handle.ioctl(None) == -errno.ENOTTY
        assert handle.poll()


def test_an_unexpected_exception_is_reported_and_becomes_eio() -> None:
    mount = Mount()
    mount.domain.make_bus("0-a")
    nodeid = mount.lookup("0-a/bus").st_ino
    for fault in (ZeroDivisionError(), OSError(errno.ENOTTY, "what?"), KeyError(1)):
        mount.host.fault = fault
        refused(errno.EIO, mount.open, nodeid)
    assert len(mount.faults) == 3


def test_files_and_directories_of_an_earlier_daemon_are_stale() -> None:
    """Their numbers are not given out again."""
    earlier, now = Mount(), Mount(epoch=1)
    directory = run(earlier.tree.opendir, ROOT, earlier.context())
    refused(errno.ESTALE, run, now.tree.readdir, directory, 0, None)
    assert run(now.tree.opendir, ROOT, now.context()) not in (directory, run(earlier.tree.opendir, ROOT, now.context()))
    now.tree.close_file(directory)
    refused(errno.ESTALE, run, now.tree.read, 7 << 32, 0, 100)
    refused(errno.ESTALE, run, now.tree.write, 7 << 32, 0, b"1")
    assert now.faults == []

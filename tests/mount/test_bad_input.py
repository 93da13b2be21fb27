"""Every kind of bad input for every command on every kind of descriptor, while others continue to talk."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3 import layouts
from kdbusfs.abi.v3.commands import COMMANDS, Command
from kdbusfs.abi.v3.items import make_item
from kdbusfs.client import Connection, bloom_rule, encode, make_bus, raw, sealed_memfd
from tests.support.actors import Actors, Link, errno_of
from tests.support.bad_input import (
    KERNEL_ADDRESS,
    KINDS,
    NAMES,
    POOL,
    UNKNOWN_ITEM,
    Files,
    Memory,
    refusal,
    try_everything,
)

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

NOBODY = 65534
NO_ID = 0x7777_7777
FUZZ_EXAMPLES = 2000


def test_every_command_on_every_kind_of_descriptor(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """GEN-1 to GEN-11, ITEM-1: sizes, pointers, flags and items"""

    def play(link: Link) -> tuple[int, list[str]]:
        return try_everything(Files(domain_mount.path))

    count, wrong = actors(play).result()
    assert not wrong, "\n".join(wrong)
    assert count > 2500


def test_items_that_a_command_does_not_take(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """GEN-18: refused by some, ignored by others"""
    # What each gives when the only item is one of an unknown type.
    expected: list[tuple[str, int, tuple[int, ...], int]] = [
        ("control", c.CMD_BUS_MAKE, (), errno.EINVAL),
        ("fresh", c.CMD_HELLO, (0, 0, 0, c.ATTACH_ALL, 0, 0, 0, POOL), errno.EINVAL),
        ("fresh", c.CMD_ENDPOINT_MAKE, (), errno.EBADMSG),
        ("endpoint owner", c.CMD_ENDPOINT_UPDATE, (), 0),
        ("ordinary", c.CMD_FREE, (), errno.EINVAL),
        ("ordinary", c.CMD_RECV, (), errno.EAGAIN),
        ("ordinary", c.CMD_NAME_ACQUIRE, (), errno.EINVAL),
        ("ordinary", c.CMD_NAME_RELEASE, (), errno.EINVAL),
        ("ordinary", c.CMD_NAME_LIST, (), errno.EINVAL),
        ("ordinary", c.CMD_CONN_INFO, (), errno.EINVAL),
        ("ordinary", c.CMD_CONN_INFO, (0, 0, 0, NO_ID), errno.ENXIO),
        ("ordinary", c.CMD_BUS_CREATOR_INFO, (), 0),
        ("ordinary", c.CMD_CONN_UPDATE, (), errno.EINVAL),
        ("ordinary", c.CMD_MATCH_ADD, (), errno.EINVAL),
    ]

    def play(link: Link) -> list[str]:
        files = Files(domain_mount.path)
        wrong = []
        for kind, number, words, wanted in expected:
            block = encode.command(number, *words, items=UNKNOWN_ITEM)
            error, _ = raw.raw_ioctl(files.fd(kind), number, block)
            if error != wanted:
                wrong.append(f"{NAMES[number]}: {errno.errorcode.get(error)} instead of {errno.errorcode.get(wanted)}")
        return wrong

    wrong = actors(play).result()
    assert not wrong, "\n".join(wrong)


def test_ids_that_do_not_exist(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """FREE-1, INFO-1, SEND-33 to SEND-36, MATCH-13"""

    def play(link: Link) -> None:
        files = Files(domain_mount.path)
        client = files["ordinary"]
        for offset in (0, 1, 8, POOL, POOL * 2, 2**63, 2**64 - 8, 2**64 - 1):
            assert errno_of(client.free, offset) == errno.ENXIO
        for who in (NO_ID, 2**63, 2**64 - 2):
            assert errno_of(client.conn_info, who) == errno.ENXIO
            assert errno_of(client.send, who) == errno.ENXIO
            assert errno_of(client.remove_match, who) == errno.ENOENT
        assert errno_of(client.send, 0) == errno.EDESTADDRREQ
        assert errno_of(client.send, "org.example.Absent") == errno.ESRCH
        assert errno_of(client.conn_info, "org.example.Absent") == errno.ESRCH
        assert errno_of(client.release, "org.example.Absent") == errno.ESRCH
        client.acquire("org.example.Mine")
        assert errno_of(client.send, "org.example.Mine", dst_id=NO_ID) == errno.EREMCHG
        for kind in ("activator", "monitor", "policy holder"):
            assert errno_of(client.send, files[kind].id) == errno.ENXIO
        assert errno_of(client.send, client.id, reply_to=NO_ID) == errno.EPERM
        assert client.recv() is None

    actors(play).result()


def test_bad_messages(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """SEND-2 to SEND-30: pointers, sizes, vectors, descriptors"""

    def play(link: Link) -> list[str]:
        files, memory = Files(domain_mount.path), Memory()
        client = files["ordinary"]
        wrong = []

        def issue(name: str, message: bytes | int, wanted: int, *, misalign: int = 0) -> None:
            block = raw.Block(bytes(misalign) + message) if isinstance(message, bytes) else None
            address = block.address + misalign if block is not None else message
            assert isinstance(address, int)
            error, _ = raw.raw_ioctl(client.fd, c.CMD_SEND, encode.command(c.CMD_SEND, 0, 0, 0, 0, address))
            if error != wanted:
                wrong.append(f"{name}: {errno.errorcode.get(error, error)} instead of {errno.errorcode.get(wanted)}")
            while (left := client.recv()) is not None:
                left.free()

        def message(items: bytes = b"", **fields: int) -> bytes:
            return encode.message(**{"dst_id": client.id, **fields}, items=items)

        good = message()
        for name, address in (
            ("NULL", 0),
            ("unmapped", memory.unmapped),
            ("kernel's", KERNEL_ADDRESS),
            ("last page", 2**64 - 4096),
            ("over the edge", memory.before_edge(good[:56])),
        ):
            issue(f"message at {name}", address, errno.EFAULT)
        for misalign in (1, 4):
            issue("misaligned message", good, errno.EFAULT, misalign=misalign)
        issue("message up to the edge", memory.before_edge(good), 0)
        cut = memory.before_edge(layouts.U64.pack(80) + good[8:])
        issue("items behind the edge", cut, errno.EFAULT)
        issue("read-only message", memory.as_read_only(good), 0)
        for size in (0, 8, 63, 8193, 2**63, 2**64 - 1):
            issue(f"message of size {size}", layouts.U64.pack(size) + good[8:] + bytes(9000), errno.EINVAL)
        for bit in (5, 40, 63):
            issue(f"message flag {bit}", message(flags=1 << bit), errno.EINVAL)
        issue("of the kernel", message(payload_type=0), errno.EINVAL)
        issue("of somebody else", message(src_id=NO_ID), errno.EINVAL)
        issue("request without a cookie", message(flags=c.MSG_EXPECT_REPLY, timeout_ns=1), errno.EINVAL)
        issue("request without a deadline", message(flags=c.MSG_EXPECT_REPLY, cookie=1), errno.EINVAL)
        issue("signal without a filter", message(flags=c.MSG_SIGNAL), errno.EBADMSG)
        issue("broadcast that is no signal", message(dst_id=c.DST_ID_BROADCAST), errno.EBADMSG)
        for kind in (0, c.ITEM_CANCEL_FD, 0x7777, 2**64 - 1):
            payload = bytes(4 if kind == c.ITEM_CANCEL_FD else 8)
            issue(f"item {kind:#x}", message(make_item(kind, payload)), errno.EINVAL)
        issue("item that wraps", message(layouts.ITEM_HEADER.pack(2**64 - 8, 1) + bytes(16)), errno.EINVAL)
        issue("129 items", message(make_item(c.ITEM_PAYLOAD_VEC, layouts.VEC.pack(8, 0)) * 129), errno.E2BIG)

        def vectors(*some: tuple[int, int]) -> bytes:
            return message(b"".join(make_item(c.ITEM_PAYLOAD_VEC, layouts.VEC.pack(*each)) for each in some))

        mebi = 1 << 20
        for name, some, wanted in (
            ("empty vector", [(0, memory.read_only)], errno.EINVAL),
            ("unreadable vector", [(8, memory.unmapped)], errno.EFAULT),
            ("kernel's vector", [(8, KERNEL_ADDRESS)], errno.EFAULT),
            ("vector over the edge", [(16, memory.edge - 8)], errno.EFAULT),
            ("vector that wraps", [(8192, 2**64 - 4096)], errno.EFAULT),
            ("good and bad vectors", [(8, memory.read_only), (8, memory.unmapped)], errno.EFAULT),
            ("overlapping vectors", [(64, memory.read_only)] * 20, 0),
            ("huge vector", [(2 * mebi + 1, memory.read_only)], errno.EMSGSIZE),
            ("huge zeroes", [(2 * mebi + 1, 0)], errno.EMSGSIZE),
            ("vectors whose sum wraps", [(2**63, 8), (2**63, 8)], errno.EMSGSIZE),
            ("vectors of 2 MiB and a byte", [(2 * mebi, memory.read_only), (1, memory.read_only)], errno.EMSGSIZE),
        ):
            issue(name, vectors(*some), wanted)

        def fds(*numbers: int) -> bytes:
            return message(make_item(c.ITEM_FDS, struct.pack(f"{len(numbers)}i", *numbers)))

        closed = fcntl.fcntl(0, fcntl.F_DUPFD, 500)  # an unused number
        os.close(closed)
        unix, other = socket.socketpair()
        with unix, other:
            for name, numbers, wanted in (
                ("closed descriptor", (closed,), errno.EBADF),
                ("negative descriptor", (-1,), errno.EBADF),
                ("most negative descriptor", (-(2**31),), errno.EBADF),
                ("largest descriptor", (2**31 - 1,), errno.EBADF),
                ("good and closed descriptors", (0, closed), errno.EBADF),
                ("254 descriptors", (0,) * 254, errno.EMFILE),
                ("own connection", (client.fd,), errno.EOPNOTSUPP),
                ("fresh endpoint file", (files.fd("fresh"),), errno.EOPNOTSUPP),
                ("socket", (unix.fileno(),), errno.EOPNOTSUPP),
                ("no descriptors", (), 0),
            ):
                issue(name, fds(*numbers), wanted)

        def memfd(fd: int, start: int = 0, size: int = 8) -> bytes:
            return message(make_item(c.ITEM_PAYLOAD_MEMFD, layouts.MEMFD.pack(start, size, fd, 0)))

        with sealed_memfd(bytes(64)) as sealed, open("/proc/self/status") as proc:
            loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
            os.ftruncate(loose, 64)
            fd = encode.fileno(sealed)
            for name, block, wanted in (
                ("closed memfd", memfd(closed), errno.EBADF),
                ("negative memfd", memfd(-1), errno.EBADF),
                ("unsealed memfd", memfd(loose), errno.ETXTBSY),
                ("no memfd at all", memfd(proc.fileno()), errno.EMEDIUMTYPE),
                ("empty memfd", memfd(fd, size=0), errno.EINVAL),
                ("memfd beyond its end", memfd(fd, 60, 8), errno.EBADF),
                ("memfd that wraps", memfd(fd, 2**64 - 4, 8), errno.EMSGSIZE),
            ):
                issue(name, block, wanted)
            os.close(loose)
        return wrong

    wrong = actors(play).result()
    assert not wrong, "\n".join(wrong)


def test_pretended_credentials(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """HELLO-6, HELLO-11: only privileged callers may pretend credentials, and only existing ones"""

    def own(link: Link) -> None:
        with make_bus(domain_mount.path, "fakes", access=c.MAKE_ACCESS_WORLD) as bus:
            link.say(bus.path)
            link.hear("the end")

    path = actors(own).hear("its bus")

    def hello(kind: int, payload: bytes) -> int:
        return errno_of(lambda: Connection(path, pool_size=POOL, items=[(kind, payload)]).close())

    def gone() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return pid

    def play(link: Link) -> None:
        for pids, wanted in (
            ((gone(), 0, 0), errno.EINVAL),
            ((2**63, 1, 1), errno.EINVAL),
            ((2**32 + os.getpid(), 1, 1), errno.EINVAL),
            ((os.getppid(), os.getpid(), 0), 0),
            ((0, 0, 0), 0),
        ):
            assert hello(c.ITEM_PIDS, layouts.PIDS.pack(*pids)) == wanted, pids
        for size in (0, 8, 23, 32):
            assert hello(c.ITEM_PIDS, bytes(size)) == errno.EINVAL
            assert hello(c.ITEM_CREDS, bytes(size - size % 8 + 8 if size == 32 else size)) == errno.EINVAL

    actors(play).result()

    def play_unprivileged(link: Link) -> None:
        for pid in (1, os.getpid(), domain_mount.pid):
            assert hello(c.ITEM_PIDS, layouts.PIDS.pack(pid, pid, pid)) == errno.EPERM
        assert hello(c.ITEM_CREDS, bytes(32)) == errno.EPERM
        assert hello(c.ITEM_SECLABEL, b"label\0") == errno.EPERM

    actors(play_unprivileged, uid=NOBODY).result()


_WORDS = st.one_of(
    st.sampled_from((0, 1, 2, 3, 4, 8, 16, 40, 72, 4096, POOL, 2**31, 2**63, 2**64 - 8, 2**64 - 1)),
    st.integers(0, 2**64 - 1),
)
_PAYLOADS = st.one_of(
    st.binary(max_size=64),
    st.sampled_from((b"org.example.Fuzz\0", b"org.example.*\0", b"0-fuzz\0", b"\0", b"a.b", layouts.VEC.pack(64, 1))),
    st.lists(_WORDS, max_size=4).map(lambda words: struct.pack(f"<{len(words)}Q", *words)),
)
_KNOWN_ITEMS = sorted(value for name, value in vars(c).items() if name.startswith("ITEM_") and isinstance(value, int))
_ITEMS = st.lists(
    st.one_of(
        st.builds(make_item, st.one_of(st.sampled_from(_KNOWN_ITEMS), _WORDS), _PAYLOADS),
        st.builds(layouts.ITEM_HEADER.pack, _WORDS, st.sampled_from(_KNOWN_ITEMS)),
    ),
    max_size=5,
).map(b"".join)

# Every errno of the specification: no EIO, ENOSYS, ENOMEM and similar ones.
_LEGAL_NAMES = """
    E2BIG EADDRNOTAVAIL EAGAIN EALREADY EBADF EBADFD EBADMSG EBUSY ECOMM ECONNREFUSED ECONNRESET
    EDESTADDRREQ EDOM EEXIST EFAULT EINVAL EMEDIUMTYPE EMFILE EMLINK EMSGSIZE ENAMETOOLONG ENOBUFS
    ENOENT ENOMSG ENOTTY ENOTUNIQ ENXIO EOPNOTSUPP EOVERFLOW EPERM EPIPE EREMCHG ESHUTDOWN ESRCH
    ETIMEDOUT ETXTBSY EXFULL
"""
_LEGAL = {0, *[getattr(errno, name) for name in _LEGAL_NAMES.split()]}


def test_random_commands(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """No random command gives an errno that kdbus does not have, or harms others"""

    def play(link: Link) -> int:
        files = Files(domain_mount.path)
        tried = 0

        @settings(
            max_examples=FUZZ_EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            kind=st.sampled_from(sorted(KINDS)),
            command=st.sampled_from(list(COMMANDS.values())),
            words=st.lists(_WORDS, max_size=12),
            items=_ITEMS,
            size=st.one_of(st.none(), st.none(), st.none(), _WORDS),
            flags=st.one_of(st.just(0), st.integers(0, 15), _WORDS),
            message=st.one_of(st.none(), st.tuples(st.lists(_WORDS, max_size=7), _ITEMS)),
        )
        def one(
            kind: str,
            command: Command,
            words: list[int],
            items: bytes,
            size: int | None,
            flags: int,
            message: tuple[list[int], bytes] | None,
        ) -> None:
            nonlocal tried
            tried += 1
            likely = refusal(kind, command.number)
            block = bytearray(encode.command(command.number, *words[: command.size // 8 - 1], items=items))
            layouts.U64.pack_into(block, command.flags_offset, flags)
            if size is not None:
                layouts.U64.pack_into(block, 0, size)
            pin = None
            if command.number == c.CMD_SEND:
                # Do not wait for an answer that does not come.
                layouts.U64.pack_into(block, 8, flags & ~c.SEND_SYNC_REPLY)
                fields, more = message or ([], b"")
                head = [layouts.MSG_SIZE + len(more), *fields, *[0] * 7][:8]
                pin = raw.Block(struct.pack("<8Q", *head) + more)
                layouts.U64.pack_into(block, layouts.CMD_SEND_MSG_ADDRESS_OFFSET, pin.address)
            if command.number == c.CMD_HELLO and kind == "fresh" and words[7:8] and words[7] % 4096 == 0:
                layouts.U64.pack_into(block, 64, POOL)
            error, _ = raw.raw_ioctl(files.fd(kind), command.number, bytes(block) + bytes(64))
            assert error in _LEGAL, errno.errorcode.get(error, error)
            if likely:
                assert error in (likely, errno.EFAULT)
            changing = (c.CMD_HELLO, c.CMD_BUS_MAKE, c.CMD_ENDPOINT_MAKE)
            if not error and command.number in changing:
                files.renew(kind)

        one()
        return tried

    assert actors(play).result(240) >= FUZZ_EXAMPLES


def test_the_owner_of_a_bus_survives_what_its_clients_do(
    domain_mount: DomainMount, actors: Actors, healthy: None
) -> None:
    """A queue that is not read, a full pool: the sender gets an errno, the receiver counts losses (SEND-45, BC-2)"""

    def play(link: Link) -> None:
        files = Files(domain_mount.path)
        sender = files["ordinary"]
        with Connection(files.path, pool_size=8192) as small:
            small.add_match(1, bloom_rule(bytes(64)))
            assert errno_of(sender.send, small.id, bytes(7000)) == errno.EXFULL
            assert errno_of(sender.send, small.id, bytes(9000)) == errno.ENOBUFS
            sent = 0
            while (error := errno_of(sender.send, small.id)) == 0:
                sent += 1
                assert sent < 1000
            assert error == errno.ENOBUFS
            assert errno_of(sender.broadcast, bytes(9000)) == 0
            assert errno_of(sender.broadcast, [encode.Vec(8, KERNEL_ADDRESS)]) == 0
        assert stat.S_ISREG(os.stat(files.path).st_mode)

    actors(play).result()

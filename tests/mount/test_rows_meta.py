"""META: the metadata of a sender agree with /proc of the sending thread at the time of SEND."""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, Metadata, id_removed_rule, make_bus, world
from tests.conftest import DomainMount
from tests.support.forked import forked

pytestmark = pytest.mark.mount

ALL_KINDS = list(range(c.ITEM_TIMESTAMP, c.ITEM_CONN_DESCRIPTION + 1))
DEFAULT_MASK = 0x281F
MASK = ".kdbusfs/parameters/attach_flags_mask"
POOL = 1 << 20
PATIENT = 240.0

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_NAME = 15


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    """A bus of a domain that hides no metadata."""
    (domain_mount.path / MASK).write_text("0x3fff")
    with make_bus(domain_mount.path, "test", access=c.MAKE_ACCESS_WORLD, attach_send=c.ATTACH_ANY) as owner:
        yield owner


@pytest.fixture
def reader(bus: BusOwner) -> Iterator[Connection]:
    """A connection that requests all metadata; all may talk to it."""
    with Connection(bus.path, pool_size=POOL, attach_recv=c.ATTACH_ANY) as connection, Connection(
        bus.path, pool_size=POOL, flags=c.HELLO_POLICY_HOLDER, name="org.example.Reader", policy=[world(c.POLICY_TALK)]
    ):
        connection.acquire("org.example.Reader")
        yield connection


def own_status() -> dict[str, str]:
    """/proc/thread-self/status by key."""
    text = Path("/proc/thread-self/status").read_text()
    return dict(re.findall(r"^(\w+):[ \t]*(.*)$", text, re.MULTILINE))


def own_description() -> dict[str, Any]:
    """The content of /proc for the calling thread, as Metadata."""
    status = own_status()
    uids, gids = (list(map(int, status[key].split())) for key in ("Uid", "Gid"))
    try:
        label: str | None = Path("/proc/thread-self/attr/current").read_bytes().rstrip(b"\n\0").decode() or None
    except OSError:
        label = None
    audit = Path("/proc/thread-self/sessionid")
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    groups = Path("/proc/thread-self/cgroup").read_text().splitlines()
    return {
        "creds": (*uids, *gids),
        "pids": (os.getpid(), threading.get_native_id(), os.getppid()),
        "auxgroups": tuple(map(int, status["Groups"].split())),
        "tid_comm": Path("/proc/thread-self/comm").read_text()[:-1],
        "pid_comm": Path("/proc/self/comm").read_text()[:-1],
        "exe": os.readlink("/proc/self/exe"),
        "cmdline": arguments[0].decode(),
        "cgroups": [line.split(":", 2)[2] for line in groups],
        "caps": tuple(int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd")),
        "last_cap": int(Path("/proc/sys/kernel/cap_last_cap").read_text()),
        "seclabel": label,
        "audit": (int(audit.read_text()), int(Path("/proc/self/loginuid").read_text())) if audit.exists() else None,
    }


def compare(found: Metadata, expected: dict[str, Any]) -> None:
    for key in ("auxgroups", "tid_comm", "pid_comm", "exe", "cmdline", "seclabel", "audit"):
        assert getattr(found, key) == expected[key], key
    # /proc has real, effective, saved, filesystem ids in that order, and so has the item.
    assert found.creds == expected["creds"]
    assert found.pids == expected["pids"]
    assert found.cgroup in expected["cgroups"]
    assert found.caps is not None
    assert tuple(found.caps) == (expected["last_cap"], *expected["caps"])


def received(reader: Connection) -> Metadata:
    with reader.receive(PATIENT) as message:
        return message.metadata


@pytest.mark.old_kernels
def test_meta_1_meta_3_meta_6_to_14_of_an_ordinary_sender(bus: BusOwner, reader: Connection) -> None:
    """META-6 to META-14"""

    def send() -> dict[str, Any]:
        os.setgroups([4, 9])
        os.setresgid(11, 12, 13)
        _libc.prctl(_PR_SET_NAME, b"some one", 0, 0, 0)
        with Connection(bus.path, pool_size=POOL, description="a-client") as connection:
            connection.acquire("org.example.One")
            connection.acquire("org.example.Two", flags=c.NAME_ALLOW_REPLACEMENT)
            connection.send(reader.id, b"x")
            return own_description()

    expected = forked(send)
    with reader.receive(PATIENT) as message:
        compare(message.metadata, expected)
        assert message.metadata.creds == (0, 0, 0, 0, 11, 12, 13, 12)
        assert message.metadata.auxgroups == (4, 9)
        assert message.metadata.tid_comm == "some one"
        assert message.metadata.description == "a-client"
        assert message.metadata.owned_names == (
            ("org.example.One", 0),
            ("org.example.Two", c.NAME_ALLOW_REPLACEMENT),
        )
        kinds = [kind for kind, _ in message.items if kind in ALL_KINDS]
        order = [
            *(c.ITEM_CREDS, c.ITEM_PIDS, c.ITEM_AUXGROUPS, c.ITEM_TID_COMM, c.ITEM_PID_COMM, c.ITEM_EXE),
            *(c.ITEM_CMDLINE, c.ITEM_CGROUP, c.ITEM_CAPS, c.ITEM_SECLABEL, c.ITEM_AUDIT, c.ITEM_OWNED_NAME),
            *(c.ITEM_OWNED_NAME, c.ITEM_CONN_DESCRIPTION, c.ITEM_TIMESTAMP),
        ]
        lacking = {c.ITEM_SECLABEL: expected["seclabel"], c.ITEM_AUDIT: expected["audit"]}
        assert kinds == [each for each in order if lacking.get(each, True) is not None]


@pytest.mark.old_kernels("linux-6.12")
def test_meta_3_of_the_thread_that_sends_not_of_who_said_hello(bus: BusOwner, reader: Connection) -> None:
    """META-3, META-6, META-7, META-9: another thread, with another name, user and capabilities"""

    def send() -> dict[str, Any]:
        connection = Connection(bus.path, pool_size=POOL)
        found: list[dict[str, Any]] = []

        def other() -> None:
            _libc.prctl(_PR_SET_NAME, b"other", 0, 0, 0)
            # The system call itself: that of the C library changes all threads.
            _libc.syscall(117, -1, 77, -1)
            connection.send("org.example.Reader", b"x")
            found.append(own_description())

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(PATIENT)
        return found[0]

    expected = forked(send)
    metadata = received(reader)
    compare(metadata, expected)
    assert metadata.tid_comm == "other" != metadata.pid_comm
    assert metadata.creds is not None and metadata.creds[:4] == (0, 77, 0, 77)
    assert metadata.pids is not None and metadata.pids.tid != metadata.pids.pid
    assert metadata.caps is not None and metadata.caps.effective == 0 != metadata.caps.permitted


def test_meta_7_meta_8_of_a_user_without_groups_who_is_gone_when_it_is_read(
    bus: BusOwner, reader: Connection
) -> None:
    def send() -> dict[str, Any]:
        Connection(bus.path, pool_size=POOL).send("org.example.Reader", b"x")
        return own_description()

    expected = forked(send, uid=65534)
    assert not os.path.exists(f"/proc/{expected['pids'][0]}")
    metadata = received(reader)
    compare(metadata, expected)
    assert metadata.auxgroups == ()


def test_meta_3_changes_between_two_messages_are_seen(bus: BusOwner, reader: Connection) -> None:
    """META-3: no metadata of an earlier message are delivered again"""

    def send() -> list[dict[str, Any]]:
        found = []
        with Connection(bus.path, pool_size=POOL) as connection:
            for number in range(5):
                _libc.prctl(_PR_SET_NAME, b"name %d" % number, 0, 0, 0)
                os.setgroups([100 + number])
                os.setresgid(number, 20 + number, 30)
                connection.send(reader.id, b"x")
                found.append(own_description())
        return found

    for number, expected in enumerate(forked(send)):
        metadata = received(reader)
        compare(metadata, expected)
        assert (metadata.tid_comm, metadata.auxgroups) == (f"name {number}", (100 + number,))


def test_meta_5_mask_1_the_mask_decides_what_is_delivered_at_once(
    domain_mount: DomainMount, bus: BusOwner, reader: Connection
) -> None:
    def delivered() -> int:
        with reader.receive(PATIENT) as message:
            return sum({1 << kind - c.ITEM_TIMESTAMP for kind, _ in message.items if kind in ALL_KINDS})

    reader.send(reader.id, b"x")
    host_lacks = c.ATTACH_ALL & ~delivered()
    assert host_lacks & ~(c.ATTACH_SECLABEL | c.ATTACH_AUDIT | c.ATTACH_CONN_DESCRIPTION) == 0
    for mask in (DEFAULT_MASK, 0, *(1 << bit for bit in range(14))):
        (domain_mount.path / MASK).write_text(f"{mask:#x}\n")
        assert (domain_mount.path / MASK).read_text() == f"{mask}\n"
        reader.send(reader.id, b"x")
        assert delivered() == mask & ~host_lacks
    (domain_mount.path / MASK).write_text("0x3fff")
    reader.send(reader.id, b"queued before the mask")
    (domain_mount.path / MASK).write_text(str(c.ATTACH_CREDS))
    assert delivered() == c.ATTACH_CREDS


def test_meta_5_mask_1_a_fresh_domain_has_the_default_mask(domain_mount: DomainMount) -> None:
    assert (domain_mount.path / MASK).read_text() == f"{DEFAULT_MASK}\n"


@pytest.mark.parametrize("sends", [False, True])
def test_meta_2_only_what_both_agree_to(bus: BusOwner, reader: Connection, sends: bool) -> None:
    with Connection(bus.path, pool_size=POOL, attach_send=c.ATTACH_PIDS | c.ATTACH_TID_COMM) as sender:
        if not sends:
            sender.update(attach_send=0)
        sender.send(reader.id, b"x")
        with reader.receive(PATIENT) as message:
            kinds = [kind for kind, _ in message.items if kind in ALL_KINDS]
            assert kinds == ([c.ITEM_PIDS, c.ITEM_TID_COMM] if sends else [])
        reader.update(attach_recv=c.ATTACH_TID_COMM)
        sender.send(reader.id, b"x")
        with reader.receive(PATIENT) as message:
            kinds = [kind for kind, _ in message.items if kind in ALL_KINDS]
            assert kinds == ([c.ITEM_TID_COMM] if sends else [])


def test_meta_17_meta_22_timestamps_are_of_the_moment_and_numbered(bus: BusOwner, reader: Connection) -> None:
    before = (0, time.monotonic_ns(), time.time_ns())
    last: tuple[int, ...] = before
    for _ in range(3):
        reader.send(reader.id, b"x")
        stamp = received(reader).timestamp
        assert stamp is not None
        assert all(earlier < later for earlier, later in zip(last, stamp, strict=True))
        last = tuple(stamp)
    assert last[1] < time.monotonic_ns() and last[2] < time.time_ns()


def test_meta_19_note_12_notifications_carry_a_timestamp_alone(bus: BusOwner, reader: Connection) -> None:
    reader.add_match(1, id_removed_rule())
    with Connection(bus.path, pool_size=POOL):
        pass
    with reader.receive(PATIENT) as message:
        assert [kind for kind, _ in message.items] == [c.ITEM_ID_REMOVE, c.ITEM_TIMESTAMP]
        assert message.src_id == c.SRC_ID_KERNEL


def test_info_6_cre_1_cre_3_what_is_known_is_of_hello_and_bus_make(domain_mount: DomainMount) -> None:
    (domain_mount.path / MASK).write_text("0x3fff")

    def be(play: Callable[[], Any]) -> Any:
        os.setgroups([5, 6])
        _libc.prctl(_PR_SET_NAME, b"at first", 0, 0, 0)
        expected = own_description()
        found = play()
        return expected, found

    def play() -> Any:
        bus = make_bus(domain_mount.path, "test", attach_send=c.ATTACH_ANY)
        connection = Connection(bus.path, pool_size=POOL, description="me")
        _libc.prctl(_PR_SET_NAME, b"later", 0, 0, 0)
        os.setgroups([7])
        connection.acquire("org.example.Later")
        info = connection.conn_info(connection.id, c.ATTACH_ALL)
        creator = connection.creator_info(c.ATTACH_ALL)
        return info.metadata, creator.metadata, (info.id, creator.name == bus.name)

    expected, (of_hello, of_maker, others) = forked(lambda: be(play))
    for found in (of_hello, of_maker):
        compare(found, expected)
        assert found.timestamp is None and found.auxgroups == (5, 6)
    assert others == (1, True)
    assert of_hello.owned_names == (("org.example.Later", 0),) and of_hello.description == "me"
    assert of_maker.owned_names == () and of_maker.description is None

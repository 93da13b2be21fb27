"""kdbusctl monitor: its lines, its JSON, its filters, and the order of what several threads took."""

from __future__ import annotations

import base64
import errno
import json
import random
import sys
import threading
from collections.abc import Sequence
from struct import pack_into
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import raw
from kdbusfs.ctl.commands import monitor
from kdbusfs.ctl.follow import Filter, FollowState, Size, follow
from kdbusfs.ctl.observed import Kind, Missing, Observed
from kdbusfs.ctl.output import Output
from kdbusfs.ctl.peers import Peers
from kdbusfs.ctl.tap import Order, Taken, Tap
from tests.support.ctl_messages import (
    REALTIME,
    FakePeers,
    dst_name,
    id_change,
    message_bytes,
    name_change,
    observe,
    stamp,
)

ECHO = {1: ["org.example.Client"], 2: ["org.example.Echo", "org.example.Other"]}


class Text(list[bytes]):
    """What was written."""

    is_full = False

    def write(self, data: bytes) -> None:
        self.append(data)

    def flush(self) -> None: ...

    @property
    def text(self) -> str:
        return b"".join(self).decode()


def lines(*observed: Observed | int, colour: Any = "never", peers: FakePeers | None = None, **more: Any) -> str:
    """The text for messages; a number stands for so many that are missing."""
    out = Text()
    arguments = {"shape": "auto", "limit": 64, "metadata": False, **more}
    sink = monitor._Lines(out, Output(colour=colour), **arguments)  # type: ignore[arg-type]
    for each in observed:
        if isinstance(each, int):
            sink.missing(each)
        else:
            sink.message(each, peers or FakePeers(ECHO))
    return out.text


def records(*observed: Observed | int, shape: str = "auto", limit: int = 64, metadata: bool = False) -> list[Any]:
    out = Text()
    sink = monitor._Records(out, shape, limit, metadata=metadata)  # type: ignore[arg-type]
    for each in observed:
        if isinstance(each, int):
            sink.missing(each)
        else:
            sink.message(each, FakePeers(ECHO))
    return [json.loads(line) for line in out.text.splitlines()]


# Lines


def test_a_message_is_a_line_with_both_ends_and_its_payload() -> None:
    line = lines(observe(b"hello", stamp(), dst_name(b"org.example.Echo"), dst=0, flags=c.MSG_EXPECT_REPLY, reply_to=9))
    assert line.split(" ", 1)[0].endswith(".123456")
    assert line.split(" ", 1)[1] == (
        'request      1 org.example.Client → 2 org.example.Echo  cookie 7  5 B "hello"\n'
    )


def test_what_is_unusual_is_said() -> None:
    line = lines(observe(b"", reply_to=3, priority=-5, payload_type=0x10, flags=c.MSG_NO_AUTO_START, fds=2))
    assert "reply        1 org.example.Client → 2 org.example.Echo+1  cookie 7, to 3, priority -5, " in line
    assert line.endswith("no-auto-start, type 0x10, 2 descriptors  0 B\n")


def test_connections_without_names_are_shown_with_their_command() -> None:
    assert " 1 evil\\x1b[2J → 2 evil\\x1b[2J  " in lines(observe(b"x"), peers=FakePeers(comm="evil\x1b[2J"))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (name_change(c.ITEM_NAME_ADD, 0, 5, "a.b"), "NameAdd a.b nobody → 5"),
        (name_change(c.ITEM_NAME_CHANGE, 4, 5, "a.b"), "NameChange a.b 4 → 5"),
        (id_change(c.ITEM_ID_ADD, 5, c.HELLO_ACCEPT_FD), "IdAdd 5 accept-fd"),
        (id_change(c.ITEM_ID_REMOVE, 5), "IdRemove 5"),
        ((c.ITEM_REPLY_TIMEOUT, b""), "ReplyTimeout to 2, cookie 77"),
    ],
)
def test_notifications_say_what_happened(item: tuple[int, bytes], said: str) -> None:
    assert lines(observe(b"", item, src=0, payload_type=0, reply_to=77)).endswith(f" notification {said}\n")


@pytest.mark.parametrize(
    ("payload", "shape", "shown"),
    [
        (b"plain", "auto", '5 B "plain"'),
        ("grüße".encode(), "auto", '7 B "grüße"'),
        (b'a"b\n', "auto", '4 B "a\\"b\\x0a"'),
        (b"\x1b[31mred", "text", '8 B "\\x1b[31mred"'),
        (b"\0\1\2\3\xff", "auto", "5 B 00010203 ff"),
        (b"plain", "hex", "5 B 706c6169 6e"),
        (b"plain", "none", "5 B"),
        (b"x" * 100, "auto", '100 B "' + "x" * 64 + '" ...'),
        (b"x" * 63 + "ü".encode(), "auto", '65 B "' + "x" * 63 + '\\xc3" ...'),
    ],
)
def test_payload_is_text_or_numbers(payload: bytes, shape: str, shown: str) -> None:
    assert lines(observe(payload), shape=shape).endswith(f"  {shown}\n")


def test_no_byte_of_a_client_reaches_the_terminal_as_it_is() -> None:
    everything = bytes(range(256)) + "\u202e\u200b\x9b".encode()
    for shape in ("auto", "text", "hex"):
        shown = lines(observe(everything, dst_name(everything[1:]), dst=0), shape=shape, limit=1000)
        assert all(char.isprintable() for char in shown.removesuffix("\n"))


def test_colours_only_surround_what_is_escaped() -> None:
    plain, coloured = (lines(observe(b"[bold]x[/bold]\x1b[0m", stamp()), colour=each) for each in ("never", "always"))
    assert "\x1b[" not in plain and "[bold]x[/bold]\\x1b[0m" in plain
    assert "\x1b[1;36mmessage     \x1b[0m" in coloured and "[bold]x[/bold]\\x1b[0m" in coloured


def test_missing_messages_have_a_line_where_they_would_be() -> None:
    shown = lines(observe(b"1"), 12, observe(b"2")).splitlines()
    assert shown[1] == "12 messages are missing here: they came faster than they were taken"


def test_metadata_follow_on_lines_of_their_own() -> None:
    shown = lines(observe(b"", stamp(4), (c.ITEM_PID_COMM, b"evil\x1b\0")), metadata=True).splitlines()
    assert len(shown) == 3
    assert shown[1].split() == ["Process", "evil\\x1b"]


# JSON


def test_a_record_has_everything() -> None:
    (found,) = records(
        observe(b"hi\xff", stamp(3), dst_name(b"org.example.Echo"), dst=0, flags=c.MSG_EXPECT_REPLY, reply_to=9, fds=1)
    )
    assert found == {
        "kind": "request",
        "realtime_ns": REALTIME,
        "monotonic_ns": 5000,
        "seqnum": 3,
        "source": 1,
        "source_names": ["org.example.Client"],
        "destination": 2,
        "destination_name": "org.example.Echo",
        "destination_names": ["org.example.Echo", "org.example.Other"],
        "cookie": 7,
        "timeout_ns": 9,
        "priority": 0,
        "flags": ["expect-reply"],
        "payload_type": "0x4442757344427573",
        "fds": 1,
        "payload": {"size": 3, "base64": base64.b64encode(b"hi\xff").decode(), "text": None},
    }


def test_records_of_other_kinds() -> None:
    broadcast, notification, gap, cut, bare = records(
        observe(b"x", flags=c.MSG_SIGNAL, dst=c.DST_ID_BROADCAST),
        observe(b"", name_change(c.ITEM_NAME_ADD, 0, 5, "a.b"), src=0, dst=c.DST_ID_BROADCAST, payload_type=0),
        4,
        observe(b"x" * 100),
        observe(b"", reply_to=5),
    )
    assert (broadcast["kind"], broadcast["destination"], broadcast["payload"]["text"]) == ("broadcast", None, "x")
    assert notification["notification"] == {"kind": "NameAdd", "name": "a.b", "old_id": None, "new_id": 5}
    assert gap == {"kind": "missing", "count": 4}
    assert cut["payload"]["truncated"] and (len(cut["payload"]["text"]), cut["payload"]["size"]) == (64, 100)
    assert bare["cookie_reply"] == 5
    assert records(observe(b"x"), shape="none")[0]["payload"] == {"size": 1}


# Filters


@pytest.mark.parametrize(
    ("wanted", "accepted"),
    [
        (Filter(), "request reply message signal broadcast other name"),
        (Filter(kinds=("request", "signal")), "request signal"),
        (Filter(ids=(1,)), "request reply message signal broadcast"),
        (Filter(ids=(9,)), "other"),
        (Filter(ids=(0,)), "name"),
        (Filter(names=("org.example.Client",)), "request reply message signal broadcast"),
        (Filter(names=("org.example.E*",)), "request reply message signal"),
        (Filter(names=("org.example.New",)), "name"),
        (Filter(names=("nobody.*",), ids=(9,)), "other"),
        (Filter(ids=(1,), kinds=("reply",)), "reply"),
        (Filter(names=("nobody.*",)), ""),
    ],
)
def test_filters_by_name_id_and_kind(wanted: Filter, accepted: str) -> None:
    messages = {
        "request": observe(b"", dst_name(b"org.example.Echo"), dst=0, flags=c.MSG_EXPECT_REPLY),
        "reply": observe(b"", src=2, dst=1, reply_to=4),
        "message": observe(b"", dst=2),
        "signal": observe(b"", dst=2, flags=c.MSG_SIGNAL),
        "broadcast": observe(b"", dst=c.DST_ID_BROADCAST, flags=c.MSG_SIGNAL),
        "other": observe(b"", src=9, dst=8),
        "name": observe(
            b"", name_change(c.ITEM_NAME_ADD, 0, 5, "org.example.New"), src=0, dst=c.DST_ID_BROADCAST, payload_type=0
        ),
    }
    peers: Any = FakePeers(ECHO)
    assert [name for name, each in messages.items() if wanted.accepts(each, peers)] == accepted.split()


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64K", 65536), ("64k", 65536), ("2MiB", 1 << 21), ("0", 0), ("4294967296G", 1 << 62)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1T", "٣", "9" * 30, "4611686018427387905", "8589934592G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(Exception, match="is not a size"):
        Size().convert(text, None, None)


# Who is who


class FakeBus:
    """Answers what a Peers asks."""

    def __init__(self) -> None:
        self.listed = 0

    def list_names(self, flags: int) -> list[Any]:
        from kdbusfs.client import NameInfo

        self.listed += 1
        return [NameInfo(5, 0, "a.b", 0), NameInfo(5, 0, "a.c", 0)]

    def conn_info(self, id: int, flags: int) -> Any:
        raise OSError(errno.ENXIO, "nobody")


def test_names_follow_the_notifications() -> None:
    peers = Peers(FakeBus())  # type: ignore[arg-type]
    assert (peers.names(5), peers.owner("a.c")) == (["a.b", "a.c"], 5)
    for item in (
        name_change(c.ITEM_NAME_CHANGE, 5, 6, "a.b"),
        name_change(c.ITEM_NAME_ADD, 0, 6, "a.d"),
        name_change(c.ITEM_NAME_REMOVE, 5, 0, "a.c"),
        id_change(c.ITEM_ID_REMOVE, 5),
    ):
        said = observe(b"", item, src=0, dst=c.DST_ID_BROADCAST, payload_type=0).notification
        assert said is not None
        peers.see(said)
    assert (peers.names(5), peers.names(6), peers.owner("a.b"), peers.owner("a.c")) == ([], ["a.b", "a.d"], 6, None)
    assert peers.process(5).comm is None


def test_after_losses_the_names_are_listed_again_but_not_all_the_time() -> None:
    bus, now = FakeBus(), [0.0]
    peers = Peers(bus, clock=lambda: now[0])  # type: ignore[arg-type]
    for _ in range(1000):
        peers.missed()
    assert bus.listed == 1
    now[0] = 1.5
    peers.refresh()
    peers.missed()
    peers.refresh()
    assert bus.listed == 2


# The order of what several threads took


def test_what_is_older_and_still_on_its_way_holds_back_what_is_newer() -> None:
    order = Order(2)
    placed: list[Any] = []
    order.begin(0)
    order.begin(1)
    order.note(2, 0)
    order.end(1)
    horizon = order.collect(placed.append)
    assert [taken.offset for taken in placed] == [2] and placed[0].horizon > horizon
    order.note(1, 0)
    order.end(0)
    horizon = order.collect(placed.append)
    assert all(taken.horizon <= horizon for taken in placed)


class FakeSystem:
    """A monitor's queue with a pool: what RECV and FREE do with it, for several threads at a time."""

    def __init__(self, messages: Sequence[bytes | int], *, delays: bool = False) -> None:
        self.waiting = list(messages)
        self.delays = delays
        self.pool = bytearray(1 << 22)
        self.pool_size = len(self.pool)
        self.fd = 3
        self.freed: list[int] = []
        self.used = 0
        self.over = False
        self._lock = threading.Lock()

    def ioctl(self, fd: int, number: int, address: int) -> int:
        view = raw.look(address, 72)
        if number == c.CMD_FREE:
            self.freed.append(int.from_bytes(view[8:16], "little"))
            return 0
        with self._lock:
            if not self.waiting:
                return errno.ECONNRESET if self.over else errno.EAGAIN
            message = self.waiting.pop(0)
            if isinstance(message, int):
                pack_into("<Q", view, 40, message)
                return errno.EOVERFLOW
            offset = self.used
            self.pool[offset : offset + len(message)] = message
            self.used += (len(message) + 7) & ~7
        if self.delays:
            threading.Event().wait(random.random() / 1000)
        pack_into("<QQQ", view, 48, offset, len(message), 0)
        return 0

    def wait(self, timeout: float | None = None) -> bool:
        if not self.waiting and self.over:
            raise ConnectionResetError
        if not self.waiting:
            threading.Event().wait(0.001)
        return bool(self.waiting)


class TapConnection:
    def __init__(self, system: FakeSystem) -> None:
        self.pool = memoryview(system.pool)
        self.pool_size = system.pool_size
        self.fd = 3
        self.wait = system.wait


def tap_of(system: FakeSystem, helpers: int) -> Tap:
    return Tap(TapConnection(system), 64, helpers=helpers, ioctl=system.ioctl)  # type: ignore[arg-type]


class Collector:
    """A sink that keeps sequence numbers, and losses as negative numbers."""

    is_full = False

    def __init__(self) -> None:
        self.seen: list[int] = []

    def message(self, observed: Observed, peers: object) -> None:
        assert observed.message.metadata.timestamp is not None
        self.seen.append(observed.message.metadata.timestamp.seqnum)

    def missing(self, count: int) -> None:
        self.seen.append(-count)

    def flush(self) -> None: ...


def run_through(system: FakeSystem, helpers: int, **limits: Any) -> tuple[Collector, FollowState, Tap]:
    before = sys.getswitchinterval()
    collector, state, tap = Collector(), FollowState(), tap_of(system, helpers)
    peers = Peers(FakeBus())  # type: ignore[arg-type]
    tap.start()
    try:
        follow(tap, peers, Filter(), collector, state, **{"duration": 20, **limits})
    finally:
        tap.close()
        sys.setswitchinterval(before)
    return collector, state, tap


@pytest.mark.parametrize("helpers", [0, 1, 7])
def test_messages_come_in_the_order_of_the_bus(helpers: int) -> None:
    """MON-8: however the threads overtake each other"""
    system = FakeSystem([message_bytes(stamp(number)) for number in range(1, 1001)], delays=bool(helpers))
    system.over = True
    collector, state, _ = run_through(system, helpers)
    assert collector.seen == list(range(1, 1001))
    assert (state.received, state.shown, state.lost, state.ended) == (1000, 1000, 0, True)


def test_losses_are_counted_and_stand_about_where_they_were() -> None:
    """MON-3"""
    queue: list[bytes | int] = [message_bytes(stamp(number)) for number in range(1, 401)]
    queue[100:100] = [7]
    queue[300:300] = [5]
    system = FakeSystem(queue, delays=True)
    system.over = True
    collector, state, _ = run_through(system, 7)
    assert [each for each in collector.seen if each > 0] == list(range(1, 401))
    assert (sum(each for each in collector.seen if each < 0), state.lost, state.received) == (-12, 12, 400)
    assert abs(collector.seen.index(-7) - 100) < 20


def test_it_ends_after_so_many_and_gives_every_slice_back() -> None:
    system = FakeSystem([message_bytes(stamp(number)) for number in range(1, 101)])
    collector, state, tap = run_through(system, 0, count=30)
    assert collector.seen == list(range(1, 31)) and state.shown == 30
    while tap.tidy():
        pass
    assert len(set(system.freed)) == len(system.freed) == 30


@pytest.mark.parametrize(("count_max", "room", "most"), [(50, 1 << 20, 50), (1 << 16, 3000, 3000 // 80)])
def test_no_more_is_taken_than_can_be_held(
    monkeypatch: pytest.MonkeyPatch, count_max: int, room: int, most: int
) -> None:
    monkeypatch.setattr("kdbusfs.ctl.tap._HELD_MAX", count_max)
    system = FakeSystem([message_bytes(stamp(number)) for number in range(1, 1001)])
    system.pool_size = 3 * room
    tap = tap_of(system, 0)
    for _ in range(1000):
        if tap.wants_more:
            tap.receive(0, tap._receiver)
            tap.order_received()
    assert 0 < tap.received <= most
    taken = tap.received
    tap.drain()
    assert tap.received == taken
    while isinstance(each := tap.take(), Observed):
        tap.done(each)
    while tap.tidy():
        pass
    assert tap.wants_more


def test_any_other_failure_of_recv_ends_it() -> None:
    system = FakeSystem([])
    tap = Tap(TapConnection(system), 64, helpers=0, ioctl=lambda *_: errno.ENOTCONN)  # type: ignore[arg-type]
    tap.drain()
    with pytest.raises(OSError, match="RECV"):
        _ = tap.ended


def test_payload_in_parts_is_read_without_a_gap() -> None:
    observed = observe(b"")
    observed.parts = [(4, b"head"), (8, None), (100, b"x" * 10), (4, b"tail")]
    assert observed.size == 116
    assert observed.payload(1000) == b"head" + bytes(8) + b"x" * 10, "what follows a cut memfd is not there"
    assert observed.payload(6) == b"head" + bytes(2)


def test_kinds_are_those_of_the_help() -> None:
    assert all(f"{kind.value}" in monitor._HELP for kind in Kind)
    assert Missing(3).count == 3 and Taken(1, 2, 3, 4).lost == 4

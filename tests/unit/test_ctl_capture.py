"""kdbusctl capture: the file is pcapng by the letter of its specification, and each packet a D-Bus message."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from jeepney.low_level import HeaderFields, MessageFlag, MessageType, Parser

from kdbusfs.abi.v3 import constants as c
from kdbusfs.ctl.commands.capture import Recorder
from kdbusfs.ctl.dbus_frame import comment, frame
from kdbusfs.ctl.follow import FollowState
from kdbusfs.ctl.observed import Kind, Observed
from kdbusfs.ctl.pcapng import PcapngWriter
from tests.support.ctl_messages import REALTIME, FakePeers, dst_name, id_change, name_change, observe, stamp

WHOLE = 1 << 20


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each block, which has to have its length at both ends and fill 32-bit words."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0 and size >= 12 and at + size <= len(data)
        assert struct.unpack_from("<I", data, at + size - 4)[0] == size
        yield kind, data[at + 8 : at + size - 4]
        at += size


def options(data: bytes) -> list[tuple[int, bytes]]:
    """The options of a block, which have to end with opt_endofopt, padded with zeros."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while True:
        code, size = struct.unpack_from("<HH", data, at)
        at += 4
        if code == 0:
            assert size == 0 and at == len(data)
            return found
        found.append((code, data[at : at + size]))
        end = at + (size + 3) // 4 * 4
        assert not any(data[at + size : end])
        at = end


def packet(body: bytes) -> tuple[int, int, bytes, list[tuple[int, bytes]]]:
    """Time in ns, original size, data and options of an Enhanced Packet Block."""
    interface, high, low, captured, original = struct.unpack_from("<IIIII", body)
    assert interface == 0 and captured <= original
    data, rest = body[20 : 20 + captured], body[20 + (captured + 3) // 4 * 4 :]
    return high << 32 | low, original, data, options(rest) if rest else []


def parse(data: bytes) -> Any:
    """The one D-Bus message that `data` holds."""
    parser = Parser()
    parser.add_data(data, fds=[None] * 9)
    message = parser.get_next_message()
    assert message is not None and parser.get_next_message() is None
    return message


class Chunks(list[bytes]):
    """A file in memory."""

    is_full = False

    def write(self, data: bytes) -> None:
        self.append(data)

    def flush(self) -> None: ...

    def finish(self) -> None: ...

    @property
    def data(self) -> bytes:
        return b"".join(self)


def recorder(chunks: Chunks, **more: Any) -> Recorder:
    arguments = {"snaplen": WHOLE, "raw": True, **more}
    return Recorder(chunks, "0-demo", "/run/kdbusfs/0-demo/bus", **arguments)  # type: ignore[arg-type]


# The file


def test_the_file_begins_with_its_section_and_its_interface() -> None:
    chunks = Chunks()
    PcapngWriter(chunks.write, interface="0-demo", description="there", application="test", snaplen=1024)
    (section, head), (interface, description) = blocks(chunks.data)
    assert section == 0x0A0D0D0A and struct.unpack_from("<IHHq", head) == (0x1A2B3C4D, 1, 0, -1)
    assert options(head[16:]) == [(4, b"test")]
    assert interface == 1 and struct.unpack_from("<HHI", description) == (231, 0, 1024)
    assert options(description[8:]) == [(2, b"0-demo"), (3, b"there"), (9, b"\x09")]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 1000])
def test_packets_of_every_length_are_padded(size: int) -> None:
    chunks = Chunks()
    writer = PcapngWriter(chunks.write, interface="i", description="d", application="a")
    writer.packet(b"x" * size, size + 1, REALTIME)
    writer.packet(b"y" * size, size, REALTIME + 1, comments=("ab", "cde"), dropped=5)
    first, second = [packet(body) for kind, body in blocks(chunks.data) if kind == 6]
    assert first == (REALTIME, size + 1, b"x" * size, [])
    assert second == (REALTIME + 1, size, b"y" * size, [(1, b"ab"), (1, b"cde"), (4, struct.pack("<Q", 5))])


def test_a_comment_that_is_too_long_is_cut_between_characters() -> None:
    chunks = Chunks()
    writer = PcapngWriter(chunks.write, interface="i", description="d", application="a")
    writer.packet(b"", 0, 0, comments=("x" + "ä" * 40_000, "a\udc80b"))
    *_, (_, body) = blocks(chunks.data)
    (_, long), (_, odd) = packet(body)[3]
    assert len(long) == 65535 and long.decode().startswith("xää")
    assert odd == b"a\\udc80b"


def test_statistics_end_the_file() -> None:
    chunks = Chunks()
    writer = PcapngWriter(chunks.write, interface="i", description="d", application="a")
    writer.statistics(REALTIME, REALTIME + 5, received=10, dropped=3)
    *_, (kind, body) = blocks(chunks.data)
    assert kind == 5 and struct.unpack_from("<III", body)[1:] == (REALTIME + 5 >> 32, REALTIME + 5 & 0xFFFFFFFF)
    found = dict(options(body[12:]))
    assert (found[4], found[5]) == (struct.pack("<Q", 10), struct.pack("<Q", 3))


def test_losses_stand_at_the_next_packet_and_in_the_statistics() -> None:
    chunks = Chunks()
    writer = recorder(chunks)
    writer.message(observe(b"1", stamp()), FakePeers())
    writer.missing(3)
    writer.missing(4)
    writer.message(observe(b"2", stamp(9)), FakePeers())
    writer.message(observe(b"3", stamp(10)), FakePeers())
    writer.finish(REALTIME, FollowState(received=3, shown=3, lost=7))
    packets = [dict(packet(body)[3]) for kind, body in blocks(chunks.data) if kind == 6]
    assert [found.get(4) for found in packets] == [None, struct.pack("<Q", 7), None]
    assert writer.size == len(chunks.data)


def test_nothing_of_a_message_is_lost() -> None:
    """Time, payload, and struct kdbus_msg byte by byte"""
    chunks = Chunks()
    observed = observe(b"\0\1payload", stamp(3), dst_name(b"org.example.Echo"), dst=0, cookie=1 << 40)
    recorder(chunks).message(observed, FakePeers())
    *_, (_, body) = blocks(chunks.data)
    time_ns, size, data, found = packet(body)
    assert (time_ns, size) == (REALTIME, len(data))
    assert bytes(parse(data).body[0]) == b"\0\1payload"
    word, text = found[1][1].split()
    assert word == b"kdbus_msg" and base64.b64decode(text) == bytes(observed.raw)
    without = Chunks()
    recorder(without, raw=False).message(observed, FakePeers())
    *_, (_, body) = blocks(without.data)
    assert len(packet(body)[3]) == 1


def test_a_very_long_struct_goes_on_in_further_comments() -> None:
    chunks = Chunks()
    names = [(c.ITEM_OWNED_NAME, bytes(8) + b"a." + b"x" * 250 + b"\0") for _ in range(256)]
    observed = observe(b"", *names)
    assert len(observed.message.items) == 256
    whole = bytes(observed.message.size)
    observed.raw = memoryview(whole)
    recorder(chunks).message(observed, FakePeers())
    *_, (_, body) = blocks(chunks.data)
    parts = [value.decode().split()[1] for _, value in packet(body)[3][1:]]
    assert len(parts) == 2 and base64.b64decode("".join(parts)) == whole


def test_long_messages_are_cut_and_keep_their_size() -> None:
    chunks = Chunks()
    recorder(chunks, snaplen=100).message(observe(b"x" * 5000, stamp(), kept=100), FakePeers())
    *_, (_, body) = blocks(chunks.data)
    _, size, data, _ = packet(body)
    assert len(data) == 100
    whole, full = frame(observe(b"x" * 5000, stamp()), WHOLE)
    assert size == full == len(whole) and data == whole[:100]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 5 << 63])
def test_a_memfd_may_be_larger_than_a_packet_can_say(size: int) -> None:
    chunks = Chunks()
    recorder(chunks).message(replace(observe(b"", stamp()), parts=[(size, b"x" * 100)]), FakePeers())
    *_, (_, body) = blocks(chunks.data)
    _, said, data, _ = packet(body)
    assert said == 0xFFFFFFFF and data.endswith(struct.pack("<I", 0xFFFFFFFF) + b"x" * 100)


# The packets


def header(observed: Observed) -> tuple[MessageType, dict[HeaderFields, Any]]:
    data, size = frame(observed, WHOLE)
    assert size == len(data)
    message = parse(data)
    return message.header.message_type, message.header.fields


def test_a_request_is_a_method_call() -> None:
    observed = observe(b"hello", dst_name(b"org.example.Echo"), dst=0, flags=c.MSG_EXPECT_REPLY, reply_to=99)
    kind, fields = header(observed)
    assert kind is MessageType.method_call
    assert fields[HeaderFields.sender] == ":1.1"
    assert fields[HeaderFields.destination] == "org.example.Echo"
    assert (fields[HeaderFields.path], fields[HeaderFields.interface]) == ("/kdbus", "kdbus.Message")
    assert (fields[HeaderFields.member], fields[HeaderFields.signature]) == ("Request", "ay")
    message = parse(frame(observed, WHOLE)[0])
    assert message.header.serial == 7 and not message.header.flags & MessageFlag.no_reply_expected


@pytest.mark.parametrize(
    ("given", "kind", "member"),
    [
        ({}, MessageType.method_call, "Message"),
        ({"flags": c.MSG_SIGNAL}, MessageType.signal, "Signal"),
        ({"flags": c.MSG_SIGNAL, "dst": c.DST_ID_BROADCAST}, MessageType.signal, "Broadcast"),
    ],
)
def test_what_expects_no_reply_says_so(given: dict[str, int], kind: MessageType, member: str) -> None:
    observed = observe(b"", **given)
    found, fields = header(observed)
    assert (found, fields[HeaderFields.member]) == (kind, member)
    assert (HeaderFields.destination in fields) == ("dst" not in given)
    assert parse(frame(observed, WHOLE)[0]).header.flags & MessageFlag.no_reply_expected


def test_a_reply_is_a_method_return_with_the_serial_of_its_request() -> None:
    kind, fields = header(observe(b"HELLO", reply_to=(5 << 32) + 3, fds=2))
    assert kind is MessageType.method_return
    assert (fields[HeaderFields.reply_serial], fields[HeaderFields.destination]) == (3, ":1.2")
    assert fields[HeaderFields.unix_fds] == 2


@pytest.mark.parametrize(("cookie", "serial"), [(0, 0xFFFFFFFF), (1 << 32, 0xFFFFFFFF), ((1 << 32) + 5, 5)])
def test_no_serial_is_zero(cookie: int, serial: int) -> None:
    assert parse(frame(observe(cookie=cookie), WHOLE)[0]).header.serial == serial


@pytest.mark.parametrize(
    ("item", "member", "body"),
    [
        (name_change(c.ITEM_NAME_ADD, 0, 5, "org.example.Echo"), "NameAdd", ("org.example.Echo", "", ":1.5")),
        (name_change(c.ITEM_NAME_REMOVE, 5, 0, "org.example.E"), "NameRemove", ("org.example.E", ":1.5", "")),
        (name_change(c.ITEM_NAME_CHANGE, 5, 66, "a.b"), "NameChange", ("a.b", ":1.5", ":1.66")),
        (id_change(c.ITEM_ID_ADD, 5, 1), "IdAdd", (":1.5", 1)),
        (id_change(c.ITEM_ID_REMOVE, 12345, 0), "IdRemove", (":1.12345", 0)),
    ],
)
def test_notifications_are_signals_of_the_bus(item: tuple[int, bytes], member: str, body: tuple[object, ...]) -> None:
    observed = observe(b"", item, src=0, dst=c.DST_ID_BROADCAST, payload_type=0)
    kind, fields = header(observed)
    assert kind is MessageType.signal and fields[HeaderFields.sender] == ":1.0"
    assert (fields[HeaderFields.interface], fields[HeaderFields.member]) == ("kdbus.Notification", member)
    assert parse(frame(observed, WHOLE)[0]).body == body


@pytest.mark.parametrize(("item", "name"), [(c.ITEM_REPLY_TIMEOUT, "ReplyTimeout"), (c.ITEM_REPLY_DEAD, "ReplyDead")])
def test_that_no_reply_will_come_is_an_error(item: int, name: str) -> None:
    kind, fields = header(observe(b"", (item, b""), src=0, dst=9, payload_type=0, reply_to=77))
    assert kind is MessageType.error
    assert fields[HeaderFields.error_name] == f"kdbus.{name}"
    assert (fields[HeaderFields.reply_serial], fields[HeaderFields.destination]) == (77, ":1.9")


def test_hostile_names_cannot_break_the_frame() -> None:
    _, fields = header(observe(b"", dst_name(b"a\xff\n.b"), dst=0))
    assert fields[HeaderFields.destination] == "a?\n.b"


# The comment


def test_the_comment_has_what_dbus_has_no_place_for() -> None:
    observed = observe(b"12345", stamp(3), dst=2, flags=c.MSG_EXPECT_REPLY, reply_to=99, priority=-4, fds=1)
    found = comment(observed, FakePeers({1: ["org.example.A", "org.example.B"]}, comm='evil" \x1b[31m'))
    assert found == (
        "kind=request src=1 src_names=org.example.A,org.example.B dst=2 cookie=7 timeout_ns=99 priority=-4 "
        "flags=expect-reply payload_type=0x4442757344427573 payload=5 fds=1 seqnum=3 monotonic_ns=5000 "
        'pid=101 uid=1000 comm="evil\\" \\x1b[31m"'
    )


def test_the_comment_of_a_notification() -> None:
    observed = observe(b"", name_change(c.ITEM_NAME_ADD, 0, 5, "a.b"), src=0, dst=c.DST_ID_BROADCAST, payload_type=0)
    found = comment(observed, FakePeers())
    assert found.startswith("kind=notification notification=NameAdd src=0 dst=broadcast cookie=7 ")
    assert found.endswith("time=of-receipt"), "without a timestamp it is that of our own clock"
    assert observed.kind is Kind.NOTIFICATION and observed.time_ns == REALTIME + 1

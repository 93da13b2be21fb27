"""The amendments of pyfuse3's answers: bytes in, bytes out."""

from __future__ import annotations

import struct

import pytest

from kdbusfs.fuse import protocol as p

NO_INODES: dict[int, int] = {}
NO_OPENS: dict[int, tuple[int, int]] = {}

HEADER = struct.pack("<IiQ", 0, 0, 9)
INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
KERNEL_FLAGS = p.INIT_EXT | p.PASSTHROUGH | p.WRITEBACK_CACHE


def init_request(flags: int, second_word: bool = True) -> memoryview:
    body = struct.pack("<IIII", 7, 45, 131072, flags & 0xFFFFFFFF)
    if second_word:
        body += struct.pack("<I44x", flags >> 32)
    return memoryview(bytes(p.IN_HEADER_SIZE) + body)


def init_reply(flags: int = 0, max_write: int = 1 << 20) -> memoryview:
    body = INIT_OUT.pack(7, 38, 131072, flags, 12, 9, max_write, 1, 256, 0, 0, 0)
    return memoryview(bytearray(HEADER + body))


def fields(reply: memoryview) -> tuple[int, ...]:
    return INIT_OUT.unpack(reply[16:])


def test_init_asks_for_passthrough_and_takes_writeback_back() -> None:
    reply = init_reply(flags=p.WRITEBACK_CACHE | 1)
    assert p.amend_init(init_request(KERNEL_FLAGS), reply, passthrough=True) == p.PASSTHROUGH
    got = fields(reply)
    assert got[:3] == (7, 38, 131072)
    assert got[3] == p.INIT_EXT | 1
    assert got[4:6] == (65535, 65535)
    assert got[6] == p.MAX_WRITE
    assert got[7:10] == (1, 256, 0)
    assert got[10:] == (1 << 5, 1)


@pytest.mark.parametrize("wanted", [True, False])
def test_init_asks_for_maps_of_files_without_a_page_cache(wanted: bool) -> None:
    """POOL-2, FS-16: with passthrough or without."""
    reply = init_reply()
    granted = p.amend_init(init_request(KERNEL_FLAGS | p.DIRECT_IO_ALLOW_MMAP), reply, wanted)
    assert granted == p.DIRECT_IO_ALLOW_MMAP | (p.PASSTHROUGH if wanted else 0)
    got = fields(reply)
    assert got[3] == p.INIT_EXT and got[10:] == (granted >> 32, wanted)


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (init_request(KERNEL_FLAGS), False),
        (init_request(p.INIT_EXT), True),
        (init_request(p.PASSTHROUGH), True),  # a second word without INIT_EXT means nothing
        (init_request(p.WRITEBACK_CACHE, second_word=False), True),
    ],
)
def test_init_without_passthrough_keeps_the_flags(request_: memoryview, wanted: bool) -> None:
    reply = init_reply(flags=1, max_write=4096)
    assert not p.amend_init(request_, reply, wanted)
    got = fields(reply)
    assert (got[3], got[6], got[10], got[11]) == (1, 4096, 0, 0)
    assert got[4:6] == (65535, 65535)


def test_open_gets_flags_and_backing() -> None:
    reply = memoryview(bytearray(HEADER + struct.pack("<QIi", 5 << 32, 2, 0)))
    p.amend_open(reply, {5 << 32: (p.FOPEN_PASSTHROUGH, 17)}.get)
    assert struct.unpack("<QIi", reply[16:]) == (5 << 32, p.FOPEN_PASSTHROUGH, 17)


def test_open_of_another_file_stays() -> None:
    before = HEADER + struct.pack("<QIi", 2, 2, 0)
    reply = memoryview(bytearray(before))
    p.amend_open(reply, {5 << 32: (p.FOPEN_PASSTHROUGH, 17)}.get)
    assert reply == before


def entry(nodeid: int, ino: int) -> bytes:
    return struct.pack("<QQQQII", nodeid, 1, 2, 3, 4, 5) + struct.pack("<Q", ino) + bytes(range(80))


def test_lookup_shows_the_inode_number_and_keeps_the_node_id() -> None:
    reply = memoryview(bytearray(HEADER + entry(1001, 1001)))
    p.amend_lookup(reply, {1001: 77}.__getitem__)
    assert reply == HEADER + entry(1001, 77)


def test_lookup_that_found_nothing_stays() -> None:
    before = HEADER + entry(0, 0)
    reply = memoryview(bytearray(before))
    p.amend_lookup(reply, NO_INODES.__getitem__)
    assert reply == before


def directory_entry(nodeid: int, name: bytes) -> bytes:
    raw = entry(nodeid, 7) + struct.pack("<QQII", 7, 1, len(name), 8) + name
    return raw + bytes(-len(raw) % 8)


def test_readdirplus_makes_no_inodes() -> None:
    names = (b".", b"control", b"12345678", b"a-longer-name-of-a-bus")
    reply = memoryview(bytearray(HEADER + b"".join(directory_entry(9, name) for name in names)))
    p.amend_readdirplus(reply)
    assert reply == HEADER + b"".join(directory_entry(0, name) for name in names)


def test_readdirplus_at_the_end_of_a_directory_stays() -> None:
    reply = memoryview(bytearray(HEADER))
    p.amend_readdirplus(reply)
    assert reply == HEADER


def test_short_answers_are_refused() -> None:
    short = memoryview(bytearray(HEADER + bytes(12)))
    with pytest.raises(p.ProtocolError):
        p.amend_init(init_request(KERNEL_FLAGS), short, passthrough=True)
    with pytest.raises(p.ProtocolError):
        p.amend_open(short, NO_OPENS.get)
    with pytest.raises(p.ProtocolError):
        p.amend_lookup(short, NO_INODES.__getitem__)
    with pytest.raises(p.ProtocolError):
        p.amend_readdirplus(short)


def test_forgets_name_their_nodes_one_or_many() -> None:
    header = struct.pack("<IIQQIIII", 0, 0, 0, 77, 0, 0, 0, 0)
    assert p.parse_forget(p.FORGET, memoryview(header + struct.pack("<Q", 3))) == [(77, 3)]
    batch = struct.pack("<II", 2, 0) + struct.pack("<QQQQ", 5, 1, 6, 9)
    assert p.parse_forget(p.BATCH_FORGET, memoryview(header + batch)) == [(5, 1), (6, 9)]
    with pytest.raises(p.ProtocolError):
        p.parse_forget(p.BATCH_FORGET, memoryview(header + batch[:-8]))


def test_node_ids_to_prune_are_named_in_messages_of_bounded_size() -> None:
    notices = list(p.prune_notices(range(100, 400)))
    assert [struct.unpack_from("<IiQIIQ", each) for each in notices] == [
        (32 + 8 * 256, 9, 0, 256, 0, 0),
        (32 + 8 * 44, 9, 0, 44, 0, 0),
    ]
    named = [number for each in notices for (number,) in struct.iter_unpack("<Q", each[32:])]
    assert named == list(range(100, 400))
    assert not list(p.prune_notices([]))

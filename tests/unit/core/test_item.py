"""Item lists and the check of each item (ITEM)."""

from __future__ import annotations

from errno import EBADF, EINVAL, ENAMETOOLONG
from struct import pack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item, parse_items
from kdbusfs.base.errors import CommandError
from tests.support import items as i
from tests.support.core_client import World

STRINGS = (
    c.ITEM_NAME,
    c.ITEM_DST_NAME,
    c.ITEM_PID_COMM,
    c.ITEM_TID_COMM,
    c.ITEM_EXE,
    c.ITEM_CMDLINE,
    c.ITEM_CGROUP,
    c.ITEM_SECLABEL,
)
SYSNAMES = (c.ITEM_MAKE_NAME, c.ITEM_CONN_DESCRIPTION)
NAME_CHANGES = (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE)
UNKNOWN = (0, 0xF, 0xFFF, 0x1010, 0x4242, 0x8007, c.U64_MAX)


def outcome(data: bytes) -> int:
    """0 or the errno of the walk over `data` as the items of a struct."""
    try:
        parse_items(bytes(32) + data, 32, 32 + len(data))
    except CommandError as error:
        return error.errno
    return 0


def one(kind: int, payload: bytes) -> int:
    return outcome(make_item(kind, payload))


def header(size: int, kind: int = 0x4242) -> bytes:
    return pack("<QQ", size, kind)


@pytest.mark.parametrize("cut", [1, 8, 15])
def test_item_1_a_header_that_is_cut_off_is_einval(cut: int) -> None:
    """ITEM-1"""
    assert outcome(header(16)[:cut]) == EINVAL
    assert outcome(header(16) + header(16)[:cut]) == EINVAL


@pytest.mark.parametrize("size", [0, 1, 8, 15, 17, 24, 1 << 32, (1 << 63) + 16, c.U64_MAX - 7, c.U64_MAX])
def test_item_1_a_size_below_the_header_or_beyond_the_struct_is_einval(size: int) -> None:
    """ITEM-1: including sizes that wrap."""
    assert outcome(header(size)) == EINVAL
    assert outcome(make_item(0x4242, b"12345678") + header(size)) == EINVAL


def test_item_1_items_are_walked_in_steps_of_8() -> None:
    """ITEM-1: whatever the padding holds."""
    data = header(17) + b"xPADDING"[:8] + header(20) + b"abcd" + b"\xff" * 4 + header(16)
    assert parse_items(data, 0, len(data)) == [(0x4242, b"x"), (0x4242, b"abcd"), (0x4242, b"")]


@pytest.mark.parametrize("length", range(1, 9))
def test_item_1_the_last_item_may_be_unpadded(length: int) -> None:
    """ITEM-1: padded fully, partly or not at all, the walk ends at ALIGN8 of the end."""
    exact = header(16 + length) + b"x" * length
    for pad in range(-length % 8 + 1):
        assert outcome(exact + bytes(pad)) == 0
    assert outcome(exact[:-1]) == EINVAL


def test_item_1_bytes_behind_the_last_item_are_an_item_of_their_own() -> None:
    """ITEM-1: 8 bytes too many are a header cut off."""
    assert outcome(header(16) + bytes(8)) == EINVAL
    assert outcome(header(17) + b"x" + bytes(7) + b"y") == EINVAL


def test_item_1_a_bus_is_made_with_an_unpadded_last_item() -> None:
    """ITEM-1: the size of the struct need not be a multiple of 8."""
    world = World()
    control = world.open_control(world.owner)
    named = i.string(c.ITEM_MAKE_NAME, b"1000-x")
    unpadded = named[: 16 + len(b"1000-x\0")]
    assert control.command(c.CMD_BUS_MAKE, bytes(32), i.bloom_parameter(64) + unpadded) == 0


def test_item_2_no_items_at_all_are_valid() -> None:
    """ITEM-2"""
    assert parse_items(b"", 0, 0) == []
    assert World().connect().update() == 0


def test_item_3_the_first_bad_item_decides() -> None:
    """ITEM-3"""
    long, bad = make_item(c.ITEM_MAKE_NAME, b"x" * 65), make_item(c.ITEM_ID, b"")
    fd = make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, 1, -1, 0))
    for first, second, expected in ((long, bad, ENAMETOOLONG), (bad, fd, EINVAL), (fd, long, EBADF)):
        assert outcome(first + second) == expected
    assert outcome(fd + header(3)) == EBADF


@pytest.mark.parametrize("kind", UNKNOWN)
def test_item_3_unknown_types_pass_with_any_payload(kind: int) -> None:
    """ITEM-3"""
    for length in (0, 1, 7, 8, 100):
        assert one(kind, b"\xff" * length) == 0


@pytest.mark.parametrize("kind", [c.ITEM_PAYLOAD_VEC, c.ITEM_PAYLOAD_OFF])
def test_item_4_a_vector_has_16_bytes_and_a_size(kind: int) -> None:
    """ITEM-4"""
    assert one(kind, pack("<QQ", 1, 0)) == 0
    assert one(kind, pack("<QQ", c.U64_MAX, c.U64_MAX)) == 0
    assert one(kind, pack("<QQ", 0, 8)) == EINVAL
    for length in (0, 8, 15, 17, 24):
        assert one(kind, b"\1" * length) == EINVAL


def test_item_5_a_memfd_has_24_bytes_a_size_and_no_negative_descriptor() -> None:
    """ITEM-5: EINVAL of the size comes before EBADF."""
    assert one(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", c.U64_MAX, 1, 0, 0xFFFFFFFF)) == 0
    assert one(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, 0, -1, 0)) == EINVAL
    for fd in (-1, -(1 << 31)):
        assert one(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, 1, fd, 0)) == EBADF
    for length in (0, 16, 20, 23, 25, 32):
        assert one(c.ITEM_PAYLOAD_MEMFD, b"\1" * length) == EINVAL


def test_item_6_descriptors_are_an_array_of_ints() -> None:
    """ITEM-6: also an empty one; CANCEL_FD has exactly one."""
    for length in (0, 4, 8, 4 * 300):
        assert one(c.ITEM_FDS, b"\xff" * length) == 0
    for length in (1, 2, 3, 5, 1001):
        assert one(c.ITEM_FDS, bytes(length)) == EINVAL
    assert one(c.ITEM_CANCEL_FD, b"\xff" * 4) == 0
    for length in (0, 3, 5, 8):
        assert one(c.ITEM_CANCEL_FD, bytes(length)) == EINVAL


def test_item_7_bloom_items_have_their_sizes() -> None:
    """ITEM-7"""
    for length in range(33):
        assert one(c.ITEM_BLOOM_PARAMETER, bytes(length)) == (0 if length == 16 else EINVAL)
        assert one(c.ITEM_BLOOM_FILTER, bytes(length)) == (0 if length >= 8 else EINVAL)
        assert one(c.ITEM_BLOOM_MASK, bytes(length)) == 0


@pytest.mark.parametrize("kind", SYSNAMES)
def test_item_8_names_of_buses_and_descriptions_obey_the_sysname_rule(kind: int) -> None:
    """ITEM-8, LIM-7"""
    for good in (b"a", b"1", b"_", b"a-b", b"a.b", b"A-Z.0_9", b"a--..b", b"0-0", b"x" * 63):
        assert one(kind, good + b"\0") == 0, good
    for bad in (
        b"-",
        b".",
        b"-a",
        b"a-",
        b".a",
        b"a.",
        b"a b",
        b"a/b",
        b"a:b",
        b"a\n",
        b"a\x7f",
        b"a*",
        b"a@b",
    ):
        assert one(kind, bad + b"\0") == EINVAL, bad
    for bad in (b"", b"\0", b"a", b"ab", b"a\0\0", b"a\0b\0", b"\0a", b"\0\0", b"x" * 64):
        assert one(kind, bad) == EINVAL, bad
    for bad in (b"x" * 64 + b"\0", b"x" * 65, b"-" * 70, b"\0" * 65):
        assert one(kind, bad) == ENAMETOOLONG, bad


EXACT = {
    c.ITEM_ATTACH_FLAGS_SEND: 8,
    c.ITEM_ATTACH_FLAGS_RECV: 8,
    c.ITEM_ID: 8,
    c.ITEM_TIMESTAMP: 24,
    c.ITEM_CREDS: 32,
    c.ITEM_AUDIT: 8,
    c.ITEM_POLICY_ACCESS: 24,
    c.ITEM_ID_ADD: 16,
    c.ITEM_ID_REMOVE: 16,
    c.ITEM_REPLY_TIMEOUT: 0,
    c.ITEM_REPLY_DEAD: 0,
}


@pytest.mark.parametrize("kind", EXACT)
def test_item_9_fixed_payloads_have_exactly_their_size(kind: int) -> None:
    """ITEM-9, ITEM-11"""
    for length in range(49):
        assert one(kind, b"\xff" * length) == (0 if length == EXACT[kind] else EINVAL), length


def test_item_9_pids_and_caps_are_not_measured_here() -> None:
    """ITEM-9: but AUXGROUPS is an array."""
    for length in range(49):
        assert one(c.ITEM_PIDS, bytes(length)) == 0
        assert one(c.ITEM_CAPS, bytes(length)) == 0
        assert one(c.ITEM_AUXGROUPS, bytes(length)) == (EINVAL if length % 4 else 0)


@pytest.mark.parametrize("kind", STRINGS)
def test_item_10_strings_end_at_their_only_nul(kind: int) -> None:
    """ITEM-10: an empty string is one, an empty payload is none."""
    for good in (b"\0", b"a\0", b"\xff\n -\0", b"x" * 5000 + b"\0"):
        assert one(kind, good) == 0
    for bad in (b"", b"a", b"a\0b\0", b"a\0\0", b"\0\0", b"\0a"):
        assert one(kind, bad) == EINVAL


@pytest.mark.parametrize("kind", NAME_CHANGES)
def test_item_11_name_changes_may_carry_a_name(kind: int) -> None:
    """ITEM-11"""
    for length in range(32):
        assert one(kind, b"\1" * length) == EINVAL
    assert one(kind, b"\xff" * 32) == 0
    for good in (b"\0", b"a.b\0", b"anything at all\0"):
        assert one(kind, b"\xff" * 32 + good) == 0
    for bad in (b"a", b"a\0b\0", b"a\0\0"):
        assert one(kind, b"\xff" * 32 + bad) == EINVAL


def test_item_12_letters_are_those_of_ascii() -> None:
    """ITEM-12: narrower than the reference, which takes letters of Latin-1."""
    assert one(c.ITEM_MAKE_NAME, b"caf\xe9\0") == EINVAL


def test_item_all_errors_reach_the_client() -> None:
    """ITEM-1, ITEM-5, ITEM-8: through commands."""
    client = World().connect()
    assert client.update(header(15)) == -EINVAL
    assert client.add_match(1, i.string(c.ITEM_CONN_DESCRIPTION, b"x" * 64)) == -ENAMETOOLONG
    memfd = make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, 8, -1, 0))
    assert client.send(dst=client.id, items=memfd) == -EBADF

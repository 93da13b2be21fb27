"""What the client makes of the bytes in a pool."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3 import layouts
from kdbusfs.abi.v3.items import make_item, parse_items
from kdbusfs.client import (
    Audit,
    Caps,
    Creds,
    IdChange,
    NameChange,
    NameInfo,
    NoReply,
    OwnedName,
    Pids,
    Timestamp,
    decode,
)

ITEMS = st.lists(st.tuples(st.integers(0x9000, 0xFFFF), st.binary(max_size=40)), max_size=8)


@given(ITEMS, st.integers(0, 8).map(lambda n: 8 * n), st.integers(0, 64))
def test_items_are_walked_as_the_bus_walks_them(
    items: list[tuple[int, bytes]], start: int, behind: int
) -> None:
    data = b"".join([make_item(kind, payload) for kind, payload in items])
    pool = bytes(start) + data + b"\xff" * behind
    assert decode.items_of(pool, start, start + len(data)) == items
    assert parse_items(pool, start, start + len(data)) == items


def test_the_last_item_may_lack_its_padding() -> None:
    data = make_item(0x9000, b"abc")[:-5]
    assert decode.items_of(data, 0, len(data)) == [(0x9000, b"abc")]


@pytest.mark.parametrize(
    "data",
    [
        b"\x10" + bytes(8),  # header cut off
        layouts.ITEM_HEADER.pack(15, 1),  # smaller than its header
        layouts.ITEM_HEADER.pack(17, 1),  # longer than what is there
        layouts.ITEM_HEADER.pack(c.U64_MAX, 1),
    ],
)
def test_items_that_do_not_fit_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="item"):
        decode.items_of(data, 0, len(data))
    with pytest.raises(ValueError, match="slice ends"):
        decode.items_of(data, 0, len(data) + 1)


U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, c.U64_MAX)
NAMES = st.from_regex(r"[a-z]{1,9}(\.[a-z_-]{1,9}){1,3}", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(
    st.tuples(U64, U64, U64),
    st.tuples(*[U32] * 8),
    st.tuples(U64, U64, U64),
    st.lists(U32, max_size=5),
    st.lists(st.tuples(NAMES, U64), max_size=4),
    st.lists(TEXT, min_size=7, max_size=7),
    st.tuples(U32, U32),
)
def test_metadata_come_back_as_they_went_in(
    timestamp: tuple[int, ...],
    creds: tuple[int, ...],
    pids: tuple[int, ...],
    groups: list[int],
    names: list[tuple[str, int]],
    texts: list[str],
    audit: tuple[int, int],
) -> None:
    text_kinds = (
        (c.ITEM_TID_COMM, "tid_comm"),
        (c.ITEM_PID_COMM, "pid_comm"),
        (c.ITEM_EXE, "exe"),
        (c.ITEM_CMDLINE, "cmdline"),
        (c.ITEM_CGROUP, "cgroup"),
        (c.ITEM_SECLABEL, "seclabel"),
        (c.ITEM_CONN_DESCRIPTION, "description"),
    )
    items = [
        (c.ITEM_PAYLOAD_OFF, layouts.VEC.pack(1, 0)),
        (c.ITEM_CREDS, layouts.CREDS.pack(*creds)),
        (c.ITEM_PIDS, layouts.PIDS.pack(*pids)),
        (c.ITEM_AUXGROUPS, b"".join([group.to_bytes(4, "little") for group in groups])),
        *[(kind, text.encode() + b"\0") for (kind, _), text in zip(text_kinds, texts, strict=True)],
        (c.ITEM_AUDIT, layouts.AUDIT.pack(*audit)),
        *[(c.ITEM_OWNED_NAME, layouts.U64.pack(flags) + name.encode() + b"\0") for name, flags in names],
        (c.ITEM_TIMESTAMP, layouts.TIMESTAMP.pack(*timestamp)),
    ]
    data = b"".join([make_item(kind, payload) for kind, payload in items])
    metadata = decode.metadata_of(decode.items_of(data, 0, len(data)))
    assert metadata.timestamp == Timestamp(*timestamp)
    assert metadata.creds == Creds(*creds)
    assert metadata.pids == Pids(*pids)
    assert metadata.auxgroups == tuple(groups)
    assert [getattr(metadata, name) for _, name in text_kinds] == texts
    assert metadata.audit == Audit(*audit)
    assert metadata.owned_names == tuple(OwnedName(name, flags) for name, flags in names)


def test_metadata_that_were_not_delivered_are_none() -> None:
    metadata = decode.metadata_of([])
    assert metadata.owned_names == ()
    assert [metadata.timestamp, metadata.creds, metadata.auxgroups, metadata.caps, metadata.exe] == [None] * 5


def test_capabilities_are_numbers_of_as_many_words_as_the_last_needs() -> None:
    words = [40, 1, 2, 3, 4, 5, 6, 7, 8]
    payload = b"".join([word.to_bytes(4, "little") for word in words])
    high = 1 << 32
    assert decode.caps(payload) == Caps(40, 1 + 2 * high, 3 + 4 * high, 5 + 6 * high, 7 + 8 * high)
    with pytest.raises(ValueError, match="7 words"):
        decode.caps(payload[:-4])


@pytest.mark.parametrize("kind", [c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE])
def test_names_in_notifications_end_at_their_nul(kind: int) -> None:
    """LAY-20: the item's size covers the padding."""
    payload = layouts.NAME_CHANGE.pack(1, 2, 3, 4) + b"org.example.Echo\0" + bytes(7)
    assert decode.notification_of([(kind, payload)]) == NameChange(kind, "org.example.Echo", 1, 2, 3, 4)


def test_other_notifications() -> None:
    timestamp = (c.ITEM_TIMESTAMP, layouts.TIMESTAMP.pack(1, 2, 3))
    for kind in (c.ITEM_ID_ADD, c.ITEM_ID_REMOVE):
        item = (kind, layouts.ID_CHANGE.pack(5, 6))
        assert decode.notification_of([item, timestamp]) == IdChange(kind, 5, 6)
    for kind in (c.ITEM_REPLY_TIMEOUT, c.ITEM_REPLY_DEAD):
        assert decode.notification_of([(kind, b""), timestamp]) == NoReply(kind)
    assert decode.notification_of([timestamp]) is None


def test_bloom_parameters_of_hello() -> None:
    data = bytes(16) + layouts.U64.pack(40)
    data += make_item(c.ITEM_BLOOM_PARAMETER, layouts.BLOOM_PARAMETER.pack(64, 3))
    assert decode.bloom_parameters(data, 16) == (64, 3)
    with pytest.raises(ValueError, match="no bloom"):
        decode.bloom_parameters(layouts.U64.pack(8), 0)


def record(id: int, conn_flags: int, name: bytes | None = None, flags: int = 0) -> bytes:
    item = b"" if name is None else make_item(c.ITEM_OWNED_NAME, layouts.U64.pack(flags) + name + b"\0")
    return layouts.NAME_INFO.pack(24 + len(item), conn_flags, id) + item


def test_name_lists() -> None:
    """LIST-2."""
    data = record(1, c.HELLO_ACCEPT_FD, b"a.b", c.NAME_QUEUE) + record(2, 0) + record(3, 0, b"longer.name")
    pool = bytes(8) + layouts.U64.pack(8 + len(data)) + data + b"\xff" * 24
    assert decode.name_list(pool, 8) == [
        NameInfo(1, c.HELLO_ACCEPT_FD, "a.b", c.NAME_QUEUE),
        NameInfo(2, 0, None, 0),
        NameInfo(3, 0, "longer.name", 0),
    ]
    assert decode.name_list(layouts.U64.pack(8), 0) == []


@pytest.mark.parametrize("size", [0, 7, 41])
def test_lists_that_do_not_fit_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        decode.name_list(layouts.U64.pack(size) + bytes(32), 0)
    with pytest.raises(ValueError, match="outside"):
        decode.name_list(bytes(32), 32)


def test_info_of_a_bus_has_its_name() -> None:
    """CRE-1."""
    items = make_item(c.ITEM_MAKE_NAME, b"0-bus\0") + make_item(c.ITEM_PIDS, layouts.PIDS.pack(4, 5, 6))
    info = decode.info(bytes(8) + layouts.INFO.pack(24 + len(items), 7, 1) + items, 8)
    assert (info.id, info.flags, info.name, info.metadata.pids) == (7, 1, "0-bus", Pids(4, 5, 6))


def test_info_of_a_connection_may_be_bare() -> None:
    """INFO-7."""
    info = decode.info(layouts.INFO.pack(24, 3, 2), 0)
    assert (info.id, info.flags, info.name, info.items) == (3, 2, None, [])

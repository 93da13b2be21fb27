"""The decoder of item lists against a naive model (ITEM-1 to ITEM-11)."""

from __future__ import annotations

import re
from errno import EBADF, EINVAL, ENAMETOOLONG
from struct import pack

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdbusfs.abi.v3.items import RawItem, make_item, parse_items
from kdbusfs.base.errors import CommandError

STRING = re.compile(rb"[^\0]*\0", re.DOTALL)
SYSNAME = re.compile(rb"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\0")
SIZES = {  # of payloads that have exactly one
    1: 16,
    2: 16,
    3: 24,
    5: 4,
    6: 16,
    11: 8,
    12: 8,
    13: 8,
    0x1000: 24,
    0x1001: 32,
    0x100C: 8,
    0x2000: 24,
    0x8003: 16,
    0x8004: 16,
    0x8005: 0,
    0x8006: 0,
}
ARRAYS = (4, 0x1003)
STRINGS = (9, 14, 0x1005, 0x1006, 0x1007, 0x1008, 0x1009, 0x100B)
SYSNAMES = (10, 0x100D)
NAME_CHANGES = (0x8000, 0x8001, 0x8002)
KINDS = (
    *SIZES,
    *ARRAYS,
    *STRINGS,
    *SYSNAMES,
    *NAME_CHANGES,
    7,
    8,
    0x1002,
    0x1004,
    0x100A,
    0,
    0x4242,
    2**64 - 1,
)


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def model_check(kind: int, payload: bytes) -> int:
    """The errno of one item, 0 if it is fine."""
    length = len(payload)
    if kind in SIZES and length != SIZES[kind]:
        return EINVAL
    if kind in (1, 2) and number(payload[:8]) == 0:
        return EINVAL
    if kind == 3:
        if number(payload[8:16]) == 0:
            return EINVAL
        return EBADF if payload[19] & 0x80 else 0
    if kind in ARRAYS and length % 4:
        return EINVAL
    if kind == 7 and length < 8:
        return EINVAL
    if kind in STRINGS and not STRING.fullmatch(payload):
        return EINVAL
    if kind in SYSNAMES:
        if length < 2:
            return EINVAL
        if length > 64:
            return ENAMETOOLONG
        return 0 if SYSNAME.fullmatch(payload) else EINVAL
    if kind in NAME_CHANGES and (length < 32 or (length > 32 and not STRING.fullmatch(payload[32:]))):
        return EINVAL
    return 0


def model_parse(data: bytes) -> int | list[RawItem]:
    """The items of `data`, or the errno of the first that is bad."""
    items: list[RawItem] = []
    while data:
        size = number(data[:8])
        if len(data) < 16 or not 16 <= size <= len(data):
            return EINVAL
        item = (number(data[8:16]), data[16:size])
        errno = model_check(*item)
        if errno:
            return errno
        items.append(item)
        data = data[-(-size // 8) * 8 :]
    return items


def parse(data: bytes, before: bytes = b"") -> int | list[RawItem]:
    try:
        return parse_items(before + data + b"behind", len(before), len(before) + len(data))
    except CommandError as error:
        return error.errno


names = st.from_regex(rb"[A-Za-z0-9_.-]{1,70}\Z", fullmatch=True).map(lambda name: name + b"\0")
any_payload = st.one_of(
    st.binary(max_size=80),
    names,
    st.sampled_from([0, 4, 8, 16, 24, 32, 40]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.builds(
        lambda start, size, fd: pack("<QQiI", start, size, fd, 0),
        st.integers(0, 9),
        st.integers(0, 2),
        st.integers(-2, 3),
    ),
    st.builds(lambda ids, name: ids + name, st.binary(min_size=32, max_size=32), names),
)
item_lists = st.lists(st.tuples(st.sampled_from(KINDS), any_payload), max_size=8)
mutations = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from([0, 1, 8, 15, 16, 17, 24, 0x7F, 0x80, 0xFF])), max_size=4
)


@given(item_lists)
@settings(max_examples=400)
def test_what_was_made_is_what_is_parsed(items: list[RawItem]) -> None:
    """ITEM-1, ITEM-3: valid items are returned; else the errno of the first that is invalid."""
    errnos = [errno for errno in (model_check(*item) for item in items) if errno]
    data = b"".join(make_item(*item) for item in items)
    assert parse(data) == (errnos[0] if errnos else items)


@given(item_lists, mutations, st.integers(0, 24), st.sampled_from([0, 8, 32, 104]))
@settings(max_examples=1500)
@example([(0x4242, b"x")], [], 7, 32)
@example([(0x4242, b"x")], [(7, 0xFF)], 0, 32)
def test_mutated_lists_are_taken_apart_as_the_model_does(
    items: list[RawItem], changes: list[tuple[int, int]], cut: int, before: int
) -> None:
    """ITEM-1 to ITEM-11: and no other exception comes out."""
    data = bytearray(b"".join(make_item(*item) for item in items))
    for at, value in changes:
        if data:
            data[at % len(data)] = value
    data = data[: max(0, len(data) - cut)]
    assert parse(bytes(data), bytes(before)) == model_parse(bytes(data))


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_taken_apart_as_the_model_does(data: bytes) -> None:
    """ITEM-1"""
    assert parse(data) == model_parse(data)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=40))
def test_an_item_states_its_exact_size_and_is_padded_with_zeros(kind: int, payload: bytes) -> None:
    """LAY-6"""
    data = make_item(kind, payload)
    assert len(data) % 8 == 0 and len(data) - 16 - len(payload) < 8
    assert number(data[:8]) == 16 + len(payload) and number(data[8:16]) == kind
    assert data[16:].rstrip(b"\0") == payload.rstrip(b"\0")

"""The client's commands, messages, rules and policies as bytes: the bus' own item walk understands them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3 import layouts
from kdbusfs.abi.v3.commands import COMMANDS
from kdbusfs.abi.v3.items import RawItem, parse_items
from kdbusfs.client import (
    Memfd,
    Rule,
    Vec,
    Zero,
    bloom_filter,
    bloom_rule,
    encode,
    group,
    id_added_rule,
    id_removed_rule,
    name_added_rule,
    name_changed_rule,
    name_removed_rule,
    raw,
    sealed_memfd,
    sender_rule,
    user,
    world,
)

U64 = st.integers(0, c.U64_MAX)


def items_in(data: bytes, start: int = 0) -> list[RawItem]:
    return parse_items(data, start, len(data))


@given(st.sampled_from(sorted(COMMANDS)), st.lists(U64, max_size=3), st.binary(max_size=40))
def test_commands_have_their_size_and_words_and_items(number: int, words: list[int], payload: bytes) -> None:
    items = encode.more_items([(0x7777, payload)])
    data = encode.command(number, *words, items=items)
    size = COMMANDS[number].size
    assert layouts.U64.unpack_from(data)[0] == len(data)
    assert [word for (word,) in layouts.U64.iter_unpack(data[8:size])][: len(words)] == words
    assert not any(data[8 + 8 * len(words) : size])
    assert items_in(data, size) == [(0x7777, payload)]


def test_negative_words_are_stored_as_signed_members() -> None:
    data = encode.command(c.CMD_RECV, c.RECV_USE_PRIORITY, 0, 0, -5)
    assert layouts.CMD_RECV.unpack(data)[4] == -5


@given(
    dst_id=U64,
    flags=U64,
    priority=st.integers(-(1 << 63), (1 << 63) - 1),
    src_id=U64,
    payload_type=U64,
    cookie=U64,
    timeout_ns=U64,
)
def test_messages_hold_what_they_were_given(**fields: int) -> None:
    items = encode.string_item(c.ITEM_DST_NAME, "org.example.Echo")
    data = encode.message(items=items, **fields)
    size, flags, priority, dst_id, src_id, payload_type, cookie, timeout_ns = layouts.MSG.unpack_from(data)
    assert size == len(data)
    assert fields == {
        "dst_id": dst_id,
        "flags": flags,
        "priority": priority,
        "src_id": src_id,
        "payload_type": payload_type,
        "cookie": cookie,
        "timeout_ns": timeout_ns,
    }
    assert items_in(data, layouts.MSG_SIZE) == [(c.ITEM_DST_NAME, b"org.example.Echo\0")]


Part = bytes | bytearray | memoryview | Zero


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=64),
            st.binary(max_size=64).map(bytearray),
            st.binary(max_size=64).map(lambda data: memoryview(data)),
            st.integers(1, 1 << 20).map(Zero),
        ),
        max_size=10,
    )
)
def test_payload_is_found_at_the_addresses_of_its_vectors(parts: list[Part]) -> None:
    pins: list[object] = []
    items = items_in(encode.payload_items(parts, pins))
    wanted = [part for part in parts if isinstance(part, Zero) or len(part)]
    assert len(items) == len(wanted)
    for (kind, payload), part in zip(items, wanted, strict=True):
        assert kind == c.ITEM_PAYLOAD_VEC
        size, address = layouts.VEC.unpack(payload)
        if isinstance(part, Zero):
            assert (size, address) == (part.size, 0)
        else:
            assert bytes(raw.look(address, size)) == bytes(part)


def test_payload_of_one_piece_is_one_vector_and_of_none_is_none() -> None:
    pins: list[object] = []
    assert len(items_in(encode.payload_items(b"text", pins))) == 1
    assert encode.payload_items(b"", pins) == b""
    assert encode.payload_items([], pins) == b""


def test_a_wide_memoryview_counts_its_bytes() -> None:
    pins: list[object] = []
    view = memoryview(b"12345678").cast("I")
    ((_, payload),) = items_in(encode.payload_items(view, pins))
    size, address = layouts.VEC.unpack(payload)
    assert bytes(raw.look(address, size)) == b"12345678"


def test_vectors_of_any_address_are_passed_on() -> None:
    ((kind, payload),) = items_in(encode.payload_items([Vec(5, 8)], []))
    assert (kind, layouts.VEC.unpack(payload)) == (c.ITEM_PAYLOAD_VEC, (5, 8))


def test_memfds_take_their_size_from_the_file_unless_told() -> None:
    with sealed_memfd(b"0123456789") as file:
        parts = [Memfd(file), Memfd(file, 3), Memfd(file.fileno(), 2, 4)]
        items = items_in(encode.payload_items(parts, []))
        assert [kind for kind, _ in items] == [c.ITEM_PAYLOAD_MEMFD] * 3
        values = [layouts.MEMFD.unpack(payload) for _, payload in items]
        fd = file.fileno()
        assert values == [(0, 10, fd, 0), (3, 7, fd, 0), (2, 4, fd, 0)]


def test_descriptors_may_be_numbers_or_files() -> None:
    with open(os.devnull) as file:
        ((kind, payload),) = items_in(encode.fds_item([0, file]))
        assert (kind, list(memoryview(payload).cast("i"))) == (c.ITEM_FDS, [0, file.fileno()])
    assert items_in(encode.fds_item([])) == [(c.ITEM_FDS, b"")]


def test_bloom_items_begin_with_the_generation() -> None:
    assert items_in(encode.bloom_item(b"\1" * 16, 3)) == [
        (c.ITEM_BLOOM_FILTER, layouts.U64.pack(3) + b"\1" * 16)
    ]


def test_policies_are_names_followed_by_their_rights() -> None:
    rights = [user(7, c.POLICY_OWN), group(8, c.POLICY_TALK), world(c.POLICY_SEE)]
    expected = [
        (c.ITEM_NAME, b"a.b\0"),
        (c.ITEM_POLICY_ACCESS, layouts.POLICY_ACCESS.pack(c.POLICY_ACCESS_USER, c.POLICY_OWN, 7)),
        (c.ITEM_POLICY_ACCESS, layouts.POLICY_ACCESS.pack(c.POLICY_ACCESS_GROUP, c.POLICY_TALK, 8)),
        (c.ITEM_POLICY_ACCESS, layouts.POLICY_ACCESS.pack(c.POLICY_ACCESS_WORLD, c.POLICY_SEE, 0)),
        (c.ITEM_NAME, b"c.d.*\0"),
    ]
    assert items_in(encode.policy_items({"a.b": rights, "c.d.*": []})) == expected
    assert items_in(encode.policy_items([("a.b", rights), ("c.d.*", ())])) == expected


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (name_added_rule, c.ITEM_NAME_ADD),
        (name_removed_rule, c.ITEM_NAME_REMOVE),
        (name_changed_rule, c.ITEM_NAME_CHANGE),
    ],
)
def test_rules_for_names_default_to_all_of_them(rule: Callable[..., Rule], kind: int) -> None:
    any_id = c.MATCH_ID_ANY
    assert rule() == (kind, layouts.NAME_CHANGE.pack(any_id, 0, any_id, 0))
    given_rule = rule("a.b", old_id=3, new_id=4)
    assert given_rule == (kind, layouts.NAME_CHANGE.pack(3, 0, 4, 0) + b"a.b\0")
    assert items_in(encode.more_items([given_rule])) == [given_rule]


def test_rules_for_ids_senders_and_filters() -> None:
    any_id = c.MATCH_ID_ANY
    assert id_added_rule() == (c.ITEM_ID_ADD, layouts.ID_CHANGE.pack(any_id, 0))
    assert id_removed_rule(9) == (c.ITEM_ID_REMOVE, layouts.ID_CHANGE.pack(9, 0))
    assert sender_rule() == (c.ITEM_ID, layouts.U64.pack(any_id))
    assert sender_rule(5) == (c.ITEM_ID, layouts.U64.pack(5))
    assert sender_rule("a.b") == (c.ITEM_NAME, b"a.b\0")
    assert bloom_rule(b"\1" * 8, b"\2" * 8) == (c.ITEM_BLOOM_MASK, b"\1" * 8 + b"\2" * 8)


def test_a_bus_that_asks_for_any_number_of_hashes_takes_no_longer() -> None:
    assert bloom_filter(["org.example"], 64, (1 << 64) - 1) == bloom_filter(["org.example"], 64, 512) == b"\xff" * 64


@given(
    st.lists(st.text(max_size=8), max_size=6),
    st.integers(1, 64).map(lambda n: 8 * n),
    st.integers(1, 8),
)
def test_a_filter_has_all_bits_of_the_masks_of_its_words(words: list[str], size: int, n_hash: int) -> None:
    words = [word.encode("utf-8", "replace").decode() for word in words]
    whole = int.from_bytes(bloom_filter(words, size, n_hash), "little")
    for word in words:
        mask = int.from_bytes(bloom_filter([word], size, n_hash), "little")
        assert 1 <= mask.bit_count() <= n_hash
        assert whole & mask == mask
    assert bloom_filter([], size, n_hash) == bytes(size)


def test_other_words_have_other_bits() -> None:
    assert bloom_filter(["weather"], 64, 4) != bloom_filter(["sports"], 64, 4)
    assert bloom_filter([b"weather"], 64, 4) == bloom_filter(["weather"], 64, 4)


_BLOOM_PROGRAM = """
#define _GNU_SOURCE
#include <stddef.h>
#include "example.h"

int main(int argc, char **argv)
{
	struct bus bus = { .bloom_size = 64, .bloom_hashes = 5 };
	uint8_t filter[64] = { 0 };
	int i;

	for (i = 1; i < argc; i++)
		bloom_add(&bus, filter, argv[i]);
	return fwrite(filter, 1, sizeof(filter), stdout) != sizeof(filter);
}
"""


def test_the_examples_set_the_same_bits(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    source, program = tmp_path / "bloom.c", tmp_path / "bloom"
    source.write_text(_BLOOM_PROGRAM)
    include = [f"-I{root / 'docs' / 'examples'}", f"-I{root / 'kdbusfs' / 'include'}"]
    subprocess.run(["gcc", "-std=gnu11", *include, str(source), "-o", str(program)], check=True, timeout=120)
    words = ["weather", "org.example.Echo", "", "\u00e4"]
    output = subprocess.run([str(program), *words], capture_output=True, check=True, timeout=120).stdout
    assert output == bloom_filter(words, 64, 5)

"""The commands of the last ABI as bytes: sizes, flags, items, negotiation, in the order in which they are judged."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EFAULT, EINVAL, EMSGSIZE
from struct import pack, pack_into, unpack_from

import pytest

from kdbusfs.abi import commands as k
from kdbusfs.abi import constants as n
from kdbusfs.abi.last import constants as c
from kdbusfs.abi.last.commands import COMMANDS
from kdbusfs.abi.last.family import Last
from kdbusfs.abi.last.items import make_item
from kdbusfs.base.call import IOC_READ, Call
from kdbusfs.base.errors import CommandError, OnlyNegotiated

from ..support.fake_host import FakeCaller, FakeProcess

LAST = Last()
NUMBERS = {command.kind: number for number, command in COMMANDS.items()}
NAME = make_item(c.ITEM_NAME, b"com.example\0")
MAKE_NAME = make_item(c.ITEM_MAKE_NAME, b"1000-x\0")
BLOOM = make_item(c.ITEM_BLOOM_PARAMETER, pack("<QQ", 64, 1))
NEEDED = {k.BUS_MAKE: MAKE_NAME + BLOOM, k.ENDPOINT_MAKE: MAKE_NAME, k.NAME_ACQUIRE: NAME, k.NAME_RELEASE: NAME}
ALONE = sorted(kind for kind in NUMBERS if kind != k.SEND)
VALID = {
    k.BUS_MAKE: 3,
    k.ENDPOINT_MAKE: 3,
    k.HELLO: 0xF,
    k.NAME_ACQUIRE: 7,
    k.LIST: 0xF,
    k.MATCH_ADD: 1,
    k.SEND: 1,
    k.RECV: 7,
}
"""L-18"""


class Asked:
    """A command in the memory of a client, as the channel brings it."""

    def __init__(self, kind: int, fixed: bytes, items: bytes = b"", *, size: int | None = None) -> None:
        self.kind = kind
        self.process = FakeProcess()
        self.whole = bytearray(fixed + items)
        pack_into("<Q", self.whole, 0, len(self.whole) if size is None else size)
        self.call = call = Call()
        call.number = NUMBERS[kind]
        call.address = self.process.place(bytes(self.whole))
        call.data = bytes(self.whole)
        call.command = memoryview(self.whole)
        call.words = call.command[: len(fixed) // 8 * 8].cast("Q")
        call.caller = FakeCaller(self.process)

    def decode(self) -> object:
        decoders: dict[int, Callable[[Call], object]] = {
            k.HELLO: LAST.decode_hello,
            k.SEND: LAST.decode_send,
            k.RECV: LAST.decode_recv,
            k.FREE: LAST.decode_free,
            k.CONN_INFO: LAST.decode_query,
            k.BUS_CREATOR_INFO: LAST.decode_creator_query,
        }
        if self.kind in (k.MATCH_ADD, k.MATCH_REMOVE):
            return LAST.decode_match(self.kind, self.call)
        decode = decoders.get(self.kind)
        return decode(self.call) if decode is not None else LAST.decode(self.kind, self.call)

    def errno(self) -> int:
        """What it is refused with."""
        with pytest.raises(CommandError) as caught:
            self.decode()
        return caught.value.errno

    def negotiates(self) -> bool:
        with pytest.raises(OnlyNegotiated):
            self.decode()
        return True

    def left(self, at: int) -> int:
        """The u64 at `at` as the client finds it, once the answer is there."""
        if self.call.number & IOC_READ and at < COMMANDS[self.call.number].size:
            return int(unpack_from("<Q", self.whole, at)[0])
        return int.from_bytes(self.process.read(self.call.address + at, 8), "little")


def fixed(kind: int, flags: int = 0, return_flags: int = 0x77) -> bytes:
    size = COMMANDS[NUMBERS[kind]].size
    return pack("<QQQ", 0, flags, return_flags).ljust(size, b"\0")


def whole(kind: int, flags: int = 0, more: bytes = b"") -> Asked:
    """A command that has all that it needs."""
    return Asked(kind, fixed(kind, flags), NEEDED.get(kind, b"") + more)


def with_message(message: bytes, flags: int = 0, items: bytes = b"") -> Asked:
    asked = Asked(k.SEND, fixed(k.SEND, flags), items)
    address = asked.process.place(message)
    pack_into("<Q", asked.whole, 24, address)
    asked.call.data = bytes(asked.whole)
    asked.process.memory[asked.call.address][:] = asked.whole
    asked.call.message = message
    return asked


def message(items: bytes = b"", *, flags: int = 0, size: int | None = None) -> bytes:
    header = pack("<QQqQQQQQ", 64 + len(items) if size is None else size, flags, 0, 1, 0, n.PAYLOAD_DBUS, 1, 0)
    return header + items


@pytest.mark.parametrize("kind", ALONE)
def test_l_10_sizes_are_judged_first(kind: int) -> None:
    size = COMMANDS[NUMBERS[kind]].size
    assert Asked(kind, fixed(kind, 1 << 40), size=size - 1).errno() == EINVAL
    assert Asked(kind, fixed(kind, 1 << 40), size=32769).errno() == EMSGSIZE
    asked = Asked(kind, fixed(kind))
    asked.call.error = EFAULT
    assert asked.errno() == EFAULT
    assert asked.left(16) == 0x77  # L-11: not when the copy failed


@pytest.mark.parametrize("kind", ALONE)
def test_l_10_a_struct_may_have_32768_bytes(kind: int) -> None:
    size = COMMANDS[NUMBERS[kind]].size
    room = 32768 - size - len(NEEDED.get(kind, b""))
    asked = whole(kind, more=make_item(c.ITEM_NEGOTIATE, bytes(room // 8 * 8 - 16)))
    assert len(asked.whole) > 32760
    asked.decode()


@pytest.mark.parametrize("kind", ALONE)
def test_l_11_return_flags_are_cleared_also_where_it_fails(kind: int) -> None:
    asked = whole(kind)
    asked.decode()
    assert asked.left(16) == 0
    asked = whole(kind, flags=1 << 40)
    assert asked.errno() == EINVAL
    assert asked.left(16) == 0
    asked = whole(kind, flags=1 << 40 | c.FLAG_NEGOTIATE)
    assert asked.errno() == EINVAL
    assert asked.left(16) == 0


@pytest.mark.parametrize("kind", [kind for kind in ALONE if not NUMBERS[kind] & IOC_READ])
def test_l_11_return_flags_that_cannot_be_written_are_efault_before_anything_happens(kind: int) -> None:
    asked = whole(kind)
    asked.process.writable = False
    assert asked.errno() == EFAULT


@pytest.mark.parametrize("kind", ALONE)
def test_l_12_an_item_of_another_command_is_refused(kind: int) -> None:
    for stranger in (c.ITEM_PAYLOAD_OFF, 0, 17, 0x1000, 0x100A, 0x8005, 0x9000, 1 << 40):
        assert whole(kind, more=make_item(stranger, bytes(8))).errno() == EINVAL


def test_l_12_items_are_judged_one_after_the_other() -> None:
    cut_off = pack("<QQ", 15, c.ITEM_NAME)
    bad_memfd = make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, 1, -1, 0))
    assert with_message(message(bad_memfd + cut_off)).errno() == EBADF
    assert with_message(message(cut_off + bad_memfd)).errno() == EINVAL
    fds = make_item(c.ITEM_FDS, bytes(4))
    assert with_message(message(fds + fds + bad_memfd)).errno() == EINVAL
    assert with_message(message(fds + bad_memfd + fds)).errno() == EBADF


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        (k.BUS_MAKE, MAKE_NAME),
        (k.BUS_MAKE, BLOOM),
        (k.ENDPOINT_MAKE, MAKE_NAME),
        (k.NAME_ACQUIRE, NAME),
        (k.NAME_RELEASE, NAME),
        (k.HELLO, NAME + NAME),
        (k.HELLO, 2 * make_item(n.ITEM_CONN_DESCRIPTION, b"x\0")),
        (k.UPDATE, 2 * make_item(c.ITEM_ATTACH_FLAGS_SEND, bytes(8))),
        (k.CONN_INFO, NAME + NAME),
        (k.LIST, 2 * make_item(c.ITEM_NEGOTIATE, b"")),
    ],
)
def test_l_12_24_what_may_come_once_is_refused_the_second_time(kind: int, item: bytes) -> None:
    assert whole(kind, more=item).errno() == EINVAL


def test_l_12_the_last_item_may_lack_its_padding() -> None:
    assert len(make_item(c.ITEM_NAME, b"a.bc\0")) == 24
    asked = Asked(k.NAME_ACQUIRE, fixed(k.NAME_ACQUIRE), make_item(c.ITEM_NAME, b"a.bc\0")[:21])
    asked.decode()


@pytest.mark.parametrize("kind", sorted(NUMBERS))
def test_l_18_valid_flags(kind: int) -> None:
    valid = VALID.get(kind, 0)
    assert COMMANDS[NUMBERS[kind]].flags == valid | c.FLAG_NEGOTIATE
    for bit in range(63):
        if not valid >> bit & 1:
            asked = whole(kind, 1 << bit) if kind != k.SEND else with_message(message(), 1 << bit)
            assert asked.errno() == EINVAL


@pytest.mark.parametrize("kind", ALONE)
def test_l_13_14_negotiation_tells_the_flags_and_does_nothing_else(kind: int) -> None:
    asked = Asked(kind, fixed(kind, c.FLAG_NEGOTIATE))
    assert asked.negotiates()  # also without the items that it needs
    assert asked.left(8) == VALID.get(kind, 0)
    assert asked.left(16) == 0x77  # L-11
    for kinds in NEEDED:
        assert Asked(kinds, fixed(kinds)).errno() == EINVAL


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("flags", [0, c.FLAG_NEGOTIATE])
def test_l_15_17_types_that_are_not_taken_become_0(kind: int, flags: int) -> None:
    accepted = COMMANDS[NUMBERS[kind]].accepted.kinds
    types = [c.ITEM_NEGOTIATE, c.ITEM_PAYLOAD_OFF, c.ITEM_NAME, c.ITEM_DST_ID, 0, 1 << 63, c.ITEM_MAKE_NAME]
    asked = whole(kind, flags, make_item(c.ITEM_NEGOTIATE, pack("<7Q", *types)))
    if flags:
        assert asked.negotiates()
    else:
        asked.decode()
    at = len(asked.whole) - 8 * len(types)
    assert [asked.left(at + 8 * i) for i in range(7)] == [each if each in accepted else 0 for each in types]
    assert asked.left(at) == c.ITEM_NEGOTIATE


def test_l_15_a_list_of_types_is_a_list_of_u64() -> None:
    assert whole(k.LIST, more=make_item(c.ITEM_NEGOTIATE, bytes(12))).errno() == EINVAL


def test_l_16_send_negotiates_for_both() -> None:
    asked = Asked(k.SEND, fixed(k.SEND, c.FLAG_NEGOTIATE))
    asked.call.message_error = EFAULT  # there is no message
    assert asked.negotiates()
    assert asked.left(8) == n.SEND_SYNC_REPLY
    assert asked.left(16) == 0

    types = make_item(c.ITEM_NEGOTIATE, pack("<2Q", c.ITEM_FDS, c.ITEM_NAME))
    asked = with_message(message(types, flags=c.FLAG_NEGOTIATE), c.FLAG_NEGOTIATE)
    assert asked.negotiates()
    at = unpack_from("<Q", asked.whole, 24)[0]
    assert asked.process.read(at + 8, 8) == pack("<Q", n.MSG_FLAGS_ALL)
    assert asked.process.read(at + 80, 16) == pack("<2Q", c.ITEM_FDS, 0)

    asked = with_message(message(flags=c.FLAG_NEGOTIATE))
    assert asked.errno() == EINVAL
    assert with_message(message(), c.FLAG_NEGOTIATE).negotiates()
    assert with_message(message(flags=8), c.FLAG_NEGOTIATE).errno() == EINVAL


def test_l_10_52_messages() -> None:
    assert with_message(message(size=63)).errno() == EINVAL
    assert with_message(message(size=32769)).errno() == EMSGSIZE
    asked = with_message(message())
    asked.call.message_error = EFAULT
    assert asked.errno() == EFAULT
    assert asked.left(16) == 0
    filler = make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 1, 8)) * 1022
    sent = with_message(message(filler)).decode()
    assert len(sent.items) == 1022  # type: ignore[attr-defined]
    assert with_message(message(flags=8)).errno() == EINVAL
    for stranger in (c.ITEM_NAME, c.ITEM_CANCEL_FD, c.ITEM_BLOOM_MASK):
        assert with_message(message(make_item(stranger, bytes(8)))).errno() == EINVAL
    for once in (c.ITEM_DST_NAME, c.ITEM_BLOOM_FILTER, c.ITEM_FDS):
        item = make_item(once, b"a.bcdef\0")
        with_message(message(item)).decode()
        assert with_message(message(item + item)).errno() == EINVAL


def test_l_49_send_takes_one_cancel_fd() -> None:
    cancel = make_item(c.ITEM_CANCEL_FD, bytes(4))
    sent = with_message(message(), items=cancel).decode()
    assert [item.kind for item in sent.command_items] == [n.ITEM_CANCEL_FD]  # type: ignore[attr-defined]
    assert with_message(message(), items=cancel + cancel).errno() == EINVAL
    assert with_message(message(), items=make_item(c.ITEM_FDS, bytes(4))).errno() == EINVAL


def test_l_20_21_22_23_shapes_of_payloads() -> None:
    def hello(kind: int, payload: bytes) -> Asked:
        return Asked(k.HELLO, fixed(k.HELLO), make_item(kind, payload))

    assert hello(n.ITEM_CREDS, bytes(32)).errno() == EINVAL
    found = hello(n.ITEM_CREDS, pack("<8Q", 1, (1 << 32) + 2, 0xFFFFFFFF, c.U64_MAX, 5, 6, 7, 8)).decode()
    assert found.items[0].numbers == (1, 2, 0xFFFFFFFF, c.U64_MAX, 5, 6, 7, 8)  # type: ignore[attr-defined]
    assert hello(n.ITEM_PIDS, bytes(16)).errno() == EINVAL
    assert hello(n.ITEM_PIDS, bytes(32)).errno() == EINVAL
    hello(n.ITEM_PIDS, bytes(24)).decode()
    assert with_message(message(make_item(c.ITEM_FDS, bytes(6)))).errno() == EINVAL
    assert with_message(message(), items=make_item(c.ITEM_CANCEL_FD, bytes(8))).errno() == EINVAL
    for item in (make_item(c.ITEM_DST_ID, bytes(4)), make_item(c.ITEM_ID, bytes(16))):
        assert whole(k.MATCH_ADD, more=item).errno() == EINVAL
    match = whole(k.MATCH_ADD, more=make_item(c.ITEM_DST_ID, pack("<Q", 9))).decode()
    assert [(item.kind, item.numbers) for item in match.items] == [(n.ITEM_DST_ID, (9,))]  # type: ignore[attr-defined]
    for kind in (k.HELLO, k.MATCH_ADD, k.SEND):
        asked = whole(kind, more=make_item(n.ITEM_CAPS, bytes(36)))
        assert asked.errno() == EINVAL  # no command takes them


@pytest.mark.parametrize("kind", [k.CONN_INFO, k.BUS_CREATOR_INFO])
def test_l_42_47_the_mask_has_a_member_of_its_own(kind: int) -> None:
    def asked(mask: int, flags: int = 0) -> Asked:
        return Asked(kind, pack("<QQQQQQQ", 0, flags, 0, 5, mask, 0, 0))

    assert asked(0, 1).errno() == EINVAL
    assert asked(1 << 14).errno() == EINVAL
    for mask, wanted in ((c.ATTACH_ANY, c.ATTACH_ALL), (c.ATTACH_CREDS, c.ATTACH_CREDS)):
        found = asked(mask).decode()
        assert (found if kind == k.BUS_CREATOR_INFO else found.attach_flags) == wanted  # type: ignore[attr-defined]


def test_l_95_drop_takes_the_oldest() -> None:
    assert whole(k.RECV, n.RECV_DROP | n.RECV_USE_PRIORITY).errno() == EINVAL
    assert whole(k.RECV, n.RECV_DROP).decode() == 0

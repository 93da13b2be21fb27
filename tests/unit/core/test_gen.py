"""Rules that all commands share (GEN)."""

from __future__ import annotations

from dataclasses import dataclass
from errno import (
    EBADF,
    ECONNREFUSED,
    ECONNRESET,
    EFAULT,
    EINVAL,
    EMSGSIZE,
    ENAMETOOLONG,
    ENOTTY,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
)
from struct import pack_into
from typing import Any

import pytest

from kdbusfs.abi import commands as k
from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.family import V3
from kdbusfs.abi.v3.items import make_item
from kdbusfs.base.call import PENDING, Call
from kdbusfs.base.errors import CommandError
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World
from tests.support.core_scenes import request
from tests.support.fake_host import FakeCaller


@dataclass(frozen=True)
class Spec:
    """What the specification says of a command (GEN-7, GEN-12, GEN-15), apart from the tables of the core."""

    number: int
    size: int
    max_size: int
    flags: int
    flags_at: int = 8
    early_return_flags: bool = False

    @property
    def kernel_at(self) -> int:
        return self.flags_at + 8

    @property
    def return_at(self) -> int:
        return self.flags_at + (24 if self.number == c.CMD_SEND else 16)

    @property
    def copies_out(self) -> bool:
        return self.number >> 30 == 3


SPECS = (
    Spec(c.CMD_BUS_MAKE, 32, 32768, 0x3),
    Spec(c.CMD_ENDPOINT_MAKE, 32, 32768, 0x3, early_return_flags=True),
    Spec(c.CMD_HELLO, 104, 32768, 0xF),
    Spec(c.CMD_SEND, 72, 32768, 0x1),
    Spec(c.CMD_RECV, 72, 32768, 0x7),
    Spec(c.CMD_FREE, 40, 8192, 0, 16),
    Spec(c.CMD_NAME_ACQUIRE, 32, 304, 0x7, early_return_flags=True),
    Spec(c.CMD_NAME_RELEASE, 32, 304, 0, early_return_flags=True),
    Spec(c.CMD_NAME_LIST, 48, 8192, 0xF),
    Spec(c.CMD_CONN_INFO, 56, 56 + 16 + 256, 0x3FFF),  # with the header that the reference forgets: GEN-8
    Spec(c.CMD_CONN_UPDATE, 32, 32768, 0),
    Spec(c.CMD_BUS_CREATOR_INFO, 56, 56 + 16 + 256, 0x3FFF),
    Spec(c.CMD_ENDPOINT_UPDATE, 32, 32768, 0),
    Spec(c.CMD_MATCH_ADD, 40, 32768, 0x1, 16),
    Spec(c.CMD_MATCH_REMOVE, 40, 40, 0, 16),
)
NAMES = {
    spec.number: name[4:]
    for name in dir(c)
    if name.startswith("CMD_")
    for spec in SPECS
    if getattr(c, name) == spec.number
}
FLAGS_UNTOUCHED = 0x123400
RETURN_UNTOUCHED = 0x5500
each = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: NAMES[spec.number])


def put(call: Call, offset: int, value: int) -> None:
    """Change a member of a struct that is not given yet, in the Call and in the client's memory."""
    pack_into("<Q", call.command, offset, value)
    call.data = bytes(call.command)
    assert isinstance(call.caller, FakeCaller)
    for start, region in call.caller.process.memory.items():
        if start == call.address:
            pack_into("<Q", region, offset, value)


class Scene:
    """A command that would succeed, and the file that takes it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.world = World()
        self.process = FakeProcess(uid=1000)
        self.fixed = bytearray(spec.size)
        self.items = b""
        self.message: bytes | None = None
        self.client = self._client()

    def _client(self) -> Client:
        world, number = self.world, self.spec.number
        if number == c.CMD_BUS_MAKE:
            self.items = i.string(c.ITEM_MAKE_NAME, b"1000-other") + i.bloom_parameter(64)
            return world.open_control(self.process)
        if number == c.CMD_ENDPOINT_MAKE:
            self.items = i.string(c.ITEM_MAKE_NAME, b"1000-ep")
            return world.open(self.process)
        if number == c.CMD_HELLO:
            pack_into("<Q", self.fixed, 64, 1 << 20)
            return world.open(self.process)
        if number == c.CMD_ENDPOINT_UPDATE:
            owner = world.open(self.process)
            assert owner.make_endpoint(b"1000-ep") == 0
            return owner
        client = world.connect(self.process, free=False)
        if number == c.CMD_FREE:
            pack_into("<Q", self.fixed, 8, client.out(72))
        elif number == c.CMD_SEND:
            self.message = client.message(dst=client.id)
        elif number == c.CMD_RECV:
            assert client.send(dst=client.id) == 0
        elif number in (c.CMD_NAME_ACQUIRE, c.CMD_NAME_RELEASE):
            self.items = i.name(b"a.b")
            if number == c.CMD_NAME_RELEASE:
                assert client.acquire(b"a.b") == 0
        elif number == c.CMD_CONN_INFO:
            pack_into("<Q", self.fixed, 32, client.id)
        elif number == c.CMD_MATCH_REMOVE:
            assert client.add_match(0) == 0
        return client

    def call(self, *, items: bytes | None = None, size: int | None = None, flags: int = 0) -> Call:
        self.process.memory.clear()
        call = self.client.call(
            self.spec.number, bytes(self.fixed), self.items if items is None else items, size=size
        )
        put(call, self.spec.flags_at, flags)
        put(call, self.spec.kernel_at, FLAGS_UNTOUCHED)
        put(call, self.spec.return_at, RETURN_UNTOUCHED)
        if self.message is not None:
            call.message = bytes(self.message)
        return call

    def run(self, **how: Any) -> int:
        return self.client.run(self.call(**how))

    def member(self, offset: int) -> int:
        """What the client finds in its struct afterwards."""
        return self.client.out(offset) if self.spec.copies_out else self.client.in_memory(offset)

    @property
    def kernel_flags(self) -> int:
        return self.member(self.spec.kernel_at)

    @property
    def return_flags(self) -> int:
        return self.member(self.spec.return_at)


def role(world: World, kind: int) -> Client:
    name = i.name(b"the.name") if kind in (c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER) else b""
    return world.connect(flags=kind, items=name)


def raw(client: Client, number: int) -> int:
    """A command whose argument could not be read: what is checked before shows, else EBADF."""
    call = client.call(number, bytes(104))
    call.error = EBADF
    return client.run(call)


UNKNOWN = 0xC0089577
ENDPOINT_COMMANDS = (*(spec.number for spec in SPECS if spec.number != c.CMD_BUS_MAKE), c.CMD_BYEBYE)


def test_gen_1_a_fresh_endpoint_takes_only_endpoint_make_and_hello() -> None:
    """GEN-1"""
    client = World().open()
    for number in (*ENDPOINT_COMMANDS, c.CMD_BUS_MAKE, UNKNOWN):
        expected = -EBADF if number in (c.CMD_HELLO, c.CMD_ENDPOINT_MAKE) else -ENOTTY
        assert raw(client, number) == expected, hex(number)


def test_gen_1_a_connected_file_takes_everything_else() -> None:
    """GEN-1, GEN-2"""
    client = World().connect()
    refused = (c.CMD_HELLO, c.CMD_ENDPOINT_MAKE, c.CMD_ENDPOINT_UPDATE, c.CMD_BUS_MAKE, UNKNOWN)
    for number in (*ENDPOINT_COMMANDS, *refused):
        if number != c.CMD_BYEBYE:
            assert raw(client, number) == (-ENOTTY if number in refused else -EBADF), hex(number)
    assert raw(client, c.CMD_BYEBYE) == 0


def test_gen_1_an_endpoint_owner_takes_only_endpoint_update() -> None:
    """GEN-1, GEN-2"""
    client = World().open()
    assert client.make_endpoint(b"1000-ep") == 0
    for number in (*ENDPOINT_COMMANDS, c.CMD_BUS_MAKE, UNKNOWN):
        assert raw(client, number) == (-EBADF if number == c.CMD_ENDPOINT_UPDATE else -ENOTTY), hex(number)


def test_gen_2_hello_and_endpoint_make_work_once() -> None:
    """GEN-2"""
    world = World()
    client = world.connect()
    assert client.hello() == -ENOTTY
    assert client.make_endpoint(b"1000-ep") == -ENOTTY
    assert client.update_endpoint() == -ENOTTY
    owner = world.open()
    assert owner.update_endpoint() == -ENOTTY
    assert owner.make_endpoint(b"1000-ep") == 0
    assert owner.hello() == -ENOTTY
    assert owner.make_endpoint(b"1000-ep2") == -ENOTTY


@pytest.mark.parametrize("end", ["byebye", "bus"])
def test_gen_3_a_dead_connection_answers_econnreset_to_everything_but_byebye(end: str) -> None:
    """GEN-3"""
    world = World()
    client = world.connect()
    if end == "byebye":
        assert client.byebye() == 0
    else:
        world.control.close()
    for number in (*ENDPOINT_COMMANDS, UNKNOWN, 0):
        if number != c.CMD_BYEBYE:
            assert raw(client, number) == -ECONNRESET, hex(number)


ROLES = {
    0: set(ENDPOINT_COMMANDS),
    c.HELLO_ACTIVATOR: {c.CMD_RECV, c.CMD_FREE, c.CMD_NAME_LIST, c.CMD_CONN_INFO, c.CMD_BUS_CREATOR_INFO},
    c.HELLO_POLICY_HOLDER: {c.CMD_CONN_UPDATE, c.CMD_NAME_LIST, c.CMD_CONN_INFO, c.CMD_BUS_CREATOR_INFO},
    c.HELLO_MONITOR: {
        c.CMD_RECV,
        c.CMD_FREE,
        c.CMD_CONN_UPDATE,
        c.CMD_NAME_LIST,
        c.CMD_CONN_INFO,
        c.CMD_BUS_CREATOR_INFO,
    },
}


@pytest.mark.parametrize("kind", ROLES)
def test_gen_4_each_role_has_its_commands_and_the_argument_is_not_read_for_others(kind: int) -> None:
    """GEN-4"""
    client = role(World(), kind)
    for number in ENDPOINT_COMMANDS:
        if number in (c.CMD_HELLO, c.CMD_ENDPOINT_MAKE, c.CMD_ENDPOINT_UPDATE, c.CMD_BYEBYE):
            continue
        assert raw(client, number) == (-EBADF if number in ROLES[kind] else -EOPNOTSUPP), hex(number)
    assert raw(client, c.CMD_BYEBYE) == (0 if kind == 0 else -EOPNOTSUPP)


def test_gen_4_liveness_comes_before_the_role() -> None:
    """GEN-3, GEN-4: a dead monitor says ECONNRESET where a live one says EOPNOTSUPP, except for BYEBYE (BYE-4)."""
    world = World()
    monitor = role(world, c.HELLO_MONITOR)
    world.control.close()
    assert monitor.acquire(b"a.b") == -ECONNRESET
    assert monitor.byebye() == -EOPNOTSUPP


@each
def test_gen_5_an_unreadable_argument_is_efault(spec: Spec) -> None:
    """GEN-5: the channel reports what it could not copy; nothing is written then."""
    scene = Scene(spec)
    call = scene.call()
    call.error = EFAULT
    assert scene.client.run(call) == -EFAULT
    assert scene.kernel_flags == FLAGS_UNTOUCHED
    assert scene.return_flags == RETURN_UNTOUCHED


@each
def test_gen_6_a_struct_below_its_fixed_size_is_einval(spec: Spec) -> None:
    """GEN-6, GEN-10: and leaves kernel_flags and return_flags alone."""
    for size in (0, 8, spec.size - 1):
        scene = Scene(spec)
        assert scene.run(items=b"", size=size) == -EINVAL
        assert scene.kernel_flags == FLAGS_UNTOUCHED
        assert scene.return_flags == RETURN_UNTOUCHED


@each
def test_gen_7_a_struct_above_its_limit_is_emsgsize(spec: Spec) -> None:
    """GEN-6, GEN-7, GEN-10"""
    for size in (spec.max_size + 1, spec.max_size + 8, c.U64_MAX):
        scene = Scene(spec)
        assert scene.run(items=b"", size=size) == -EMSGSIZE
        assert scene.kernel_flags == FLAGS_UNTOUCHED
        assert scene.return_flags == RETURN_UNTOUCHED


@each
def test_gen_7_a_struct_of_exactly_its_limit_is_looked_at(spec: Spec) -> None:
    """GEN-7: with one unpadded item that fills it; the flags are negotiated whether it succeeds or not."""
    scene = Scene(spec)
    room = spec.max_size - spec.size
    item = bytearray(room)
    if room:
        pack_into("<QQ", item, 0, room, 0x4242)
    assert scene.run(items=bytes(item)) != -EMSGSIZE
    assert len(scene.client.last_call.command) == spec.max_size
    restored = spec.number == c.CMD_HELLO and scene.client.endpoint.connection is not None
    assert restored or scene.kernel_flags == spec.flags | 1 << 63


def test_gen_8_names_of_255_characters_can_be_asked_for() -> None:
    """GEN-8: the reference stops at 239."""
    client = World().connect()
    name = b"a." + b"b" * 253
    assert client.acquire(name) == 0
    assert client.conn_info(name=name) == 0
    assert client.conn_info(name=name + b"c") == -EMSGSIZE


@each
def test_gen_9_the_valid_flags_are_told_and_others_refused(spec: Spec) -> None:
    """GEN-9, GEN-15: the lowest bit outside the mask, bit 62 and the reserved bit 63 itself."""
    lowest = ~spec.flags & (spec.flags + 1)
    for bit in (lowest, 1 << 62, 1 << 63):
        scene = Scene(spec)
        assert scene.run(flags=spec.flags | bit) == -EINVAL
        assert scene.kernel_flags == spec.flags | 1 << 63


@each
def test_gen_10_flags_are_checked_before_items(spec: Spec) -> None:
    """GEN-10: ENAMETOOLONG of a bad item shows only with valid flags, and before the command proper."""
    if spec.max_size == spec.size:
        return
    bad = i.string(c.ITEM_MAKE_NAME, b"x" * 64)
    scene = Scene(spec)
    assert scene.run(items=bad, flags=1 << 62) == -EINVAL
    scene = Scene(spec)
    assert scene.run(items=bad) == -ENAMETOOLONG
    assert scene.kernel_flags == spec.flags | 1 << 63


@each
def test_gen_11_kernel_flags_that_cannot_be_stored_are_efault(spec: Spec) -> None:
    """GEN-11: of `_IOW` commands; the struct of an `_IOWR` command travels back with the answer."""
    scene = Scene(spec)
    call = scene.call()
    scene.process.writable = False
    assert scene.client.run(call) == (0 if spec.copies_out else -EFAULT)


@each
def test_gen_11_what_is_there_already_is_not_written(spec: Spec) -> None:
    """GEN-11: a struct that cannot be written to does where nothing would change."""
    scene = Scene(spec)
    call = scene.call()
    put(call, spec.kernel_at, spec.flags | 1 << 63)
    put(call, spec.return_at, 0)
    scene.process.writable = False
    assert scene.client.run(call) == 0


@each
def test_gen_12_return_flags_are_cleared_early_or_only_on_success(spec: Spec) -> None:
    """GEN-12, GEN-21"""
    scene = Scene(spec)
    assert scene.run(flags=1 << 62) == -EINVAL
    assert scene.return_flags == (0 if spec.early_return_flags else RETURN_UNTOUCHED)
    scene = Scene(spec)
    assert scene.run() == 0
    assert scene.return_flags == (RETURN_UNTOUCHED if spec.number == c.CMD_BUS_MAKE else 0)


def test_gen_12_recv_clears_return_flags_with_eoverflow_too() -> None:
    """GEN-12"""
    world = World()
    receiver, sender = world.connect(), world.connect()
    assert receiver.add_match(1) == 0
    for _ in range(33):
        assert sender.send(dst=c.DST_ID_BROADCAST, flags=c.MSG_SIGNAL, items=i.bloom_filter()) == 0
    call = receiver.call(c.CMD_RECV, bytes(72))
    put(call, 24, RETURN_UNTOUCHED)
    assert receiver.run(call) == -EOVERFLOW
    assert receiver.out(24) == 0


def test_gen_13_hello_gives_kernel_flags_back_as_they_came() -> None:
    """GEN-13: on success the copy from before the negotiation; on failure the mask."""
    spec = next(spec for spec in SPECS if spec.number == c.CMD_HELLO)
    scene = Scene(spec)
    assert scene.run() == 0
    assert scene.kernel_flags == FLAGS_UNTOUCHED
    scene = Scene(spec)
    pack_into("<Q", scene.fixed, 64, 0)
    assert scene.run() == -EFAULT
    assert scene.kernel_flags == 0xF | 1 << 63
    scene = Scene(spec)
    scene.world.make_bus(scene.world.open_control(scene.process), b"1000-strict", required=c.ATTACH_PIDS)
    scene.client = scene.world.open(scene.process, bus="1000-strict")
    assert scene.run() == -ECONNREFUSED
    assert scene.kernel_flags == 0xF | 1 << 63


def test_gen_14_name_acquire_gives_kernel_flags_back_as_they_came() -> None:
    """GEN-14: flags may gain IN_QUEUE, the items stay."""
    spec = next(spec for spec in SPECS if spec.number == c.CMD_NAME_ACQUIRE)
    scene = Scene(spec)
    assert scene.run(flags=c.NAME_ALLOW_REPLACEMENT) == 0
    assert scene.kernel_flags == FLAGS_UNTOUCHED
    assert scene.client.out(8) == c.NAME_ALLOW_REPLACEMENT
    assert scene.client.last[32:] == i.name(b"a.b")
    scene.client = scene.world.connect(scene.process)
    assert scene.run(flags=c.NAME_QUEUE) == 0
    assert scene.client.out(8) == c.NAME_QUEUE | c.NAME_IN_QUEUE
    assert scene.kernel_flags == FLAGS_UNTOUCHED
    assert scene.run(flags=1 << 3) == -EINVAL
    assert scene.kernel_flags == 0x7 | 1 << 63


def test_gen_15_message_flags_are_negotiated_separately() -> None:
    """GEN-15: SEND 0x1, its message 0x7."""
    client = World().connect()
    assert client.send(dst=client.id, flags=0x8) == -EINVAL
    assert client.out(24) == 0x7 | 1 << 63
    assert client.out(16) == 0x1 | 1 << 63


def test_gen_16_only_hello_update_and_bus_make_take_any_for_all() -> None:
    """GEN-16"""
    world = World()
    client = world.connect(send=c.ATTACH_ANY, recv=c.ATTACH_ANY)
    assert client.conn_info(id=client.id, flags=c.ATTACH_ANY) == -EINVAL
    assert client.command(c.CMD_BUS_CREATOR_INFO, b"\0" * 8 + b"\xff" * 8 + bytes(40)) == -EINVAL
    assert client.conn_info(id=client.id, flags=c.ATTACH_ALL) == 0
    flags = (c.ITEM_ATTACH_FLAGS_SEND, c.ITEM_ATTACH_FLAGS_RECV)
    assert client.update(b"".join(i.u64(kind, c.ATTACH_ANY) for kind in flags)) == 0
    control = world.open_control(FakeProcess())
    extra = i.u64(c.ITEM_ATTACH_FLAGS_SEND, c.ATTACH_ANY)
    assert world.make_bus(control, b"1000-b", required=c.ATTACH_ANY, extra=extra) == 0


@pytest.mark.parametrize("bad", [1 << 14, 1 << 63, c.ATTACH_ANY - 1, c.ATTACH_ALL | 1 << 20])
def test_gen_17_unknown_attach_flags_are_einval(bad: int) -> None:
    """GEN-17"""
    world = World()
    assert world.open().hello(send=bad) == -EINVAL
    assert world.open().hello(recv=bad) == -EINVAL
    client = world.connect()
    assert client.update(i.u64(c.ITEM_ATTACH_FLAGS_SEND, bad)) == -EINVAL
    assert client.update(i.u64(c.ITEM_ATTACH_FLAGS_RECV, bad)) == -EINVAL
    control = world.open_control(FakeProcess())
    assert world.make_bus(control, b"1000-b", required=bad) == -EINVAL
    extra = i.u64(c.ITEM_ATTACH_FLAGS_SEND, bad)
    assert world.make_bus(control, b"1000-b", extra=extra) == -EINVAL
    assert world.make_bus(control, b"1000-b") == 0


IGNORING = {
    c.CMD_NAME_ACQUIRE,
    c.CMD_NAME_RELEASE,
    c.CMD_CONN_INFO,
    c.CMD_BUS_CREATOR_INFO,
    c.CMD_RECV,
    c.CMD_ENDPOINT_MAKE,
    c.CMD_ENDPOINT_UPDATE,
}


@each
def test_gen_18_unknown_items_are_refused_by_some_and_ignored_by_others(spec: Spec) -> None:
    """GEN-18"""
    if spec.max_size == spec.size:
        return
    scene = Scene(spec)
    unknown = make_item(0x4242, b"odd")
    expected = 0 if spec.number in IGNORING else -EINVAL
    assert scene.run(items=scene.items + unknown) == expected
    if expected:
        assert scene.run() == 0, "the refusal left no trace"


def test_gen_18_unknown_items_in_a_message_are_refused() -> None:
    """GEN-18"""
    client = World().connect()
    assert client.send(dst=client.id, items=make_item(0x4242, b"odd")) == -EINVAL


def test_gen_19_no_struct_has_padding_or_pointers_of_another_size() -> None:
    """GEN-19: every fixed size is the one that 32 and 64 bit clients have, and part of the number."""
    for spec in SPECS:
        assert spec.number >> 16 & 0x3FFF == spec.size


def test_gen_20_a_blocked_send_does_not_block_its_file() -> None:
    """GEN-20"""
    world = World()
    client, peer = world.connect(), world.connect()
    deadline = world.host.clock.now + 10**9
    assert request(client, peer.id, 7, sync=True, timeout=deadline) == PENDING
    assert client.acquire(b"a.b") == 0
    assert client.send(dst=client.id) == 0
    assert client.receive().src_id == client.id
    assert request(client, peer.id, 8, sync=True, timeout=deadline) == PENDING
    assert peer.receive().cookie == 7
    assert peer.send(dst=client.id, cookie_reply=7) == 0
    assert [call.result for call in world.domain.completed] == [0]


def test_gen_21_privileged_commands_answer_with_errors_not_with_positive_numbers() -> None:
    """GEN-21"""
    assert World().open(FakeProcess(uid=2000)).make_endpoint(b"2000-ep") == -EPERM


@pytest.mark.parametrize("length", [0, 7])
def test_a_command_without_its_size_is_refused(length: int) -> None:
    """No channel gives less than the fixed part; less is refused with an errno, without a traceback."""
    call = Call()
    call.data = bytes(length)
    with pytest.raises(CommandError) as refused:
        V3().decode(k.NAME_ACQUIRE, call)
    assert refused.value.errno == EFAULT

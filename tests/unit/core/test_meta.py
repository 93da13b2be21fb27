"""Metadata of messages (META) and the system-wide mask (MASK)."""

from __future__ import annotations

from errno import EFAULT
from struct import pack, unpack

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.call import PENDING
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, MessageFields, Received, World
from tests.support.fake_host import OVERFLOW_ID

NONE = 0xFFFFFFFF
DESCRIPTION = i.string(c.ITEM_CONN_DESCRIPTION, b"sender")
BROADCAST: MessageFields = {"dst": c.DST_ID_BROADCAST, "flags": c.MSG_SIGNAL, "items": i.bloom_filter()}
ORDER = [
    c.ITEM_CREDS,
    c.ITEM_PIDS,
    c.ITEM_AUXGROUPS,
    c.ITEM_TID_COMM,
    c.ITEM_PID_COMM,
    c.ITEM_EXE,
    c.ITEM_CMDLINE,
    c.ITEM_CGROUP,
    c.ITEM_CAPS,
    c.ITEM_SECLABEL,
    c.ITEM_AUDIT,
    c.ITEM_OWNED_NAME,
    c.ITEM_CONN_DESCRIPTION,
    c.ITEM_TIMESTAMP,
]


@pytest.fixture
def world() -> World:
    """A world where the mask lets everything through."""
    world = World()
    world.domain.attach_flags_mask = c.ATTACH_ALL
    return world


def full_sender(world: World, send: int = c.ATTACH_ALL) -> Client:
    process = FakeProcess(seclabel=b"label", audit=(3, 4), aux=(7, 8))
    sender = world.connect(process, items=DESCRIPTION, send=send)
    assert sender.acquire(b"a.b") == 0
    return sender


def passed(sender: Client, receiver: Client) -> Received:
    """A message from one to the other."""
    assert sender.send(dst=receiver.id) == 0
    return receiver.receive()


def test_meta_1_items_have_one_order(world: World) -> None:
    """META-1: TIMESTAMP last."""
    assert passed(full_sender(world), world.connect(recv=c.ATTACH_ALL)).kinds() == ORDER


@pytest.mark.parametrize("bit", range(14))
def test_meta_2_a_kind_needs_sender_receiver_and_mask(world: World, bit: int) -> None:
    """META-2"""
    flag, kind = 1 << bit, c.ITEM_TIMESTAMP + bit
    rest = c.ATTACH_ALL & ~flag
    sender, shy = full_sender(world), world.connect(send=rest)
    receiver = world.connect(recv=flag)
    assert passed(sender, receiver).kinds() == [kind]
    assert passed(sender, world.connect(recv=rest)).kinds() == [other for other in ORDER if other != kind]
    assert passed(shy, receiver).kinds() == []
    world.domain.attach_flags_mask = rest
    assert passed(sender, receiver).kinds() == []


def test_meta_3_process_items_are_of_the_sending_thread_then(world: World) -> None:
    """META-3: not of HELLO, and they outlive the thread."""
    process = FakeProcess(uid=1000, pid=50)
    sender, receiver = world.connect(process), world.connect(recv=c.ATTACH_CREDS | c.ATTACH_PIDS)
    process.euid, process.pid = 5, 60
    assert sender.send(dst=receiver.id) == 0
    process.alive, process.pid = False, 70
    message = receiver.receive()
    assert message.item(c.ITEM_CREDS) == pack("<8I", 1000, 5, 5, 5, *[1000] * 4)
    assert message.item(c.ITEM_PIDS) == pack("<QQQ", 60, 60, 1)


def test_meta_4_recv_flags_narrow_at_dequeue_and_never_widen(world: World) -> None:
    """META-4"""
    sender, receiver = full_sender(world), world.connect(recv=c.ATTACH_CREDS | c.ATTACH_NAMES)
    for _ in range(2):
        assert sender.send(dst=receiver.id) == 0
    recv = c.ITEM_ATTACH_FLAGS_RECV
    assert receiver.update(i.u64(recv, c.ATTACH_NAMES | c.ATTACH_PIDS)) == 0
    assert receiver.receive().kinds() == [c.ITEM_OWNED_NAME]
    assert receiver.update(i.u64(recv, c.ATTACH_ALL)) == 0
    assert receiver.receive().kinds() == [c.ITEM_CREDS, c.ITEM_OWNED_NAME]


def test_meta_4_the_senders_flags_count_when_it_sends(world: World) -> None:
    """META-2, META-4"""
    sender, receiver = full_sender(world), world.connect(recv=c.ATTACH_CREDS)
    assert sender.send(dst=receiver.id) == 0
    assert sender.update(i.u64(c.ITEM_ATTACH_FLAGS_SEND, 0)) == 0
    assert receiver.receive().kinds() == [c.ITEM_CREDS]
    assert passed(sender, receiver).kinds() == []


def test_meta_4_a_broadcasts_copy_that_came_before_any_wish_stays_without(world: World) -> None:
    """META-4: kdbus would show what was gathered for others; here as far as somebody before it wanted any."""
    sender = full_sender(world)
    before, asking, after = (world.connect(recv=recv) for recv in (0, c.ATTACH_CREDS, 0))
    for receiver in (before, asking, after):
        assert receiver.add_match(1) == 0
    assert sender.send(**BROADCAST) == 0
    for receiver in (before, after):
        assert receiver.update(i.u64(c.ITEM_ATTACH_FLAGS_RECV, c.ATTACH_ALL)) == 0
    assert [client.receive().kinds() for client in (before, asking, after)] == [[], [c.ITEM_CREDS], [c.ITEM_CREDS]]


def test_meta_5_the_default_mask(world: World) -> None:
    """META-5: TIMESTAMP, CREDS, PIDS, AUXGROUPS, NAMES, SECLABEL, CONN_DESCRIPTION; applied at export only."""
    fresh = World()
    assert fresh.domain.attach_flags_mask == 0x281F
    expected = [kind for kind in ORDER if 0x281F >> (kind - c.ITEM_TIMESTAMP) & 1]
    assert passed(full_sender(fresh), fresh.connect(recv=c.ATTACH_ALL)).kinds() == expected


def test_meta_6_creds_as_the_reader_sees_them(world: World) -> None:
    """META-6: eight ids; the overflow id for unmapped ones, -1 for none."""
    faked = world.connect(items=i.creds(1, 2, 3, NONE, 1, 9, NONE, 2))
    reader = world.connect(FakeProcess(uid_map={100: 1, 102: 2}, user_ns=2))
    assert reader.conn_info(id=faked.id, flags=c.ATTACH_CREDS) == 0
    offset = reader.out(40)
    item = bytes(reader.pool[offset + 24 : offset + 24 + 48])
    ids = (100, 102, OVERFLOW_ID, NONE, 100, OVERFLOW_ID, NONE, 102)
    assert item == pack("<QQ", 48, c.ITEM_CREDS) + pack("<8I", *ids)


def test_meta_7_pids_as_the_reader_sees_them(world: World) -> None:
    """META-7: 0 for each that its namespace does not show."""
    sender = world.connect(FakeProcess(pid=50))
    inside = world.connect(FakeProcess(pid_ns=2), recv=c.ATTACH_PIDS)
    outside = world.connect(recv=c.ATTACH_PIDS)
    assert passed(sender, outside).item(c.ITEM_PIDS) == pack("<QQQ", 50, 50, 1)
    assert passed(sender, inside).item(c.ITEM_PIDS) == pack("<QQQ", 0, 0, 0)


def test_meta_8_auxgroups_may_be_none_at_all(world: World) -> None:
    """META-8: an empty item then; unmapped ones are the overflow gid."""
    some, none = world.connect(FakeProcess(aux=(5, 6, 7))), world.connect(FakeProcess())
    reader = world.connect(recv=c.ATTACH_AUXGROUPS)
    assert passed(some, reader).item(c.ITEM_AUXGROUPS) == pack("<III", 5, 6, 7)
    assert passed(none, reader).item(c.ITEM_AUXGROUPS) == b""
    foreign = world.connect(FakeProcess(uid_map={1: 6, 0: 1000}, user_ns=2), recv=c.ATTACH_AUXGROUPS)
    assert passed(some, foreign).item(c.ITEM_AUXGROUPS) == pack("<III", OVERFLOW_ID, 1, OVERFLOW_ID)


def test_meta_9_to_12_strings_end_with_a_nul(world: World) -> None:
    """META-9, META-11, META-12, META-14"""
    message = passed(full_sender(world), world.connect(recv=c.ATTACH_ALL))
    strings = (c.ITEM_TID_COMM, c.ITEM_PID_COMM, c.ITEM_EXE, c.ITEM_CMDLINE, c.ITEM_CGROUP, c.ITEM_SECLABEL)
    assert [message.item(kind) for kind in strings] == [
        b"fake\0",
        b"fake\0",
        b"/bin/fake\0",
        b"fake\0",
        b"/\0",
        b"label\0",
    ]


def test_meta_10_exe_needs_the_same_root(world: World) -> None:
    """META-10"""
    sender = world.connect()
    for root, expected in (("root", [c.ITEM_EXE]), ("chroot", [])):
        assert passed(sender, world.connect(FakeProcess(root=root), recv=c.ATTACH_EXE)).kinds() == expected


def test_meta_13_caps_need_the_same_user_namespace(world: World) -> None:
    """META-13: an item of 52 bytes."""
    sender = world.connect()
    message = passed(sender, world.connect(recv=c.ATTACH_CAPS))
    assert (len(message.item(c.ITEM_CAPS)), message.size) == (36, 64 + 56)
    assert passed(sender, world.connect(FakeProcess(user_ns=2), recv=c.ATTACH_CAPS)).kinds() == []


def test_meta_14_seclabel_and_audit_may_be_missing(world: World) -> None:
    """META-14, META-21"""
    reader = world.connect(recv=c.ATTACH_SECLABEL | c.ATTACH_AUDIT)
    assert passed(world.connect(), reader).kinds() == []
    assert passed(world.connect(FakeProcess(audit=(9, NONE))), reader).item(c.ITEM_AUDIT) == pack(
        "<II", 9, NONE
    )
    sender = world.connect(FakeProcess(audit=(NONE, 1000)))
    assert passed(sender, reader).item(c.ITEM_AUDIT) == pack("<II", NONE, 1000)
    for uid_map, expected in (({7: 1000}, 7), ({0: 5}, NONE)):
        foreign = world.connect(FakeProcess(uid_map=uid_map, user_ns=2), recv=c.ATTACH_AUDIT)
        assert passed(sender, foreign).item(c.ITEM_AUDIT) == pack("<II", NONE, expected)


def test_meta_15_owned_names_are_those_of_the_moment_of_sending(world: World) -> None:
    """META-15: in order of acquisition, with flags; not the ones it waits for."""
    sender, receiver = world.connect(), world.connect(recv=c.ATTACH_NAMES)
    assert receiver.acquire(b"wanted.name") == 0
    assert sender.acquire(b"wanted.name", c.NAME_QUEUE) == 0
    assert passed(sender, receiver).kinds() == []
    assert sender.acquire(b"z.z", c.NAME_ALLOW_REPLACEMENT | c.NAME_QUEUE) == sender.acquire(b"a.b") == 0
    assert sender.send(dst=receiver.id) == 0
    assert sender.release_name(b"z.z") == sender.acquire(b"c.d") == 0
    message = receiver.receive()
    both = c.NAME_ALLOW_REPLACEMENT | c.NAME_QUEUE
    assert message.items == [
        (c.ITEM_OWNED_NAME, pack("<Q", both) + b"z.z\0"),
        (c.ITEM_OWNED_NAME, pack("<Q", 0) + b"a.b\0"),
    ]
    assert message.size == 64 + 32 + 32
    assert sender.acquire(b"z.z") == 0
    names = [payload[8:] for _, payload in passed(sender, receiver).items]
    assert names == [b"a.b\0", b"c.d\0", b"z.z\0"]


def test_meta_16_the_description_is_that_of_hello(world: World) -> None:
    """META-16"""
    receiver = world.connect(recv=c.ATTACH_CONN_DESCRIPTION)
    assert passed(world.connect(items=DESCRIPTION), receiver).item(c.ITEM_CONN_DESCRIPTION) == b"sender\0"
    assert passed(world.connect(), receiver).kinds() == []


def test_meta_17_one_timestamp_for_all_receivers(world: World) -> None:
    """META-17"""
    sender = world.connect()
    monitor = world.connect(flags=c.HELLO_MONITOR, recv=c.ATTACH_TIMESTAMP)
    receivers = [world.connect(recv=c.ATTACH_TIMESTAMP) for _ in range(2)]
    for receiver in receivers:
        assert receiver.add_match(1) == 0
    while monitor.recv() == 0:
        pass
    world.host.clock.now = 5_000_000_000
    assert sender.send(**BROADCAST) == 0
    world.host.clock.now += 100
    stamps = [client.receive().item(c.ITEM_TIMESTAMP) for client in (monitor, *receivers)]
    assert stamps[0] == stamps[1] == stamps[2]
    _, monotonic, realtime = unpack("<QQQ", stamps[0])
    assert (monotonic, realtime) == (5_000_000_000, 5_000_000_000 + 10**18)


def test_meta_18_a_faked_identity_sends_no_process_items(world: World) -> None:
    """META-18: to nobody, also not to monitors or in broadcasts."""
    faked = world.connect(items=i.creds(*[1] * 8) + DESCRIPTION)
    assert faked.acquire(b"a.b") == 0
    expected = [c.ITEM_OWNED_NAME, c.ITEM_CONN_DESCRIPTION, c.ITEM_TIMESTAMP]
    receiver = world.connect(recv=c.ATTACH_ALL)
    assert receiver.add_match(1, i.u64(c.ITEM_ID, faked.id)) == 0
    monitor = world.connect(flags=c.HELLO_MONITOR, recv=c.ATTACH_ALL)
    assert passed(faked, receiver).kinds() == monitor.receive().kinds() == expected
    assert faked.send(**BROADCAST) == 0
    assert receiver.receive().kinds() == monitor.receive().kinds() == expected


@pytest.mark.parametrize(
    ("recv", "mask", "stamped"),
    [(c.ATTACH_ALL, c.ATTACH_ALL, True), (0, c.ATTACH_ALL, False), (c.ATTACH_ALL, 0, False)],
)
def test_meta_19_notifications_carry_only_a_timestamp(
    world: World, recv: int, mask: int, stamped: bool
) -> None:
    """META-19: on request."""
    watcher = world.connect(recv=recv)
    assert watcher.add_match(1) == 0
    world.connect()
    world.domain.attach_flags_mask = mask
    assert watcher.receive().kinds() == [c.ITEM_ID_ADD] + [c.ITEM_TIMESTAMP] * stamped


def test_meta_20_translation_is_for_who_receives(world: World) -> None:
    """META-20: not for the process that made the connection."""
    sender, receiver = world.connect(FakeProcess(uid=1000)), world.connect(recv=c.ATTACH_CREDS)
    assert sender.send(dst=receiver.id) == 0
    receiver.process = FakeProcess(uid_map={3: 1000}, user_ns=2)
    assert receiver.receive().item(c.ITEM_CREDS) == pack("<8I", *[3] * 8)


def test_meta_20_also_for_the_reply_of_a_blocked_send(world: World) -> None:
    """META-20"""
    asking = FakeProcess(uid_map={3: 1000}, user_ns=2)
    client, peer = world.connect(asking, recv=c.ATTACH_CREDS), world.connect(FakeProcess(uid=1000))
    timeout = world.host.clock.now + 10**9
    request: MessageFields = {"dst": peer.id, "cookie": 9, "cookie_reply": timeout, "flags": c.MSG_EXPECT_REPLY}
    assert client.send(send_flags=c.SEND_SYNC_REPLY, **request) == PENDING
    peer.receive()
    assert peer.send(dst=client.id, cookie_reply=9) == 0
    (call,) = world.domain.completed
    assert call.result == 0
    offset, size, _ = unpack("<QQQ", call.returned(72)[48:])
    assert client.read_message(offset, size, 0).item(c.ITEM_CREDS) == pack("<8I", *[3] * 8)


def test_meta_21_what_cannot_be_had_fails_a_unicast_only(world: World) -> None:
    """META-21, SEND-39: broadcasts and monitors get the message without it."""
    process = FakeProcess()
    sender, receiver = world.connect(process), world.connect(recv=c.ATTACH_CMDLINE | c.ATTACH_TIMESTAMP)
    process.failing = c.ATTACH_CMDLINE
    assert sender.send(dst=receiver.id) == -EFAULT
    assert receiver.add_match(1) == 0
    assert sender.send(**BROADCAST) == 0
    assert c.ITEM_CMDLINE not in receiver.receive().kinds()
    monitor = world.connect(flags=c.HELLO_MONITOR, recv=c.ATTACH_ALL)
    other = world.connect()
    assert monitor.receive().kinds()[0] == c.ITEM_ID_ADD
    assert sender.send(dst=other.id) == 0
    assert c.ITEM_CMDLINE not in monitor.receive().kinds()


def test_meta_22_sequence_numbers_count_sends_and_notifications_from_1() -> None:
    """META-22: of the whole domain, failed SENDs that were valid included."""
    world = World()
    first = world.connect(recv=c.ATTACH_TIMESTAMP)  # 1: its ID_ADD
    assert world.make_bus(world.open_control(FakeProcess()), b"1000-other") == 0
    other = world.open(bus="1000-other")
    assert other.hello() == 0  # 2

    def seqnum() -> int:
        value: int = unpack("<QQQ", passed(first, first).item(c.ITEM_TIMESTAMP))[0]
        return value

    assert seqnum() == 3
    assert other.send(dst=other.id) == 0  # 4
    assert first.send(dst=99) < 0  # 5
    assert first.send(dst=first.id, payload_type=0) < 0  # not valid: no number
    assert first.send(**BROADCAST) == 0  # 6
    assert seqnum() == 7


def test_mask_1_the_mask_acts_on_what_is_queued_already(world: World) -> None:
    """MASK-1: in both directions for kinds that are not read from the process; and for CONN_INFO."""
    sender, receiver = full_sender(world), world.connect(recv=c.ATTACH_ALL)
    assert sender.send(dst=receiver.id) == 0
    world.domain.attach_flags_mask = c.ATTACH_NAMES
    assert receiver.receive().kinds() == [c.ITEM_OWNED_NAME]
    world.domain.attach_flags_mask = 0
    assert sender.send(dst=receiver.id) == 0
    world.domain.attach_flags_mask = c.ATTACH_ALL
    assert receiver.receive().kinds() == [c.ITEM_OWNED_NAME, c.ITEM_CONN_DESCRIPTION, c.ITEM_TIMESTAMP]


def test_mask_1_no_effect_on_negotiation_and_requirements(world: World) -> None:
    """MASK-1, BUS-13"""
    world.domain.attach_flags_mask = 0
    control = world.open_control(FakeProcess())
    assert world.make_bus(control, b"1000-x", required=c.ATTACH_ANY) == 0
    client = world.open(bus="1000-x")
    assert client.hello(send=0) < 0
    assert client.hello(send=c.ATTACH_ALL, free=False) == 0
    assert client.out(32) == c.ATTACH_ALL | 1 << 63
    assert client.conn_info(id=client.id, flags=c.ATTACH_ALL) == 0
    assert client.out(48) == 24


def test_mask_1_bits_that_mean_nothing_do_no_harm(world: World) -> None:
    """MASK-1: the parameter is any u64."""
    world.domain.attach_flags_mask = c.U64_MAX
    assert passed(full_sender(world), world.connect(recv=c.ATTACH_ALL)).kinds() == ORDER


def test_mask_2_each_domain_has_its_own() -> None:
    """MASK-2"""
    first, second = World(), World()
    first.domain.attach_flags_mask = 0
    assert second.domain.attach_flags_mask == 0x281F

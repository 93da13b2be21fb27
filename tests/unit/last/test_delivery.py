"""How messages lie in the pool, what they are accounted to, and how they are received (L-73 to L-105)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, EMFILE, ENOBUFS, ENXIO, EXFULL
from struct import pack, unpack_from

from kdbusfs.abi.last import constants as c
from kdbusfs.abi.last.items import make_item
from kdbusfs.abi.v3 import constants as v3
from kdbusfs.base.call import PENDING
from kdbusfs.base.identity import NO_ID
from tests.support import core_scenes
from tests.support.core_client import POOL_SIZE, Client
from tests.support.fake_host import FakeFile, FakeProcess
from tests.support.last_client import (
    NOTHING,
    LastClient,
    LastWorld,
    bloom,
    dst_name,
    name_item,
    pass_files,
    pass_memfd,
    u64_item,
)

Pair = tuple[LastClient, LastClient]


def fill(sender: LastClient, receiver: LastClient, size: int) -> int:
    """Send so many bytes that the whole slice, with a header and one item, is of `size`; the result."""
    return sender.send(dst=receiver.id, items=sender.vec(bytes(size - 96)))


# Quota


def test_l_73_74_76_a_third_of_what_is_left_of_half(world: LastWorld) -> None:
    """The example of L-76, for a pool of 1 MiB instead of 16."""
    receiver = world.last()
    half = POOL_SIZE // 2
    first, second = (world.last(FakeProcess(uid=uid, ipc_owner=True)) for uid in (2000, 2001))
    third = half // 3 & ~7
    assert fill(first, receiver, third + 8) == -ENOBUFS
    assert fill(first, receiver, third) == 0
    assert fill(first, receiver, 96 + 8) == -ENOBUFS  # never more than that in all
    rest = (half - third) // 3 & ~7
    assert fill(second, receiver, rest + 8) == -ENOBUFS
    assert fill(second, receiver, rest) == 0
    # Another connection of the same user has the same share.
    again = world.last(FakeProcess(uid=2000, ipc_owner=True))
    assert fill(again, receiver, 96 + 8) == -ENOBUFS
    receiver.drain()
    assert fill(again, receiver, third) == 0


def test_l_74_the_whole_slice_counts(world: LastWorld) -> None:
    receiver, sender = world.last(recv=c.ATTACH_TIMESTAMP), world.last()
    third = POOL_SIZE // 2 // 3 & ~7
    assert fill(sender, receiver, third) == -ENOBUFS  # which the 40 bytes of the timestamp do not fit into
    assert fill(sender, receiver, third - 40) == 0


def test_l_75_messages_and_descriptors_of_a_user(world: LastWorld) -> None:
    receiver, sender = world.last(), world.last()
    other = world.last(FakeProcess(uid=2000, ipc_owner=True))
    files = pass_files(sender.process, *[FakeFile()] * 9)
    assert sender.send(dst=receiver.id, items=files) == 0
    assert sender.send(dst=receiver.id, items=files) == -EMFILE
    assert sender.send(dst=receiver.id, items=pass_memfd(sender.process, 8) * 16) == 0  # they do not count
    for _ in range(254):
        assert sender.send(dst=receiver.id) == 0
    assert sender.send(dst=receiver.id) == -ENOBUFS
    assert other.send(dst=receiver.id) == 0
    assert receiver.recv() == 0
    assert sender.send(dst=receiver.id, items=files) == 0


def test_l_77_what_is_received_does_not_count_any_more(world: LastWorld) -> None:
    receiver, sender = world.last(), world.last()
    third = POOL_SIZE // 2 // 3 & ~7
    offsets = []
    for _ in range(4):
        assert fill(sender, receiver, third) == 0
        offsets.append(receiver.receive().offset)  # and not freed
    assert receiver.recv(flags=c.RECV_PEEK) == -EAGAIN
    assert fill(sender, receiver, third) == 0
    assert receiver.recv(flags=c.RECV_PEEK) == 0
    assert fill(sender, receiver, 200) == -ENOBUFS  # a peek ends nothing
    assert receiver.recv(flags=c.RECV_DROP) == 0
    assert fill(sender, receiver, 200) == 0
    for offset in offsets:
        assert receiver.free(offset) == 0


def test_l_78_79_no_room_is_exfull_and_costs_nothing(world: LastWorld) -> None:
    receiver, sender = world.last(pool_size=8192), world.last()
    taken = [receiver.receive().offset for _ in range(8) if fill(sender, receiver, 1000) == 0]
    assert len(taken) == 8
    assert fill(sender, receiver, 1000) == -EXFULL
    assert receiver.conn_info(id=receiver.id, flags=c.ATTACH_ANY) == -EXFULL
    assert receiver.free(taken.pop()) == 0
    for _ in range(300):
        assert fill(sender, receiver, 1200) == -EXFULL  # would be ENOBUFS if each were accounted (L-79)
    assert fill(sender, receiver, 1000) == 0


def test_l_80_a_quota_that_is_used_up_loses_broadcasts(world: LastWorld) -> None:
    receiver, sender = world.last(), world.last()
    monitor = world.last(flags=c.HELLO_MONITOR)
    assert receiver.add_match(1) == 0
    for _ in range(258):
        assert sender.signal() == 0
    assert receiver.connection.traffic.lost == 2
    assert monitor.connection.traffic.lost == 2


def test_l_80_the_answer_of_a_call_is_accounted_until_it_is_there(world: LastWorld) -> None:
    caller, service = world.last(), world.last()
    assert caller.request(service.id, 7, sync=True) == PENDING
    for number in range(256):
        assert service.send(dst=caller.id, cookie=number) == 0
    assert service.drain()
    assert service.reply(caller.id, 7) == -ENOBUFS
    (done,) = world.domain.completed
    assert done.result == -ENOBUFS


def test_l_81_a_take_over_is_charged_to_who_takes(world: LastWorld) -> None:
    activator = world.last(flags=c.HELLO_ACTIVATOR, items=name_item(b"a.b"))
    sender, service = world.last(), world.last(pool_size=8192)
    for number in range(4):
        assert sender.send(items=dst_name(b"a.b") + sender.vec(bytes(500)), cookie=number) == 0
    assert service.acquire(b"a.b") == 0
    assert service.recv() == 0
    assert service.lost == 2
    assert service.last_message().cookie == 0
    assert service.cookies() == [1]
    assert core_scenes.at_rest(activator)
    assert sender.send(items=dst_name(b"a.b"), cookie=9) == 0
    assert service.release_name(b"a.b") == 0
    assert activator.cookies() == [9]
    for _ in range(256):
        assert sender.send(items=dst_name(b"a.b")) == 0
    assert sender.send(items=dst_name(b"a.b")) == -ENOBUFS


# Layout


def test_l_83_84_85_88_89_one_slice_in_the_order_of_the_sender(world: LastWorld) -> None:
    sender, receiver = world.last(), world.last()
    assert receiver.add_match(1) == 0
    assert receiver.acquire(b"a.bcd") == 0
    receiver.drain()
    items = (
        sender.vec(b"one")
        + bloom(5, generation=2)
        + pass_files(sender.process, FakeFile())
        + sender.vec(b"three")
        + dst_name(b"a.bcd")
    )
    body = sender.message(flags=c.MSG_SIGNAL, priority=-3, cookie=9, items=items)
    assert sender.send_raw(body) == 0
    message = receiver.receive()
    kinds = [c.ITEM_PAYLOAD_OFF, c.ITEM_BLOOM_FILTER, c.ITEM_FDS, c.ITEM_PAYLOAD_OFF, c.ITEM_DST_NAME]
    assert message.kinds() == kinds
    assert receiver.payloads(message) == [b"one", b"three"]
    assert message.item(c.ITEM_BLOOM_FILTER) == pack("<Q", 2) + (5).to_bytes(64, "little")
    assert message.item(c.ITEM_FDS) == pack("<i", -1)
    size = 64 + 32 + 88 + 24 + 32 + 16 + len(b"a.bcd") + 1  # without the padding of the name
    assert message.header == (size, c.MSG_SIGNAL, -3, 0, sender.id, c.PAYLOAD_DBUS, 9, 0)
    first = message.items[0][1]
    assert unpack_from("<QQ", first) == (3, size + -size % 8)
    assert message.size == size + -size % 8 + 8
    assert message.installation is not None
    assert message.installation.flags_offset == 56


def test_l_88_metadata_end_without_padding(world: LastWorld) -> None:
    receiver = world.last(recv=c.ATTACH_ALL)
    sender = world.last(items=make_item(c.ITEM_CONN_DESCRIPTION, b"desc\0"))
    for wanted in (c.ATTACH_ALL, c.ATTACH_ALL & ~c.ATTACH_TIMESTAMP, c.ATTACH_CGROUP, c.ATTACH_NAMES):
        assert receiver.update(u64_item(c.ITEM_ATTACH_FLAGS_RECV, wanted)) == 0
        assert sender.send(dst=receiver.id, items=sender.vec(b"payload")) == 0
        (message,) = receiver.drain()  # which compares the size with the end of the last item
        assert receiver.payloads(message) == [b"payload"]
        assert sender.acquire(b"a.b") == 0


def test_l_86_87_zeros_and_odd_memfds(pair: Pair) -> None:
    sender, receiver = pair
    zeros = make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 13, 0))
    items = zeros + sender.vec(b"x") + pass_memfd(sender.process, 3) + sender.vec(b"y")
    assert sender.send(dst=receiver.id, items=items) == 0
    (message,) = receiver.drain()
    assert receiver.payloads(message) == [None, b"x", b"y"]
    assert unpack_from("<QQ", message.items[0][1]) == (13, c.U64_MAX)
    head = message.header[0]
    assert unpack_from("<QQ", message.items[1][1])[1] == head + 5
    assert unpack_from("<QQ", message.items[3][1])[1] == head + 5 + 1 + 3
    assert message.size == head + 16


def test_l_90_91_descriptors(world: LastWorld) -> None:
    sender, receiver = world.last(), world.last()
    one, two, memfd = FakeFile(), FakeFile(), FakeFile(seal_bits=15, length=8)
    items = pass_memfd(sender.process, 8, file=memfd) + pass_files(sender.process, one, two)
    assert sender.send(dst=receiver.id, items=items) == 0
    peeked = receiver.receive(flags=c.RECV_PEEK)
    assert peeked.installation is None
    assert peeked.item(c.ITEM_FDS) == pack("<ii", -1, -1)
    assert unpack_from("<i", peeked.item(c.ITEM_PAYLOAD_MEMFD), 16)[0] == -1
    message = receiver.receive()
    assert message.installation is not None
    entries = message.installation.entries
    assert [file for file, _, _ in entries] == [one, two, memfd]  # descriptors first
    start = message.offset
    assert [at - start for _, _, at in entries] == [64 + 40 + 16, 64 + 40 + 20, 64 + 32]
    message.installation.done()
    deaf = world.last(flags=0)
    assert sender.send(dst=deaf.id, items=pass_memfd(sender.process, 8)) == 0
    installation = deaf.receive().installation
    assert installation is not None
    assert len(installation.entries) == 1


# RECV and FREE


def test_l_92_nothing_is_where_the_pool_ends(pair: Pair) -> None:
    client, other = pair
    assert client.recv() == -EAGAIN
    assert (client.out(40), client.out(48), client.out(56)) == (NOTHING, 0, 0)
    assert other.send(dst=client.id) == 0
    assert client.recv(flags=c.RECV_DROP) == 0
    assert (client.out(40), client.out(48), client.out(56)) == (NOTHING, 0, 0)
    assert client.free(NOTHING) == 0
    for offset in (0, NOTHING - 8, NOTHING + 8, c.U64_MAX):
        assert client.free(offset) == -ENXIO


def test_l_93_nothing_as_urgent_is_eagain(pair: Pair) -> None:
    client, other = pair
    assert other.send(dst=client.id, priority=5, cookie=1) == 0
    assert client.recv(flags=c.RECV_USE_PRIORITY, priority=4) == -EAGAIN
    assert client.out(40) == NOTHING
    assert other.send(dst=client.id, priority=-5, cookie=2) == 0
    assert client.receive(flags=c.RECV_USE_PRIORITY, priority=5).cookie == 2


def test_l_94_96_what_was_lost_is_told_of_with_the_next_message(world: LastWorld) -> None:
    client, other = world.last(), world.last()
    client.connection.lose()
    client.connection.lose()
    assert client.recv() == -EAGAIN
    assert client.lost == 2
    assert client.recv() == -EAGAIN
    assert client.lost == 0
    for flags in (0, c.RECV_DROP, c.RECV_PEEK, c.RECV_USE_PRIORITY):
        assert other.send(dst=client.id, cookie=3) == 0
        client.connection.lose()
        assert client.recv(flags=1 << 20) == -EINVAL  # tells nothing
        assert client.recv(flags=flags) == 0
        assert client.lost == 1
        if flags != c.RECV_DROP:
            assert client.last_message().cookie == 3
    assert client.connection.traffic.lost == 0
    assert client.connection.traffic.lost_before == 6


def test_l_97_peek_shows_the_message_itself(pair: Pair) -> None:
    client, other = pair
    assert other.send(dst=client.id, items=other.vec(b"payload")) == 0
    offsets = {client.receive(flags=c.RECV_PEEK).offset for _ in range(3)}
    assert len(offsets) == 1
    (offset,) = offsets
    assert client.free(offset) == 0
    assert client.free(offset) == -ENXIO
    message = client.receive()
    assert message.offset == offset
    assert client.payloads(message) == [b"payload"]
    assert client.free(offset) == 0
    assert core_scenes.at_rest(client)
    assert other.send(dst=client.id) == 0
    offset = client.receive(flags=c.RECV_PEEK).offset
    assert client.recv(flags=c.RECV_DROP) == 0
    assert client.connection.pool.slices == 1
    assert client.free(offset) == 0
    assert core_scenes.at_rest(client)


# Metadata


def test_l_100_metadata_are_as_they_were_at_send(world: LastWorld) -> None:
    receiver = world.last(recv=c.ATTACH_CREDS)
    sender = world.last()
    assert sender.send(dst=receiver.id) == 0
    assert receiver.update(u64_item(c.ITEM_ATTACH_FLAGS_RECV, c.ATTACH_PIDS)) == 0
    assert sender.send(dst=receiver.id) == 0
    assert [message.kinds() for message in receiver.drain()] == [[c.ITEM_CREDS], [c.ITEM_PIDS]]


def test_l_102_widths_and_order(world: LastWorld) -> None:
    process = FakeProcess(uid=1000, gid=7, aux=(7, 8, 9), seclabel=b"label", audit=(3, 4), pid=55)
    sender = world.last(process, items=make_item(c.ITEM_CONN_DESCRIPTION, b"me\0"))
    receiver = world.last(recv=c.ATTACH_ANY)
    assert sender.acquire(b"a.b") == 0
    assert sender.send(dst=receiver.id) == 0
    (message,) = receiver.drain()
    assert message.kinds() == [
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
    assert message.item(c.ITEM_CREDS) == pack("<8Q", *[1000] * 4, *[7] * 4)
    assert message.item(c.ITEM_PIDS) == pack("<3Q", 55, 55, 1)
    assert message.item(c.ITEM_AUXGROUPS) == pack("<3Q", 7, 8, 9)
    assert len(message.item(c.ITEM_CAPS)) == 36
    assert message.item(c.ITEM_AUDIT) == pack("<II", 3, 4)
    assert message.item(c.ITEM_OWNED_NAME) == pack("<Q", c.NAME_PRIMARY) + b"a.b\0"
    assert message.item(c.ITEM_CONN_DESCRIPTION) == b"me\0"


def test_l_103_104_what_a_sender_cannot_withhold(world: LastWorld) -> None:
    basic = [c.ITEM_CREDS, c.ITEM_PIDS, c.ITEM_AUXGROUPS, c.ITEM_CONN_DESCRIPTION, c.ITEM_TIMESTAMP]
    described = make_item(c.ITEM_CONN_DESCRIPTION, b"me\0")
    sender = world.last(send=0, items=described)
    blind = world.last(FakeProcess(uid=1000, pid_ns=9), recv=c.ATTACH_ANY)
    assert sender.send(dst=blind.id) == 0
    (message,) = blind.drain()
    assert message.kinds() == basic
    seeing = world.last(recv=c.ATTACH_ANY)
    assert sender.send(dst=seeing.id) == 0
    (message,) = seeing.drain()
    assert {c.ITEM_EXE, c.ITEM_CGROUP, c.ITEM_CAPS, *basic} <= set(message.kinds())
    open_one = world.last(send=c.ATTACH_EXE, items=described)
    assert open_one.send(dst=blind.id) == 0
    (message,) = blind.drain()
    assert set(message.kinds()) == {c.ITEM_EXE, *basic}


def test_l_103_v3_gets_what_its_sender_agreed_to_alone(world: LastWorld) -> None:
    """One broadcast to both: what is gathered for the one is nothing for the other."""
    world.domain.attach_flags_mask = c.ATTACH_ALL
    sender = world.last(send=c.ATTACH_EXE)
    new, old = world.last(recv=c.ATTACH_ANY), world.connect(recv=c.ATTACH_ALL)
    assert new.add_match(1, u64_item(c.ITEM_ID, sender.id)) == 0
    assert old.add_match(1, core_scenes.id_rule(sender.id)) == 0
    assert sender.signal() == 0
    assert c.ITEM_CREDS in new.drain()[0].kinds()
    (message,) = core_scenes.drain(old)
    assert message.kinds() == [c.ITEM_EXE]


def test_l_105_capabilities_and_programs_across_namespaces(world: LastWorld) -> None:
    recv = c.ATTACH_CAPS | c.ATTACH_EXE
    sender = world.last()
    away = world.last(FakeProcess(uid=1000, user_ns=5, root="elsewhere"), recv=recv)
    near = world.last(recv=recv)
    for receiver, kinds in ((away, [c.ITEM_CAPS]), (near, [c.ITEM_EXE, c.ITEM_CAPS])):
        assert sender.send(dst=receiver.id) == 0
        (message,) = receiver.drain()
        assert message.kinds() == kinds
        assert message.item(c.ITEM_CAPS)[4:] == bytes(32)


def test_l_105_what_capabilities_mean_in_the_namespace_of_the_receiver(world: LastWorld) -> None:
    """They are what they are below the sender's own, all for who made one on the way, and none anywhere else."""
    own = pack("<I8I", 40, 1, 0, 2, 0, 4, 0, 8, 0)
    every = pack("<I8I", 40, 0, 0, *[0xFFFFFFFF, 0x1FF] * 3)
    none = pack("<I8I", 40, *[0] * 8)

    def process(uid: int, user_ns: int, *outer: tuple[int, int], made_by: int = NO_ID) -> FakeProcess:
        return FakeProcess(
            uid=uid, ipc_owner=True, caps=own, user_ns=user_ns, outer_users=outer, ns_owner=made_by
        )

    domain = (1, NO_ID)
    senders = {
        "domain": process(1000, 1),
        "maker": process(2000, 1),
        "inside": process(1000, 2, domain, made_by=2000),
        "beside": process(1000, 3, domain, made_by=1000),
    }
    receivers = {
        "domain": (process(1000, 1), {"domain": own, "maker": own, "inside": none, "beside": none}),
        "inside": (
            process(1000, 2, domain, made_by=2000),
            {"domain": own, "maker": every, "inside": own, "beside": none},
        ),
        "deeper": (
            process(1000, 4, (2, 2000), domain, made_by=1000),
            {"domain": own, "maker": every, "inside": every, "beside": none},
        ),
    }
    for receiving, expected in receivers.values():
        receiver = world.last(receiving, recv=c.ATTACH_CAPS)
        for name, sending in senders.items():
            assert world.last(sending).send(dst=receiver.id) == 0
            (message,) = receiver.drain()
            assert message.item(c.ITEM_CAPS) == expected[name], name


# Both families on one bus


def test_l_82_the_quota_is_that_of_the_receiver(world: LastWorld) -> None:
    old, new = world.connect(), world.last()
    for _ in range(32):
        assert new.send(dst=old.id) == 0
    assert new.send(dst=old.id) == -ENOBUFS  # 16 that are free, and 16 of this user
    for _ in range(256):
        assert old.send(dst=new.id) == 0
    assert old.send(dst=new.id) == -ENOBUFS


def test_l_84_89_messages_of_v3_arrive_in_this_layout(world: LastWorld) -> None:
    old, new = world.connect(), world.last(recv=c.ATTACH_CREDS)
    assert new.acquire(b"a.b") == 0
    file = core_scenes.pass_files(old.process, FakeFile())
    memfd = core_scenes.pass_memfd(old.process, 8)
    items = old.vec(b"one") + file + memfd + core_scenes.dst_name(b"a.b") + old.vec(b"two")
    assert old.send(items=items, cookie=5, priority=2) == 0
    message = new.receive()
    assert message.kinds() == [
        c.ITEM_PAYLOAD_OFF,
        c.ITEM_FDS,
        c.ITEM_PAYLOAD_MEMFD,
        c.ITEM_DST_NAME,
        c.ITEM_PAYLOAD_OFF,
        c.ITEM_CREDS,
    ]
    assert new.payloads(message) == [b"one", b"two"]
    assert message.header[2] == 2
    assert message.header[6] == 5


def test_a_call_from_either_family_to_the_other(world: LastWorld) -> None:
    """L-66, L-72, L-83"""
    old, new = world.connect(), world.last()
    assert core_scenes.request(old, new.id, 7, sync=True, items=old.vec(b"ask")) == PENDING
    (request,) = new.drain()
    assert new.payloads(request) == [b"ask"]
    assert (request.header[1], request.header[6]) == (c.MSG_EXPECT_REPLY, 7)
    waiting = old.last_call.deferred
    assert waiting is not None
    assert new.reply(old.id, 7, new.vec(b"answer") + pass_memfd(new.process, 8)) == 0
    assert core_scenes.results(world) == [0]
    old.last_call = waiting
    answer = old.last_message()
    assert old.payloads(answer) == [b"answer"]
    assert v3.ITEM_PAYLOAD_MEMFD in answer.kinds()

    assert new.request(old.id, 8, sync=True, items=new.vec(b"ask")) == PENDING
    (request,) = core_scenes.drain(old)
    waiting = new.last_call.deferred
    assert waiting is not None
    assert core_scenes.reply(old, new.id, 8, items=old.vec(b"answer")) == 0
    assert core_scenes.results(world) == [0]
    new.last_call = waiting
    assert new.payloads(new.last_message()) == [b"answer"]


def test_signals_from_either_family_to_the_other(world: LastWorld) -> None:
    """L-64, L-84, L-119"""
    old, new = world.connect(), world.last()
    monitor, old_monitor = world.last(flags=c.HELLO_MONITOR), world.connect(flags=c.HELLO_MONITOR)
    assert old.add_match(1, core_scenes.mask(1)) == 0
    assert new.add_match(1, make_item(c.ITEM_BLOOM_MASK, (1).to_bytes(64, "little"))) == 0
    assert old.connection.bus.connections
    core_scenes.drain(old_monitor)
    monitor.drain()
    assert core_scenes.signal(old, bits=3, cookie=1) == 0
    assert new.signal(bits=3, cookie=2) == 0
    assert new.cookies() == [1, 2]
    assert core_scenes.cookies(old) == [2]
    assert monitor.cookies() == [1, 2]
    assert core_scenes.cookies(old_monitor) == [1, 2]
    closing = world.last()
    assert old.add_match(2, core_scenes.id_change(v3.ITEM_ID_REMOVE)) == 0
    id = closing.id
    closing.close()
    assert core_scenes.events(old) == [(v3.ITEM_ID_REMOVE, id, c.HELLO_ACCEPT_FD)]


def test_l_81_112_an_activator_of_one_family_and_a_service_of_the_other(world: LastWorld) -> None:
    for new_activator in (False, True):
        named = name_item(b"a.b") if new_activator else core_scenes.name_rule(b"a.b")
        connect = world.last if new_activator else world.connect
        activator = connect(flags=c.HELLO_ACTIVATOR, items=named)
        sender = world.last()
        service: Client = world.connect() if new_activator else world.last(recv=c.ATTACH_CREDS)
        for number in range(3):
            payload = sender.vec(b"payload %d" % number)
            assert sender.send(items=payload + dst_name(b"a.b"), cookie=number) == 0
        assert sender.request(0, 9, items=dst_name(b"a.b")) == 0
        assert service.acquire(b"a.b") == 0
        for number in range(3):
            message = service.receive()
            assert service.payloads(message) == [b"payload %d" % number]
            assert service.free(message.offset) == 0
        request = service.receive()
        assert request.cookie == 9
        assert service.free(request.offset) == 0
        assert service.send(dst=sender.id, cookie_reply=9) == 0
        assert [message.header[7] for message in sender.drain()] == [9]
        assert sender.send(items=dst_name(b"a.b") + sender.vec(b"late"), cookie=10) == 0
        assert service.release_name(b"a.b") == 0
        message = activator.receive()
        assert activator.payloads(message) == [b"late"]
        assert activator.free(message.offset) == 0
        for client in (activator, service, sender):
            assert core_scenes.at_rest(client)
            client.close()

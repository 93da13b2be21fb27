"""MON: monitors see everything that is permitted."""

from __future__ import annotations

from errno import ENXIO, EOPNOTSUPP, EOVERFLOW
from struct import unpack
from typing import Any

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item
from tests.support.core_client import PENDING, Client, FakeProcess, World
from tests.support.core_scenes import (
    at_rest,
    cookies,
    drain,
    dst_name,
    events,
    observer,
    pass_files,
    pass_memfd,
    reply,
    request,
    results,
    signal,
)
from tests.support.fake_host import FakeFile

MONITOR, FILES = c.HELLO_MONITOR, c.HELLO_ACCEPT_FD


def monitor(world: World, flags: int = FILES, **more: Any) -> Client:
    return world.connect(flags=MONITOR | flags, **more)


def test_mon_1_a_monitor_gets_messages_replies_signals_broadcasts_and_notifications(world: World) -> None:
    watcher = monitor(world)
    process = FakeProcess(uid=2000, pid=200)
    client, server = world.connect(process), world.connect(process)
    server.add_match(1)
    client.send(dst=server.id, cookie=1)
    request(client, server.id, 2)
    reply(server, client.id, 2, cookie=3)
    assert request(client, server.id, 4, sync=True) == PENDING
    reply(server, client.id, 4, cookie=5, items=server.vec(b"answer"))
    signal(client, server.id, cookie=6)
    signal(client, cookie=7)
    server.acquire(b"denied.name")
    client.close()
    messages = drain(watcher)
    assert [message.cookie for message in messages if message.src_id] == [1, 2, 3, 4, 5, 6, 7]
    assert len([message for message in messages if not message.src_id]) == 3
    assert results(world) == [0]


def test_mon_1_descriptors_and_memfds_reach_monitors_too(world: World) -> None:
    watcher = monitor(world)
    sender, receiver = world.connect(), world.connect()
    drain(watcher)
    file = FakeFile()
    sender.send(dst=receiver.id, items=pass_files(sender.process, file) + pass_memfd(sender.process, 8))
    seen, received = watcher.receive(), receiver.receive()
    assert seen.kinds() == received.kinds() == [c.ITEM_PAYLOAD_MEMFD, c.ITEM_FDS]
    assert seen.installation is not None and received.installation is not None
    received.installation.done()
    assert file.open_count == 1
    seen.installation.done()
    assert file.open_count == 0


def test_mon_2_copies_are_independent_and_have_their_own_metadata(world: World) -> None:
    plain = monitor(world)
    curious = monitor(world, recv=c.ATTACH_PIDS | c.ATTACH_TIMESTAMP)
    sender, receiver = world.connect(), world.connect(recv=c.ATTACH_CREDS)
    for each in (plain, curious):
        drain(each)
    sender.send(dst=receiver.id, items=sender.vec(b"data"))
    kinds = [client.receive().kinds()[1:] for client in (plain, curious, receiver)]
    assert kinds == [[], [c.ITEM_PIDS, c.ITEM_TIMESTAMP], [c.ITEM_CREDS]]
    sender.send(dst=receiver.id, items=sender.vec(b"more"))
    assert receiver.recv(flags=c.RECV_DROP) == 0
    assert plain.payloads(plain.receive()) == [b"more"]


def test_mon_3_limits_count_for_monitors_and_only_make_them_lose(world: World) -> None:
    watcher = monitor(world, flags=0, pool_size=4096)
    sender, receiver = world.connect(), world.connect()
    drain(watcher)
    assert sender.send(dst=receiver.id, items=pass_files(sender.process, FakeFile())) == 0
    assert sender.send(dst=receiver.id, items=sender.vec(bytes(3000))) == 0
    assert watcher.connection.traffic.lost == 2
    for _ in range(40):
        assert sender.send(dst=receiver.id) == 0
        receiver.recv(flags=c.RECV_DROP)
    assert len(watcher.connection.queue) == 32
    assert watcher.connection.traffic.lost == 2 + 8
    drain_after = watcher.recv()
    assert drain_after != 0 and watcher.out(40) == 10
    assert len(drain(watcher)) == 32
    assert at_rest(watcher)


def test_mon_3_note_11_notifications_that_find_no_place_are_counted_too(world: World) -> None:
    watcher = monitor(world)
    client = world.connect()
    drain(watcher)
    for _ in range(129):
        assert client.acquire(b"org.example.Name") == 0
        assert client.release_name(b"org.example.Name") == 0
    assert len(watcher.connection.queue) == 256
    assert watcher.recv() == -EOVERFLOW
    assert watcher.out(40) == 2
    assert len(drain(watcher)) == 256


def test_mon_4_a_monitor_is_not_announced_but_listed_and_answers_conn_info(world: World) -> None:
    client = observer(world)
    watcher = monitor(world)
    assert client.conn_info(id=watcher.id) == 0
    assert (watcher.id, MONITOR | FILES, None, 0) in client.list_names(c.NAME_LIST_UNIQUE)
    assert client.send(dst=watcher.id) == -ENXIO
    watcher.close()
    assert events(client) == []


def test_mon_5_what_a_monitor_may_not_and_may_do(world: World) -> None:
    watcher, client = monitor(world), world.connect()
    drain(watcher)
    refused = [
        watcher.send(dst=client.id),
        watcher.acquire(b"a.b"),
        watcher.release_name(b"a.b"),
        watcher.add_match(1),
        watcher.remove_match(1),
        watcher.byebye(),
    ]
    assert refused == [-EOPNOTSUPP] * 6
    assert watcher.list_names(c.NAME_LIST_UNIQUE)
    assert watcher.conn_info(id=client.id) == 0
    assert watcher.free(watcher.out(40)) == 0
    flags = make_item(c.ITEM_ATTACH_FLAGS_RECV, c.ATTACH_TIMESTAMP.to_bytes(8, "little"))
    assert watcher.update(flags) == 0
    client.send(dst=client.id)
    assert watcher.receive().kinds() == [c.ITEM_TIMESTAMP]


def test_mon_6_what_is_refused_is_not_seen(world: World) -> None:
    watcher = monitor(world)
    stranger = world.connect(FakeProcess(uid=2000, pid=200))
    client = world.connect()
    drain(watcher)
    stranger.send(dst=client.id, cookie=1)
    reply(stranger, client.id, 5, cookie=2)
    signal(stranger, client.id, cookie=3)
    client.send(items=dst_name(b"no.owner"), cookie=4)
    client.send(dst=client.id, flags=8, cookie=5)
    assert cookies(watcher) == []


def test_mon_7_the_monitor_has_a_message_before_its_receiver(world: World) -> None:
    watcher = monitor(world)
    client, server = world.connect(), world.connect()
    world.domain.changed.clear()
    client.send(dst=server.id)
    assert world.domain.changed == [watcher.handle, server.handle]


def test_mon_8_sequence_numbers_order_everything(world: World) -> None:
    watcher = monitor(world, recv=c.ATTACH_TIMESTAMP)
    client, server = world.connect(), world.connect()
    for cookie in range(5):
        client.send(dst=server.id, cookie=cookie)
        server.send(dst=client.id, cookie=cookie)
    numbers = [unpack("<QQQ", message.item(c.ITEM_TIMESTAMP))[0] for message in drain(watcher)]
    assert numbers == list(range(numbers[0], numbers[0] + 12))


def test_mon_1_a_reply_kept_during_an_interruption_is_seen_once(world: World) -> None:
    watcher = monitor(world)
    client, server = world.connect(), world.connect()
    drain(watcher)
    request(client, server.id, 1, sync=True)
    world.domain.interrupt(next(iter(world.domain.waiting)))
    reply(server, client.id, 1, cookie=2)
    assert request(client, server.id, 1, sync=True) == 0
    assert cookies(watcher) == [1, 2]

"""The Python client in either family, with clients of either, on buses and endpoints made by either."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

from kdbusfs.abi.last import constants as last
from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import (
    Connection,
    Lost,
    Memfd,
    Message,
    NameChange,
    Zero,
    bloom_rule,
    make_bus,
    make_endpoint,
    name_added_rule,
    sealed_memfd,
    sender_rule,
    world,
)
from tests.support.actors import errno_of

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

PATIENCE = 240.0  # seconds
FAMILIES = ("v3", "last")
NAME = "com.example.Service"
BASIC = c.ATTACH_CREDS | c.ATTACH_PIDS | c.ATTACH_AUXGROUPS | c.ATTACH_NAMES | c.ATTACH_TIMESTAMP


@pytest.fixture(params=[(one, other) for one in FAMILIES for other in FAMILIES], ids="-".join)
def families(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


def answer_one(service: Connection) -> None:
    """Answer the next request with its payload in capitals."""
    with service.receive(PATIENCE) as request:
        service.reply(request, request.data().upper())


def received(message: Message | None) -> Message:
    assert message is not None
    return message


def test_calls(domain_mount: DomainMount, families: tuple[str, str], footprint: Footprint) -> None:
    """L-66, L-72, L-83 to L-89, L-91, L-106, L-107"""
    one, other = families
    with (
        make_bus(domain_mount.path, "families", family=one, access=c.MAKE_ACCESS_WORLD) as bus,
        Connection(bus.path, family=other, attach_recv=BASIC, description="service") as service,
        Connection(bus.path, family=one, attach_recv=BASIC) as client,
    ):
        assert service.bloom_size == client.bloom_size == 64
        assert service.id128 == client.id128
        flags = service.acquire(NAME, flags=c.NAME_ALLOW_REPLACEMENT)
        assert bool(flags & last.NAME_PRIMARY) == (other == "last")
        thread = threading.Thread(target=answer_one, args=(service,))
        thread.start()
        with client.call(NAME, [b"hear ", Zero(3), b"me"]) as reply:
            assert reply.data() == b"HEAR \0\0\0ME"
            assert reply.src_id == service.id
            creds = reply.metadata.creds
            assert creds is not None
            assert creds.euid == os.geteuid()
            assert reply.metadata.pids is not None
            assert reply.metadata.pids.pid == os.getpid()
            assert [owned.name for owned in reply.metadata.owned_names] == [NAME]
            assert reply.metadata.auxgroups == tuple(os.getgroups())
        thread.join(PATIENCE)
        with sealed_memfd(b"large" * 1000) as memfd, open(os.devnull, "rb") as file:
            client.send(service.id, [b"head", Memfd(memfd)], fds=[file])
            with received(service.recv()) as message:
                assert message.return_flags == 0
                assert message.data() == b"head" + b"large" * 1000
                assert os.fstat(message.fds[0].fileno()).st_rdev == os.fstat(file.fileno()).st_rdev
        records = {(record.id, record.name): record.flags for record in client.list_names(0xF)}
        assert set(records) == {(service.id, NAME), (client.id, None)}
        info = client.conn_info(NAME, c.ATTACH_CREDS | c.ATTACH_CONN_DESCRIPTION)
        assert (info.id, info.metadata.description) == (service.id, "service")
        assert client.creator_info().name == bus.name
        service.byebye()
        with pytest.raises(ConnectionResetError):
            service.recv()
    footprint.settles(threads=False)


def test_signals(domain_mount: DomainMount, families: tuple[str, str]) -> None:
    """L-64, L-84, L-115, L-119, L-120, L-124"""
    one, other = families
    with (
        make_bus(domain_mount.path, "families", family=one) as bus,
        Connection(bus.path, family=other) as receiver,
        Connection(bus.path, family=one) as sender,
        Connection(bus.path, family=other, flags=c.HELLO_MONITOR) as monitor,
    ):
        for connection in (receiver, sender):
            connection.add_match(1, bloom_rule(connection.bloom("interesting")), sender_rule(sender.id))
        receiver.add_match(2, name_added_rule(NAME))
        sender.broadcast(b"signal", bloom=sender.bloom("interesting", "more"))
        sender.broadcast(b"noise", bloom=sender.bloom("boring"))
        for connection in (receiver, sender) if one == "last" else (receiver,):
            with received(connection.recv()) as message:
                assert message.data() == b"signal"
                assert message.flags & c.MSG_SIGNAL
            assert connection.recv() is None
        assert sender.recv() is None
        sender.acquire(NAME)
        with received(receiver.recv()) as message:
            change = message.notification
            assert isinstance(change, NameChange)
            assert (change.name, change.old_id, change.new_id) == (NAME, 0, sender.id)
            assert bool(message.metadata.timestamp) == (other == "last")
        seen = []
        while (copy := monitor.recv()) is not None:
            with copy:
                seen.append(copy.data())
        assert seen == [b"signal", b"noise", b""]


def test_loss_is_reported(domain_mount: DomainMount, families: tuple[str, str]) -> None:
    """L-94"""
    one, other = families
    with (
        make_bus(domain_mount.path, "families") as bus,
        Connection(bus.path, family=other, pool_size=4096) as receiver,
        Connection(bus.path, family=one) as sender,
    ):
        receiver.add_match(1)
        sender.broadcast(b"fits")
        for _ in range(3):
            sender.broadcast(bytes(4000))
        assert receiver.wait(0)
        with pytest.raises(Lost) as lost:
            receiver.recv()
        assert lost.value.count == 3
        assert receiver.wait(0)
        with received(receiver.recv()) as message:
            assert message.data() == b"fits"
        assert receiver.recv() is None


def test_custom_endpoints_and_activators(domain_mount: DomainMount, families: tuple[str, str]) -> None:
    """L-28, L-81, L-112"""
    one, other = families
    talk = world(c.POLICY_TALK)
    with (
        make_bus(domain_mount.path, "families", family=one) as bus,
        make_endpoint(bus, "custom", family=other, policy={NAME: [talk]}, access=c.MAKE_ACCESS_WORLD) as endpoint,
        Connection(bus.path, family=one, flags=c.HELLO_ACTIVATOR, name=NAME) as activator,
        Connection(endpoint.path, family=other) as client,
        Connection(bus.path, family=other) as service,
    ):
        client.send(NAME, b"wake up")
        assert activator.wait(0)
        service.acquire(NAME)
        with received(service.recv()) as message:
            assert message.data() == b"wake up"
            assert message.dst_name == NAME
        assert activator.recv() is None
        assert errno_of(client.conn_info, service.id) == 0
        endpoint.update()
        assert errno_of(client.conn_info, service.id) == errno.ENXIO
        assert errno_of(client.send, NAME) == errno.EPERM
        service.release(NAME)
        with pytest.raises(OSError) as caught:
            client.release(NAME)
        assert caught.value.errno == (errno.EADDRINUSE if other == "last" else errno.ESRCH)

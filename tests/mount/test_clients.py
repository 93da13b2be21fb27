"""Programs that talk through a domain, each in its own process."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import (
    BusOwner,
    Connection,
    IdChange,
    Memfd,
    Message,
    NameChange,
    NoReply,
    ReceivedMemfd,
    Zero,
    bloom_rule,
    deadline,
    id_added_rule,
    id_removed_rule,
    make_bus,
    make_endpoint,
    name_added_rule,
    name_changed_rule,
    name_removed_rule,
    raw,
    sealed_memfd,
    sender_rule,
    user,
    world,
)
from tests.support.actors import Actor, Actors, Link, become, errno_of, until

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

POOL = 1 << 20
NAME = "org.example.Echo"
NOBODY = 65534
PATIENT = 240.0  # seconds that a client waits for a message that must come


class Bus:
    """A bus that a separate client process keeps alive."""

    def __init__(self, actors: Actors, domain: DomainMount, access: int = 0) -> None:
        self.root = domain.path
        self._domain = domain

        def own(link: Link) -> None:
            with make_bus(domain.path, "test", bloom=(64, 2), access=access) as bus:
                link.say(bus.path)
                link.hear("the end of the bus", 3600)

        self._owner = actors(own, name="bus owner")
        self.path: str = self._owner.hear("its bus")
        self.directory = os.path.dirname(self.path)

    def connect(self, **arguments: Any) -> Connection:
        """A connection with a small pool."""
        return Connection(self.path, **{"pool_size": POOL, **arguments})

    def wait_for_blocked(self, number: int) -> None:
        """Wait until `count` calls wait for a reply."""
        until(f"{number} blocked calls", lambda: self._domain.stats()["deferred"] == number)


@pytest.fixture
def bus(actors: Actors, domain_mount: DomainMount, footprint: Footprint) -> Iterator[Bus]:
    made = Bus(actors, domain_mount)
    yield made
    actors.clean_up()
    footprint.settles(threads=False)


@pytest.fixture
def open_bus(actors: Actors, domain_mount: DomainMount, footprint: Footprint) -> Iterator[Bus]:
    """A bus that every user may enter."""
    made = Bus(actors, domain_mount, c.MAKE_ACCESS_WORLD)
    yield made
    actors.clean_up()
    footprint.settles(threads=False)


def gone(connection: Connection) -> bool:
    try:
        connection.wait(0)
    except ConnectionResetError:
        return True
    return False


def echo(bus: Bus, actors: Actors, name: str = NAME, **arguments: Any) -> Actor:
    """A service that answers each request with its payload in capitals, until a request says to stop."""

    def serve(link: Link) -> int:
        with bus.connect(**arguments) as service:
            service.acquire(name)
            link.say(service.id)
            answered = 0
            while True:
                with service.receive(PATIENT) as request:
                    if request.data() == b"stop":
                        return answered
                    if request.expects_reply:
                        service.reply(request, request.data().upper())
                        answered += 1

    return actors(serve, name=f"service {name}")


@pytest.mark.old_kernels("linux-6.12")
def test_a_call_gets_its_reply(bus: Bus, actors: Actors) -> None:
    """REP-1, REP-15, SEND-47"""
    service = echo(bus, actors)
    service_id = service.hear("its name")

    def ask() -> None:
        with bus.connect() as client:
            for text in (b"a", b"bc" * 1000, b"x" * 65536):
                with client.call(NAME, text, timeout=PATIENT) as reply:
                    assert reply.data() == text.upper()
                    assert (reply.src_id, reply.dst_id) == (service_id, client.id)
            cookie = client.send(NAME, b"later", expect_reply=True, timeout_ns=deadline(PATIENT))
            with client.receive(PATIENT) as reply:
                assert (reply.data(), reply.cookie_reply) == (b"LATER", cookie)
            client.send(NAME, b"stop")

    actors.run(ask)
    assert service.result() == 4


def test_a_call_without_an_answer_times_out(bus: Bus, actors: Actors) -> None:
    """REP-4, REP-14"""

    def ask() -> None:
        with bus.connect() as silent, bus.connect() as client:
            began = time.monotonic()
            assert errno_of(client.call, silent.id, b"?", timeout=0.3) == errno.ETIMEDOUT
            assert time.monotonic() - began >= 0.3
            cookie = client.send(silent.id, b"?", expect_reply=True, timeout_ns=deadline(0.2))
            with client.receive(PATIENT) as message:
                assert message.notification == NoReply(c.ITEM_REPLY_TIMEOUT)
                assert message.cookie_reply == cookie
            with silent.receive(PATIENT) as first, silent.receive(PATIENT) as second:
                assert errno_of(silent.reply, first) == errno.EPERM
                assert errno_of(silent.reply, second) == errno.EPERM

    actors.run(ask)


def test_the_death_of_the_replier_ends_the_call(bus: Bus, actors: Actors) -> None:
    """REP-11: a blocked SEND gets EPIPE, another requester REPLY_DEAD"""

    def serve(link: Link) -> None:
        service = bus.connect()
        link.say(service.id)
        for _ in range(2):
            service.receive(PATIENT)
        link.say("both read")
        link.hear("death", PATIENT)

    service = actors(serve)
    service_id = service.hear("its id")

    def ask_and_wait() -> int:
        with bus.connect() as client:
            return errno_of(client.call, service_id, b"?", timeout=PATIENT)

    def ask_and_go_on(link: Link) -> None:
        with bus.connect() as client:
            cookie = client.send(service_id, b"?", expect_reply=True, timeout_ns=deadline(PATIENT))
            with client.receive(PATIENT) as message:
                assert message.notification == NoReply(c.ITEM_REPLY_DEAD)
                assert message.cookie_reply == cookie

    waiting = actors(lambda link: ask_and_wait())
    other = actors(ask_and_go_on)
    service.hear("both requests")
    service.kill()
    assert waiting.result() == errno.EPIPE
    other.result()


@pytest.mark.old_kernels
def test_a_broadcast_reaches_those_who_asked_for_it(bus: Bus, actors: Actors) -> None:
    """BC-1, MATCH-6"""

    def listen(word: str) -> Any:
        def listener(link: Link) -> list[bytes]:
            with bus.connect() as client:
                client.add_match(1, bloom_rule(client.bloom(word)))
                link.say("listening")
                link.hear("the end of the broadcasts")
                found = []
                while (message := client.recv()) is not None:
                    with message:
                        assert message.dst_id == c.DST_ID_BROADCAST
                        found.append(message.data())
                return found

        return listener

    weather, sports = actors(listen("weather")), actors(listen("sports"))
    weather.hear("its match")
    sports.hear("its match")

    def tell() -> None:
        with bus.connect() as client:
            client.broadcast(b"rain", bloom=client.bloom("weather", "news"))
            client.broadcast(b"2:1", bloom=client.bloom("sports", "news"))
            client.broadcast(b"storm ends match", bloom=client.bloom("sports", "weather"))

    actors.run(tell)
    weather.say()
    sports.say()
    assert weather.result() == [b"rain", b"storm ends match"]
    assert sports.result() == [b"2:1", b"storm ends match"]


def test_names_are_queued_for_and_replaced(bus: Bus, actors: Actors) -> None:
    """NAME-6 to NAME-10, NAME-15"""

    def own(flags: int) -> Any:
        def owner(link: Link) -> None:
            with bus.connect() as client:
                client.add_match(1, name_changed_rule(NAME, new_id=client.id))
                link.say((client.id, client.acquire(NAME, flags=flags)))
                link.hear("to go on")
                if flags & c.NAME_QUEUE:
                    with client.receive(PATIENT) as message:
                        change = message.notification
                        assert isinstance(change, NameChange) and change.new_id == client.id
                    link.say("owner")
                    link.hear("to go on")

        return owner

    first = actors(own(c.NAME_ALLOW_REPLACEMENT), name="first")
    first.hear("the name")

    def refused() -> int:
        with bus.connect() as client:
            return errno_of(client.acquire, NAME)

    assert actors.run(refused) == errno.EEXIST
    second = actors(own(c.NAME_REPLACE_EXISTING), name="second")
    second_id, flags = second.hear("the name")
    assert not flags & c.NAME_IN_QUEUE
    third = actors(own(c.NAME_QUEUE), name="third")
    third_id, flags = third.hear("its place")
    assert flags & c.NAME_IN_QUEUE

    def owner() -> int:
        with bus.connect() as client:
            return client.conn_info(NAME).id

    assert actors.run(owner) == second_id
    third.say()
    second.kill()
    third.hear("the name")
    assert actors.run(owner) == third_id
    third.say()
    third.result()
    first.say()


@pytest.mark.old_kernels("linux-6.12")
def test_memfds_and_descriptors_travel(bus: Bus, actors: Actors) -> None:
    """RECV-13, SEND-13, SEND-18, LAY-16"""

    def receive(link: Link) -> bytes:
        with bus.connect() as client:
            link.say(client.id)
            with client.receive(PATIENT) as message:
                assert message.return_flags == 0
                head, body, zeroes, tail = message.payload
                assert isinstance(head, memoryview) and isinstance(tail, memoryview)
                assert isinstance(body, ReceivedMemfd)
                assert bytes(head) == b"head" and bytes(tail) == b"tail" and zeroes == Zero(5)
                assert body.read() == bytes(range(256)) * 400
                files = [file.take() for file in message.fds]
                for fd in files:
                    assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
            with os.fdopen(files[0], "wb") as pipe:
                pipe.write(b"through the pipe")
            return os.pread(files[1], 100, 0)

    receiver = actors(receive)
    receiver_id = receiver.hear("its id")

    def send() -> bytes:
        reading, writing = os.pipe()
        with bus.connect() as client, sealed_memfd(bytes(range(256)) * 400) as large, open("/proc/self/comm") as comm:
            client.send(receiver_id, [b"head", Memfd(large), Zero(5), b"tail"], fds=[writing, comm])
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            return pipe.read()

    assert actors.run(send) == b"through the pipe"
    # The passed file of /proc shows the name of its opener, not of its reader.
    assert receiver.result().strip()


def test_a_receiver_without_accept_fd_gets_no_descriptors(bus: Bus, actors: Actors) -> None:
    """SEND-45"""

    def play() -> None:
        with bus.connect() as client, bus.connect(accept_fd=False) as refuser:
            assert errno_of(client.send, refuser.id, b"", fds=[0]) == errno.ECOMM
            assert refuser.recv() is None

    actors.run(play)


def test_priorities_peek_and_drop(bus: Bus, actors: Actors) -> None:
    """RECV-2, RECV-3, RECV-5, RECV-10"""

    def send(target: int) -> None:
        with bus.connect() as client:
            for priority in (5, -3, 0, -3):
                client.send(target, b"%d" % priority, priority=priority)

    def receive(link: Link) -> None:
        with bus.connect() as client:
            link.say(client.id)
            link.hear("the messages")
            with client.recv(peek=True) as peeked:  # type: ignore[union-attr]
                assert peeked.data() == b"5"
            assert errno_of(client.recv, priority=-4) == errno.ENOMSG
            with client.recv(priority=0) as urgent:  # type: ignore[union-attr]
                assert urgent.data() == b"-3"
            assert client.recv(drop=True) is None
            found = []
            while (message := client.recv()) is not None:
                with message:
                    found.append(message.data())
            assert found == [b"0", b"-3"]
            assert errno_of(client.free, 0) == errno.ENXIO

    receiver = actors(receive)
    target = receiver.hear("its id")
    actors.run(lambda: send(target))
    receiver.say()
    receiver.result()


def test_notifications_follow_connections_and_names(bus: Bus, actors: Actors) -> None:
    """HELLO-15, CLOSE-2, NAME-9, NOTE: in the order of the events"""

    def watch(link: Link) -> list[tuple[str, int, int]]:
        with bus.connect() as client:
            rules = (name_added_rule, name_removed_rule, name_changed_rule, id_added_rule, id_removed_rule)
            for cookie, rule in enumerate(rules):
                client.add_match(cookie, rule())
            link.say("watching")
            found: list[tuple[str, int, int]] = []
            while len(found) < 4:
                with client.receive(PATIENT) as message:
                    change = message.notification
                    if isinstance(change, IdChange):
                        found.append(("id", change.kind, change.id))
                    elif isinstance(change, NameChange):
                        found.append((change.name, change.kind, change.new_id or change.old_id))
            return found

    watcher = actors(watch)
    watcher.hear("its matches")

    def come_and_go(link: Link) -> None:
        client = bus.connect()
        client.acquire(NAME)
        link.say(client.id)
        link.hear("death")

    visitor = actors(come_and_go)
    visitor_id = visitor.hear("its name")
    visitor.kill()
    assert watcher.result() == [
        ("id", c.ITEM_ID_ADD, visitor_id),
        (NAME, c.ITEM_NAME_ADD, visitor_id),
        (NAME, c.ITEM_NAME_REMOVE, visitor_id),
        ("id", c.ITEM_ID_REMOVE, visitor_id),
    ]


def test_matches_by_sender_and_their_removal(bus: Bus, actors: Actors) -> None:
    """MATCH rows"""

    def play() -> None:
        with bus.connect() as one, bus.connect() as two, bus.connect() as listener:
            listener.add_match(7, sender_rule(one.id))
            for sender in (one, two):
                sender.broadcast(b"%d" % sender.id)
            with listener.receive(PATIENT) as message:
                assert message.src_id == one.id
            assert listener.recv() is None
            listener.add_match(7, sender_rule(two.id), replace=True)
            for sender in (one, two):
                sender.broadcast(b"%d" % sender.id)
            with listener.receive(PATIENT) as message:
                assert message.src_id == two.id
            listener.remove_match(7)
            two.broadcast(b"")
            assert listener.recv() is None
            assert errno_of(listener.remove_match, 7) == errno.ENOENT

    actors.run(play)


def test_a_monitor_sees_everything(bus: Bus, actors: Actors) -> None:
    """MON-1, MON-5"""

    def watch(link: Link) -> list[bytes]:
        with bus.connect(flags=c.HELLO_MONITOR) as monitor:
            link.say("watching")
            assert errno_of(monitor.acquire, NAME) == errno.EOPNOTSUPP
            assert errno_of(monitor.send, monitor.id) == errno.EOPNOTSUPP
            found: list[bytes] = []
            while b"end" not in found:
                with monitor.receive(PATIENT) as message:
                    if message.src_id != c.SRC_ID_KERNEL:
                        found.append(message.data())
            return found

    monitor = actors(watch)
    monitor.hear("its connection")
    service = echo(bus, actors)
    service.hear("its name")

    def talk() -> None:
        with bus.connect() as client:
            client.call(NAME, b"ask", timeout=PATIENT).free()
            client.broadcast(b"signal")
            client.send(NAME, b"stop")
            client.send(client.id, b"end")

    actors.run(talk)
    assert monitor.result() == [b"ask", b"ASK", b"signal", b"stop", b"end"]
    service.result()


def test_an_activator_hands_its_messages_over(bus: Bus, actors: Actors) -> None:
    """ACT-1, ACT-3, ACT-4, ACT-6, ACT-7"""

    def activate(link: Link) -> None:
        with bus.connect(flags=c.HELLO_ACTIVATOR, name=NAME) as activator:
            link.say("ready")
            assert activator.wait(PATIENT)
            link.say("asked")
            link.hear("the take-over")
            assert not activator.wait(0)
            link.hear("the end of the service")
            assert activator.conn_info(NAME).id == activator.id

    activator = actors(activate)
    activator.hear("its name")

    def ask(link: Link) -> bytes:
        reading, writing = os.pipe()
        with bus.connect() as client:
            assert errno_of(client.send, NAME, no_auto_start=True) == errno.EADDRNOTAVAIL
            client.send(NAME, b"first", fds=[writing])
            with client.call(NAME, b"second", timeout=PATIENT) as reply:
                os.close(writing)
                assert os.read(reading, 10) == b"pipe"
                return reply.data()

    client = actors(ask)
    activator.hear("messages")
    bus.wait_for_blocked(1)

    def serve(link: Link) -> None:
        with bus.connect() as service:
            service.acquire(NAME)
            with service.receive(PATIENT) as first, service.receive(PATIENT) as second:
                assert (first.data(), second.data()) == (b"first", b"second")
                os.write(first.fds[0].fileno(), b"pipe")
                link.say("took over")
                service.reply(second, b"done")
            link.hear("the end")

    service = actors(serve)
    service.hear("the messages")
    assert client.result() == b"done"
    activator.say()
    service.say()
    service.result()
    activator.say()
    activator.result()


def test_a_custom_endpoint_has_a_policy_of_its_own(open_bus: Bus, actors: Actors) -> None:
    """EPM, EPU-3, POL, INFO-2: two users, one of them root"""
    bus = open_bus

    def own(link: Link) -> None:
        with (
            make_endpoint(bus.path, "narrow", access=c.MAKE_ACCESS_WORLD) as end,
            bus.connect() as service,
            bus.connect(flags=c.HELLO_POLICY_HOLDER, name=NAME, policy=[world(c.POLICY_TALK)]),
        ):
            service.acquire(NAME)
            link.say((end.path, service.id))
            link.hear("to open it")
            end.update({NAME: [user(NOBODY, c.POLICY_TALK)]})
            link.say("open")
            with service.receive(PATIENT) as message:
                service.reply(message, b"welcome")
            link.hear("to close it")
            end.update({})
            link.say("closed")
            link.hear("the end")

    owner = actors(own)
    path, service_id = owner.hear("its endpoint")

    def visit(link: Link) -> None:
        with Connection(path, pool_size=POOL) as guest:
            assert errno_of(guest.send, NAME, b"x") == errno.EPERM
            assert errno_of(guest.send, "org.example.Nobody", b"x") == errno.ESRCH
            assert errno_of(guest.conn_info, NAME) == errno.ESRCH
            link.say("outside")
            link.hear("the opening")
            assert guest.conn_info(NAME).id == service_id
            with guest.call(NAME, b"x", timeout=PATIENT) as reply:
                assert reply.data() == b"welcome"
            link.say("been inside")
            link.hear("the closing")
            assert errno_of(guest.send, NAME, b"x") == errno.EPERM

    guest = actors(visit, uid=NOBODY)
    guest.hear("refusal")
    owner.say()
    owner.hear("the new policy")
    guest.say()
    guest.hear("its visit")
    owner.say()
    owner.hear("the next policy")
    guest.say()
    guest.result()
    owner.say()
    owner.result()


def test_two_users_need_a_policy_to_talk(open_bus: Bus, actors: Actors) -> None:
    """SEND-43, POL: the user nobody may not talk to root until a policy holder allows it"""
    bus = open_bus

    def own(link: Link) -> list[bytes]:
        with bus.connect() as service:
            service.acquire(NAME)
            link.say(service.id)
            link.hear("to let others in")
            with bus.connect(flags=c.HELLO_POLICY_HOLDER, name=NAME, policy=[world(c.POLICY_TALK)]):
                link.say("open")
                link.hear("the visit")
            found = []
            while (message := service.recv()) is not None:
                with message:
                    found.append(message.data())
            return found

    service = actors(own)
    service_id = service.hear("its name")

    def visit(link: Link) -> None:
        with bus.connect() as guest:
            assert errno_of(guest.send, NAME, b"too early") == errno.EPERM
            assert errno_of(guest.send, service_id, b"too early") == errno.EPERM
            assert errno_of(guest.acquire, NAME + ".Mine") == errno.EPERM
            assert errno_of(Connection, bus.path, pool_size=POOL, flags=c.HELLO_MONITOR) == errno.EPERM
            link.say("refused")
            link.hear("the policy")
            guest.send(NAME, b"hello")
            guest.send(service_id, b"by id")
            with bus.connect() as other:
                guest.send(other.id, b"to the same user")
            link.say("talked")
            link.hear("its end")
            assert errno_of(guest.send, NAME, b"too late") == errno.EPERM

    guest = actors(visit, uid=NOBODY)
    guest.hear("refusal")
    service.say()
    service.hear("the policy")
    guest.say()
    guest.hear("its messages")
    service.say()
    assert service.result() == [b"hello", b"by id"]


def test_others_are_kept_out_by_the_mode(bus: Bus, actors: Actors) -> None:
    """FS-6, FS-7"""
    assert actors.run(lambda: errno_of(os.open, bus.path, os.O_RDWR), uid=NOBODY) == errno.EACCES
    assert actors.run(lambda: errno_of(os.listdir, bus.directory), uid=NOBODY) == errno.EACCES


def test_a_call_is_cancelled_by_a_descriptor(bus: Bus, actors: Actors) -> None:
    """SYNC-1, SEND-29: the descriptor is polled and never read"""

    def ask(link: Link) -> None:
        with bus.connect() as silent, bus.connect() as client:
            reading, writing = os.pipe()
            timer = threading.Timer(0.3, os.write, (writing, b"x"))
            timer.start()
            assert errno_of(client.call, silent.id, b"?", timeout=PATIENT, cancel_fd=reading) == errno.ECANCELED
            timer.join()
            # The descriptor is already readable: the request is queued nevertheless.
            assert errno_of(client.call, silent.id, b"?", timeout=PATIENT, cancel_fd=reading) == errno.ECANCELED
            assert os.read(reading, 10) == b"x"
            with silent.receive(PATIENT) as first, silent.receive(PATIENT) as second:
                assert errno_of(silent.reply, first) == errno.EPERM
                assert errno_of(silent.reply, second) == errno.EPERM
            with sealed_memfd(b"x") as regular:
                assert errno_of(client.call, silent.id, b"?", cancel_fd=regular) == errno.EINVAL
            os.close(reading)
            assert errno_of(client.call, silent.id, b"?", cancel_fd=reading) == errno.EBADF

    actors(ask).result()


class _Call:
    """A synchronous SEND by a raw ioctl, which is not repeated after a signal."""

    def __init__(self, client: Connection, target: int, cookie: int, seconds: float) -> None:
        from kdbusfs.client import encode

        self._client = client
        self.message = raw.Block(
            encode.message(
                dst_id=target, flags=c.MSG_EXPECT_REPLY, cookie=cookie, timeout_ns=deadline(seconds)
            )
        )
        self.command = encode.command(c.CMD_SEND, c.SEND_SYNC_REPLY, 0, 0, 0, self.message.address)

    def issue(self) -> int:
        return raw.raw_ioctl(self._client.fileno(), c.CMD_SEND, self.command)[0]


def test_a_signal_ends_the_wait_and_the_call_can_be_taken_up_again(bus: Bus, actors: Actors) -> None:
    """SYNC-3, SYNC-4: without SA_RESTART the call fails with EINTR; repeated, it waits for the same reply"""

    def serve(link: Link) -> int:
        with bus.connect() as service:
            link.say(service.id)
            with service.receive(PATIENT) as request:
                link.say("asked")
                link.hear("the signal to be over")
                service.reply(request, b"answer")
            return 0 if service.recv() is None else 1

    service = actors(serve)
    target = service.hear("its id")

    def ask(link: Link) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, True)
        with bus.connect() as client:
            call = _Call(client, target, 77, PATIENT)
            assert call.issue() == errno.EINTR
            link.say("interrupted")
            link.hear("to go on")
            assert call.issue() == 0

    client = actors(ask)
    service.hear("the request")
    bus.wait_for_blocked(1)
    client.kill(signal.SIGUSR1)
    client.hear("the interruption")
    client.say()
    service.say()
    client.result()
    assert service.result() == 0, "the request was queued twice"


@pytest.mark.old_kernels
def test_a_signal_with_restart_does_not_end_the_call(bus: Bus, actors: Actors) -> None:
    """SYNC-2"""
    service = echo(bus, actors)
    service.hear("its name")

    def serve(link: Link) -> None:
        with bus.connect() as slow:
            slow.acquire("org.example.Slow")
            link.say(slow.id)
            with slow.receive(PATIENT) as request:
                link.say("asked")
                link.hear("the signals to be over")
                slow.reply(request, b"answer")
            assert slow.recv() is None, "the request was queued twice"

    slow = actors(serve)
    target = slow.hear("its name")

    def ask(link: Link) -> list[int]:
        caught: list[int] = []
        libc = ctypes.CDLL(None)
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(caught.append)
        libc.signal(signal.SIGUSR1, handler)  # which restarts
        link.say("set")
        with bus.connect() as client:
            assert _Call(client, target, 78, PATIENT).issue() == 0
        return caught

    client = actors(ask)
    client.hear("its handler")
    slow.hear("the request")
    for _ in range(3):
        bus.wait_for_blocked(1)
        client.kill(signal.SIGUSR1)
        time.sleep(0.1)
    slow.say()
    slow.result()
    assert client.result()
    actors.run(lambda: stop(bus))
    service.result()


def stop(bus: Bus, name: str = NAME) -> None:
    with bus.connect() as client:
        client.send(name, b"stop")


def test_a_fork_shares_the_connection(bus: Bus, actors: Actors) -> None:
    """CLOSE-1: it exists until the last process closes it"""

    def play(link: Link) -> None:
        with bus.connect() as watcher:
            client = bus.connect()
            watcher.add_match(1, id_removed_rule(client.id))
            pid = os.fork()
            if pid == 0:
                watcher.close()
                client.send(watcher.id, b"child")
                with client.receive(PATIENT) as message:
                    os._exit(0 if message.data() == b"to either" else 1)
            with watcher.receive(PATIENT) as message:
                assert (message.src_id, message.data()) == (client.id, b"child")
            client_id = client.id
            client.close()
            watcher.send(client_id, b"to either")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            with watcher.receive(PATIENT) as message:
                assert isinstance(message.notification, IdChange) and message.notification.id == client_id

    actors(play).result()


@pytest.mark.old_kernels
def test_exec_closes_what_is_close_on_exec(bus: Bus, actors: Actors) -> None:
    """CLOSE-1: and keeps the other open; the swap at HELLO preserves the flag"""

    def play(link: Link) -> None:
        with bus.connect() as watcher:
            client, kept = bus.connect(), Connection(os.open(bus.path, os.O_RDWR), pool_size=POOL)
            os.set_inheritable(kept.fd, True)
            watcher.add_match(1, id_removed_rule())
            command = [sys.executable, "-Sc", "import sys; print('up', flush=True); sys.stdin.read()"]
            child = subprocess.Popen(
                command, close_fds=False, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert child.stdout is not None and child.stdin is not None
            assert child.stdout.readline() == "up\n"
            client_id, kept_id = client.id, kept.id
            client.close()
            kept.close()
            with watcher.receive(PATIENT) as message:
                assert isinstance(message.notification, IdChange) and message.notification.id == client_id
            assert watcher.conn_info(kept_id).id == kept_id
            child.stdin.close()
            with watcher.receive(PATIENT) as message:
                assert isinstance(message.notification, IdChange) and message.notification.id == kept_id
            assert child.wait(PATIENT) == 0
            child.stdout.close()

    actors(play).result()


@pytest.mark.old_kernels
def test_threads_share_one_connection(bus: Bus, actors: Actors) -> None:
    """GEN-20: several blocked calls and other commands at a time on one descriptor"""
    service = echo(bus, actors)
    service.hear("its name")

    def play(link: Link) -> int:
        with bus.connect() as client, bus.connect() as silent:
            failed: list[BaseException] = []

            def ask(number: int) -> None:
                try:
                    for i in range(10):
                        text = b"q%d.%d" % (number, i)
                        with client.call(NAME, text, timeout=PATIENT) as reply:
                            assert reply.data() == text.upper()
                except BaseException as fault:
                    failed.append(fault)

            def wait_in_vain() -> None:
                errors.append(errno_of(client.call, silent.id, b"?", timeout=PATIENT))

            errors: list[int] = []
            blocked = threading.Thread(target=wait_in_vain)
            blocked.start()
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENT)
            assert not failed, failed
            assert blocked.is_alive()
            client.byebye()
            blocked.join(PATIENT)
            assert errors == [errno.ECONNRESET]
            return len(threads)

    assert actors(play).result() == 5
    actors.run(lambda: stop(bus))
    assert service.result() == 50


def test_the_bus_lives_as_long_as_its_owner_s_descriptor(
    domain_mount: DomainMount, actors: Actors, footprint: Footprint
) -> None:
    """FS-24, CLOSE-6, FS-30: whichever process has it"""

    def make(link: Link) -> None:
        bus = make_bus(domain_mount.path, "moving")
        link.say(bus.path)
        link.say_fd(bus.fd)
        link.hear("death")

    maker = actors(make)
    path = maker.hear("its bus")
    control = maker.link.hear_fd()

    def keep(link: Link) -> None:
        os.fstat(control)
        link.say()
        link.hear("the end")

    keeper = actors(keep)
    keeper.hear("the descriptor")
    os.close(control)
    maker.kill()
    maker.wait()

    def use(link: Link) -> int:
        with Connection(path, pool_size=POOL) as client:
            client.send(client.id, b"alive")
            client.receive(PATIENT).free()
            link.say()
            until("the bus to go", lambda: gone(client))
            assert not os.path.exists(path)
            with make_bus(domain_mount.path, "moving"):
                return errno_of(client.send, client.id)

    client = actors(use)
    client.hear("the bus at work")
    keeper.say()
    keeper.result()
    assert client.result() == errno.ECONNRESET
    footprint.settles()


def test_a_close_takes_effect_before_the_next_command(bus: Bus, actors: Actors) -> None:
    """CLOSE-3, FS-26, FS-30"""

    def play() -> None:
        with bus.connect() as watcher:
            watcher.add_match(1, id_removed_rule())
            for _ in range(100):
                client = bus.connect()
                client.close()
                with watcher.recv() as message:  # type: ignore[union-attr]
                    change = message.notification
                    assert isinstance(change, IdChange) and change.id == client.id
            for _ in range(100):
                made: BusOwner = make_bus(bus.root, "again")
                made.close()
                assert os.listdir(bus.root) == ["control", "0-test"] or os.listdir(bus.root) == ["0-test", "control"]

    actors.run(play)


def test_poll_select_and_epoll(bus: Bus, actors: Actors) -> None:
    """POLL-1 to POLL-5"""

    def play() -> None:
        everything = select.POLLIN | select.POLLOUT | select.POLLPRI
        fresh = os.open(bus.path, os.O_RDWR)
        one = select.poll()
        one.register(fresh, everything)
        assert one.poll(0) == [(fresh, select.POLLERR | select.POLLHUP)]
        with bus.connect() as client, bus.connect() as other:
            one = select.poll()
            one.register(client, everything)
            level, edge = select.epoll(), select.epoll()
            level.register(client, select.EPOLLIN)
            edge.register(client, select.EPOLLIN | select.EPOLLET)
            assert one.poll(0) == [(client.fd, select.POLLOUT)]
            assert level.poll(0) == [] and edge.poll(0) == []
            assert select.select([client], [client], [], 0) == ([], [client], [])
            for _ in range(3):
                other.send(client.id)
                # Edge-triggered: one event for each message that comes while the queue is empty.
                assert edge.poll(PATIENT) == [(client.fd, select.EPOLLIN)]
                assert edge.poll(0) == []
                assert level.poll(PATIENT) == level.poll(0) == [(client.fd, select.EPOLLIN)]
                assert select.select([client], [], [], 0)[0] == [client]
                assert one.poll(0) == [(client.fd, select.POLLIN | select.POLLOUT)]
                client.receive(0).free()
                assert level.poll(0) == [] and edge.poll(0) == []
            timer = threading.Timer(0.2, other.send, (client.id,))
            timer.start()
            began = time.monotonic()
            assert one.poll(0)[0][1] == select.POLLOUT
            assert level.poll(PATIENT) and time.monotonic() - began < PATIENT / 2
            timer.join()
            client.receive(0).free()
            timer = threading.Timer(0.2, client.byebye)
            timer.start()
            assert level.poll(PATIENT) == [(client.fd, select.EPOLLERR | select.EPOLLHUP)]
            timer.join()
            assert one.poll(0) == [(client.fd, select.POLLERR | select.POLLHUP)]
        os.close(fresh)

    actors.run(play)


def test_an_epoll_registration_made_before_hello_goes_with_the_old_file(bus: Bus, actors: Actors) -> None:
    """POLL-6, and the deviation for HELLO"""

    def play() -> None:
        fd = os.open(bus.path, os.O_RDWR)
        early = select.epoll()
        early.register(fd, select.EPOLLIN)
        assert early.poll(0) == [(fd, select.EPOLLERR | select.EPOLLHUP)]
        copy = os.dup(fd)
        with Connection(fd, pool_size=POOL) as client, bus.connect() as other:
            late = select.epoll()
            late.register(fd, select.EPOLLIN)
            assert late.poll(0) == []
            other.send(client.id)
            assert late.poll(PATIENT) == [(fd, select.EPOLLIN)]
            # A duplicate from before HELLO can issue commands too.
            error, _ = raw.raw_ioctl(copy, c.CMD_BYEBYE, 0)
            assert error == errno.EBUSY
            client.receive(0).free()
        os.close(copy)

    actors.run(play)


def test_a_connection_that_is_closed_twice_over_is_gone_once(bus: Bus, actors: Actors) -> None:
    """CLOSE-1: a duplicate from before HELLO keeps the connection"""

    def play() -> None:
        with bus.connect() as watcher:
            watcher.add_match(1, id_removed_rule())
            fd = os.open(bus.path, os.O_RDWR)
            copy = os.dup(fd)
            client = Connection(fd, pool_size=POOL)
            client_id = client.id
            client.close()
            assert watcher.recv() is None
            assert watcher.conn_info(client_id).id == client_id
            os.close(copy)
            with watcher.receive(PATIENT) as message:
                assert isinstance(message.notification, IdChange) and message.notification.id == client_id

    actors.run(play)


def test_metadata_are_those_of_the_sending_thread(open_bus: Bus, actors: Actors) -> None:
    """META-3, META-6, META-7: not of the process that connected"""
    bus = open_bus

    def receive(link: Link) -> tuple[int, int, int]:
        with bus.connect(attach_recv=c.ATTACH_ANY) as client:
            client.acquire(NAME)
            with bus.connect(flags=c.HELLO_POLICY_HOLDER, name=NAME, policy=[world(c.POLICY_TALK)]):
                link.say()
                with client.receive(PATIENT) as message:
                    creds, pids = message.metadata.creds, message.metadata.pids
                    assert creds is not None and pids is not None
                    return creds.euid, pids.pid, pids.tid

    receiver = actors(receive)
    receiver.hear("its name")

    def send(link: Link) -> tuple[int, int]:
        client = bus.connect()
        pid = os.fork()
        if pid == 0:
            become(NOBODY)
            client.send(NAME, b"")
            os._exit(0)
        os.waitpid(pid, 0)
        return pid, client.id

    pid, _ = actors(send).result()
    assert receiver.result() == (NOBODY, pid, pid)


def test_the_pool_is_read_only_and_outlives_the_connection(bus: Bus, actors: Actors) -> None:
    """POOL-3, POOL-6, BYE-7"""

    def play() -> None:
        import mmap

        client = bus.connect()
        for flags in (mmap.MAP_SHARED,):
            assert errno_of(
                raw.map_memory, client.fd, POOL, protection=mmap.PROT_READ | mmap.PROT_WRITE, flags=flags
            ) in (errno.EACCES, errno.EPERM)
        client.send(client.id, b"stays")
        message: Message | None = client.recv()
        assert message is not None
        view = message.payload[0]
        assert isinstance(view, memoryview)
        client.byebye()
        assert bytes(view) == b"stays"
        again = raw.map_memory(client.fd, POOL)
        assert bytes(again[: len(client.pool)]) == bytes(client.pool)
        client.close()
        assert bytes(view) == b"stays"

    actors.run(play)

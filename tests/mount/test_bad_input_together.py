"""Bad input has no effect on a bus with policies, endpoints, activators, monitors and pending calls."""

from __future__ import annotations

import errno
import os
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3 import layouts
from kdbusfs.client import (
    Connection,
    Lost,
    NameChange,
    deadline,
    encode,
    make_bus,
    make_endpoint,
    name_changed_rule,
    sealed_memfd,
    user,
    world,
)
from kdbusfs.client.encode import Memfd
from tests.support.actors import Actor, Actors, Link, errno_of, until
from tests.support.bad_input import KERNEL_ADDRESS, POOL, Files, try_everything

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

NOBODY = 65534
HELD = "org.example.Held"
WOKEN = "org.example.Woken"
QUEUED = 3
BLOCKED = 2
PATIENT = 240.0
FAR = 3600.0


class Scene:
    """A bus with all kinds of objects, none active: what is pending stays pending until `go_on`.

    ids: of its connections, without the monitor, which also receives messages of others.
    """

    def __init__(self, root: os.PathLike[str]) -> None:
        talk = [world(c.POLICY_TALK)]
        self.bus = make_bus(root, "together", access=c.MAKE_ACCESS_WORLD)
        self.holder = self._connect(flags=c.HELLO_POLICY_HOLDER, name=HELD, policy=talk)
        self.activator = self._connect(flags=c.HELLO_ACTIVATOR, name=WOKEN, policy=talk)
        self.monitor = self._connect(flags=c.HELLO_MONITOR, attach_recv=c.ATTACH_ANY)
        self.endpoint = make_endpoint(self.bus, "restricted", access=c.MAKE_ACCESS_WORLD, policy={HELD: talk})
        self.guest = Connection(self.endpoint.path, pool_size=POOL)
        self.service, self.waiter, self.listener, self.client = (self._connect() for _ in range(4))
        self.service.acquire(HELD)
        assert self.waiter.acquire(HELD, flags=c.NAME_QUEUE) & c.NAME_IN_QUEUE
        self.listener.add_match(1, name_changed_rule())
        self.asked = self.client.send(HELD, b"later?", expect_reply=True, timeout_ns=deadline(FAR))
        _, writing = os.pipe()
        with sealed_memfd(b"memfd") as memfd:
            for number in range(QUEUED):
                self.client.send(WOKEN, [b"%d" % number, Memfd(memfd)], fds=[writing])
        self.answers: list[bytes] = []
        never_readable, self._kept_open = os.pipe()
        self.calls = [
            threading.Thread(target=self._call, args=arguments, daemon=True)
            for arguments in ((HELD, never_readable), (WOKEN, None))
        ]
        for call in self.calls:
            call.start()

    def _connect(self, **arguments: Any) -> Connection:
        return Connection(self.bus.path, pool_size=POOL, **arguments)

    def _call(self, name: str, cancel_fd: int | None) -> None:
        with self.client.call(name, b"now?", timeout=FAR, cancel_fd=cancel_fd) as answer:
            self.answers.append(answer.data())

    @property
    def ids(self) -> list[int]:
        connections = (self.holder, self.activator, self.guest, self.service, self.waiter, self.listener, self.client)
        return [connection.id for connection in connections]

    def go_on(self) -> None:
        """Complete everything that was pending, and check the results."""
        with self._connect() as taker:
            taker.acquire(WOKEN)
            for number in range(QUEUED):
                with taker.receive(PATIENT) as message:
                    assert message.data() == b"%d" % number + b"memfd"
                    assert os.write(message.fds[0].fileno(), b"!") == 1
            with taker.receive(PATIENT) as request:
                taker.reply(request, b"woken")
            assert taker.recv() is None
            with self.listener.receive(PATIENT) as message:
                change = message.notification
                assert isinstance(change, NameChange) and (change.name, change.new_id) == (WOKEN, taker.id)
            assert self.listener.recv() is None
            assert self.activator.recv() is None
        for _ in range(2):
            with self.service.receive(PATIENT) as request:
                self.service.reply(request, b"answer to " + request.data())
        assert self.service.recv() is None
        with self.client.receive(PATIENT) as answer:
            assert (answer.cookie_reply, answer.data()) == (self.asked, b"answer to later?")
        for call in self.calls:
            call.join(PATIENT)
        assert sorted(self.answers) == [b"answer to now?", b"woken"]
        assert self.client.recv() is None
        assert self.guest.conn_info(HELD).id == self.service.id
        assert errno_of(self.guest.conn_info, WOKEN) == errno.ESRCH
        self.guest.send(HELD, b"of the guest")
        with self.service.receive(PATIENT) as message:
            assert message.data() == b"of the guest"
        self.service.release(HELD)
        assert self.waiter.conn_info(HELD).id == self.waiter.id

    def heard(self) -> set[int]:
        """The senders of the messages that the monitor has received."""
        sources: set[int] = set()
        while True:
            try:
                message = self.monitor.recv()
            except Lost:
                continue
            if message is None:
                return sources
            with message:
                sources.add(message.src_id)


def start(domain: DomainMount, actors: Actors) -> tuple[Actor, Any]:
    """Start a scene in another process, with all its calls pending; returns its description."""
    scene = actors(_play_scene(domain.path), name="scene")
    told = scene.hear("its bus")
    until("its blocked calls", lambda: domain.stats()["waiting"] == BLOCKED)
    return scene, told


def _play_scene(root: os.PathLike[str]) -> Any:
    def play(link: Link) -> None:
        scene = Scene(root)
        link.say((scene.bus.path, scene.endpoint.path, scene.ids, scene.client.id, scene.asked))
        link.hear("the end of the bad input", 120)
        assert scene.heard() <= {0, *scene.ids}
        scene.go_on()

    return play


def state(domain: DomainMount, ids: list[int]) -> dict[str, Any]:
    """All figures of the scene in the statistics."""
    (bus,) = (each for each in domain.stats()["buses"] if each["name"].endswith("-together"))
    connections = [each for each in bus["connections"] if each["id"] in ids]
    assert len(connections) == len(ids)
    return {**bus, "connections": connections}


def test_bad_input_to_every_command_on_a_bus_in_full_use(
    domain_mount: DomainMount, actors: Actors, healthy: None
) -> None:
    """GEN-1 to GEN-11, ITEM-1: only the caller notices"""
    scene, (path, _, ids, _, _) = start(domain_mount, actors)
    before = state(domain_mount, ids)

    def play(link: Link) -> tuple[int, list[str]]:
        return try_everything(Files(domain_mount.path, path))

    count, wrong = actors(play).result()
    assert not wrong, "\n".join(wrong)
    assert count > 2500
    assert state(domain_mount, ids) == before
    scene.say()
    scene.result()


def test_what_is_not_allowed_on_a_bus_in_full_use(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """ACT-2, POL-6, POL-21, NAME-14, SEND-30, SEND-33, SEND-42, HELLO-5, CEP-4: refused, without effect"""
    scene, (path, endpoint, ids, asking, asked) = start(domain_mount, actors)
    before = state(domain_mount, ids)
    bad_vector = [encode.Vec(8, KERNEL_ADDRESS)]

    def hello(at: str, flags: int, **more: Any) -> int:
        return errno_of(lambda: Connection(at, pool_size=POOL, flags=flags, **more).close())

    def play_privileged(link: Link) -> list[str]:
        wrong = []
        with Connection(path, pool_size=POOL) as client, open("/proc/self/status") as regular:
            _, _, _, service, _, _, _ = ids

            def wants(name: str, wanted: int, found: int) -> None:
                if found != wanted:
                    wrong.append(f"{name}: {errno.errorcode.get(found, found)}, not {errno.errorcode[wanted]}")

            wants("second activator", errno.EEXIST, hello(path, c.HELLO_ACTIVATOR, name=WOKEN))
            wants("second holder", errno.EEXIST, hello(path, c.HELLO_POLICY_HOLDER, name=HELD))
            wants("holder of an activator's name", errno.EEXIST, hello(path, c.HELLO_POLICY_HOLDER, name=WOKEN))
            wants("acquire", errno.EEXIST, errno_of(client.acquire, HELD, flags=c.NAME_REPLACE_EXISTING))
            for name in (HELD, WOKEN):
                wants("release", errno.ESRCH, errno_of(client.release, name))
                wants("bad vector", errno.EFAULT, errno_of(client.send, name, bad_vector))
                wants("bad vector in a call", errno.EFAULT, errno_of(client.call, name, bad_vector))
                wants("bad descriptor", errno.EBADF, errno_of(client.send, name, b"x", fds=[0, 999]))
                wants("connection as descriptor", errno.EOPNOTSUPP, errno_of(client.send, name, fds=[client]))
                wants("too big", errno.EMSGSIZE, errno_of(client.send, name, bytes((2 << 20) + 1)))
                wants("closed CANCEL_FD", errno.EBADF, errno_of(client.call, name, cancel_fd=999))
                wants("regular CANCEL_FD", errno.EINVAL, errno_of(client.call, name, cancel_fd=regular))
                wants("call to another id", errno.EREMCHG, errno_of(client.call, name, dst_id=client.id))
            wants("not to be started", errno.EADDRNOTAVAIL, errno_of(client.send, WOKEN, no_auto_start=True))
            for special in ids[:2]:
                wants("special id", errno.ENXIO, errno_of(client.send, special))
            wants("reply that another owes", errno.EPERM, errno_of(client.send, asking, reply_to=asked))
            wants("reply to nobody", errno.EPERM, errno_of(client.send, service, reply_to=1))
            wants("signal to who wants none", errno.EPERM, errno_of(client.send, service, bloom=client.bloom()))
            with Connection(
                path, pool_size=POOL, flags=c.HELLO_POLICY_HOLDER, name="org.example.Other"
            ) as other:
                wants("policy of another", errno.EEXIST, errno_of(other.update, name=HELD))
                bad = [(c.ITEM_POLICY_ACCESS, struct.pack("<QQQ", 9, 9, 9))]
                wants("bad policy", errno.EINVAL, errno_of(other.update, name=HELD, items=bad))
                wants("attach flags", errno.EOPNOTSUPP, errno_of(other.update, attach_recv=0))
            wants("endpoint twice", errno.EEXIST, errno_of(make_endpoint, path, "restricted"))
            rights = {HELD: [user(0, c.POLICY_OWN)], "not valid": []}
            wants("endpoint of bad policy", errno.EINVAL, errno_of(make_endpoint, path, "other", policy=rights))
            with make_endpoint(path, "mine") as mine:
                twice = [(c.ITEM_NAME, b"a.b\0"), (c.ITEM_NAME, b"a.b\0")]
                wants("name twice", errno.EEXIST, errno_of(mine.update, items=twice))
                alone = [(c.ITEM_POLICY_ACCESS, layouts.POLICY_ACCESS.pack(1, 1, 1))]
                wants("right without a name", errno.EINVAL, errno_of(mine.update, items=alone))
            for offset in range(0, POOL, 4096):
                wants("free", errno.ENXIO, errno_of(client.free, offset))
            assert client.recv() is None
        return wrong

    def play_unprivileged(link: Link) -> list[str]:
        wrong = []
        for at in (path, endpoint):
            for flags in (c.HELLO_ACTIVATOR, c.HELLO_POLICY_HOLDER, c.HELLO_MONITOR):
                name = None if flags == c.HELLO_MONITOR else "org.example.Mine"
                wanted = errno.EOPNOTSUPP if (flags, at) == (c.HELLO_MONITOR, endpoint) else errno.EPERM
                if (found := hello(at, flags, name=name)) != wanted:
                    wrong.append(f"HELLO with {flags} at {at}: {errno.errorcode.get(found, found)}")
            with Connection(at, pool_size=POOL) as client:
                found_errors = {
                    "acquire": errno_of(client.acquire, "org.example.Mine"),
                    "acquire an activator's": errno_of(client.acquire, WOKEN),
                    "send to whom no policy shows": errno_of(client.send, asking),
                    "reply that another owes": errno_of(client.send, asking, reply_to=asked),
                    "make an endpoint": errno_of(make_endpoint, at, "mine"),
                }
                wrong += [f"{what} at {at}: {found}" for what, found in found_errors.items() if found != errno.EPERM]
        return wrong

    wrong = actors(play_privileged).result() + actors(play_unprivileged, uid=NOBODY).result()
    assert not wrong, "\n".join(wrong)
    assert state(domain_mount, ids) == before
    scene.say()
    scene.result()

"""Clients that use all features of kdbus at random, until they are killed or their bus ends."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import select
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import (
    Connection,
    Lost,
    Message,
    bloom_rule,
    deadline,
    id_added_rule,
    id_removed_rule,
    make_endpoint,
    name_added_rule,
    name_changed_rule,
    name_removed_rule,
    sealed_memfd,
    user,
    world,
)
from kdbusfs.client.encode import Access, Memfd

from .actors import become

PATIENT = 240.0  # seconds until a member must have ended
POOL = 1 << 16
_FULL_QUEUE = 256
NAMES = [f"org.example.Crew{number}" for number in range(4)]
STRANGER = 1000
"""The uid of members that are not privileged on the bus."""

# Errno that a command may get because of other clients, their death, or the end of the bus.
_NAMES_OF_EXPECTED = """
    EADDRNOTAVAIL EAGAIN EALREADY EBUSY ECANCELED ECOMM ECONNRESET EEXIST EMLINK ENOBUFS ENOENT ENXIO EPERM EPIPE
    EREMCHG EREMOTEIO ESHUTDOWN ESRCH ETIMEDOUT EXFULL
"""
_EXPECTED = {getattr(errno, name) for name in _NAMES_OF_EXPECTED.split()}
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def tried(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """The result of `call`; None if it fails because of others, or reports lost messages."""
    try:
        return call(*arguments, **keywords)
    except Lost:
        return None
    except OSError as fault:
        if fault.errno not in _EXPECTED:
            raise
        return None


def drain(connection: Connection, each: Callable[[Message], object] = lambda message: None) -> None:
    """Receive and free all queued messages; calls `each` with every one."""
    for _ in range(_FULL_QUEUE):
        if not tried(connection.wait, 0):
            return
        message = tried(connection.recv)
        if message is None:
            continue
        try:
            each(message)
        finally:
            tried(message.free)


class _Member:
    """One client process, which runs `turn` repeatedly."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.memfd = sealed_memfd(b"memfd")
        self.pipe = os.pipe()

    def connect(self, path: str | None = None, **arguments: Any) -> Connection:
        return Connection(path or self.path, pool_size=POOL, accept_fd=self.chance.random() < 0.8, **arguments)

    def name(self) -> str:
        return self.chance.choice(NAMES)

    def policy(self) -> list[Access]:
        levels = (c.POLICY_SEE, c.POLICY_TALK, c.POLICY_OWN)
        return [self.chance.choice((world, lambda level: user(STRANGER, level)))(self.chance.choice(levels))]

    def rest(self) -> None:
        time.sleep(self.chance.random() * 0.002)

    def send(self, connection: Connection, destination: str | int, **more: Any) -> None:
        """A message of random kind: vectors, memfds, descriptors."""
        payload: list[Any] = [bytes(self.chance.randrange(1, 4000))] if self.chance.random() < 0.7 else []
        if self.chance.random() < 0.3:
            payload.append(Memfd(self.memfd))
        fds = [self.pipe[0], self.pipe[1]] if self.chance.random() < 0.3 else None
        tried(connection.send, destination, payload, fds=fds, priority=self.chance.randrange(-2, 3), **more)

    def hold_policy(self) -> None:
        name = self.name()
        with self.connect(flags=c.HELLO_POLICY_HOLDER, name=name, policy=self.policy()) as holder:
            for _ in range(10):
                tried(holder.update, name=self.name(), policy=self.policy())
                self.rest()

    def own_endpoint(self) -> None:
        policy = {name: self.policy() for name in NAMES[:2]}
        with (
            make_endpoint(self.path, f"crew{os.getpid()}", access=c.MAKE_ACCESS_WORLD, policy=policy) as end,
            self.connect(end.path) as guest,
            self.connect() as host,
        ):
            tried(host.acquire, NAMES[0], flags=c.NAME_QUEUE)
            for _ in range(10):
                self.send(guest, self.name())
                self.send(guest, self.name(), expect_reply=True, timeout_ns=deadline(0.01))
                end.update({self.name(): self.policy()})
                tried(guest.list_names, c.NAME_LIST_NAMES | c.NAME_LIST_UNIQUE)
                tried(guest.conn_info, self.name(), c.ATTACH_CREDS)
                tried(guest.acquire, self.name())
                drain(guest)
                drain(host, lambda request: self.answer(host, request))

    def visit_endpoint(self) -> None:
        """Connect through an endpoint of another member, which may end at any time."""
        directory = os.path.dirname(self.path)
        endpoints = [name for name in tried(os.listdir, directory) or [] if "crew" in name]
        if not endpoints:
            self.rest()
            return
        with self.connect(os.path.join(directory, self.chance.choice(endpoints))) as guest:
            guest.add_match(1, name_added_rule())
            for _ in range(10):
                tried(guest.call, self.name(), b"?", timeout=0.01)
                self.send(guest, self.name())
                tried(guest.acquire, self.name(), flags=c.NAME_QUEUE)
                drain(guest)

    def activate(self) -> None:
        name = self.name()
        flags = c.HELLO_ACTIVATOR
        with (
            self.connect() as client,
            self.connect() as taker,
            self.connect(flags=flags, name=name, policy=self.policy()) as activator,
        ):
            for _ in range(5):
                for _ in range(self.chance.randrange(6)):
                    self.send(client, name)
                    self.send(client, name, expect_reply=True, timeout_ns=deadline(self.chance.random()))
                peeked = tried(activator.recv, peek=True)
                tried(taker.acquire, name, flags=self.chance.choice((0, c.NAME_ALLOW_REPLACEMENT)))
                if peeked is not None:
                    tried(peeked.free)
                if self.chance.random() < 0.5:
                    drain(taker, lambda request: self.answer(taker, request))
                tried(taker.release, name)
                drain(client)

    def implement(self) -> None:
        queue = c.NAME_QUEUE | c.NAME_ALLOW_REPLACEMENT
        with self.connect() as service:
            names = self.chance.sample(NAMES, 2)
            for name in names:
                tried(service.acquire, name, flags=self.chance.choice((queue, queue | c.NAME_REPLACE_EXISTING)))
            for _ in range(20):
                tried(service.wait, 0.005)
                drain(service, lambda request: self.answer(service, request))
            tried(service.release, names[0])

    def answer(self, service: Connection, request: Message) -> None:
        """Answer a request, or do not."""
        what = self.chance.random()
        if what < 0.1:
            tried(service.recv, drop=True)
        elif what < 0.9 and request.flags & c.MSG_EXPECT_REPLY:
            fds = [self.pipe[0]] if what < 0.3 else None
            tried(service.reply, request, [bytes(100), Memfd(self.memfd)], fds=fds)

    def monitor(self) -> None:
        with self.connect(flags=c.HELLO_MONITOR, attach_recv=c.ATTACH_ANY) as monitor:
            for _ in range(20):
                tried(monitor.wait, 0.005)
                drain(monitor)
                tried(monitor.update, attach_recv=self.chance.choice((0, c.ATTACH_CREDS, c.ATTACH_ANY)))

    def ask(self) -> None:
        with self.connect(attach_recv=c.ATTACH_ANY) as client:
            for _ in range(200):
                seconds = self.chance.choice((-1.0, 0.002, 0.02, 1000.0))
                self.send(client, self.name(), expect_reply=True, timeout_ns=deadline(seconds))
                if self.chance.random() < 0.3:
                    drain(client)

    def block(self) -> None:
        """Call in three threads, with signals and with descriptors that cancel the calls."""
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        signal.siginterrupt(signal.SIGUSR1, self.chance.random() < 0.3)
        reading, writing = os.pipe()
        with self.connect() as client, self.connect() as silent:
            destinations = [(silent.id, reading), (self.name(), reading), (self.name(), None)]

            def call(destination: str | int, cancel_fd: int | None) -> None:
                with contextlib.suppress(InterruptedError):
                    answer = tried(client.call, destination, b"?", timeout=0.05, cancel_fd=cancel_fd)
                    if answer is not None:
                        tried(answer.free)

            threads = [threading.Thread(target=call, args=each, daemon=True) for each in destinations]
            for thread in threads:
                thread.start()
            for thread in threads:
                self.rest()
                if thread.ident is not None and thread.is_alive():
                    signal.pthread_kill(thread.ident, signal.SIGUSR1)
            self.rest()
            if self.chance.random() < 0.5:
                os.write(writing, b"!")
            elif self.chance.random() < 0.5:
                drain(silent, lambda request: self.answer(silent, request))
            for thread in threads:
                thread.join(PATIENT)
                assert not thread.is_alive(), "a call did not end"
        os.close(reading)
        os.close(writing)

    def listen(self) -> None:
        with self.connect(attach_recv=c.ATTACH_ANY) as client:
            rules = (
                (id_added_rule(),),
                (id_removed_rule(),),
                (name_added_rule(),),
                (name_changed_rule(),),
                (name_removed_rule(),),
                (bloom_rule(client.bloom()),),
                (),
            )
            for cookie, rule in enumerate(rules):
                client.add_match(cookie, *rule)
            for _ in range(20):
                name = self.name()
                tried(client.acquire, name, flags=c.NAME_QUEUE)
                tried(client.broadcast, bytes(self.chance.randrange(1, 2000)), bloom=client.bloom(name))
                self.rest()
                drain(client)
                tried(client.release, name)
            tried(client.remove_match, self.chance.randrange(len(rules)))


_PRIVILEGED = (_Member.hold_policy, _Member.own_endpoint, _Member.activate, _Member.monitor)
_ANYBODY = (_Member.visit_endpoint, _Member.implement, _Member.ask, _Member.block, _Member.listen)


def _live(path: str, seed: int) -> None:
    """Run until the bus ends."""
    member = _Member(path, seed)
    privileged = member.chance.random() < 0.7
    if not privileged:
        become(STRANGER)
    plays = _PRIVILEGED + _ANYBODY if privileged else _ANYBODY
    turn = member.chance.choice(plays)
    while True:
        try:
            turn(member)
        except OSError as fault:
            if fault.errno not in _EXPECTED:
                raise
        if not os.path.exists(path):
            return


class Crew:
    """Members on the bus at `path`, chosen by `seed`.  Use it in a client process; the members end with that."""

    def __init__(self, path: str, seed: int, size: int) -> None:
        self._path = path
        self._seed = seed
        self._hired = 0
        self._members: list[tuple[int, int]] = []
        for _ in range(size):
            self._hire()

    def _hire(self) -> None:
        self._hired += 1
        seed = self._seed * 10_000 + self._hired
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                _live(self._path, seed)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        self._members.append((pid, os.pidfd_open(pid)))

    def replace(self, index: int) -> None:
        """Kill a member, and start another.  AssertionError if it had ended by itself."""
        pid, pidfd = self._members.pop(index % len(self._members))
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        code = _end(pid, pidfd)
        assert code == -signal.SIGKILL, f"{pid} ended by itself: {code}"
        self._hire()

    def kill(self) -> None:
        """Kill all members at once."""
        for _, pidfd in self._members:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        codes = [_end(*member) for member in self._members]
        self._members.clear()
        assert set(codes) == {-signal.SIGKILL}, f"ended by themselves: {codes}"

    def wait(self) -> None:
        """Wait until all members end by themselves.  AssertionError if one failed, or does not end."""
        codes = [_end(*member) for member in self._members]
        self._members.clear()
        assert not any(codes), f"failed: {codes}"


def _end(pid: int, pidfd: int) -> int:
    assert select.select([pidfd], [], [], PATIENT)[0], f"{pid} does not end"
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

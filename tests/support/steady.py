"""A service and callers: all calls must be answered, whatever other clients do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, Message, deadline, make_bus, make_endpoint, sealed_memfd, world
from kdbusfs.client.encode import Memfd

from .actors import Actor, Actors, Link

NAME = "org.example.Steady"
STRANGER = 1000
PATIENT = 240.0  # seconds that an answer may take
ASKED_AT_LEAST = 20  # calls of each caller, also on a loaded machine
_POOL = 1 << 16


def _until_told(link: Link) -> threading.Event:
    ended = threading.Event()

    def wait() -> None:
        link.hear("the end", 3600)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


def _service(root: Path) -> Callable[[Link], int]:
    """Own a bus, a name, a policy for it and a custom endpoint; answer every call."""

    def serve(link: Link) -> int:
        answered = 0
        rights = [world(c.POLICY_TALK)]
        with (
            make_bus(root, "steady", access=c.MAKE_ACCESS_WORLD) as bus,
            Connection(bus, pool_size=_POOL, flags=c.HELLO_POLICY_HOLDER, name=NAME, policy=rights),
            make_endpoint(bus, "steady", access=c.MAKE_ACCESS_WORLD, policy={NAME: rights}) as end,
            Connection(bus, pool_size=_POOL) as service,
        ):
            service.acquire(NAME)
            link.say((bus.path, end.path))
            ended = _until_told(link)
            while not ended.is_set():
                if not service.wait(0.05):
                    continue
                with service.receive(PATIENT) as request:
                    service.reply(request, request.data().upper(), fds=[fd.fileno() for fd in request.fds])
                answered += 1
        return answered

    return serve


def _caller(path: str) -> Callable[[Link], int]:
    """Call in all ways until told to end."""

    def ask(link: Link) -> int:
        reading, _writing = os.pipe()
        asked = 0
        with Connection(path, pool_size=_POOL) as client, sealed_memfd(b"memfd") as memfd:

            def queued() -> Message:
                cookie = client.send(NAME, question, expect_reply=True, timeout_ns=deadline(PATIENT))
                answer = client.receive(PATIENT)
                assert answer.cookie_reply == cookie
                return answer

            ways: tuple[Callable[[], Message], ...] = (
                queued,
                lambda: client.call(NAME, question, timeout=PATIENT),
                lambda: client.call(NAME, [question, Memfd(memfd)], timeout=PATIENT, cancel_fd=reading),
                lambda: client.call(NAME, question, timeout=PATIENT, fds=[reading]),
            )
            link.say(client.id)
            ended = _until_told(link)
            while not ended.is_set() or asked <= ASKED_AT_LEAST:
                question = b"question %d" % asked
                way = asked % len(ways)
                with ways[way]() as answer:
                    assert answer.notification is None
                    assert answer.data() == question.upper() + (b"MEMFD" if way == 2 else b"")
                    assert len(answer.fds) == (1 if way == 3 else 0)
                asked += 1
                time.sleep(0.002)
        return asked

    return ask


class Steady:
    """The bus of a service, with callers through policy and through a custom endpoint."""

    def __init__(self, root: Path, actors: Actors) -> None:
        self._service = actors(_service(root), name="steady service")
        self.path, self.endpoint = self._service.hear("its bus")
        self._callers: list[Actor] = [
            actors(_caller(self.path), name="steady caller"),
            actors(_caller(self.path), uid=STRANGER, name="steady stranger"),
            actors(_caller(self.endpoint), uid=STRANGER, name="steady guest"),
        ]
        for caller in self._callers:
            caller.hear("its connection")

    @property
    def name(self) -> str:
        name: str = os.path.basename(os.path.dirname(self.path))
        return name

    def end(self) -> None:
        """End it; AssertionError unless there were calls and all were answered."""
        for caller in self._callers:
            caller.say()
        asked = [caller.result() for caller in self._callers]
        self._service.say()
        answered = self._service.result()
        assert min(asked) > ASKED_AT_LEAST
        assert sum(asked) == answered

"""A pair of well-behaved connections that talk while others misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kdbusfs.client import Connection

from .actors import Link

PATIENT = 240.0  # seconds that a message may take


def chatter(path: str) -> Callable[[Link], int]:
    """Two connections that exchange messages until told to end, and return the count; any error is a failure."""

    def chat(link: Link) -> int:
        rounds = 0
        with Connection(path, pool_size=1 << 16) as one, Connection(path, pool_size=1 << 16) as other:
            link.say((one.id, other.id))
            ended = threading.Event()

            def wait() -> None:
                link.hear("the end", 600)
                ended.set()

            threading.Thread(target=wait, daemon=True).start()
            while not ended.is_set():
                one.send(other.id, b"%d" % rounds)
                with other.receive(PATIENT) as message:
                    assert message.data() == b"%d" % rounds
                    other.send(one.id, message.data())
                with one.receive(PATIENT) as message:
                    assert message.data() == b"%d" % rounds
                rounds += 1
                time.sleep(0.002)
        return rounds

    return chat

"""Uses a domain as programs do, and reports whether everything works: `exercise.py ROOT [UID]`.

Any Python that has kdbusfs runs it, by path, in the checkout or not.  A service and a client, in processes of their
own and as user UID if given, exchange calls, a memfd, a descriptor and all metadata, and then one of them ends.
On failure it ends with a traceback and an exit code other than 0.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, Memfd, make_bus, sealed_memfd

PATIENCE = 240  # seconds
LARGE = b"large" * 100_000
KINDS = {
    "timestamp": c.ATTACH_TIMESTAMP,
    "tid_comm": c.ATTACH_TID_COMM,
    "pid_comm": c.ATTACH_PID_COMM,
    "exe": c.ATTACH_EXE,
    "cmdline": c.ATTACH_CMDLINE,
    "cgroup": c.ATTACH_CGROUP,
    "caps": c.ATTACH_CAPS,
}


def serve(path: str, mask: int, ready: int) -> None:
    """Answer four calls, and check their metadata, as far as `mask` allows them."""
    with Connection(path, attach_recv=c.ATTACH_ANY) as service:
        assert fcntl.fcntl(service.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY, "its pool could be mapped writable"
        service.acquire("org.example.Exercise")
        os.write(ready, b"+")
        for _ in range(4):
            with service.receive(PATIENCE) as request:
                assert request.return_flags == 0, "descriptors are missing"
                seen = request.metadata
                pids, creds = seen.pids, seen.creds
                assert pids is not None and pids.pid == os.getppid(), "PIDS"
                assert creds is not None and list(creds) == [*[os.getuid()] * 4, *[os.getgid()] * 4], "CREDS"
                for kind, bit in KINDS.items():
                    assert not mask & bit or getattr(seen, kind), kind
                for file in request.fds:
                    os.write(file.fileno(), b"through the pipe")
                service.reply(request, request.data().upper())


def talk(path: str) -> None:
    """Make the four calls, the last without an answer."""
    with Connection(path, attach_recv=c.ATTACH_ANY) as client:
        name = "org.example.Exercise"
        for payload in (b"small", LARGE):
            with client.call(name, payload, timeout=PATIENCE) as reply:
                assert reply.data() == payload.upper(), "reply"
        with sealed_memfd(LARGE) as memory, client.call(name, [b"head", Memfd(memory)], timeout=PATIENCE) as reply:
            assert reply.data() == b"HEAD" + LARGE.upper(), "memfd"
        reading, writing = os.pipe()
        with client.call(name, b"fd", fds=[writing], timeout=PATIENCE):
            os.close(writing)
            assert os.read(reading, 99) == b"through the pipe", "descriptor"


def both(root: str) -> None:
    """A bus with both clients."""
    with open(f"{root}/.kdbusfs/parameters/attach_flags_mask") as file:
        mask = int(file.read())
    with make_bus(root, "exercise") as bus:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(3 * PATIENCE)
            _end(lambda: serve(bus.path, mask, writing))
        os.close(writing)
        assert os.read(reading, 1) == b"+", "the service does not start"
        talk(bus.path)
        assert os.waitpid(child, 0)[1] == 0, "the service failed"


def _end(action: Callable[[], None]) -> None:
    try:
        action()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def main() -> int:
    root, *rest = sys.argv[1:]
    signal.alarm(6 * PATIENCE)
    if rest:
        uid = int(rest[0])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    both(root)
    print("all of it worked")
    return 0


if __name__ == "__main__":
    sys.exit(main())

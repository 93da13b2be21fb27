"""Scenes for a domain inside a user namespace: `userns_scenes.py SCENE` mounts a domain, runs the scene, and unmounts.

Prints one line of JSON; on failure a traceback, with an exit code other than 0.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, Memfd, make_bus, raw, sealed_memfd
from tests.support import old_kernel

PAGE = mmap.PAGESIZE


def failure(action: Callable[[], object]) -> int | None:
    """The errno that `action` fails with."""
    try:
        action()
    except OSError as fault:
        return fault.errno
    return None


def unmapped(root: str) -> dict[str, object]:
    """A namespace without an id 0: the mounter owns the nodes that root owns elsewhere."""
    with make_bus(root, "x") as bus, Connection(bus.path) as conn:
        conn.send(conn.id, b"x")
        conn.receive(120).free()
        owners = {name: os.stat(os.path.join(root, name)).st_uid for name in (".", "control", bus.name)}
        return {"own": os.geteuid(), **owners}


def attributes(root: str) -> dict[str, object]:
    """Owners and modes of the root directory, its entries (FS-4, FS-5), and a bus."""
    with make_bus(root, "x") as bus:
        shown = {name: os.stat(os.path.join(root, name)) for name in (".", "control", bus.name)}
        return {name: [found.st_uid, found.st_gid, oct(found.st_mode)] for name, found in shown.items()}


def exchange(root: str) -> dict[str, object]:
    """Every command that writes to a pool."""
    result: dict[str, object] = {}
    with make_bus(root, "x") as bus, Connection(bus.path, attach_recv=c.ATTACH_ANY) as service:
        client = Connection(bus.path)
        service.acquire("org.example.Echo")
        for size in (0, 1, 8, PAGE - 1, PAGE, PAGE + 1, 100_000, 2_000_001):
            payload = random.randbytes(size)
            client.send("org.example.Echo", payload)
            with service.receive(120) as message:
                assert message.data() == payload, size
        reading, writing = os.pipe()
        with sealed_memfd(b"m" * 100_000) as large:
            client.send(service.id, [b"head", Memfd(large)], fds=[writing])
        os.close(writing)
        with service.receive(120) as message:
            assert message.return_flags == 0 and message.data() == b"head" + b"m" * 100_000
            os.write(message.fds[0].fileno(), b"through the pipe")
            result["creds"] = list(message.metadata.creds or ())
        assert os.read(reading, 99) == b"through the pipe"
        os.close(reading)

        def answer() -> None:
            with service.receive(120) as request:
                service.reply(request, request.data().upper())

        for _ in range(50):
            thread = threading.Thread(target=answer)
            thread.start()
            with client.call("org.example.Echo", b"question", timeout=120) as reply:
                assert reply.data() == b"QUESTION"
            thread.join()
        for _ in range(20):
            assert sorted(info.id for info in client.list_names(c.NAME_LIST_UNIQUE)) == [service.id, client.id]
            assert client.conn_info("org.example.Echo").id == service.id
            assert client.creator_info().name == bus.name
        client.add_match(1)
        service.broadcast(b"signal")
        with client.receive(120) as message:
            assert message.data() == b"signal"
        result["size"] = os.fstat(client.fd).st_size
        result["writable"] = failure(lambda: raw.map_memory(client.fd, PAGE, protection=mmap.PROT_WRITE))
        result["whole"] = bytes(client.pool[-PAGE:]) == bytes(PAGE)
        client.close()
    return result


def mapped(root: str) -> dict[str, object]:
    """A map keeps its file open, and with it the connection."""

    def others() -> int:
        return len(watcher.list_names(c.NAME_LIST_UNIQUE)) - 1

    with make_bus(root, "x") as bus, Connection(bus.path) as watcher:
        client = Connection(bus.path)
        view = client.pool[:8]
        client.close()
        kept = others()
        view.release()
        limit = time.monotonic() + 240
        while others() and time.monotonic() < limit:
            time.sleep(0.01)
        client = Connection(bus.path)
        view = client.pool[:8]
        client.byebye()
        gone = others()
        readable = bytes(view) is not None
        client.close()
        return {"kept": kept, "left": others(), "after BYEBYE": gone, "readable": readable}


def eviction(root: str) -> dict[str, object]:
    """A client that drops its copies repeatedly while they are stored is neither stuck nor sees stale data."""
    size, count, slowest = 4 << 20, 0, 0.0
    with make_bus(root, "x") as bus, Connection(bus.path, pool_size=size) as service:
        client = Connection(bus.path)

        def drop() -> None:
            os.posix_fadvise(service.fd, 0, 0, os.POSIX_FADV_DONTNEED)

        def touch() -> None:
            for at in range(0, size, PAGE):
                service.pool[at]

        helpers = [_repeat(action) for action in (drop, touch, drop, touch)]
        limit = time.monotonic() + 6
        try:
            while time.monotonic() < limit:
                sent = [random.randbytes(random.choice((1, 100, 5000, 70_000))) for _ in range(5)]
                for payload in sent:
                    client.send(service.id, payload)
                for payload in sent:
                    start = time.monotonic()
                    with service.receive(120) as message:
                        slowest = max(slowest, time.monotonic() - start)
                        assert message.data() == payload
                        count += 1
        finally:
            for pid in helpers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        client.close()
    return {"messages": count, "slowest": slowest}


def _repeat(action: Callable[[], None]) -> int:
    """Start a process that repeats `action` until it is killed; returns its pid."""
    pid = os.fork()
    if pid == 0:
        while True:
            action()
    return pid


def traced(root: str) -> dict[str, object]:
    """A client that cannot be stopped keeps the file that it opened, and sees its pool in that file."""
    code = (
        "import ctypes, os, sys; ctypes.CDLL(None).ptrace(0, 0, 0, 0)\n"
        "from kdbusfs.client import Connection\n"
        "conn = Connection(sys.argv[1], pool_size=1 << 20); conn.send(conn.id, b'to myself')\n"
        "with conn.receive(120) as m: print(m.data().decode(), os.fstat(conn.fd).st_size)\n"
        "r, w = os.pipe(); conn.send(conn.id, b'x', fds=[w])\n"
        "with conn.receive(120) as m: print(m.return_flags, m.fds[0].fd)\n"
    )
    with make_bus(root, "x") as bus:
        done = subprocess.run(
            [sys.executable, "-c", code, bus.path], capture_output=True, text=True, timeout=120, check=False
        )
    return {"out": done.stdout.split("\n"), "error": done.stderr}


def users(root: str) -> dict[str, object]:
    """Several ids of the namespace, and one of a namespace below (BUS-5, PRIV-1, NS-2)."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    from tests.support.peer import CLONE_NEWUSER, Peer, PeerError

    def refused(peer: Peer, code: str) -> int | None:
        try:
            peer(code)
        except PeerError as fault:
            return fault.errno
        return 0

    make = f"bus = make_bus({root!r}, '%s', prefix=False, access=c.MAKE_ACCESS_WORLD); result = bus.path"
    special = "Connection(%r, flags=c.HELLO_POLICY_HOLDER, name='org.example.X').close()"
    rows = ((0, 0, 10),)
    with Peer(ids=(7, 8)) as seven, Peer(ids=(9, 9)) as nine, Peer() as root_inside:
        result: dict[str, object] = {"wrong prefix": refused(seven, make % "0-x")}
        path = seven(make % "7-x")
        result["owner"] = [os.stat(path).st_uid, os.stat(path).st_gid]
        result["privileged"] = [refused(peer, special % path) for peer in (seven, nine, root_inside)]
        with Peer(CLONE_NEWUSER, (0, 0), ((0, 9, 1),), ((0, 9, 1),)) as below:
            result["below"] = [refused(below, code) for code in (special % path, make % "0-y", make % "9-y")]
        with Peer(CLONE_NEWUSER, None, rows, rows) as below:
            result["root below"] = refused(below, special % path)
        nine(f"conn = Connection({path!r})")
        result["creds"] = root_inside(
            f"conn = Connection({path!r})\n"
            f"result = list(conn.conn_info({nine('result = conn.id')}, c.ATTACH_CREDS).metadata.creds)"
        )
    return result


def killed(root: str) -> dict[str, object]:
    """The daemon is killed under load: it ends, and its clients get errors."""
    return _ended(root, signal.SIGKILL)


def stopped(root: str) -> dict[str, object]:
    """The daemon gets SIGTERM under load."""
    return _ended(root, signal.SIGTERM)


def _ended(root: str, number: int) -> dict[str, object]:
    with make_bus(root, "x") as bus:
        service, client = Connection(bus.path), Connection(bus.path)

        # Pages are read while others are stored: neither may hold what the other waits for.
        def drop() -> None:
            os.posix_fadvise(service.fd, 0, 0, os.POSIX_FADV_DONTNEED)

        def touch() -> None:
            for at in range(0, 4 << 20, PAGE):
                service.pool[at]

        helpers = [_repeat(drop), _repeat(touch)]
        threading.Timer(1.0, os.kill, (int(os.environ["DAEMON"]), number)).start()
        code: int | None = None

        def exchange() -> None:
            client.send(service.id, bytes(50_000))
            service.receive(120).free()

        while code is None:
            code = failure(exchange)
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return {"errno": code}


def together(root: str) -> dict[str, object]:
    """Clients that use all features are killed, while all calls of others are answered."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.support.actors import Actors, until
    from tests.support.crew import Crew
    from tests.support.steady import Steady

    def stats() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(root, ".kdbusfs/stats").read_bytes())
        return {key: found[key] for key in ("users", "waiting", "buses", "open_files", "deferred", "jobs", "faults")}

    before = stats()
    chance = random.Random(3)
    actors = Actors()
    try:
        steady = Steady(Path(root), actors)
        crew = Crew(steady.path, 3, 5)
        for _ in range(60):
            time.sleep(chance.random() * 0.02)
            crew.replace(chance.randrange(5))
        crew.kill()
        steady.end()
        until("the state of the start", lambda: stats() == before)
    finally:
        actors.clean_up()
    return {"left": 0}


def demo(root: str) -> dict[str, object]:
    """The examples in C."""
    script = os.path.join(os.path.dirname(__file__), "../../docs/examples/demo.sh")
    done = subprocess.run([script, root], capture_output=True, text=True, timeout=120, check=False)
    return {"status": done.returncode, "last": done.stdout.strip().rpartition("\n")[2], "errors": done.stderr}


def _main() -> None:
    scene: Callable[[str], dict[str, Any]] = globals()[sys.argv[1]]
    root = tempfile.mkdtemp(prefix="kdbusfs-userns-")
    os.chmod(root, 0o755)
    daemon = subprocess.Popen([*old_kernel.prefix(), sys.executable, "-m", "kdbusfs", "test", root, "-f"])
    os.environ["DAEMON"] = str(daemon.pid)
    try:
        limit = time.monotonic() + 240
        while not os.path.exists(f"{root}/control"):
            assert daemon.poll() is None and time.monotonic() < limit, "the daemon does not mount"
            time.sleep(0.02)
        result = scene(root)
        if sys.argv[1] not in ("killed", "stopped"):
            daemon.send_signal(signal.SIGTERM)
        result["exit"] = daemon.wait(120)
    finally:
        daemon.kill()
        daemon.wait(120)
    subprocess.run(["umount", "-l", root], stderr=subprocess.DEVNULL, check=False)
    os.rmdir(root)
    print(json.dumps(result))


if __name__ == "__main__":
    _main()

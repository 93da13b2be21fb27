"""Makes the pictures of the README from real runs: `make screenshots`, as root.

It mounts a domain in a mount namespace of its own, lets some programs talk, and turns what kdbusctl shows on a
terminal into SVG files beside this script.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, Lost, Memfd, bloom_rule, deadline, make_bus, sealed_memfd

HERE = Path(__file__).parent
KDBUSCTL = Path(sys.executable).with_name("kdbusctl")
WIDTH, HEIGHT = 132, 18
PATIENCE = 30.0  # seconds
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000


def mount(path: str) -> subprocess.Popen[bytes]:
    """A daemon that serves a domain at `path`, seen by this process and its children only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None):
        sys.exit(f"no private mount namespace: {os.strerror(ctypes.get_errno())}")
    daemon = subprocess.Popen([sys.executable, "-m", "kdbusfs", "kdbusfs", path, "-f"])
    limit = time.monotonic() + PATIENCE
    while not os.path.exists(f"{path}/control"):
        if daemon.poll() is not None or time.monotonic() > limit:
            sys.exit("no domain could be mounted")
        time.sleep(0.05)
    return daemon


# The programs.


def answer(connection: Connection, seconds: float) -> None:
    """Answer requests with their payload in capitals, until the end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if connection.wait(0.1):
            try:
                message = connection.recv()
            except Lost:
                continue
            if message is not None:
                with message:
                    if message.expects_reply:
                        connection.reply(message, message.data().upper())


def ask(connection: Connection, name: str, payload: bytes, pause: float, seconds: float) -> None:
    """Call again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with connection.call(name, payload, timeout=PATIENCE):
            pass
        time.sleep(pause)


def tell(connection: Connection, word: str, payload: bytes, pause: float, seconds: float) -> None:
    """Broadcast again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.broadcast(payload, bloom=connection.bloom(word))
        time.sleep(pause)


def start(comm: str, play: Callable[[], None]) -> int:
    """Run `play` in a process that is called `comm`."""
    pid = os.fork()
    if pid == 0:
        try:
            Path("/proc/self/comm").write_text(comm)
            play()
        finally:
            os._exit(0)
    return pid


def peers(bus: BusOwner, seconds: float) -> list[int]:
    """A small system that talks for so long."""

    def service(*names: str) -> Callable[[], None]:
        def play() -> None:
            with Connection(bus.path, pool_size=1 << 20) as connection:
                for name in names:
                    connection.acquire(name)
                connection.add_match(1, bloom_rule(connection.bloom("net")))
                answer(connection, seconds)

        return play

    def client(name: str, payload: bytes, pause: float) -> Callable[[], None]:
        def play() -> None:
            time.sleep(0.5)
            with Connection(bus.path, pool_size=1 << 20) as connection:
                ask(connection, name, payload, pause, seconds - 1)

        return play

    def network() -> None:
        with Connection(bus.path, pool_size=1 << 20) as connection:
            connection.acquire("org.example.Network")
            tell(connection, "net", b"link eth0 up", 0.04, seconds - 0.5)

    def sleeper() -> None:
        with Connection(bus.path, pool_size=1 << 16) as connection:
            connection.acquire("org.example.Backup")
            time.sleep(seconds)

    def visitor() -> None:
        end = time.monotonic() + seconds - 1
        while time.monotonic() < end:
            with Connection(bus.path, pool_size=1 << 16) as connection:
                connection.acquire("org.example.Visitor")
                with sealed_memfd(bytes(range(48, 112)) * 4096) as picture:
                    connection.send("org.example.Login", [b"PNG", Memfd(picture)])
                time.sleep(0.1)

    def patient() -> None:
        time.sleep(0.6)
        with Connection(bus.path, pool_size=1 << 16) as connection:
            for number in range(12):
                connection.send("org.example.Backup", bytes(200 * number), expect_reply=True, timeout_ns=deadline(2))
            time.sleep(seconds - 1)

    return [
        start("echod", service("org.example.Echo", "org.example.Echo2")),
        start("login", service("org.example.Login")),
        start("networkd", network),
        start("backupd", sleeper),
        start("shell", client("org.example.Echo", b"hello", 0.03)),
        start("editor", client("org.example.Echo", b"{\"text\": \"" + b"lorem ipsum " * 300, 0.04)),
        start("panel", client("org.example.Login", b"who is there?", 0.02)),
        start("visitor", visitor),
        start("cron", patient),
    ]


# The pictures.


def on_terminal(*command: str, seconds: float) -> str:
    """What a command writes to a terminal; it is ended with SIGINT after so long."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
        os.execv(KDBUSCTL, [str(KDBUSCTL), *command])
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    ending = threading.Timer(seconds, os.kill, (pid, signal.SIGINT))
    ending.start()
    written = b""
    while select.select([fd], [], [], PATIENCE)[0]:
        try:
            written += os.read(fd, 1 << 16)
        except OSError:
            break
    ending.cancel()
    os.waitpid(pid, 0)
    os.close(fd)
    return written.decode()


def draw(name: str, shown: str) -> None:
    """Write docs/images/kdbusctl-NAME.svg."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), legacy_windows=False)
    console.print(Text.from_ansi(shown.replace("\r", "")), soft_wrap=True, crop=True)
    # Nothing is to be fetched by whoever looks at it.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(
        str(HERE / f"kdbusctl-{name}.svg"), title=f"kdbusctl {name}", code_format=form, unique_id=f"kdbusctl-{name}"
    )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="kdbusfs-") as above:
        path = f"{above}/domain"
        os.mkdir(path)
        daemon = mount(path)
        pids: list[int] = []
        try:
            with make_bus(path, "demo", access=c.MAKE_ACCESS_WORLD, bloom=(64, 4)) as bus:
                pids = peers(bus, 9)
                time.sleep(1.5)
                text = on_terminal("top", "--mount", path, "--interval", "1", seconds=3)
                frame = text.split("\x1b[?1049l")[0].split("\x1b[H")[-1]
                draw("top", frame.replace(path, "/run/kdbusfs"))
                text = on_terminal("monitor", "--bus", bus.path, "--count", str(HEIGHT - 1), seconds=5)
                draw("monitor", text)
                for pid in pids:
                    os.waitpid(pid, 0)
        finally:
            daemon.send_signal(signal.SIGINT)
            daemon.wait(PATIENCE)


if __name__ == "__main__":
    main()

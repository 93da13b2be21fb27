"""A client with a FUSE file system of its own, whose server stops to answer on request.

The server is a separate process: a process that waits for itself cannot be killed (deadlock).
"""

from __future__ import annotations

import os
import signal

from tests.operations.host_child import Child

SERVER = """
import errno, signal, struct, time
HEADER = struct.Struct("<IIQQIIIHH")
NODES = {(1, b"control"): 2, (1, b"endpoint"): 50, (1, b".kdbusfs"): 60, (60, b"stats"): 61}
def attributes(ino):
    mode = 0o40755 if ino in (1, 60) else 0o100666
    return struct.pack("<6Q10I", ino, 1 << 20, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def answer(opcode, node, body):
    if opcode == 26:
        return struct.pack("<4I2H2I36x", 7, 31, 65536, 0, 16, 12, 65536, 1)
    if opcode == 1:
        ino = NODES.get((node, body.rstrip(b"\\0")))
        if ino is None:
            return errno.ENOENT
        return struct.pack("<4Q2I", ino, 1, 100, 100, 0, 0) + attributes(ino)
    if opcode == 3:
        return struct.pack("<Q2I", 100, 0, 0) + attributes(node)
    if opcode in (14, 27):
        return struct.pack("<Q2I", 1, 0, 0)
    if opcode in (18, 29):
        return b""
    return errno.ENOSYS
def serve(fuse):
    while True:
        request = os.read(fuse, 135168)
        length, opcode, unique, node, *_ = HEADER.unpack_from(request)
        if opcode in (2, 42, 36, 15, 25):  # forgets, interrupts; reads and flushes are never answered
            continue
        out = answer(opcode, node, request[40:])
        error, data = (-out, b"") if isinstance(out, int) else (0, out)
        os.write(fuse, struct.pack("<IiQ", 16 + len(data), error, unique) + data)
path = os.environ["FUSE_PATH"]
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
assert libc.mount(b"test", path.encode(), os.environ["FUSE_TYPE"].encode(), 0, options) == 0
server = os.fork()
if not server:
    libc.prctl(1, signal.SIGKILL)
    sys.stdin.close(); sys.stdout.close()
    serve(fuse)
os.close(fuse)
say(server=server)
"""


class FuseChild(Child):
    """A child in a mount namespace of its own, with a FUSE mount of type `kind` at `path`."""

    def __init__(self, path: str, kind: str) -> None:
        env = dict(os.environ, FUSE_PATH=path, FUSE_TYPE=kind)
        self.server = 0
        super().__init__(SERVER, prefix=("unshare", "-m"), env=env)
        self.server = self.hear()["server"]

    def open(self, name: str, flags: int) -> int:
        return int(self.ask(f"os.open(os.path.join(path, {name!r}), {flags})"))

    def silence(self) -> None:
        """Answer no request from now on."""
        os.kill(self.server, signal.SIGSTOP)

    def end(self) -> None:
        server, self.server = self.server, 0  # once: the pid may be reused afterwards
        if server:
            os.kill(server, signal.SIGKILL)
        super().end()

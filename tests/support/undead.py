"""A process that serves the page of its own message: `undead.py KIND BUS DIRECTORY [UID]`, started by root.

It mounts a silent file system at DIRECTORY, prints "ready" when it is connected, and after a line of input issues the
command KIND of tests.support.hostile_memory.  Then it executes input lines: `exit`, `exec`.  If killed, it can only end
when its command is answered, because its memory comes from a server that ends with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from tests.support.hostile_memory import UID, Client
from tests.support.silent_fuse import Server


def serve(server: Server) -> None:
    while True:
        try:
            server.serve()
        except OSError:
            return


def client_of_own_page(bus: str, directory: str, uid: int) -> Client:
    """Become user `uid` and a client of `bus` whose memory is served by a thread of this process."""
    server = Server(directory)
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    client = Client(bus, os.path.join(directory, "pages"))
    # Its close would ask the server that ends with the process, whose end waits for it.
    page = client.page(0)
    os.close(client.file)
    client.page = lambda number: page  # type: ignore[method-assign]
    return client


def main() -> None:
    kind, bus, directory = sys.argv[1:4]
    uid = int(sys.argv[4]) if len(sys.argv) > 4 else UID
    signal.signal(signal.SIGUSR1, lambda *_: None)
    client = client_of_own_page(bus, directory, uid)
    print("ready", flush=True)
    sys.stdin.readline()
    threading.Thread(target=getattr(client, kind)).start()
    for line in sys.stdin:
        if line == "exit\n":
            os._exit(3)
        elif line == "exec\n":
            os.execv("/bin/sleep", ["sleep", "1000"])


if __name__ == "__main__":
    main()

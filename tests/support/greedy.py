"""A user who makes the daemon hold as much memory as it allows: `greedy.py BUS UID`.

It prints "ready", then one line of JSON: the bytes of payload in its pools, and the errno that stopped it.  It keeps
them until its input ends.
"""

from __future__ import annotations

import json
import os
import sys

from kdbusfs.client import Connection

SIZE = 1 << 20
QUEUE = 100


def main() -> None:
    bus, uid = sys.argv[1], int(sys.argv[2])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    print("ready", flush=True)
    payload = b"x" * SIZE
    connections: list[Connection] = []
    count = 0
    error = 0
    while not error:
        try:
            if count % QUEUE == 0:
                connections.append(Connection(bus, pool_size=4 * QUEUE * SIZE))
            connections[-1].send(connections[-1].id, payload)
            count += 1
        except OSError as fault:
            error = fault.errno or -1
    print(json.dumps({"bytes": count * SIZE, "errno": error}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

"""A client that blocks in a synchronous SEND to itself: `waiting.py BUS SECONDS`.

It prints "ready" and reads a line: the CLOCK_MONOTONIC in ns to which SECONDS is added for the deadline; 0: its own
clock.  At the end it prints a line of JSON: the errno of its SEND, and its duration in seconds.
"""

from __future__ import annotations

import json
import sys
import time

from kdbusfs.client import Connection


def main() -> None:
    bus, seconds = sys.argv[1], float(sys.argv[2])
    connection = Connection(bus)
    print("ready", flush=True)
    base = int(sys.stdin.readline())
    start = time.monotonic_ns()
    error = 0
    try:
        connection.call(connection.id, b"x" * 8, timeout_ns=(base or start) + int(seconds * 1e9))
    except OSError as fault:
        error = fault.errno or -1
    print(json.dumps({"errno": error, "took": (time.monotonic_ns() - start) / 1e9}), flush=True)


if __name__ == "__main__":
    main()

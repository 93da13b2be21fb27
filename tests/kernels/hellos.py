"""Run in the machine: says HELLO some times, each in a process of its own, and tells what became of the descriptor.

After HELLO a client's descriptor is a read-only one (POOL-3): where the daemon cannot swap it, the client can map its
pool writable.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
import tempfile

from kdbusfs.client import Connection, make_bus

PATIENCE = 120.0  # seconds for one HELLO


def say_hello(bus: str, number: int) -> None:
    """Say HELLO once; print what the descriptor is afterwards."""
    with Connection(bus) as connection:
        flags = fcntl.fcntl(connection.fileno(), fcntl.F_GETFL)
        kind = "read-only" if flags & os.O_ACCMODE == os.O_RDONLY else "not swapped: writable"
    print(f"hello {number}: {kind}", flush=True)


def main() -> None:
    """Mount a domain, say HELLO as often as the argument says, and unmount it."""
    count = int(sys.argv[1])
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-m", "kdbusfs", "hellos", place], check=True, timeout=600)
        try:
            with make_bus(place, "hellos") as bus:
                for number in range(1, count + 1):
                    client = context.Process(target=say_hello, args=(bus, number))
                    client.start()
                    client.join(PATIENCE)
                    if client.exitcode != 0:
                        client.kill()
                        print(f"hello {number}: exit code {client.exitcode}", flush=True)
        finally:
            subprocess.run(["umount", place], check=False, timeout=60)
    print("hellos: done")


if __name__ == "__main__":
    main()

"""Run in the machine: how long a call takes, with client, service and daemon on one cpu.

A tenth of the calls are as fast as what is printed, or faster: on a host that has other work, medians tell of that.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time

from kdbusfs.client import Connection, make_bus

SIZES = {"call 8 B": 8, "call 256 KiB": 256 << 10}
WARM_UP = 10
PATIENCE = 600.0  # seconds for one call
POOL_SIZE = 16 << 20


def serve(bus: str) -> None:
    """Reply to each message with as many bytes."""
    with Connection(bus, pool_size=POOL_SIZE) as service:
        service.acquire("org.example.Calls")
        while True:
            with service.receive() as message:
                service.reply(message, bytes(message.data()))


def measure(bus: str, size: int, count: int) -> float:
    """Microseconds of a call, of the fastest tenth."""
    payload = bytes(size)
    taken = []
    with Connection(bus, pool_size=POOL_SIZE) as client:
        for _ in range(WARM_UP + count):
            began = time.monotonic_ns()
            with client.call("org.example.Calls", payload, timeout=PATIENCE) as reply:
                taken.append(time.monotonic_ns() - began)
                assert len(reply.data()) == size
    return sorted(taken[WARM_UP:])[count // 10] / 1e3


def main() -> None:
    """Mount a domain, make as many calls of each size as the argument says, and unmount it."""
    count = int(sys.argv[1])
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-m", "kdbusfs", "calls", place], check=True, timeout=600)
        try:
            with make_bus(place, "calls") as bus:
                service = context.Process(target=serve, args=(bus.path,), daemon=True)
                service.start()
                with Connection(bus.path) as watcher:
                    limit = time.monotonic() + PATIENCE
                    while not watcher.list_names():
                        assert time.monotonic() < limit, f"waited {PATIENCE:g} s for the service"
                        time.sleep(0.05)
                for name, size in SIZES.items():
                    print(f"{name}: {measure(bus.path, size, count):.1f}", flush=True)
                service.kill()
                service.join()
        finally:
            subprocess.run(["umount", place], check=False, timeout=60)


if __name__ == "__main__":
    main()

"""The figures in a mount's `stats` that return to their start values when clients leave; tests/mount/test_load.py
checks the list."""

from __future__ import annotations

GAUGES = (
    "yielded",
    "bus1",
    "buses",
    "credentials",
    "deferred",
    "faults",
    "held",
    "jobs",
    "open_directories",
    "open_files",
    "stuck",
    "users",
    "waiting",
)

OTHERS = (
    # Counters of what has happened.
    "abandoned",
    "collections",
    "preempted",
    "interrupts",
    "ioctls",
    "kept_waiting",
    "longest_collection_us",
    "longest_turn_us",
    "lost",
    "muted",
    "notifies",
    "pidfds",
    "polls",
    "requests",
    "blocked",
    "yields",
    "tree",
    # What the kernel, the allocator or the pool of threads keeps.
    "blocks",
    "memory",
    "memory_limit",
    "nodes",
    "prunes",
    "spares",
)

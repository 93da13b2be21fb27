"""Statistics of connections: for the files `connections` and `stats` of a mount."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection


def connection_details(connections: Iterable[Connection], pid_ns: int) -> Iterator[dict[str, object]]:
    """The details of each connection, evaluated lazily; connections that have ended meanwhile are left out.

    `pid_ns`: the namespace whose pids are shown.  docs/architecture/inspection.md has the members.
    """
    for connection in connections:
        if connection.active:
            yield _details(connection, pid_ns)


def _details(connection: Connection, pid_ns: int) -> dict[str, object]:
    process = connection.metadata
    pids = process.pids.get(pid_ns)
    pool = connection.pool
    traffic = connection.traffic
    requests = connection.requests
    return {
        "bus": connection.bus.name,
        "endpoint": connection.endpoint.name,
        "id": connection.id,
        "family": connection.family.name,
        "flags": connection.flags,
        "uid": connection.credentials.ids().uid,
        "pid": pids.pid if pids is not None else None,
        "comm": _text(process.pid_comm),
        "description": _text(connection.description or b""),
        "names": [_text(name) for name in connection.names],
        "sent": traffic.sent,
        "sent_bytes": traffic.sent_bytes,
        "received": traffic.received,
        "received_bytes": traffic.received_bytes,
        "queued": connection.queue.count,
        "queued_bytes": connection.queue.payload_bytes(),
        "lost": traffic.lost_before + traffic.lost,
        "requests": requests.count,
        "owed": len(requests.owed),
        "matches": len(connection.matches),
        "pool_size": pool.size,
        "pool_used": pool.busy,
        "pool_slices": pool.slices,
    }


def connection_stats(connection: Connection) -> dict[str, object]:
    """Numbers that must return to their initial values when clients leave."""
    return {
        "id": connection.id,
        "endpoint": connection.endpoint.name,
        "flags": connection.flags,
        "uid": connection.user.uid,
        "queue": len(connection.queue),
        "lost": connection.traffic.lost,
        "names": [name.decode("ascii") for name in connection.names],
        "matches": len(connection.matches),
        "pending_requests": connection.requests.count,
        "pool_size": connection.pool.size,
        "pool_busy": connection.pool.busy,
        "pool_slices": connection.pool.slices,
    }


def _text(value: bytes) -> str:
    """Programs may have any bytes in their names."""
    return value.decode("utf-8", "surrogateescape")

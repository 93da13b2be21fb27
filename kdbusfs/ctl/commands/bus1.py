"""kdbusctl bus1: the peers of a domain, and what they have."""

from __future__ import annotations

from typing import Any, Final

import click

from .. import complete
from ..bus1 import id_text, read_peers
from ..context import Context, pass_context
from ..failure import EXIT_NOTHING, Failure
from ..options import Command
from ..output import Output
from .top import amount

_COLUMNS: Final = (
    *("PEER", "PID", "USER", "NODES", "HANDLES", "REFERENCES"),
    *("QUEUED", "SLICES", "POOL", "SEED", "COMMAND"),
)


@click.command("bus1", cls=Command, short_help="Show the peers of bus1, their nodes, handles and queues.")
@click.argument("peer", type=int, required=False, shell_complete=complete.option(complete.peers))
@pass_context
def command(context: Context, peer: int | None) -> None:
    """Show the peers of a domain, or what PEER has: its nodes, its handles of other peers' nodes, and its queue.

    Only root may. A peer is an open file of MOUNT/bus1; peers are numbered in the order in which they were opened, and
    PID is the process that has done so. REFERENCES count against the limit of handles, also those in queued messages.
    Ids are as the peer has them. HOLDERS of a node are the other peers that have a handle, or a message with one.
    "-" stands for what is unknown.

    With --json, prints an array of peers: peer, uid, user, pid, comm, command, slices, max_slices, references,
    max_handles, pool_used (bytes), queued, seed, nodes, handles, queue. A node has id, holders, references, destroyed;
    a handle has id, owner (a peer), node (its owner's id for it), references, destroyed. An entry of the queue has type
    (data, destroy or release) and destination; data has uid, bytes, handles, fds as well. Of a queue, the first 1024
    entries are shown.
    """
    output = context.output
    with output.progress("reading"):
        peers = read_peers(context.domain())
    if peer is not None:
        peers = [each for each in peers if each["peer"] == peer]
        if not peers:
            raise Failure(f"there is no peer {peer}; 'kdbusctl bus1' shows all", EXIT_NOTHING)
    if output.json:
        output.document(peers)
    elif peer is None:
        output.table(_COLUMNS, map(_cells, peers), right=(*_COLUMNS[:2], *_COLUMNS[3:9]), last_gives_way=True)
    else:
        _show(output, peers[0])


def _cells(peer: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(peer["peer"]),
        str(peer["pid"] or "-"),
        peer["user"],
        str(len(peer["nodes"])),
        str(len(peer["handles"])),
        str(peer["references"]),
        str(peer["queued"]),
        str(peer["slices"]),
        amount(peer["pool_used"]),
        "yes" if peer["seed"] else "-",
        peer["command"] or peer["comm"] or "-",
    )


def _show(output: Output, peer: dict[str, Any]) -> None:
    output.fields(
        [
            ("Peer", str(peer["peer"])),
            ("User", peer["user"]),
            ("PID", str(peer["pid"] or "-")),
            ("Command", peer["command"] or peer["comm"] or "-"),
            ("Slices", f"{peer['slices']} of {peer['max_slices']}, {peer['pool_used']} bytes"),
            ("References", f"{peer['references']} of {peer['max_handles']}"),
            ("Seed", "yes" if peer["seed"] else "none"),
            ("Queued", str(peer["queued"])),
        ]
    )
    _table(
        output,
        ("NODE", "HOLDERS", "REFERENCES", "STATE"),
        [(id_text(each["id"]), str(each["holders"]), str(each["references"]), _state(each)) for each in peer["nodes"]],
    )
    _table(
        output,
        ("HANDLE", "OWNER", "NODE", "REFERENCES", "STATE"),
        [
            (id_text(each["id"]), str(each["owner"]), id_text(each["node"]), str(each["references"]), _state(each))
            for each in peer["handles"]
        ],
    )
    _table(
        output,
        ("QUEUED", "DESTINATION", "BYTES", "HANDLES", "FDS", "UID"),
        [
            (
                each["type"],
                id_text(each["destination"]),
                *(str(each.get(name, "-")) for name in ("bytes", "handles", "fds", "uid")),
            )
            for each in peer["queue"]
        ],
    )


def _table(output: Output, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if rows:
        output.line()
        output.table(columns, rows, right=[name for name in columns if name not in ("QUEUED", "STATE")])


def _state(each: dict[str, Any]) -> str:
    return "destroyed" if each["destroyed"] else "live"

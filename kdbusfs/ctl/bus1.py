"""What `.kdbusfs/peers` of a domain tells of bus1: peers, their nodes, handles and queues."""

from __future__ import annotations

from typing import Any, Final

from .describe import proc_command, user_name
from .traffic import read

FILE: Final = ".kdbusfs/peers"


def read_peers(domain: str) -> list[dict[str, Any]]:
    """All peers of the domain at path `domain` (docs/architecture/inspection.md).  Raises Failure."""
    found = read(domain, FILE, "peers")
    for peer in found:
        command = None if peer["pid"] is None else proc_command(peer["pid"], peer["uid"])
        peer["user"] = user_name(peer["uid"])
        peer["comm"], peer["command"] = command if command is not None else (None, None)
    return found


def id_text(id: int | None) -> str:
    """An id as programs choose and print them: in hex; "-" for one that is forgotten."""
    return "-" if id is None else f"{id:#x}"

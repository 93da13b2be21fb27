"""bus1: peers, nodes and handles, without I/O and without Linux.  It knows nothing of kdbus (docs/design.md).

For programs, the names of the client (`kdbusfs.client.bus1`) are here as well: `from kdbusfs.bus1 import Peer, abi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

CLIENT: Final = ("Limits", "Message", "Peer")


def __getattr__(name: str) -> Any:
    """The client is imported on use: the core does without it."""
    if name in CLIENT:
        return getattr(import_module("kdbusfs.client.bus1"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *CLIENT]

"""The end of endpoints and buses (FS-24, FS-26, SHUT-1 to SHUT-5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .disconnect import disconnect

if TYPE_CHECKING:
    from .bus import Bus
    from .endpoint import Endpoint

_A_CONNECTION: Final = 50
"""Units of `Turn.spend` for the end of a connection that has little."""


def shut_down_endpoint(endpoint: Endpoint) -> None:
    """Disconnect all its connections, one after the other, then remove it (FS-26, SHUT-5).  Idempotent.

    Other commands may run between two of them; no connection is made any more.
    """
    if not endpoint.active:
        return
    endpoint.active = False
    for connection in list(endpoint.connections.values()):
        disconnect(connection)
        endpoint.bus.domain.turn.spend(_A_CONNECTION)
    endpoint.remove()


def shut_down_bus(bus: Bus) -> None:
    """Remove all connections, then the endpoints, then the directory (FS-24, FS-26, SHUT-1).  Idempotent.

    From the first moment on no connection is made, and there are no notifications.  Other commands may run while
    the connections end one after the other.
    """
    if not bus.active:
        return
    bus.active = False
    bus.notifications.drop()
    turn = bus.domain.turn
    endpoints = list(bus.endpoints.values())
    for endpoint in endpoints:
        endpoint.active = False
    for connection in list(bus.connections.values()):
        disconnect(connection)
        turn.spend(_A_CONNECTION)
    for endpoint in endpoints:
        endpoint.remove()
        turn.spend()
    bus.domain.remove_bus(bus)
    # Break the reference cycles: the garbage collector need not find them.
    bus.names.clear(turn)
    for index in bus.listeners.values():
        index.forget()

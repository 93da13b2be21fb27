"""Take-over: queued messages and owed replies move between an activator and the owner of its name (ACT-4 to ACT-6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..abi.limits import CONN_MAX_MSGS
from .delivery import discard

if TYPE_CHECKING:
    from .connection import Connection
    from .queue import QueueEntry
    from .reply import Tracker

_REPLIES_IN_A_LOOK: Final = 256


def owed_by_name(connection: Connection) -> dict[int, list[Tracker]]:
    """The trackers of requests that it has to answer, by the id of the name that the request was sent to.

    Other commands may run meanwhile.
    """
    found: dict[int, list[Tracker]] = {}
    turn = connection.bus.domain.turn
    for count, tracker in enumerate(list(connection.requests.owed)):
        found.setdefault(tracker.name_id, []).append(tracker)
        if not count % _REPLIES_IN_A_LOOK:
            turn.spend(_REPLIES_IN_A_LOOK // 8)
    return found


def take_over_messages(
    taker: Connection, source: Connection, name_id: int, owed: list[Tracker] | None = None
) -> None:
    """Move what is queued at `source` to `taker`, with the obligations to reply (ACT-4 to ACT-6, NAME-17).

    name_id: only messages to that name; 0: all.  owed: the obligations that may have to move; None: all.  What cannot
    move counts as lost and does not stop the rest.

    Other commands may run meanwhile.  They find each message in one of the two queues, with its tracker.  What arrives
    at `source` moves, too, up to twice the capacity of a queue.  The move ends when `taker` leaves its bus.
    """
    turn = taker.bus.domain.turn
    left = 2 * CONN_MAX_MSGS
    found = True
    while found and left > 0:
        found = False
        for entry in source.queue.entries():
            if (not name_id or entry.message.name_id == name_id) and entry.queue is source.queue and taker.active:
                found = True
                left -= 1
                _move(entry, source, taker)
    for tracker in list(source.requests.owed) if owed is None else owed:
        if taker.active and (not name_id or tracker.name_id == name_id):
            _move_obligation(tracker, source, taker)
        turn.spend()
    taker.wake()
    source.wake()


def _move(entry: QueueEntry, source: Connection, taker: Connection) -> None:
    """Move one message.  It stays where it was if one of the two ends, or somebody else takes it, meanwhile."""
    fits = taker.delivery.adopt_payload(taker, entry, source)
    if entry.queue is not source.queue or not taker.active:
        return
    if not fits:
        source.delivery.take_out(source, entry)
        taker.lose()
        discard(source, entry)
        return
    source.queue.remove(entry)
    if entry.tracker is not None:
        _move_obligation(entry.tracker, source, taker)
    taker.queue.add(entry)
    taker.traffic.count_received(entry.message)
    taker.wake()


def _move_obligation(tracker: Tracker, source: Connection, taker: Connection) -> None:
    if tracker in source.requests.owed and tracker.requester not in (taker, source):
        tracker.move(taker)

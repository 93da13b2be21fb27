"""A domain: the state of one mount, and the entry points of the server."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from errno import ESHUTDOWN, ETIMEDOUT
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..base.account import Total
from ..base.call import ERESTARTSYS
from ..base.errors import CommandError
from .domain_state import DomainState
from .handle import ControlHandle, EndpointHandle, is_privileged
from .notify import flush
from .opener import Opener
from .send import CancelToken
from .shutdown import shut_down_bus
from .statistics import connection_details, connection_stats
from .sync import finish, forget, interrupt

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.ports import Caller, Host, Memory
    from .connection import Connection
    from .endpoint import Endpoint
    from .reply import Tracker

DEFAULT_MEMORY_LIMIT: Final = 4 << 30
_LOOK_AT_REQUESTS: Final = 50
"""Units of `Turn.spend` for ending all requests of one connection."""


class Domain(DomainState):
    """One domain.  Everything is called by one thread at a time."""

    def __init__(self, host: Host, memory_limit: int = DEFAULT_MEMORY_LIMIT, memory_total: int = 0) -> None:
        """memory_limit: bytes that the connections of one user may make the daemon hold, and memory_total: those of all
        users, which is never less than twice as much."""
        super().__init__(host, Total(max(memory_total, 2 * memory_limit)), memory_limit)
        self._is_expiring = False

    # The tree

    def open_control(self, caller: Caller) -> ControlHandle:
        """Raises CommandError(ESHUTDOWN) (FS-21)."""
        if not self.active:
            raise CommandError(ESHUTDOWN, "domain is gone")
        return ControlHandle(self)

    def open_endpoint(self, endpoint: Endpoint, caller: Caller, memory: Memory) -> EndpointHandle:
        """Raises CommandError(ESHUTDOWN) for an endpoint that is gone (FS-21), ESRCH for a caller that is."""
        if not endpoint.active:
            raise CommandError(ESHUTDOWN, "endpoint is gone")
        return EndpointHandle(endpoint, memory, Opener(caller), privileged=is_privileged(endpoint, caller))

    # What happens without a command

    def interrupt(self, call: Call) -> None:
        """A signal arrived for the thread that is blocked in `call`.  No effect on a call that has ended."""
        tracker = self.waiting.get(call)
        if tracker is not None:
            interrupt(tracker, -ERESTARTSYS)

    def cancelled(self, token: CancelToken) -> None:
        """The CANCEL_FD that `host.watch` was given with `token` is readable."""
        token.cancelled()

    def next_deadline(self) -> int:
        """When to call `expire` next, in ns of CLOCK_MONOTONIC; 0: never, or it is running (it is not re-entrant)."""
        return 0 if self._is_expiring else self.deadlines.next()

    def expire(self, now: int) -> None:
        """End the trackers whose deadline has come (REP-4, SYNC-3).

        Blocked calls end first.  Notifications follow, those of each user in their order, one connection of each user
        in turn; other commands may run meanwhile.
        """
        if self._is_expiring:
            return
        self._is_expiring = True
        overdue: dict[int, deque[tuple[Connection, list[Tracker]]]] = {}
        try:
            self._find_overdue(now, overdue)
            while overdue:
                for user in list(overdue):
                    waiting = overdue[user]
                    connection, replies = waiting.popleft()
                    if not waiting:
                        del overdue[user]
                    self._tell_of_timeouts(connection, replies)
                    self._find_overdue(self.host.clock.monotonic(), overdue)
        finally:
            self._is_expiring = False

    def _find_overdue(self, now: int, overdue: dict[int, deque[tuple[Connection, list[Tracker]]]]) -> None:
        connection = self.deadlines.pop(now)
        while connection is not None:
            later: list[Tracker] = []
            for tracker in self.deadlines.expired(connection, now):
                if tracker.call is not None:
                    finish(tracker, ETIMEDOUT)
                elif tracker.is_blocking:
                    forget(tracker)
                else:
                    later.append(tracker)
                    tracker.alarm = 0
            if later:
                overdue.setdefault(connection.user.account.uid, deque()).append((connection, later))
            self.turn.spend(_LOOK_AT_REQUESTS)
            connection = self.deadlines.pop(now)

    def _tell_of_timeouts(self, connection: Connection, replies: list[Tracker]) -> None:
        notifications = connection.bus.notifications
        for tracker in replies:
            # Check again: it may have been answered since it was found.
            if tracker.is_linked:
                notifications.reply(c.ITEM_REPLY_TIMEOUT, connection.id, tracker.cookie)
                tracker.unlink()
        self.turn.spend(_LOOK_AT_REQUESTS)
        flush(connection.bus)

    def shutdown(self) -> None:
        """Unmount: end every bus as if its owner had closed it (FS-29)."""
        self.active = False
        for bus in list(self.buses.values()):
            shut_down_bus(bus)

    def connection_details(self, pid_ns: int) -> Iterator[dict[str, object]]:
        """The details of every connection that exists now, evaluated lazily (`core/statistics.py`)."""
        present = [connection for bus in self.buses.values() for connection in bus.connections.values()]
        return connection_details(present, pid_ns)

    def counts(self) -> dict[str, object]:
        """Numbers of objects beside buses, for tests and tools: each must return to its initial value."""
        return {"users": len(self.users), "credentials": len(self.credentials), "waiting": len(self.waiting)}

    def bus_stats(self) -> Iterator[tuple[dict[str, object], Iterator[str], Iterator[dict[str, object]]]]:
        """Each bus with the names of its endpoints and its connections: lazily, there may be many thousands."""
        for bus in list(self.buses.values()):
            yield (
                {
                    "name": bus.name,
                    "names": len(bus.names),
                    "policy_entries": len(bus.policy),
                },
                iter(list(bus.endpoints)),
                map(connection_stats, list(bus.connections.values())),
            )

    def stats(self) -> dict[str, object]:
        """`counts` and `bus_stats` in one dictionary."""
        buses = [
            {**bus, "endpoints": list(endpoints), "connections": list(connections)}
            for bus, endpoints, connections in self.bus_stats()
        ]
        return {**self.counts(), "buses": buses}

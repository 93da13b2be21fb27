"""A domain: everything that one mount holds, and the entry points for whoever serves it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from errno import ESHUTDOWN, ETIMEDOUT
from itertools import count
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..base.call import ERESTARTSYS
from ..base.errors import CommandError
from ..base.handle import Handle
from .deadlines import Deadlines
from .ends import Ends
from .figures import connection_stats, figures
from .handle import ControlHandle, EndpointHandle, is_privileged
from .metadata import DEFAULT_MASK
from .policy import SharedCredentials
from .quota import Account, Total, User
from .send import CancelToken
from .shutdown import shut_down_bus
from .sync import finish, forget, interrupt

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.ports import Caller, Host, Memory
    from .bus import Bus
    from .connection import Connection
    from .endpoint import Endpoint
    from .reply import Reply

ROOT_INO: Final = 1
CONTROL_INO: Final = 2
DEFAULT_MEMORY_LIMIT: Final = 4 << 30
_LOOK_AT_REQUESTS: Final = 50
"""Units of work that ending all requests of one connection takes."""


class Users:
    """The accounts of a domain by real uid (NS-5); one exists while it has anything on it."""

    __slots__ = ("_users", "memory", "memory_limit")

    def __init__(self, memory_limit: int, memory: Total) -> None:
        self.memory_limit = memory_limit
        self.memory = memory
        self._users: dict[int, User] = {}

    def __len__(self) -> int:
        self._forget_idle()
        return len(self._users)

    def get(self, uid: int) -> User:
        user = self._users.get(uid)
        if user is None:
            self._forget_idle()
            user = self._users[uid] = User(uid, Account(uid, self.memory_limit, self.memory))
        return user

    def forget_if_idle(self, account: Account) -> None:
        """Something of `account` was given back: perhaps it was the last."""
        user = self._users.get(account.uid)
        if user is not None and user.account is account and user.idle:
            del self._users[account.uid]

    def _forget_idle(self) -> None:
        """A message may have been the last that was on the account of somebody who left long ago."""
        for uid in [uid for uid, user in self._users.items() if user.idle]:
            del self._users[uid]


class Domain:
    """One domain.  Everything is called by one thread at a time.

    host: the world; turn: of the host; memory_limit: bytes that the connections of one user may make the daemon hold,
    and memory_total: those of all users, which is never less than twice as much;
    attach_flags_mask: the system-wide mask of metadata, live (MASK-1);
    changed: handles whose `poll()` may have changed, and completed: deferred calls with their result, both for the
    caller to take after every entry; waiting: the blocked SENDs; ends: of files that were closed.
    """

    def __init__(self, host: Host, memory_limit: int = DEFAULT_MEMORY_LIMIT, memory_total: int = 0) -> None:
        self.host = host
        self.turn = host.turn
        self.users = Users(memory_limit, Total(max(memory_total, 2 * memory_limit)))
        self.credentials = SharedCredentials()
        self.active = True
        self.attach_flags_mask = DEFAULT_MASK
        self.buses: dict[str, Bus] = {}
        self.changed: list[Handle] = []
        self.completed: list[Call] = []
        self.waiting: dict[Call, Reply] = {}
        self.deadlines = Deadlines()
        self.ends = Ends()
        self._is_expiring = False
        self._seqnum = 0
        self._bus_ids = count(1)
        # A byte for each number, 1 where it is free.  A list would keep an object of each that was ever in use, and
        # with it the whole arena of memory that the object is in.
        self._inos = bytearray(CONTROL_INO + 1)
        self._free_ino = CONTROL_INO + 1  # none below it is

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
        return EndpointHandle(endpoint, memory, privileged=is_privileged(endpoint, caller))

    def add_bus(self, bus: Bus, uid: int) -> None:
        """Raises CommandError(EMFILE) at the user's limit (BUS-7)."""
        user = self.users.get(uid)
        user.add_bus()
        bus.creator = user
        bus.ino = self.take_ino()
        self.buses[bus.name] = bus

    def remove_bus(self, bus: Bus) -> None:
        del self.buses[bus.name]
        self.give_ino(bus.ino)
        assert bus.creator is not None
        bus.creator.buses -= 1
        self.users.forget_if_idle(bus.creator.account)

    def take_ino(self) -> int:
        """The smallest number that no node has (FS-11)."""
        ino = self._inos.find(b"\1", self._free_ino)
        if ino < 0:
            ino = len(self._inos)
            self._inos.append(0)
        else:
            self._inos[ino] = 0
        self._free_ino = ino + 1
        return ino

    def give_ino(self, ino: int) -> None:
        self._inos[ino] = 1
        self._free_ino = min(self._free_ino, ino)

    # Numbers

    def next_seqnum(self) -> int:
        """One for every SEND and every notification of the domain (META-22)."""
        self._seqnum += 1
        return self._seqnum

    def next_bus_id(self) -> int:
        """BUS-9."""
        return next(self._bus_ids)

    # What happens without a command

    def interrupt(self, call: Call) -> None:
        """A signal came for the thread that is blocked in `call`; calls that ended meanwhile are left alone."""
        reply = self.waiting.get(call)
        if reply is not None:
            interrupt(reply, -ERESTARTSYS)

    def cancelled(self, token: CancelToken) -> None:
        """The CANCEL_FD that `host.watch` was given with `token` is readable."""
        token.cancelled()

    def next_deadline(self) -> int:
        """When `expire` has to be called next, in ns of CLOCK_MONOTONIC; 0: never, or it is at work."""
        return 0 if self._is_expiring else self.deadlines.next()

    def expire(self, now: int) -> None:
        """End the trackers whose deadline has come (REP-4, SYNC-3).

        Blocked calls end first.  Notifications follow, those of each user in their order, one connection of each user
        in turn; others may be served meanwhile.
        """
        if self._is_expiring:
            return
        self._is_expiring = True
        overdue: dict[int, deque[tuple[Connection, list[Reply]]]] = {}
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

    def _find_overdue(self, now: int, overdue: dict[int, deque[tuple[Connection, list[Reply]]]]) -> None:
        connection = self.deadlines.pop(now)
        while connection is not None:
            later: list[Reply] = []
            for reply in self.deadlines.expired(connection, now):
                if reply.call is not None:
                    finish(reply, ETIMEDOUT)
                elif reply.sync:
                    forget(reply)
                else:
                    later.append(reply)
                    reply.alarm = 0
            if later:
                overdue.setdefault(connection.user.account.uid, deque()).append((connection, later))
            self.turn.spend(_LOOK_AT_REQUESTS)
            connection = self.deadlines.pop(now)

    def _tell_of_timeouts(self, connection: Connection, replies: list[Reply]) -> None:
        notifier = connection.bus.notifier
        for reply in replies:
            # It may have been answered, or be dead, since it was found.
            if reply.linked:
                notifier.reply(c.ITEM_REPLY_TIMEOUT, connection.id, reply.cookie)
                reply.unlink()
        self.turn.spend(_LOOK_AT_REQUESTS)
        notifier.flush()

    def shutdown(self) -> None:
        """The mount goes: every bus goes as if its owner had closed it (FS-29)."""
        self.active = False
        for bus in list(self.buses.values()):
            shut_down_bus(bus)

    def figures(self, pid_ns: int) -> Iterator[dict[str, object]]:
        """The figures of every connection that there is now, each as it is when it is asked for (`core/figures.py`)."""
        present = [connection for bus in self.buses.values() for connection in bus.connections.values()]
        return figures(present, pid_ns)

    def counts(self) -> dict[str, object]:
        """What there is beside buses, for tests and tools: numbers of everything that must come back to its start."""
        return {"users": len(self.users), "credentials": len(self.credentials), "waiting": len(self.waiting)}

    def bus_stats(self) -> Iterator[tuple[dict[str, object], Iterator[dict[str, object]]]]:
        """Each bus with each of its connections, as they are when they are asked for: there may be many thousands."""
        for bus in list(self.buses.values()):
            yield (
                {
                    "name": bus.name,
                    "endpoints": sorted(bus.endpoints),
                    "names": len(bus.names),
                    "policy_entries": len(bus.policy),
                },
                map(connection_stats, list(bus.connections.values())),
            )

    def stats(self) -> dict[str, object]:
        """All of that at once."""
        buses = [{**bus, "connections": list(connections)} for bus, connections in self.bus_stats()]
        return {**self.counts(), "buses": buses}

"""Follow a bus: pass messages from a monitor connection to a sink, until a signal, a limit, or the end of the bus."""

from __future__ import annotations

import errno
import fnmatch
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import IdChange, NameChange

from .arguments import Seconds
from .failure import EXIT_FAILED, EXIT_NO_MOUNT, EXIT_USAGE, Failure, exit_code_of, explain
from .observed import Kind, Missing, Observed
from .peers import Peers
from .tap import DEFAULT_POOL, Tap

if TYPE_CHECKING:
    from kdbusfs.client import Connection

    from .context import Context
    from .locations import BusLocation

_HINTS: Final = {
    errno.EPERM: "only the owner of the bus and root may see all of its messages",
    errno.EOPNOTSUPP: "a custom endpoint lets nobody see all messages; take the bus' own endpoint",
    errno.ENOBUFS: "no memory for the pool; --pool makes it smaller",
}
_NICE: Final = -10
_POOL_MIN: Final = 1 << 16
_TURN: Final = 0.001  # seconds of processing before new messages are ordered
_SWITCH: Final = 0.0002  # seconds
_FLUSH_EVERY: Final = 0.05  # seconds
_NAP: Final = 0.1  # seconds within which a signal or a time limit is noticed


if TYPE_CHECKING:
    _SizeBase = click.ParamType[int]
else:
    _SizeBase = click.ParamType  # no generic class before click 8.4


class Size(_SizeBase):
    """A number of bytes, with an optional suffix K, M or G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).upper().removesuffix("IB").removesuffix("B")
        shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
        digits = text[:-1] if shift else text
        # Larger sizes overflow when they are rounded up to pages.
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 19 or int(digits) << shift > 1 << 62:
            self.fail(f"'{value}' is not a size like 4096, 64K or 16M", param, ctx)
        return int(digits) << shift


def follow_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of all commands that follow a bus."""
    for option in reversed(
        (
            click.option(
                "-n", "--name", "names", multiple=True, metavar="PATTERN",
                help="Only messages from or to the owner of a name that matches; * and ? are wildcards.",
            ),
            click.option(
                "-i", "--id", "ids", multiple=True, type=click.IntRange(0), metavar="ID",
                help="Only messages from or to this connection; 0 is the bus itself.",
            ),
            click.option(
                "-k", "--kind", "kinds", multiple=True, type=click.Choice([kind.value for kind in Kind]),
                help="Only messages of this kind.",
            ),
            click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N messages."),
            click.option(
                "-d", "--duration", type=Seconds(0, min_open=True), metavar="SECONDS",
                help="End after this many seconds.",
            ),
            click.option(
                "--metadata", is_flag=True,
                help="Request all metadata of each sender. Costs the bus more time for each message.",
            ),
            click.option(
                "--pool", "pool_size", type=Size(), default=DEFAULT_POOL, metavar="SIZE",
                help="Size of the pool, which holds messages until they are processed. A larger pool loses fewer "
                "messages in a burst. Suffixes K, M, G.  [default: 64M]",
            ),
        )
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects messages by connection (ids or names) and by kind.  An empty criterion accepts all."""

    names: Sequence[str] = ()
    ids: Sequence[int] = ()
    kinds: Sequence[str] = ()

    def accepts(self, observed: Observed, peers: Peers) -> bool:
        if self.kinds and observed.kind.value not in self.kinds:
            return False
        if not self.ids and not self.names:
            return True
        ends = _ends(observed, peers)
        return any(id in self.ids for id in ends) or bool(self.names and self._named(observed, peers, ends))

    def _named(self, observed: Observed, peers: Peers, ends: list[int]) -> bool:
        names = [name for id in ends for name in peers.names(id)]
        if observed.message.dst_name is not None:
            names.append(observed.message.dst_name)
        if isinstance(observed.notification, NameChange):
            names.append(observed.notification.name)
        names += [owned.name for owned in observed.message.metadata.owned_names]
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.names)


def _ends(observed: Observed, peers: Peers) -> list[int]:
    """The connections that a message is about."""
    message = observed.message
    ends = [message.src_id]
    if message.dst_name is not None:
        owner = peers.owner(message.dst_name)
        ends += [] if owner is None else [owner]
    if message.dst_id not in (c.DST_ID_NAME, c.DST_ID_BROADCAST):
        ends.append(message.dst_id)
    change = observed.notification
    if isinstance(change, NameChange):
        ends += [id for id in (change.old_id, change.new_id) if id]
    elif isinstance(change, IdChange):
        ends.append(change.id)
    return ends


class Sink(Protocol):
    """Processes messages."""

    def message(self, observed: Observed, peers: Peers) -> None:
        """Process a message that the filter accepted."""

    def missing(self, count: int) -> None:
        """The bus lost `count` messages at this point."""

    def flush(self) -> None:
        """Write out what is buffered: no message waits at the moment."""

    @property
    def is_full(self) -> bool:
        """Whether it lags too far behind to take more messages now."""


@dataclass(slots=True)
class FollowState:
    """Progress of `follow`.

    received: messages received; shown: those that the filter accepted; lost: those that the bus dropped; ended: whether
    the bus is gone.
    """

    received: int = 0
    shown: int = 0
    lost: int = 0
    ended: bool = False
    _stopped: bool = field(default=False, repr=False)

    def stop(self, number: int = 0, frame: object = None) -> None:
        """Signal handler: ask for the end.  A second signal of the same number kills the process."""
        self._stopped = True
        if number:
            signal.signal(number, signal.SIG_DFL)

    @property
    def is_stopped(self) -> bool:
        return self._stopped


@contextmanager
def stopped_by_signals(state: FollowState) -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP call `state.stop` instead of killing the process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, state.stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def connect(context: Context, location: BusLocation, *, pool_size: int, metadata: bool) -> Connection:
    """Connect to a bus as a monitor.  Raises Failure."""
    if pool_size < _POOL_MIN:
        raise Failure(f"a pool of {pool_size} bytes is too small: {_POOL_MIN} is the least", EXIT_USAGE)
    _raise_file_limit()
    _raise_priority()
    return context.connect(
        location,
        hints=_HINTS,
        flags=c.HELLO_MONITOR,
        attach_recv=c.ATTACH_ALL if metadata else c.ATTACH_TIMESTAMP,
        pool_size=-(-pool_size // PAGESIZE) * PAGESIZE,
    )


@contextmanager
def watching(
    context: Context, location: BusLocation, state: FollowState, *, pool_size: int, metadata: bool, keep: int
) -> Iterator[tuple[Connection, Tap, Peers]]:
    """Connect as a monitor and start to receive.  Yields the connection, the tap, and the peers of the bus.

    keep: bytes of each memfd that are kept.  Raises Failure as `connect` does.
    """
    with (
        connect(context, location, pool_size=pool_size, metadata=metadata) as connection,
        stopped_by_signals(state),
        ExitStack() as closing,
    ):
        tap = Tap(connection, keep=keep)
        closing.callback(tap.close)
        tap.start()
        yield connection, tap, Peers(connection)


def _raise_file_limit() -> None:
    """Raise RLIMIT_NOFILE: a message carries up to 253 descriptors, and many messages may wait."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _raise_priority() -> None:
    """Lower the nice value, as the daemon does: on a busy machine the queue overflows before this process is scheduled.
    Without the privilege more messages are lost, and reported as lost.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def follow(
    tap: Tap,
    peers: Peers,
    wanted: Filter,
    sink: Sink,
    state: FollowState,
    *,
    count: int | None = None,
    duration: float | None = None,
    tick: Callable[[FollowState], None] | None = None,
) -> None:
    """Pass messages that `wanted` accepts from `tap` to `sink`.

    Ends at a signal, at the end of the bus, after `count` messages or `duration` seconds; messages received by then are
    still processed.  `tick` is called about ten times a second.

    Raises OSError if the sink cannot write, or if the mount is gone.
    """
    begun = ticked = flushed = time.monotonic()
    sys.setswitchinterval(_SWITCH)  # receiving threads must not wait for the GIL
    while True:
        now = time.monotonic()
        if tick is not None and now - ticked >= _NAP:
            ticked = now
            tick(state)
        if now - flushed >= _FLUSH_EVERY:
            flushed = now
            sink.flush()
        over = state.is_stopped or tap.ended or (duration is not None and now - begun >= duration)
        if over:
            tap.close()
        came = tap.order_received()
        state.received, state.lost = tap.received, tap.lost
        if sink.is_full and not state.is_stopped:
            time.sleep(_TURN)
            continue
        if _handle(tap, peers, wanted, sink, state, count, None if over else time.monotonic() + _TURN):
            break
        if over:
            break
        if not came and not len(tap) and not tap.tidy():
            sink.flush()
            peers.refresh()
            tap.wait(_NAP if duration is None else max(min(_NAP, begun + duration - now), _TURN))
    state.ended = tap.ended
    sink.flush()


def _handle(
    tap: Tap, peers: Peers, wanted: Filter, sink: Sink, state: FollowState, count: int | None, until: float | None
) -> bool:
    """Process the backlog, until time `until` at most.  Returns whether `count` is reached."""
    while (each := tap.take()) is not None:
        if isinstance(each, Missing):
            sink.missing(each.count)
            peers.missed()
        else:
            if each.notification is not None:
                peers.see(each.notification)
            if wanted.accepts(each, peers):
                state.shown += 1
                sink.message(each, peers)
            tap.done(each)
            if state.shown == count:
                return True
        if until is not None and time.monotonic() >= until:
            break
    return False


def bus_gone(error: OSError) -> Failure:
    """The Failure for an OSError that ended `follow`."""
    code = exit_code_of(error)
    if code == EXIT_NO_MOUNT:
        return Failure("the daemon of the mount has ended", code)
    return Failure(f"cannot go on: {explain(error)}", EXIT_FAILED)

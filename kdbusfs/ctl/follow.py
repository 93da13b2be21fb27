"""Following a bus: from a monitor's connection to what handles its messages, until one of several ends."""

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
from .cast import Cast
from .failure import EXIT_FAILED, EXIT_NO_MOUNT, EXIT_USAGE, Failure, exit_code_of, explain
from .observed import Kind, Missing, Observed
from .tap import DEFAULT_POOL, Tap

if TYPE_CHECKING:
    from kdbusfs.client import Connection

    from .context import Context
    from .places import BusPlace

_HINTS: Final = {
    errno.EPERM: "only the owner of the bus and root may see all of its messages",
    errno.EOPNOTSUPP: "a custom endpoint lets nobody see all messages; take the bus' own endpoint",
    errno.ENOBUFS: "no memory for the pool; --pool makes it smaller",
}
_NICE: Final = -10
_POOL_MIN: Final = 1 << 16
_TURN: Final = 0.001  # seconds that are spent on messages before the queue is looked after again
_SWITCH: Final = 0.0002  # seconds
_FLUSH_EVERY: Final = 0.05  # seconds
_NAP: Final = 0.1  # seconds until a signal or the end of the time is noticed at the latest


if TYPE_CHECKING:
    _SizeBase = click.ParamType[int]
else:
    _SizeBase = click.ParamType  # no generic class before click 8.4


class Size(_SizeBase):
    """Bytes, also with K, M or G behind the number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).upper().removesuffix("IB").removesuffix("B")
        shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
        digits = text[:-1] if shift else text
        # What is larger the system does not take, once it is rounded up.
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 19 or int(digits) << shift > 1 << 62:
            self.fail(f"'{value}' is no size, such as 4096, 64K or 16M", param, ctx)
        return int(digits) << shift


def follow_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of all commands that follow a bus."""
    for option in reversed(
        (
            click.option(
                "-n", "--name", "names", multiple=True, metavar="PATTERN",
                help="Only messages from or to the owner of such a name; * and ? stand for any letters.",
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
                help="End after so many seconds.",
            ),
            click.option(
                "--metadata", is_flag=True,
                help="Ask the bus for everything that it tells of the sender of each message. "
                "It then has to do more for each.",
            ),
            click.option(
                "--pool", "pool_size", type=Size(), default=DEFAULT_POOL, metavar="SIZE",
                help="Size of the pool, where messages lie until they are handled. A bigger one loses fewer messages "
                "when many come at once. K, M and G may follow the number.  [default: 64M]",
            ),
        )
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages are wanted: of those ids or names (if any are given), and of those kinds (if any are given)."""

    names: Sequence[str] = ()
    ids: Sequence[int] = ()
    kinds: Sequence[str] = ()

    def accepts(self, observed: Observed, cast: Cast) -> bool:
        if self.kinds and observed.kind.value not in self.kinds:
            return False
        if not self.ids and not self.names:
            return True
        ends = _ends(observed, cast)
        return any(id in self.ids for id in ends) or bool(self.names and self._named(observed, cast, ends))

    def _named(self, observed: Observed, cast: Cast, ends: list[int]) -> bool:
        names = [name for id in ends for name in cast.names(id)]
        if observed.message.dst_name is not None:
            names.append(observed.message.dst_name)
        if isinstance(observed.notification, NameChange):
            names.append(observed.notification.name)
        names += [owned.name for owned in observed.message.metadata.owned_names]
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.names)


def _ends(observed: Observed, cast: Cast) -> list[int]:
    """The connections that a message is about."""
    message = observed.message
    ends = [message.src_id]
    if message.dst_name is not None:
        owner = cast.owner(message.dst_name)
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
    """What handles messages."""

    def message(self, observed: Observed, cast: Cast) -> None:
        """One that was wanted."""

    def missing(self, count: int) -> None:
        """So many were lost here."""

    def flush(self) -> None:
        """Nothing more is there at the moment."""

    @property
    def is_full(self) -> bool:
        """Whether it lags so far behind that it wants no more now."""


@dataclass(slots=True)
class Course:
    """How following went.  received: messages that came; shown: those that were wanted; lost: those that the bus had no
    room for; ended: the bus is gone.
    """

    received: int = 0
    shown: int = 0
    lost: int = 0
    ended: bool = False
    _stopped: bool = field(default=False, repr=False)

    def stop(self, number: int = 0, frame: object = None) -> None:
        """A signal: end soon.  The next one of its kind ends the program."""
        self._stopped = True
        if number:
            signal.signal(number, signal.SIG_DFL)

    @property
    def is_stopped(self) -> bool:
        return self._stopped


@contextmanager
def stopped_by_signals(course: Course) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the course instead of the program."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, course.stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def connect(context: Context, place: BusPlace, *, pool_size: int, metadata: bool) -> Connection:
    """A monitor of a bus.  Raises Failure."""
    if pool_size < _POOL_MIN:
        raise Failure(f"a pool of {pool_size} bytes is too small: {_POOL_MIN} is the least", EXIT_USAGE)
    _raise_file_limit()
    _take_precedence()
    return context.connect(
        place,
        hints=_HINTS,
        flags=c.HELLO_MONITOR,
        attach_recv=c.ATTACH_ALL if metadata else c.ATTACH_TIMESTAMP,
        pool_size=-(-pool_size // PAGESIZE) * PAGESIZE,
    )


@contextmanager
def watching(
    context: Context, place: BusPlace, course: Course, *, pool_size: int, metadata: bool, keep: int
) -> Iterator[tuple[Connection, Tap, Cast]]:
    """A connection that watches the bus until the block or `course` ends, what it receives, and who is on the bus.

    keep: bytes of a payload that are kept.  Raises Failure as `connect` does.
    """
    with (
        connect(context, place, pool_size=pool_size, metadata=metadata) as connection,
        stopped_by_signals(course),
        ExitStack() as closing,
    ):
        tap = Tap(connection, keep=keep)
        closing.callback(tap.close)
        tap.start()
        yield connection, tap, Cast(connection)


def _raise_file_limit() -> None:
    """A message may bring 253 descriptors, and many may come before they are closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _take_precedence() -> None:
    """Run before ordinary programs, as the daemon does: on a busy machine, the queue is full before one's turn comes.
    Without the right to it more is lost, and said.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def follow(
    tap: Tap,
    cast: Cast,
    wanted: Filter,
    sink: Sink,
    course: Course,
    *,
    count: int | None = None,
    duration: float | None = None,
    tick: Callable[[Course], None] | None = None,
) -> None:
    """Hand what `tap` gets and `wanted` accepts to `sink`, until a signal, the end of the bus, `count` messages or
    `duration` seconds; `tick` is called about ten times a second.  What has come by then is handled.

    Raises OSError when the sink cannot write, or the mount is gone.
    """
    begun = ticked = flushed = time.monotonic()
    sys.setswitchinterval(_SWITCH)  # threads that take messages must not wait for what is done with them
    while True:
        now = time.monotonic()
        if tick is not None and now - ticked >= _NAP:
            ticked = now
            tick(course)
        if now - flushed >= _FLUSH_EVERY:
            flushed = now
            sink.flush()
        over = course.is_stopped or tap.ended or (duration is not None and now - begun >= duration)
        if over:
            tap.close()
        came = tap.settle()
        course.received, course.lost = tap.received, tap.lost
        if sink.is_full and not course.is_stopped:
            time.sleep(_TURN)
            continue
        if _handle(tap, cast, wanted, sink, course, count, None if over else time.monotonic() + _TURN):
            break
        if over:
            break
        if not came and not len(tap) and not tap.tidy():
            sink.flush()
            cast.refresh()
            tap.wait(_NAP if duration is None else max(min(_NAP, begun + duration - now), _TURN))
    course.ended = tap.ended
    sink.flush()


def _handle(
    tap: Tap, cast: Cast, wanted: Filter, sink: Sink, course: Course, count: int | None, until: float | None
) -> bool:
    """Handle what waits, until that time; whether `count` is reached."""
    while (each := tap.take()) is not None:
        if isinstance(each, Missing):
            sink.missing(each.count)
            cast.missed()
        else:
            if each.notification is not None:
                cast.see(each.notification)
            if wanted.accepts(each, cast):
                course.shown += 1
                sink.message(each, cast)
            tap.done(each)
            if course.shown == count:
                return True
        if until is not None and time.monotonic() >= until:
            break
    return False


def bus_gone(error: OSError) -> Failure:
    """Why following ended early."""
    code = exit_code_of(error)
    if code == EXIT_NO_MOUNT:
        return Failure("the daemon of the mount has ended", code)
    return Failure(f"cannot go on: {explain(error)}", EXIT_FAILED)

"""kdbusctl monitor: the messages of a bus, as they come."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import IdChange, NameChange

from ..background_writer import STANDARD_OUTPUT, BackgroundWriter
from ..context import Context, pass_context
from ..describe import HELLO_FLAGS, flag_names, metadata_json, metadata_lines
from ..escape import escape, escape_bytes, payload_text
from ..failure import EXIT_OK
from ..follow import Filter, FollowState, Size, bus_gone, follow, follow_options, watching
from ..observed import MESSAGE_FLAGS, NOTIFICATIONS, Kind, Observed
from ..options import Command
from ..output import to_json
from ..payload import payload_json
from ..peers import Peers

if TYPE_CHECKING:
    from ..output import Output

_EXCERPT: Final = 64
_STYLES: Final = {
    Kind.REQUEST: "bold green",
    Kind.REPLY: "green",
    Kind.MESSAGE: "bold cyan",
    Kind.SIGNAL: "magenta",
    Kind.BROADCAST: "bold magenta",
    Kind.NOTIFICATION: "yellow",
}
_DIM: Final = "dim"
_NAME: Final = "bold"
_ALARM: Final = "bold white on red"


class Painter:
    """Colours text as rich would, thousands of times a second: asks rich once for each style."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._around: dict[str, tuple[str, str]] = {}
        self._plain = output.colour == "never" or not (sys.stdout.isatty() or output.colour == "always")
        # At once: it takes 0.1 s, in which many messages may arrive.
        for style in () if self._plain else (*_STYLES.values(), _DIM, _NAME, _ALARM):
            self._around[style] = self._ask(style)

    def __call__(self, text: str, style: str) -> str:
        """`text`, which must be escaped already, in that style."""
        if self._plain:
            return text
        around = self._around[style]
        return f"{around[0]}{text}{around[1]}"

    def _ask(self, style: str) -> tuple[str, str]:
        from rich.text import Text

        console = self._output.console
        with console.capture() as captured:
            console.print(Text("x", style=style), end="")
        before, _, after = captured.get().partition("x")
        return before, after


class _Lines:
    """Messages as text, one a line.

    shape: format of payload; limit: bytes of it.
    """

    def __init__(self, out: BackgroundWriter, output: Output, shape: str, limit: int, *, metadata: bool) -> None:
        self._out = out
        self._paint = Painter(output)
        self._shape = shape
        self._limit = limit
        self._metadata = metadata
        self._second = -1
        self._clock = ""

    @property
    def is_full(self) -> bool:
        return self._out.is_full

    def flush(self) -> None:
        self._out.flush()

    def missing(self, count: int) -> None:
        text = f"{count} messages are missing here: they came faster than they were taken"
        self._out.write((self._paint(text, _ALARM) + "\n").encode())

    def message(self, observed: Observed, peers: Peers) -> None:
        paint = self._paint
        line = (
            f"{paint(self._time(observed.time_ns), _DIM)} "
            f"{paint(observed.kind.value.ljust(12), _STYLES[observed.kind])} "
        )
        if observed.notification is not None:
            line += self._notification(observed)
        else:
            line += self._ends(observed, peers) + self._details(observed) + self._payload(observed)
        if self._metadata:
            line += self._more(observed)
        self._out.write((line + "\n").encode("utf-8", "backslashreplace"))

    def _time(self, time_ns: int) -> str:
        seconds, rest = divmod(time_ns, 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        return f"{self._clock}.{rest // 1000:06d}"

    def _end(self, id: int, peers: Peers, first: str | None = None) -> str:
        """A connection by id and first name, or by the name that was addressed."""
        names = peers.names(id) if first is None else [first]
        if not names:
            comm = peers.process(id).comm
            return self._paint(str(id), _NAME) + (f" {self._paint(escape(comm), _DIM)}" if comm else "")
        shown = escape(names[0]) + (f"+{len(names) - 1}" if len(names) > 1 else "")
        return f"{self._paint(str(id), _NAME)} {shown}"

    def _ends(self, observed: Observed, peers: Peers) -> str:
        message = observed.message
        if message.dst_id == c.DST_ID_BROADCAST:
            to = self._paint("all", _NAME)
        elif message.dst_name is not None:
            owner = peers.owner(message.dst_name)
            id = message.dst_id or owner
            to = escape(message.dst_name) if id is None else self._end(id, peers, message.dst_name)
        else:
            to = self._end(message.dst_id, peers)
        return f"{self._end(message.src_id, peers)} → {to}"

    def _details(self, observed: Observed) -> str:
        message = observed.message
        parts = [f"cookie {message.cookie}"]
        if observed.kind is Kind.REPLY:
            parts.append(f"to {message.cookie_reply}")
        if message.priority:
            parts.append(f"priority {message.priority}")
        if message.flags & c.MSG_NO_AUTO_START:
            parts.append("no-auto-start")
        if message.payload_type != c.PAYLOAD_DBUS:
            parts.append(f"type 0x{message.payload_type:x}")
        if observed.descriptors:
            parts.append(f"{observed.descriptors} descriptor{'s' if observed.descriptors > 1 else ''}")
        if observed.is_incomplete:
            parts.append("incomplete")
        return "  " + self._paint(", ".join(parts), _DIM)

    def _payload(self, observed: Observed) -> str:
        size = observed.size
        text = f"  {size} B"
        if self._shape == "none" or not size:
            return text
        data = observed.payload(self._limit)
        as_hex = self._shape == "hex" or (self._shape == "auto" and _is_binary(data, size))
        shown = _hex(data) if as_hex else _text(data)
        return f"{text} {shown}{' ...' if len(data) < size else ''}"

    def _notification(self, observed: Observed) -> str:
        said = observed.notification
        assert said is not None
        name = NOTIFICATIONS[said.kind]
        if isinstance(said, NameChange):
            what = f"{escape(said.name)} {said.old_id or 'nobody'} → {said.new_id or 'nobody'}"
        elif isinstance(said, IdChange):
            what = f"{said.id} {' '.join(flag_names(said.flags, HELLO_FLAGS))}".rstrip()
        else:
            what = f"to {observed.message.dst_id}, cookie {observed.message.cookie_reply}"
        return f"{self._paint(name, _NAME)} {what}"

    def _more(self, observed: Observed) -> str:
        lines = metadata_lines(observed.message.metadata)
        return "".join(f"\n    {self._paint(label.ljust(16), _DIM)} {escape(text)}" for label, text in lines)


class _Records:
    """Prints messages as JSON, one object per line."""

    def __init__(self, out: BackgroundWriter, shape: str, limit: int, *, metadata: bool) -> None:
        self._out = out
        self._payload = shape != "none"
        self._limit = limit
        self._metadata = metadata

    @property
    def is_full(self) -> bool:
        return self._out.is_full

    def flush(self) -> None:
        self._out.flush()

    def _record(self, value: dict[str, Any]) -> None:
        self._out.write(to_json(value).encode() + b"\n")

    def missing(self, count: int) -> None:
        self._record({"kind": "missing", "count": count})

    def message(self, observed: Observed, peers: Peers) -> None:
        message = observed.message
        record: dict[str, Any] = {"kind": observed.kind.value, "realtime_ns": observed.time_ns}
        timestamp = message.metadata.timestamp
        if timestamp is not None:
            record |= {"monotonic_ns": timestamp.monotonic_ns, "seqnum": timestamp.seqnum}
        record["source"] = message.src_id
        record["source_names"] = peers.names(message.src_id)
        record |= _destination(observed, peers)
        record["cookie"] = message.cookie
        if message.expects_reply:
            record["timeout_ns"] = message.timeout_ns
        elif message.cookie_reply:
            record["cookie_reply"] = message.cookie_reply
        record["priority"] = message.priority
        record["flags"] = flag_names(message.flags, MESSAGE_FLAGS)
        record["payload_type"] = f"0x{message.payload_type:x}"
        if observed.notification is not None:
            record["notification"] = _notification_json(observed)
        else:
            record["fds"] = observed.descriptors
            if observed.is_incomplete:
                record["incomplete"] = True
            record["payload"] = self._payload_json(observed)
        if self._metadata:
            record["metadata"] = metadata_json(message.metadata)
        self._record(record)

    def _payload_json(self, observed: Observed) -> dict[str, Any]:
        """As `payload.payload_json`, truncated to --bytes."""
        if not self._payload:
            return {"size": observed.size}
        data = observed.payload(self._limit)
        found = {**payload_json(data), "size": observed.size}
        return {**found, "truncated": True} if len(data) < observed.size else found


def _destination(observed: Observed, peers: Peers) -> dict[str, Any]:
    """Destination members: id (null: broadcast), the addressed name, and all names of the connection."""
    message = observed.message
    if message.dst_id == c.DST_ID_BROADCAST:
        return {"destination": None}
    if message.dst_name is None:
        return {"destination": message.dst_id, "destination_names": peers.names(message.dst_id)}
    id = message.dst_id or peers.owner(message.dst_name)
    names = [message.dst_name] if id is None else peers.names(id)
    return {"destination": id, "destination_name": message.dst_name, "destination_names": names}


def _notification_json(observed: Observed) -> dict[str, Any]:
    said = observed.notification
    assert said is not None
    found: dict[str, Any] = {"kind": NOTIFICATIONS[said.kind]}
    if isinstance(said, NameChange):
        found |= {"name": said.name, "old_id": said.old_id or None, "new_id": said.new_id or None}
    elif isinstance(said, IdChange):
        found |= {"id": said.id, "flags": flag_names(said.flags, HELLO_FLAGS)}
    return found


def _is_binary(data: bytes, size: int) -> bool:
    """Whether to show payload in hex: it is not UTF-8, or a fifth of it are control characters."""
    cut = 0 if len(data) == size else 3  # the last character may be truncated
    for end in range(len(data), len(data) - cut - 1, -1):
        text = payload_text(data[: max(end, 0)])
        if text is not None:
            return 5 * sum(char < " " and char not in "\t\n\r" for char in text) > len(text)
    return True


def _hex(data: bytes) -> str:
    return data.hex(" ", -4)


def _text(data: bytes) -> str:
    return '"' + escape_bytes(data).replace('"', '\\"') + '"'


_HELP = """\
Show the messages of a bus as they come: time, kind, sender, destination, cookie, size and the beginning of the payload.

A connection is shown by its id and its first name (+N: number of further names), or the command of its process.
Unprintable characters of clients are escaped.

With --json, prints one object per line: "kind", "realtime_ns", "monotonic_ns", "seqnum", "source", "source_names",
"destination" (null: all), "destination_name" (what it was sent to), "destination_names", "cookie", "cookie_reply" or
"timeout_ns", "priority", "flags", "payload_type", "fds" (their number), "payload", or "notification". In "payload",
"size" is the full size; "base64", and "text" if it is UTF-8, have the first --bytes of it.

A message must match one of all given --name and --id, and one of all given --kind.

\b
  request       expects a reply            reply         answers a request
  message       neither                    signal        to one connection
  broadcast     a signal to all            notification  by the bus itself

The bus queues 256 messages for a monitor, 32 of one user. If messages arrive faster than monitor receives them, some
are lost: a line says how many at that point ({"kind": "missing"} in JSON), and standard error at the end. monitor
receives before it prints; a terminal may lag behind by 32 MiB of text. Messages still queued when the bus ends are lost
without a report.

Ends at Ctrl-C, SIGTERM, --count, --duration, or with the bus. Needs to be the owner of the bus, or root
(CAP_IPC_OWNER).
"""


@click.command("monitor", cls=Command, help=_HELP, short_help="Show the messages of a bus.")
@follow_options
@click.option(
    "-p",
    "--payload",
    "shape",
    type=click.Choice(["auto", "text", "hex", "none"]),
    default="auto",
    show_default=True,
    help="Format of payload: text, hex, none, or auto: text if it is printable.",
)
@click.option(
    "-b",
    "--bytes",
    "limit",
    type=Size(),
    metavar="SIZE",
    help=f"Show at most this many bytes of payload.  [default: {_EXCERPT}, with --json 64K]",
)
@pass_context
def command(
    context: Context,
    names: tuple[str, ...],
    ids: tuple[int, ...],
    kinds: tuple[str, ...],
    count: int | None,
    duration: float | None,
    metadata: bool,
    pool_size: int,
    shape: str,
    limit: int | None,
) -> int:
    output = context.output
    location = context.location()
    state = FollowState()
    if limit is None:
        limit = 1 << 16 if output.json else _EXCERPT
    out = BackgroundWriter(STANDARD_OUTPUT)
    sink = (
        _Records(out, shape, limit, metadata=metadata)
        if output.json
        else _Lines(out, output, shape, limit, metadata=metadata)
    )
    watched = watching(context, location, state, pool_size=pool_size, metadata=metadata, keep=limit)
    with watched as (connection, tap, peers):
        output.note(f"monitoring bus {location.name} as connection {connection.id}, Ctrl-C ends it")
        try:
            follow(tap, peers, Filter(names, ids, kinds), sink, state, count=count, duration=duration)
        except OSError as error:
            out.finish()
            raise bus_gone(error) from error
        out.finish()
    if state.ended and not output.json:
        output.note("the bus has ended")
    if state.lost:
        output.note(f"{state.lost} of {state.received + state.lost} messages were lost: they arrived too fast")
    return EXIT_OK
"""Exits with 0 even if messages were lost: that was reported."""

"""kdbusctl capture: the messages of a bus as a file for Wireshark."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from kdbusfs import __version__

from ..cast import Cast
from ..context import Context, pass_context
from ..dbus_frame import comment, frame
from ..failure import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Failure, explain
from ..follow import Course, Filter, Size, bus_gone, follow, follow_options, watching
from ..observed import Observed
from ..options import Command
from ..outlet import STANDARD_OUTPUT, Outlet
from ..output import to_json
from ..pcapng import PcapngWriter

if TYPE_CHECKING:
    from ..output import Output

_SNAPLEN = 256 << 10
_SNAPLEN_MAX = 127 << 20  # Wireshark takes packets of 128 MiB
_RAW_PART = 48_000  # bytes; a comment takes 65,535 letters
_SHOW_EVERY = 0.5  # seconds


class Recorder:
    """Writes what it is handed to a capture file.  raw: with a copy of struct kdbus_msg for each message."""

    def __init__(self, outlet: Outlet, bus: str, endpoint: str, *, snaplen: int, raw: bool) -> None:
        self._outlet = outlet
        self._snaplen = snaplen
        self._raw = raw
        self._dropped = 0
        self._size = 0
        self._writer = PcapngWriter(
            self._write, interface=bus, description=endpoint, application=f"kdbusctl {__version__}", snaplen=snaplen
        )

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        self._outlet.write(data)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    @property
    def is_full(self) -> bool:
        return self._outlet.is_full

    def message(self, observed: Observed, cast: Cast) -> None:
        data, size = frame(observed, self._snaplen)
        comments = [comment(observed, cast)]
        if self._raw:
            # In parts where it has hundreds of names; base64 of all but the last is without padding.
            comments += [
                "kdbus_msg " + base64.b64encode(observed.raw[at : at + _RAW_PART]).decode()
                for at in range(0, len(observed.raw), _RAW_PART)
            ]
        self._writer.packet(data, size, observed.time_ns, comments=comments, dropped=self._dropped)
        self._dropped = 0

    def missing(self, count: int) -> None:
        self._dropped += count

    def flush(self) -> None:
        self._outlet.flush()

    def finish(self, begun_ns: int, course: Course) -> None:
        """Write the end.  Raises OSError."""
        self._writer.statistics(begun_ns, time.time_ns(), received=course.received + course.lost, dropped=course.lost)
        self._outlet.finish()


_HELP = """\
Write what happens on a bus to FILE, in pcapng: Wireshark and tshark open it.

FILE is written anew; one that did not exist is readable by its owner only, as it holds what others send each other. -
is standard output, such as for 'kdbusctl capture - | wireshark -k -i -'.

The file has a packet for each message, as a D-Bus message: sender and destination (:1.ID or the name), kind, cookie and
time as the bus gave them, and the payload as it is, as an array of bytes. A comment has what D-Bus has no place for,
and a second one struct kdbus_msg with its items, in base64; one of more than 48,000 bytes goes on in further ones.

\b
  request                     method call, member Request
  message                     method call that expects no reply, member Message
  reply                       method return
  signal, broadcast           signal, member Signal or Broadcast
  no reply (the bus says so)  error kdbus.ReplyTimeout or kdbus.ReplyDead
  notification                signal of interface kdbus.Notification

It ends with Ctrl-C, SIGTERM, --count, --duration, or with the bus; the file is whole in each case. Where the bus had to
leave messages out because capture was too slow, the next packet says how many (drop count), and so does the summary at
the end, on standard error.

With --json the summary is an object on standard output, or on standard error if FILE is -: "file"; how many
messages were "captured", "received" (also those that were not wanted) and "lost"; "bytes" of the file; "bus_ended".

Only the owner of the bus and root (CAP_IPC_OWNER) may do that.
"""


@click.command("capture", cls=Command, help=_HELP, short_help="Write the messages of a bus to a file for Wireshark.")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@follow_options
@click.option(
    "-s",
    "--snaplen",
    type=Size(),
    default=_SNAPLEN,
    metavar="SIZE",
    help="Keep so many bytes of each message at most; 0 keeps all, up to 127 MiB. K and M may follow the number.  "
    "[default: 256K]",
)
@click.option("--raw/--no-raw", default=True, show_default=True, help="Add struct kdbus_msg as a comment.")
@pass_context
def command(
    context: Context,
    file: str,
    names: tuple[str, ...],
    ids: tuple[int, ...],
    kinds: tuple[str, ...],
    count: int | None,
    duration: float | None,
    metadata: bool,
    pool_size: int,
    snaplen: int,
    raw: bool,
) -> int:
    if file == "-" and sys.stdout.isatty():
        raise Failure("standard output is a terminal; give a FILE, or pipe it into a program", EXIT_USAGE)
    snaplen = min(snaplen or _SNAPLEN_MAX, _SNAPLEN_MAX)
    place = context.place()
    course = Course()
    with watching(context, place, course, pool_size=pool_size, metadata=metadata, keep=snaplen) as (_, tap, cast):
        fd = _open(file)
        context.output.note(f"capturing bus {place.name} to {_name(file)}, Ctrl-C ends it")
        begun_ns = time.time_ns()
        recorder = Recorder(Outlet(fd), place.name, place.endpoint, snaplen=snaplen, raw=raw)
        failure: Failure | None = None
        try:
            with _progress(context.output, recorder) as tick:
                follow(
                    tap,
                    cast,
                    Filter(names, ids, kinds),
                    recorder,
                    course,
                    count=count,
                    duration=duration,
                    tick=tick,
                )
        except OSError as error:
            failure = bus_gone(error)
        try:
            recorder.finish(begun_ns, course)
        except OSError as error:
            raise Failure(f"cannot write {_name(file)}: {explain(error)}", EXIT_FAILED) from error
        finally:
            if file != "-":
                os.close(fd)
    _summarise(context.output, file, course, recorder)
    if failure is not None:
        raise failure
    return EXIT_OK


def _name(file: str) -> str:
    return "standard output" if file == "-" else f"'{file}'"


def _open(file: str) -> int:
    if file == "-":
        return STANDARD_OUTPUT
    try:
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(f"cannot write '{file}': {explain(error)}", EXIT_FAILED) from error


@contextmanager
def _progress(output: Output, recorder: Recorder) -> Iterator[Callable[[Course], None] | None]:
    """Shows on a terminal's standard error how far it is."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.live import Live
    from rich.text import Text

    shown = 0.0
    with Live(console=output.errors, auto_refresh=False, transient=True) as live:

        def tick(course: Course) -> None:
            nonlocal shown
            if time.monotonic() - shown >= _SHOW_EVERY:
                shown = time.monotonic()
                live.update(Text(_text(course, recorder)), refresh=True)

        yield tick


def _text(course: Course, recorder: Recorder) -> str:
    return f"{course.shown} messages captured, {course.lost} lost; {recorder.size} bytes"


def _summarise(output: Output, file: str, course: Course, recorder: Recorder) -> None:
    if output.json:
        summary = {
            "file": None if file == "-" else file,
            "captured": course.shown,
            "received": course.received,
            "lost": course.lost,
            "bytes": recorder.size,
            "bus_ended": course.ended,
        }
        if file == "-":
            sys.stderr.write(to_json(summary) + "\n")
        else:
            output.document(summary)
        return
    if course.ended:
        output.note("the bus has ended")
    others = course.received - course.shown
    output.note(_text(course, recorder) + (f"; {others} others came" if others else ""))

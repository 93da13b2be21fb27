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

from ..background_writer import STANDARD_OUTPUT, BackgroundWriter
from ..context import Context, pass_context
from ..dbus_frame import comment, frame
from ..failure import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Failure, explain
from ..follow import Filter, FollowState, Size, bus_gone, follow, follow_options, watching
from ..observed import Observed
from ..options import Command
from ..output import to_json
from ..pcapng import PcapngWriter
from ..peers import Peers

if TYPE_CHECKING:
    from ..output import Output

_SNAPLEN = 256 << 10
_SNAPLEN_MAX = 127 << 20  # Wireshark takes packets of 128 MiB
_RAW_PART = 48_000  # bytes; a comment takes 65,535 letters
_SHOW_EVERY = 0.5  # seconds


class Recorder:
    """A sink that writes a capture file.  raw: add a copy of struct kdbus_msg for each message."""

    def __init__(self, out: BackgroundWriter, bus: str, endpoint: str, *, snaplen: int, raw: bool) -> None:
        self._out = out
        self._snaplen = snaplen
        self._raw = raw
        self._dropped = 0
        self._size = 0
        self._writer = PcapngWriter(
            self._write, interface=bus, description=endpoint, application=f"kdbusctl {__version__}", snaplen=snaplen
        )

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        self._out.write(data)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def is_full(self) -> bool:
        return self._out.is_full

    def message(self, observed: Observed, peers: Peers) -> None:
        data, size = frame(observed, self._snaplen)
        comments = [comment(observed, peers)]
        if self._raw:
            # In parts if it has hundreds of names; base64 of all parts but the last has no padding.
            comments += [
                "kdbus_msg " + base64.b64encode(observed.raw[at : at + _RAW_PART]).decode()
                for at in range(0, len(observed.raw), _RAW_PART)
            ]
        self._writer.packet(data, size, observed.time_ns, comments=comments, dropped=self._dropped)
        self._dropped = 0

    def missing(self, count: int) -> None:
        self._dropped += count

    def flush(self) -> None:
        self._out.flush()

    def finish(self, begun_ns: int, state: FollowState) -> None:
        """Write the final block.  Raises OSError."""
        self._writer.statistics(begun_ns, time.time_ns(), received=state.received + state.lost, dropped=state.lost)
        self._out.finish()


_HELP = """\
Write the messages of a bus to FILE, in pcapng format, for Wireshark and tshark.

FILE is overwritten. A new file is readable by its owner only, because it holds messages of others. - is standard
output, as in 'kdbusctl capture - | wireshark -k -i -'.

The file has a packet for each message, as a D-Bus message: sender and destination (:1.ID or the name), kind, cookie and
time from the bus, and the payload as an array of bytes. One comment holds what D-Bus cannot express, a second one
struct kdbus_msg with its items, in base64, in parts of 48,000 bytes.

\b
  request                     method call, member Request
  message                     method call that expects no reply, member Message
  reply                       method return
  signal, broadcast           signal, member Signal or Broadcast
  no reply (notification)     error kdbus.ReplyTimeout or kdbus.ReplyDead
  notification                signal of interface kdbus.Notification

Ends at Ctrl-C, SIGTERM, --count, --duration, or with the bus; the file is valid in each case. If the bus dropped
messages because capture was too slow, the next packet has their number (drop count), and so has the summary on standard
error.

With --json, the summary is an object on standard output, or on standard error if FILE is -: "file"; the numbers of
messages "captured", "received" (before the filter) and "lost"; "bytes" of the file; "bus_ended".

Needs to be the owner of the bus, or root (CAP_IPC_OWNER).
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
    help="Keep at most this many bytes of each message; 0: all, up to 127 MiB. Suffixes K, M.  "
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
    location = context.location()
    state = FollowState()
    with watching(context, location, state, pool_size=pool_size, metadata=metadata, keep=snaplen) as (_, tap, peers):
        fd = _open(file)
        context.output.note(f"capturing bus {location.name} to {_name(file)}, Ctrl-C ends it")
        begun_ns = time.time_ns()
        recorder = Recorder(BackgroundWriter(fd), location.name, location.endpoint, snaplen=snaplen, raw=raw)
        failure: Failure | None = None
        try:
            with _progress(context.output, recorder) as tick:
                follow(
                    tap,
                    peers,
                    Filter(names, ids, kinds),
                    recorder,
                    state,
                    count=count,
                    duration=duration,
                    tick=tick,
                )
        except OSError as error:
            failure = bus_gone(error)
        try:
            recorder.finish(begun_ns, state)
        except OSError as error:
            raise Failure(f"cannot write {_name(file)}: {explain(error)}", EXIT_FAILED) from error
        finally:
            if file != "-":
                os.close(fd)
    _summarise(context.output, file, state, recorder)
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
def _progress(output: Output, recorder: Recorder) -> Iterator[Callable[[FollowState], None] | None]:
    """Show the progress on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.live import Live
    from rich.text import Text

    shown = 0.0
    with Live(console=output.errors, auto_refresh=False, transient=True) as live:

        def tick(state: FollowState) -> None:
            nonlocal shown
            if time.monotonic() - shown >= _SHOW_EVERY:
                shown = time.monotonic()
                live.update(Text(_text(state, recorder)), refresh=True)

        yield tick


def _text(state: FollowState, recorder: Recorder) -> str:
    return f"{state.shown} messages captured, {state.lost} lost; {recorder.size} bytes"


def _summarise(output: Output, file: str, state: FollowState, recorder: Recorder) -> None:
    if output.json:
        summary = {
            "file": None if file == "-" else file,
            "captured": state.shown,
            "received": state.received,
            "lost": state.lost,
            "bytes": recorder.size,
            "bus_ended": state.ended,
        }
        if file == "-":
            sys.stderr.write(to_json(summary) + "\n")
        else:
            output.document(summary)
        return
    if state.ended:
        output.note("the bus has ended")
    others = state.received - state.shown
    output.note(_text(state, recorder) + (f"; {others} others received" if others else ""))

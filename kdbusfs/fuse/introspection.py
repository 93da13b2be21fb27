"""The files of `.kdbusfs`: the domain's parameters and statistics, as text."""

from __future__ import annotations

import errno
import json
import re
import select
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from kdbusfs.base.errors import CommandError
from kdbusfs.base.handle import Handle

if TYPE_CHECKING:
    from kdbusfs.bus1.world import World
    from kdbusfs.core.domain import Domain

_U64_MAX = (1 << 64) - 1
_WRITE_MAX = 4096
_NUMBER = re.compile(rb"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?\Z")
_TEXT_AT_ONCE = 1 << 12  # bytes
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_ALWAYS_READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


class TextFile(Handle):
    """An open text file.  It is a `Handle`, because the table of open files contains handles."""

    __slots__ = ()

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        raise NotImplementedError

    def write(self, data: bytes) -> int:
        """Replace the content by `data`, at whatever offset it is written.  Raises CommandError(EINVAL) for invalid
        data.
        """
        raise CommandError(errno.EINVAL, "not writable")

    def ioctl(self, call: object) -> int:
        """There are no commands: -ENOTTY."""
        return -errno.ENOTTY

    def poll(self) -> int:
        """Always readable and writable, like any file without a poll method."""
        return _ALWAYS_READY

    def release(self) -> None:
        """There is nothing to release."""


class AttachFlagsMask(TextFile):
    """`parameters/attach_flags_mask` (MASK-1): decimal to read; decimal, octal or hex (0x...) to write."""

    __slots__ = ("_domain",)

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self._domain = domain

    def read(self, offset: int, size: int) -> bytes:
        return f"{self._domain.attach_flags_mask}\n".encode()[offset : offset + size]

    def write(self, data: bytes) -> int:
        self._domain.attach_flags_mask = parse_u64(data)
        return len(data)


class GrowingFile(TextFile):
    """A text that is generated while it is read, about 4 KiB in each read.

    With thousands of connections other requests are served in between.
    """

    __slots__ = ("_pieces", "_text")

    def __init__(self, pieces: Iterator[str]) -> None:
        super().__init__()
        self._pieces = pieces
        self._text = bytearray()

    def read(self, offset: int, size: int) -> bytes:
        """See `TextFile.read`.  Raises CommandError(EINVAL) for an offset that was not reached yet: it has to be read
        in order.
        """
        text = self._text
        if offset > len(text):
            raise CommandError(errno.EINVAL, "not read from its start on")
        wanted = offset + min(size, _TEXT_AT_ONCE)
        while len(text) < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                break
            text += piece.encode()
        return bytes(text[offset : offset + size])


class Statistics(GrowingFile):
    """`stats`: one JSON object.  Its counters are those of the open; each connection is described when it is read."""

    __slots__ = ()

    def __init__(self, domain: Domain, more: Callable[[], Mapping[str, object]]) -> None:
        super().__init__(_statistics(json.dumps({**domain.counts(), **more()}, indent=1, default=str), domain))


def _statistics(counts: str, domain: Domain) -> Iterator[str]:
    yield counts.removesuffix("\n}") + ',\n "buses": ['
    separator = "\n  "
    for bus, endpoints, connections in domain.bus_stats():
        yield separator + _to_json(bus).removesuffix("}") + ',"endpoints":['
        yield from _elements(endpoints)
        yield '],"connections":['
        yield from _elements(connections)
        yield "]}"
        separator = ",\n  "
    yield "\n ]\n}\n"


def _elements(values: Iterator[object]) -> Iterator[str]:
    separator = "\n   "
    for value in values:
        yield separator + _to_json(value)
        separator = ",\n   "


class Connections(GrowingFile):
    """`connections`: one JSON object a line, for each connection that existed when the file was opened.

    pid_ns: the namespace of the pids.
    """

    __slots__ = ()

    def __init__(self, domain: Domain, pid_ns: int) -> None:
        super().__init__(_to_json(details) + "\n" for details in domain.connection_details(pid_ns))


class PeerList(GrowingFile):
    """`peers`: a JSON object a line for each peer of bus1 that was there when the file was opened.

    `pid_ns` is the namespace that pids are given for.
    """

    __slots__ = ()

    def __init__(self, peers: World, pid_ns: int) -> None:
        super().__init__(_peers(peers, pid_ns))


def _peers(peers: World, pid_ns: int) -> Iterator[str]:
    for summary, *parts in peers.peer_details(pid_ns):
        yield _to_json(summary).removesuffix("}")
        for name, values in zip(("nodes", "handles", "queue"), parts, strict=True):
            yield f',"{name}":['
            separator = ""
            for value in values:
                yield separator + _to_json(value)
                separator = ","
            yield "]"
        yield "}\n"


def parse_u64(data: bytes) -> int:
    """Parse a number in the format of the kernel's module parameters.

    Raises CommandError: EINVAL for other text, ERANGE beyond 64 bits.
    """
    if len(data) > _WRITE_MAX:
        raise CommandError(errno.EINVAL, "too long for a number")
    match = _NUMBER.match(data)
    if match is None:
        raise CommandError(errno.EINVAL, "no number")
    digits = match[1].lower()
    base = 16 if digits.startswith(b"0x") else 8 if digits.startswith(b"0") else 10
    if len(digits) > 32:
        raise CommandError(errno.ERANGE, "beyond 64 bits")
    value = int(digits, base)
    if value > _U64_MAX:
        raise CommandError(errno.ERANGE, "beyond 64 bits")
    return value

"""Payload: read it from an argument, a file or standard input; print it."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from kdbusfs.client import Memfd, Zero, sealed_memfd

from .escape import escape_lines, payload_text
from .failure import EXIT_FAILED, EXIT_USAGE, Failure, explain
from .output import Output

if TYPE_CHECKING:
    from kdbusfs.client import Message, Part, ReceivedMemfd

Form = Literal["auto", "text", "hex", "raw"]

LARGEST = 64 << 20
"""Largest payload in bytes that is decoded; --raw writes any size."""

_PIECE = 1 << 20

_Function = TypeVar("_Function", bound=Callable[..., Any])

HELP = """\
PAYLOAD is sent unchanged; text is UTF-8. Without PAYLOAD and --file the payload is empty.
The bus does not interpret payload; D-Bus programs expect marshalled messages.
"""


def input_options(function: _Function) -> _Function:
    """Add the argument PAYLOAD and the options for the source of the payload."""
    for decorate in reversed(
        (
            click.argument("payload", required=False),
            click.option(
                "--file",
                "-f",
                "file",
                metavar="FILE",
                type=click.Path(),
                help="Read the payload from FILE; - is stdin.",
            ),
            click.option("--from-hex", is_flag=True, help="PAYLOAD or FILE holds hexadecimal digits."),
            click.option("--memfd", is_flag=True, help="Send a sealed memfd: not copied, may exceed 2 MiB."),
        )
    ):
        function = decorate(function)
    return function


def read(payload: str | None, file: str | None, from_hex: bool) -> bytes:
    """The bytes to send.  Raises Failure."""
    if payload is not None and file is not None:
        raise Failure("PAYLOAD and --file are mutually exclusive", EXIT_USAGE)
    data = b""
    if payload is not None:
        data = payload.encode(errors="surrogateescape")
    elif file is not None:
        try:
            if file == "-":
                data = sys.stdin.buffer.read()
            else:
                with open(file, "rb") as opened:
                    data = opened.read()
        except OSError as error:
            raise Failure(f"cannot read '{file}': {explain(error)}", EXIT_FAILED) from error
    if not from_hex:
        return data
    try:
        return bytes.fromhex(data.decode())
    except ValueError as error:
        raise Failure("the payload is not pairs of hexadecimal digits", EXIT_USAGE) from error


@contextmanager
def parts(data: bytes, memfd: bool) -> Iterator[list[Part]]:
    """Payload as parts for Connection.send; with `memfd`, in a memfd that is open until the block ends."""
    if not memfd or not data:
        yield [data]
        return
    with sealed_memfd(data) as file:
        yield [Memfd(file)]


def payload_json(data: bytes) -> dict[str, Any]:
    """Payload as JSON: size, base64, and text, which is null unless it is UTF-8."""
    return {"size": len(data), "base64": base64.b64encode(data).decode(), "text": payload_text(data)}


def hex_dump(data: bytes) -> Iterator[str]:
    """Lines of offset, 16 bytes in hexadecimal, and the printable ASCII among them."""
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        digits = " ".join(f"{byte:02x}" for byte in part)
        shown = re.sub(rb"[^ -~]", b".", part).decode()
        yield f"{start:08x}  {digits:<47}  |{shown}|"


def looks_like_text(data: bytes) -> bool:
    """Whether payload is printable UTF-8, apart from line feeds and tabs."""
    text = payload_text(data)
    return text is not None and escape_lines(text) == text


def form_options(function: _Function) -> _Function:
    """Add the options for the format of received payload."""
    for flag, value, text in (
        ("--text", "text", "Print the payload as text, with escapes."),
        ("--hex", "hex", "Print it in hexadecimal."),
        ("--raw", "raw", "Print the bytes unchanged, also on a terminal."),
    ):
        function = click.option(flag, "form", flag_value=value, help=text)(function)
    return function


def size_of(message: Message) -> int:
    """The bytes of a message's payload."""
    return sum(len(part) if isinstance(part, memoryview) else part.size for part in message.payload)


def pieces(message: Message, limit: int | None = None) -> Iterator[bytes]:
    """The payload of a message, at most `limit` bytes, in pieces of 1 MiB: a memfd may be larger than memory.

    Raises Failure if a memfd could not be installed.
    """
    left = size_of(message) if limit is None else limit
    for part in message.payload:
        size = len(part) if isinstance(part, memoryview) else part.size
        for start in range(0, min(size, left), _PIECE):
            count = min(size - start, left, _PIECE)
            if isinstance(part, memoryview):
                yield bytes(part[start : start + count])
            elif isinstance(part, Zero):
                yield bytes(count)
            else:
                yield _read_memfd(part, part.start + start, count)
            left -= count


def _read_memfd(part: ReceivedMemfd, start: int, count: int) -> bytes:
    try:
        data = os.pread(part.file.fileno(), count, start)
    except (ValueError, OSError) as error:
        raise Failure(f"the payload is incomplete: a memfd cannot be read ({error})") from error
    if len(data) != count:
        raise Failure("the payload is incomplete: a memfd is shorter than it should be")
    return data


def data_of(message: Message) -> bytes:
    """The whole payload of a message.  Raises Failure if it is incomplete or larger than LARGEST."""
    size = size_of(message)
    if size > LARGEST:
        raise Failure(f"the payload has {size} bytes; more than {LARGEST} needs --raw")
    return b"".join(pieces(message))


def show(output: Output, message: Message, form: Form = "auto") -> None:
    """Print the payload of a message.  auto: text or hex on a terminal, else the raw bytes.  Raises Failure."""
    if form == "raw" or (form == "auto" and not sys.stdout.isatty()):
        sys.stdout.flush()
        for piece in pieces(message):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    data = data_of(message)
    if form == "hex" or (form == "auto" and not looks_like_text(data)):
        for line in hex_dump(data):
            output.line(line)
    elif data:
        text = escape_lines(data.decode(errors="surrogateescape"))
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

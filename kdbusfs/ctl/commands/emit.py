"""kdbusctl emit: broadcast a signal."""

from __future__ import annotations

import click

from .. import payload as payloads
from ..context import Context, pass_context
from ..failure import failing
from ..options import Command
from ..send_errors import HINTS


@click.command("emit", cls=Command, short_help="Broadcast a signal.", epilog=payloads.HELP)
@payloads.input_options
@click.option(
    "--bloom",
    "words",
    metavar="TEXT",
    multiple=True,
    help="Set the bits of TEXT in the bloom filter; repeatable.",
)
@click.option(
    "--generation",
    type=click.IntRange(0, (1 << 64) - 1),
    default=0,
    metavar="N",
    help="Generation of the filter; 0 by default.",
)
@click.option(
    "--priority",
    type=click.IntRange(-(1 << 63), (1 << 63) - 1),
    default=0,
    metavar="N",
    help="A lower number is more urgent; 0 by default.",
)
@pass_context
def command(
    context: Context,
    payload: str | None,
    file: str | None,
    from_hex: bool,
    memfd: bool,
    words: tuple[str, ...],
    generation: int,
    priority: int,
) -> None:
    """Broadcast a signal to all connections with a match that accepts it.

    A match compares bits of the signal's bloom filter; programs agree on the bits that a word sets. --bloom uses the
    scheme of kdbusfs.client and of the example programs: 64-bit FNV-1a of the text, then double hashing, with the
    number of hashes of the bus. Without --bloom the filter is empty, and only matches without bits accept it.

    The bus does not report whether a broadcast was received.

    With --json, prints an object: source (the sender's id), cookie, size, bloom (the filter in hexadecimal).
    """
    data = payloads.read(payload, file, from_hex)
    with (
        context.connect() as connection,
        payloads.parts(data, memfd) as parts,
        failing("emit the signal", HINTS),
    ):
        bits = connection.bloom(*[word.encode(errors="surrogateescape") for word in words])
        cookie = connection.broadcast(parts, bloom=(generation, bits), priority=priority)
        source = connection.id
    if context.output.json:
        context.output.document({"source": source, "cookie": cookie, "size": len(data), "bloom": bits.hex()})

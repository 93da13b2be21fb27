"""kdbusctl emit: broadcast a signal."""

from __future__ import annotations

import click

from .. import payload as payloads
from ..context import Context, pass_context
from ..delivery import HINTS
from ..failure import failing
from ..options import Command


@click.command("emit", cls=Command, short_help="Broadcast a signal.", epilog=payloads.HELP)
@payloads.input_options
@click.option(
    "--bloom",
    "words",
    metavar="TEXT",
    multiple=True,
    help="Set the bits of TEXT in the bloom filter; may be given more than once.",
)
@click.option(
    "--generation", type=click.IntRange(0, (1 << 64) - 1), default=0, metavar="N", help="Of the filter; 0 by default."
)
@click.option(
    "--priority",
    type=click.IntRange(-(1 << 63), (1 << 63) - 1),
    default=0,
    metavar="N",
    help="The lower, the more urgent; 0 by default.",
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
    """Broadcast a signal to everybody whose matches accept it.

    A match compares bits of the signal's bloom filter, and programs agree on which bits a word sets. --bloom sets
    those that kdbusfs.client and the example programs use for it: 64-bit FNV-1a of the text, and from that as many
    bits by double hashing as the bus has hashes. Without --bloom the filter is empty, and only matches that ask for
    no bit accept it.

    Nobody says whether it was received: the bus itself does not tell.

    With --json an object: source (the id that the signal came from), cookie, size, bloom (the filter in hexadecimal).
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

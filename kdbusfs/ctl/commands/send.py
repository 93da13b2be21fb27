"""kdbusctl send: send a message without waiting for a reply."""

from __future__ import annotations

import click

from .. import payload as payloads
from ..arguments import END
from ..context import Context, pass_context
from ..failure import failing
from ..options import Command
from ..send_errors import HINTS


@click.command("send", cls=Command, short_help="Send a message without waiting for a reply.", epilog=payloads.HELP)
@click.argument("destination", type=END, metavar="NAME|ID")
@payloads.input_options
@click.option(
    "--priority",
    type=click.IntRange(-(1 << 63), (1 << 63) - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="A lower number is more urgent.",
)
@click.option("--no-auto-start", is_flag=True, help="Fail if only an activator owns the name.")
@pass_context
def command(
    context: Context,
    destination: int | str,
    payload: str | None,
    file: str | None,
    from_hex: bool,
    memfd: bool,
    priority: int,
    no_auto_start: bool,
) -> None:
    """Send a message to the owner of NAME, or to connection ID.

    When kdbusctl exits with 0, the message is in the receiver's queue. To wait for a reply, use 'kdbusctl call'.

    With --json, prints an object: source (the sender's id), destination, cookie, size.
    """
    data = payloads.read(payload, file, from_hex)
    with (
        context.connect() as connection,
        payloads.parts(data, memfd) as parts,
        failing(f"send to '{destination}'", HINTS),
    ):
        cookie = connection.send(destination, parts, priority=priority, no_auto_start=no_auto_start)
        source = connection.id
    if context.output.json:
        context.output.document({"source": source, "destination": destination, "cookie": cookie, "size": len(data)})

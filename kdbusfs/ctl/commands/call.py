"""kdbusctl call: send a request and wait for its reply."""

from __future__ import annotations

import click

from kdbusfs.abi.v3 import constants as c

from .. import payload as payloads
from ..arguments import END, Seconds
from ..context import Context, pass_context
from ..describe import metadata_json
from ..failure import failing
from ..options import Command
from ..send_errors import HINTS


@click.command(
    "call",
    cls=Command,
    short_help="Send a request and print the reply.",
    epilog=payloads.HELP,
)
@click.argument("destination", type=END, metavar="NAME|ID")
@payloads.input_options
@click.option(
    "--timeout",
    "-t",
    type=Seconds(0.001, 1e6),
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the reply.",
)
@click.option("--no-auto-start", is_flag=True, help="Fail if only an activator owns the name.")
@payloads.form_options
@pass_context
def command(
    context: Context,
    destination: int | str,
    payload: str | None,
    file: str | None,
    from_hex: bool,
    memfd: bool,
    timeout: float,
    no_auto_start: bool,
    form: payloads.Form | None,
) -> None:
    """Send a request to the owner of NAME, or to connection ID, and print the payload of the reply.

    On a terminal, a printable reply is shown as text, any other in hexadecimal. Otherwise its bytes are written
    unchanged.

    Exits with 3 if there is no such connection, 4 if the policy denies it, 5 at the timeout.

    A reply of more than 64 MiB needs --raw or a pipe.

    With --json, prints an object: source (the id that replied), destination, cookie_reply, payload (size, base64, text,
    which is null unless it is UTF-8), fds (number of received descriptors, which are closed), metadata (of the
    sender).
    """
    output = context.output
    data = payloads.read(payload, file, from_hex)
    with (
        context.connect(pool_size=64 << 20, attach_recv=c.ATTACH_ANY if output.json else 0) as connection,
        payloads.parts(data, memfd) as parts,
        failing(f"call '{destination}'", HINTS),
        output.progress(f"waiting for the reply of {destination}"),
    ):
        reply = connection.call(destination, parts, timeout=timeout, no_auto_start=no_auto_start)
    with reply:
        if output.json:
            output.document(
                {
                    "source": reply.src_id,
                    "destination": reply.dst_id,
                    "cookie_reply": reply.cookie_reply,
                    "payload": payloads.payload_json(payloads.data_of(reply)),
                    "fds": len(reply.fds),
                    "metadata": metadata_json(reply.metadata),
                }
            )
        else:
            payloads.show(output, reply, form or "auto")
            if reply.fds:
                output.note(f"{len(reply.fds)} descriptors came with the reply and were closed")

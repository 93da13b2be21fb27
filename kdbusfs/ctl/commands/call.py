"""kdbusctl call: send a request and wait for its reply."""

from __future__ import annotations

import click

from kdbusfs.abi.v3 import constants as c

from .. import payload as payloads
from ..arguments import END, Seconds
from ..context import Context, pass_context
from ..delivery import HINTS
from ..describe import metadata_json
from ..failure import failing
from ..options import Command


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
@click.option("--no-auto-start", is_flag=True, help="Fail where only an activator owns the name.")
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
    """Send a request to the owner of NAME, or to the connection with this ID, and print the payload of its reply.

    On a terminal the reply is shown as text if it is text, else in hexadecimal. Otherwise its bytes are written as
    they are, and nothing else.

    Ends with 3 if nobody is there, 4 if the policy forbids it, 5 if no reply comes in time.

    Replies of more than 64 MiB can only be had as they are, with --raw or in a pipe.

    With --json an object: source (the id that replied), destination, cookie_reply, payload (size, base64, text, which
    is null if it is no UTF-8), fds (how many descriptors came along; they are closed), metadata (of who replied).
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

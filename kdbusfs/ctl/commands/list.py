"""kdbusctl list: the names and connections of a bus."""

from __future__ import annotations

import click

from ..context import Context, pass_context
from ..options import Command


@click.command("list", cls=Command, short_help="List the names and connections of a bus.")
@pass_context
def command(context: Context) -> None:
    """List the names and connections of a bus."""
    with context.connect() as connection:
        records = [(str(record.id), record.name or "") for record in connection.list_names()]
    context.output.table(("ID", "NAME"), records, right=("ID",))

"""kdbusctl list: the names and connections of a bus."""

from __future__ import annotations

import click

from ..context import Context, pass_context
from ..failure import failing
from ..options import Command
from ..survey import State, entry_json, survey
from ..traffic import families

_COLUMNS = ("NAME", "ID", "STATE", "PID", "USER", "ABI", "DESCRIPTION", "COMMAND")


@click.command("list", cls=Command, short_help="List the names and connections of a bus.")
@click.option("--acquired", is_flag=True, help="Names that somebody owns.")
@click.option("--activatable", is_flag=True, help="Names that have an activator, whether a service owns them or not.")
@click.option("--queued", is_flag=True, help="Connections that wait for a name, with that name.")
@click.option(
    "--unique", is_flag=True, help="Connections that own no name; with --queued, also wait for none."
)
@pass_context
def command(context: Context, acquired: bool, activatable: bool, queued: bool, unique: bool) -> None:
    """List the names and connections of a bus, without kdbusctl's own.

    Lists all of them unless an option selects some. Names come first, sorted, then connections without a name
    by id. "-" stands for a value that is unknown or hidden.

    STATE is owned, activatable or queued for a name; for a connection without a name it is its kind: monitor
    or policy-holder.

    ABI is what the connection speaks: v3, or last for that of August 2015. Only root can see it.

    COMMAND is the command line that the bus reports. By default it does not (attach_flags_mask); then it is
    read from /proc/PID, unless that process belongs to another user. It can be wrong: a process may pass its
    connection to another one, or end and have its PID reused.

    With --json, prints an array of objects: name, state, name_flags, id, visible (whether the bus shows its
    metadata), flags, pid, uid, user, comm, command, command_source ("bus" or "proc"), description, family (the
    ABI); null for unknown values.
    """
    choices: tuple[tuple[bool, State], ...] = (
        (acquired, "owned"),
        (activatable, "activatable"),
        (queued, "queued"),
        (unique, "unique"),
    )
    chosen = [state for wanted, state in choices if wanted] or [state for _, state in choices]
    output = context.output
    location = context.location()
    with context.connect(location) as connection, failing("list the bus"), output.progress("asking the bus"):
        entries = survey(connection, chosen, families=families(location))
    if output.json:
        output.document([entry_json(entry) for entry in entries])
        return
    rows = [
        (
            entry.name or "-",
            str(entry.peer.id),
            entry.state_text,
            str(entry.peer.pid or "-"),
            entry.peer.user or "-",
            entry.peer.family or "-",
            entry.peer.description or "-",
            entry.peer.command_text,
        )
        for entry in entries
    ]
    output.table(_COLUMNS, rows, right=("ID", "PID"), last_gives_way=True)
    if context.has_choice:
        output.note(f"the bus at {location.directory or location.endpoint}")
    hidden = len({entry.peer.id for entry in entries if entry.peer.info is None})
    if hidden:
        output.note(f"{hidden} connections are hidden by the policy of this endpoint")

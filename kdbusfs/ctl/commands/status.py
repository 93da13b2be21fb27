"""kdbusctl status: metadata of a connection, or of the bus and its creator."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import click

from kdbusfs.abi.v3 import constants as c

from .. import describe
from ..arguments import END
from ..context import Context, pass_context
from ..failure import EXIT_USAGE, Failure, failing
from ..options import Command
from ..traffic import families

if TYPE_CHECKING:
    from kdbusfs.client import Connection, Info

    from ..locations import BusLocation

# A timestamp belongs to messages; the rest of a bus' creator is that of the process.
_OF_CONNECTION = c.ATTACH_ALL & ~c.ATTACH_TIMESTAMP
_OF_CREATOR = c.ATTACH_PROCESS


@click.command("status", cls=Command, short_help="Show the metadata of a connection or of the bus.")
@click.argument("who", required=False, type=END, metavar="[NAME|ID]")
@click.option("--creator", is_flag=True, help="Show the bus and its creator, as without an argument.")
@pass_context
def command(context: Context, who: int | str | None, creator: bool) -> None:
    """Show the metadata of a connection: the owner of NAME, or connection ID.

    Without an argument: the bus itself and its creator. Process data of a connection are as of its HELLO, those of a
    bus as of its creation.

    Metadata that the connection does not agree to send, or that the domain's attach_flags_mask removes, are not shown;
    the last line names them. By default the mask removes the names of threads and processes, exe, cmdline, cgroup,
    caps and audit.

    With --json, prints an object: for a connection id, flags, family (the ABI that it speaks, which only root can see:
    v3, last, null), metadata, withheld; for a bus id, name, id128, flags,
    requires, bloom, metadata, withheld. metadata has timestamp, creds, pids, auxgroups, names, tid_comm, pid_comm, exe,
    cmdline, cgroup, caps, seclabel, audit, description, as far as they were passed on.
    """
    if who is not None and creator:
        raise Failure("--creator takes no NAME or ID", EXIT_USAGE)
    location = context.location()
    with context.connect(location) as connection:
        if who is None:
            _show_bus(context, connection)
        else:
            _show_connection(context, connection, who, location)


def _show_connection(context: Context, connection: Connection, who: int | str, location: BusLocation) -> None:
    hints = {
        errno.ESRCH: "nobody owns that name; 'kdbusctl list' shows the names",
        errno.ENXIO: "no such connection, or it is hidden; 'kdbusctl list' shows the connections",
    }
    with failing(f"show '{who}'", hints):
        info = connection.conn_info(who, _OF_CONNECTION)
    flags = describe.flag_names(info.flags, describe.HELLO_FLAGS)
    family = families(location).get(info.id)
    lines = [("Connection", str(info.id)), ("Flags", " ".join(flags) or "none")]
    if family is not None:
        lines.append(("ABI", family))
    metadata = info.metadata
    if metadata.description is not None:
        lines.append(("Description", metadata.description))
    lines += [("Name", _owned(name.name, name.flags)) for name in metadata.owned_names]
    _print(context, {"id": info.id, "flags": flags, "family": family}, lines, info, _OF_CONNECTION)


def _owned(name: str, flags: int) -> str:
    words = describe.flag_names(flags, describe.NAME_FLAGS)
    return f"{name} ({' '.join(words)})" if words else name


def _show_bus(context: Context, connection: Connection) -> None:
    with failing("ask for the bus"):
        info = connection.creator_info(_OF_CREATOR)
    flags = describe.flag_names(info.flags, describe.MAKE_FLAGS)
    required = describe.flag_names(connection.attach_required, describe.ATTACH_FLAGS)
    bloom = {"size": connection.bloom_size, "hashes": connection.n_hash}
    value = {
        "id": info.id,
        "name": info.name,
        "id128": str(connection.id128),
        "flags": flags,
        "requires": required,
        "bloom": bloom,
    }
    hashes = "hash" if connection.n_hash == 1 else "hashes"
    lines = [
        ("Bus", info.name or "-"),
        ("Number", str(info.id)),
        ("ID", str(connection.id128)),
        ("Flags", " ".join(flags) or "none"),
        ("Requires", " ".join(required) or "no metadata"),
        ("Bloom filter", f"{connection.bloom_size} bytes, {connection.n_hash} {hashes}"),
    ]
    _print(context, value, lines, info, _OF_CREATOR)


def _print(context: Context, value: dict[str, Any], lines: list[tuple[str, str]], info: Info, wanted: int) -> None:
    withheld = describe.withheld(info.metadata, wanted)
    if context.output.json:
        context.output.document({**value, "metadata": describe.metadata_json(info.metadata), "withheld": withheld})
        return
    lines = lines + describe.metadata_lines(info.metadata)
    if withheld:
        lines.append(("Not shown", " ".join(withheld)))
    context.output.fields(lines)

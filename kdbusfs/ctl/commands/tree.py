"""kdbusctl tree: domains with their buses, endpoints and connections."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .. import locations
from ..context import Context, pass_context
from ..describe import user_name
from ..failure import Failure, explain, failing
from ..options import Command
from ..survey import Entry, Peer, State, survey
from ..traffic import families

if TYPE_CHECKING:
    from rich.tree import Tree

_DEPTHS = ("domains", "buses", "endpoints", "connections")
_STATES: tuple[State, ...] = ("owned", "activatable", "unique")


@dataclass(slots=True)
class _Node:
    """A node of the tree.  value: its JSON."""

    label: str
    style: str | None
    value: dict[str, Any]
    children: list[_Node] = field(default_factory=list)


@click.command("tree", cls=Command, short_help="Show domains, buses, endpoints and connections as a tree.")
@click.option(
    "--depth", type=click.Choice(_DEPTHS), default="connections", show_default=True, help="How far down to go."
)
@pass_context
def command(context: Context, depth: str) -> None:
    """Show all mounted domains with their buses, endpoints and connections.

    With --mount only that domain, with --bus (or KDBUS_BUS) only that bus. Buses that you may not enter are marked.
    kdbusctl connects to each bus for that; its own connections are not shown.

    With --json, prints an array of domains: mount, error, buses; a bus has name, path, error, endpoints, connections;
    an endpoint has name, path, user, mode; a connection has id, names, activates, pid, user, command, description,
    family (the ABI: v3, or last, which is also shown; null for all but root).
    error is null, or the reason why nothing is listed. Buses that are bind-mounted without their domain belong to a
    domain whose mount is null.
    """
    level = _DEPTHS.index(depth)
    output = context.output
    with output.progress("looking around"):
        roots = list(_roots(context, level))
    if output.json:
        output.document([root.value for root in roots])
        return
    for root in roots:
        output.show(_rich_tree(root))


def _roots(context: Context, level: int) -> Iterator[_Node]:
    if context.bus is not None or context.endpoint is not None:
        location = context.location()
        yield _domain(None if location.directory is None else os.path.dirname(location.directory), [location], level)
        return
    if context.mount is not None:
        paths, loose = [context.domain()], []
    else:
        entries = locations.mounts()
        paths = locations.domains(entries)
        loose = [location for location in locations.all_buses(entries) if not _is_below(location, paths)]
        if not paths and not loose:
            locations.only_domain()
    for path in paths:
        yield _domain(path, None, level)
    if loose:
        yield _domain(None, loose, level)


def _is_below(location: locations.BusLocation, domains: list[str]) -> bool:
    return location.directory is not None and os.path.dirname(location.directory) in domains


def _domain(path: str | None, buses: list[locations.BusLocation] | None, level: int) -> _Node:
    """The node of a domain.  buses: show only these."""
    error: str | None = None
    if buses is None:
        assert path is not None
        buses = []
        try:
            buses = [locations.below(path, name) for name in locations.bus_names(path)]
        except OSError as fault:
            error = explain(fault)
    label = path or "bind mounts"
    node = _Node(
        label if error is None else f"{label}  ({error})", "bold blue", {"mount": path, "error": error, "buses": []}
    )
    if level >= 1:
        present = (bus for bus in buses if os.path.lexists(bus.directory or bus.endpoint))
        found = [_bus(bus, level) for bus in present]
        node.children = found
        node.value["buses"] = [child.value for child in node.children]
    return node


def _bus(location: locations.BusLocation, level: int) -> _Node:
    value: dict[str, Any] = {
        "name": location.name,
        "path": location.directory or location.endpoint,
        "error": None,
        "endpoints": [],
        "connections": [],
    }
    node = _Node(location.name if location.directory else location.endpoint, "bold", value)
    if level >= 2:
        endpoints = [_endpoint(path) for path in _endpoint_paths(location)]
        node.children += endpoints
        value["endpoints"] = [child.value for child in endpoints]
    entries: list[Entry] = []
    try:
        if not locations.may_use(location.endpoint):
            value["error"] = "no permission"
        elif level >= 3:
            entries = _entries(location)
    except Failure as failure:
        value["error"] = failure.reason
    if value["error"] is not None:
        node.label += f"  ({value['error']})"
    connections = [_connection(peer, of) for peer, of in _by_peer(entries)]
    node.children += connections
    value["connections"] = [child.value for child in connections]
    return node


def _endpoint_paths(location: locations.BusLocation) -> list[str]:
    if location.directory is None:
        return [location.endpoint]
    try:
        return [os.path.join(location.directory, name) for name in locations.endpoint_names(location.directory)]
    except OSError:
        return []  # the bus has ended, or may not be entered: its connections have the error


def _endpoint(path: str) -> _Node:
    name = os.path.basename(path)
    try:
        found = os.stat(path)
    except OSError as fault:
        return _Node(f"{name}  ({explain(fault)})", "cyan", {"name": name, "path": path, "user": None, "mode": None})
    user, mode = user_name(found.st_uid), f"{found.st_mode & 0o777:04o}"
    return _Node(f"{name}  {user} {mode}", "cyan", {"name": name, "path": path, "user": user, "mode": mode})


def _entries(location: locations.BusLocation) -> list[Entry]:
    """The names and connections of a bus.  Raises Failure if it cannot be entered."""
    with Context().connect(location) as connection, failing("list the bus"):
        return survey(connection, _STATES, families=families(location))


def _by_peer(entries: list[Entry]) -> list[tuple[Peer, list[Entry]]]:
    found: dict[int, tuple[Peer, list[Entry]]] = {}
    for entry in entries:
        found.setdefault(entry.peer.id, (entry.peer, []))[1].append(entry)
    return [found[number] for number in sorted(found)]


def _connection(peer: Peer, entries: list[Entry]) -> _Node:
    names = [entry.name for entry in entries if entry.state == "owned" and entry.name]
    activates = [entry.name for entry in entries if entry.state == "activatable" and entry.name]
    value = {
        "id": peer.id,
        "names": names,
        "activates": activates,
        "pid": peer.pid,
        "user": peer.user,
        "command": peer.command()[1] or peer.command()[0],
        "description": peer.description,
        "family": peer.family,
    }
    words = [f"#{peer.id}", *names, *(f"activates {name}" for name in activates)]
    kind = entries[0].state_text
    if kind in ("monitor", "policy-holder"):
        words.append(f"[{kind}]")
    if peer.family == "last":
        words.append("[last ABI]")
    if peer.info is None:
        words.append("(hidden)")
    words += [word for word in (peer.description, peer.user, peer.pid and str(peer.pid)) if word]
    if peer.command_text != "-":
        words.append(peer.command_text)
    return _Node("  ".join(words), None, value)


def _rich_tree(root: _Node) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    from ..escape import escape

    def add(parent: Tree, node: _Node) -> None:
        branch = parent.add(Text(escape(node.label), node.style or "", no_wrap=True, overflow="ellipsis"))
        for child in node.children:
            add(branch, child)

    tree = Tree(Text(escape(root.label), root.style or ""), guide_style="dim")
    for child in root.children:
        add(tree, child)
    return tree

"""kdbusctl tree: domains, their buses, the endpoints and connections of those."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .. import places
from ..context import Context, pass_context
from ..describe import user_name
from ..failure import Failure, explain, failing
from ..options import Command
from ..survey import Entry, Peer, State, survey

if TYPE_CHECKING:
    from rich.tree import Tree

_DEPTHS = ("domains", "buses", "endpoints", "connections")
_STATES: tuple[State, ...] = ("owned", "activatable", "unique")


@dataclass(slots=True)
class _Node:
    """A line of the tree.  value: what JSON says of it."""

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
    """Show all domains that are mounted, their buses, and the endpoints and connections of those.

    With --mount only that domain, with --bus (or KDBUS_BUS) only that bus. What you may not enter is shown as such.
    kdbusctl opens a connection of its own on each bus to look, and leaves it out.

    With --json an array of domains: mount, error, buses; of a bus: name, path, error, endpoints, connections; of an
    endpoint: name, path, user, mode; of a connection: id, names, activates, pid, user, command, description. error is
    null, or says why nothing stands below. Buses that are bind-mounted by themselves belong to a domain whose mount
    is null.
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
        place = context.place()
        yield _domain(None if place.directory is None else os.path.dirname(place.directory), [place], level)
        return
    if context.mount is not None:
        paths, loose = [context.domain()], []
    else:
        entries = places.mounts()
        paths = places.domains(entries)
        loose = [place for place in places.all_buses(entries) if not _is_below(place, paths)]
        if not paths and not loose:
            places.only_domain()
    for path in paths:
        yield _domain(path, None, level)
    if loose:
        yield _domain(None, loose, level)


def _is_below(place: places.BusPlace, domains: list[str]) -> bool:
    return place.directory is not None and os.path.dirname(place.directory) in domains


def _domain(path: str | None, buses: list[places.BusPlace] | None, level: int) -> _Node:
    """A domain and the buses in it; `buses`: only these."""
    error: str | None = None
    if buses is None:
        assert path is not None
        buses = []
        try:
            buses = [places.below(path, name) for name in places.bus_names(path)]
        except OSError as fault:
            error = explain(fault)
    label = path or "bind mounts"
    node = _Node(
        label if error is None else f"{label}  ({error})", "bold blue", {"mount": path, "error": error, "buses": []}
    )
    if level >= 1:
        found = [_bus(place, level) for place in buses if os.path.lexists(place.directory or place.endpoint)]
        node.children = found
        node.value["buses"] = [child.value for child in node.children]
    return node


def _bus(place: places.BusPlace, level: int) -> _Node:
    value: dict[str, Any] = {
        "name": place.name,
        "path": place.directory or place.endpoint,
        "error": None,
        "endpoints": [],
        "connections": [],
    }
    node = _Node(place.name if place.directory else place.endpoint, "bold", value)
    if level >= 2:
        endpoints = [_endpoint(path) for path in _endpoint_paths(place)]
        node.children += endpoints
        value["endpoints"] = [child.value for child in endpoints]
    entries: list[Entry] = []
    try:
        if not places.may_use(place.endpoint):
            value["error"] = "no permission"
        elif level >= 3:
            entries = _entries(place)
    except Failure as failure:
        value["error"] = failure.reason
    if value["error"] is not None:
        node.label += f"  ({value['error']})"
    connections = [_connection(peer, of) for peer, of in _by_peer(entries)]
    node.children += connections
    value["connections"] = [child.value for child in connections]
    return node


def _endpoint_paths(place: places.BusPlace) -> list[str]:
    if place.directory is None:
        return [place.endpoint]
    try:
        return [os.path.join(place.directory, name) for name in places.endpoint_names(place.directory)]
    except OSError:
        return []  # the bus is gone, or may not be entered: what is said about its connections says so


def _endpoint(path: str) -> _Node:
    name = os.path.basename(path)
    try:
        found = os.stat(path)
    except OSError as fault:
        return _Node(f"{name}  ({explain(fault)})", "cyan", {"name": name, "path": path, "user": None, "mode": None})
    user, mode = user_name(found.st_uid), f"{found.st_mode & 0o777:04o}"
    return _Node(f"{name}  {user} {mode}", "cyan", {"name": name, "path": path, "user": user, "mode": mode})


def _entries(place: places.BusPlace) -> list[Entry]:
    """Raises Failure where the bus cannot be entered."""
    with Context().connect(place) as connection, failing("list the bus"):
        return survey(connection, _STATES)


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
    }
    words = [f"#{peer.id}", *names, *(f"activates {name}" for name in activates)]
    kind = entries[0].state_text
    if kind in ("monitor", "policy-holder"):
        words.append(f"[{kind}]")
    if peer.info is None:
        words.append("(may not be seen)")
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

"""Completion of mounts, buses, names and ids.

Errors are swallowed and give no completions; a time limit keeps the shell responsive.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from . import locations
from .context import Context
from .failure import Failure

if TYPE_CHECKING:
    from kdbusfs.client import Connection

_PATIENCE = 3
"""Seconds after which SIGALRM kills a completion that is blocked."""

_Finder = Callable[[Context, str], list[CompletionItem]]


def _finder(find: _Finder) -> Callable[[click.Context, str], list[CompletionItem]]:
    @functools.wraps(find)
    def guarded(context: click.Context, incomplete: str) -> list[CompletionItem]:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE)
        try:
            return find(context.find_object(Context) or Context(), incomplete)
        except (OSError, Failure, ValueError):
            return []
        finally:
            signal.alarm(0)

    return guarded


def _items(found: list[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(text) for text in found if text.startswith(incomplete)]


@_finder
def mounts(context: Context, incomplete: str) -> list[CompletionItem]:
    """Paths of domains."""
    return _items(locations.domains(locations.mounts()), incomplete)


@_finder
def buses(context: Context, incomplete: str) -> list[CompletionItem]:
    """Names of buses in the selected domain, or in all; paths once there is a slash."""
    if "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    if context.mount is not None:
        return _items(locations.bus_names(context.mount), incomplete)
    return _items(sorted({location.name for location in locations.all_buses()}), incomplete)


@_finder
def endpoints(context: Context, incomplete: str) -> list[CompletionItem]:
    """Names of the endpoints of the selected bus."""
    directory = locations.find_bus(context.mount, context.bus, None).directory
    return [] if directory is None else _items(locations.endpoint_names(directory), incomplete)


def _connect(context: Context) -> Connection:
    return context.connect(pool_size=1 << 20)


@_finder
def names(context: Context, incomplete: str) -> list[CompletionItem]:
    """Well-known names, also those that only an activator owns."""
    from kdbusfs.abi.v3 import constants as c

    with _connect(context) as connection:
        records = connection.list_names(c.NAME_LIST_NAMES | c.NAME_LIST_ACTIVATORS)
    return _items(sorted({record.name for record in records if record.name}), incomplete)


@_finder
def ids(context: Context, incomplete: str) -> list[CompletionItem]:
    """Ids of connections."""
    from kdbusfs.abi.v3 import constants as c

    with _connect(context) as connection:
        records = connection.list_names(c.NAME_LIST_UNIQUE | c.NAME_LIST_NAMES)
        found = sorted({record.id for record in records} - {connection.id})
    return _items([str(number) for number in found], incomplete)


@_finder
def peers(context: Context, incomplete: str) -> list[CompletionItem]:
    """Numbers of peers of bus1."""
    from .bus1 import read_peers

    return _items([str(peer["peer"]) for peer in read_peers(context.domain())], incomplete)


def option(finder: Callable[[click.Context, str], list[CompletionItem]]) -> Callable[..., list[CompletionItem]]:
    """Adapt a finder to click's signature for options."""
    return lambda context, parameter, incomplete: finder(context, incomplete)

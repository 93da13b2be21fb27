"""Completion of what only the mounts and buses know.

Nothing here may fail, as there is nobody to tell, and nothing may take long, as somebody sits before it.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from . import places
from .context import Context
from .failure import Failure

if TYPE_CHECKING:
    from kdbusfs.client import Connection

_PATIENCE = 3
"""Seconds after which a completion ends without a word, whatever holds it up."""

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
    return _items(places.domains(places.mounts()), incomplete)


@_finder
def buses(context: Context, incomplete: str) -> list[CompletionItem]:
    """Names of buses in the domain that is meant, or in all; paths once there is a slash."""
    if "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    if context.mount is not None:
        return _items(places.bus_names(context.mount), incomplete)
    return _items(sorted({place.name for place in places.all_buses()}), incomplete)


@_finder
def endpoints(context: Context, incomplete: str) -> list[CompletionItem]:
    """Names of the endpoints of the bus that is meant."""
    directory = places.find_bus(context.mount, context.bus, None).directory
    return [] if directory is None else _items(places.endpoint_names(directory), incomplete)


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


def option(finder: Callable[[click.Context, str], list[CompletionItem]]) -> Callable[..., list[CompletionItem]]:
    """A finder in the form that click wants for an option."""
    return lambda context, parameter, incomplete: finder(context, incomplete)

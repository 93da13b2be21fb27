"""Completion of what only the mounts and buses know.  Nothing here may fail: there is nobody to tell."""

from __future__ import annotations

import click

from . import places


def mounts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Paths of domains."""
    try:
        return [path for path in places.domains(places.mounts()) if path.startswith(incomplete)]
    except Exception:
        return []


def buses(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of buses."""
    return []


def endpoints(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the endpoints of the bus that is meant."""
    return []

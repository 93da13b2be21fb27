"""What of the documents was run in this session, and what was not."""

from __future__ import annotations

ran: dict[str, int] = {}
"""How many of each kind, such as commands."""
not_run: dict[str, str] = {}
"""Blocks, as DOCUMENT:LINE, with the reason."""


def add(more: dict[str, int], left: dict[str, str]) -> None:
    """Add the account of another process."""
    for what, count in more.items():
        ran[what] = ran.get(what, 0) + count
    not_run.update(left)


def lines() -> list[str]:
    """For the summary of the session; nothing where no document was tested."""
    if not ran:
        return []
    counted = ", ".join(f"{count} {what}" for what, count in sorted(ran.items()))
    first = f"documents: ran {counted}; blocks not run: {len(not_run)}"
    return [first, *(f"  {where}: {reason}" for where, reason in sorted(not_run.items()))]

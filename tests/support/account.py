"""Counts of the document blocks that were run in this session, and the skipped ones."""

from __future__ import annotations

ran: dict[str, int] = {}
"""Number of executed blocks, by kind."""
not_run: dict[str, str] = {}
"""Skipped blocks, as DOCUMENT:LINE, with the reason."""


def add(more: dict[str, int], left: dict[str, str]) -> None:
    """Add the counts of another process."""
    for what, count in more.items():
        ran[what] = ran.get(what, 0) + count
    not_run.update(left)


def lines() -> list[str]:
    """Lines for the summary of the session; none if no document was tested."""
    if not ran:
        return []
    counted = ", ".join(f"{count} {what}" for what, count in sorted(ran.items()))
    first = f"documents: ran {counted}; blocks not run: {len(not_run)}"
    return [first, *(f"  {where}: {reason}" for where, reason in sorted(not_run.items()))]

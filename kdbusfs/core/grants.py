"""Which metadata a receiver gets without the consent of the sender (L-103, L-104)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..abi import constants as c

if TYPE_CHECKING:
    from ..base.ports import ProcessMetadata
    from .connection import Connection


def granted_kinds(receiver: Connection, source: Connection, process: ProcessMetadata | None) -> int:
    """Which kinds of metadata `receiver` gets of what `source` sends now (META-2; L-103, L-104).

    process: of the sender, with its numbers; None where they are not known.
    """
    wanted = receiver.attach_flags_recv
    granted = source.attach_flags_send
    basic = receiver.family.rules.basic_metadata
    if basic:
        granted |= basic
        reader = receiver.reader
        if wanted & ~granted and process is not None and reader is not None and reader.pid_ns in process.pids:
            # The receiver can look it up in /proc, where it sees the sender.
            granted = c.ATTACH_ALL
    return wanted & granted

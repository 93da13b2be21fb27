"""Who opened an endpoint file: what stands for a connection of the last ABI, whoever says HELLO (L-36, L-37, L-101)."""

from __future__ import annotations

from errno import ESRCH
from typing import TYPE_CHECKING

from ..base.errors import CommandError
from ..base.identity import NO_ID

if TYPE_CHECKING:
    from ..base.identity import Creds
    from ..base.ports import Caller, ProcessMetadata, Reader


class Opener:
    """ids: its credentials at that time; users: its user namespace, None if the daemon may not see that."""

    __slots__ = ("ids", "users")

    def __init__(self, caller: Caller) -> None:
        """Raises CommandError(ESRCH)."""
        self.ids: Creds = caller.ids()
        self.users: Reader | None = None
        try:
            self.users = caller.view_users()
        except CommandError as error:
            # An open takes less than a HELLO: clients that cannot have a connection may still look at the file.
            if error.errno == ESRCH:
                raise

    def credentials(self, caller: Caller) -> tuple[Creds, tuple[int, ...]]:
        """The ids and groups that passive checks look at, where `caller` says HELLO.

        The groups are those of HELLO, or none if that has other ids: to read them costs as much as a tenth of an open,
        which most programs never use for this.
        """
        return self.ids, caller.groups() if caller.ids() == self.ids else ()

    def accounted_uid(self, caller: Caller, faked: ProcessMetadata | None) -> int:
        """L-37: a program that acts for another user says so in CREDS, and may let him pay."""
        creds = faked.creds if faked is not None else None
        if creds is not None and creds.uid != NO_ID and caller.has_ipc_owner():
            return creds.uid
        return self.ids.uid

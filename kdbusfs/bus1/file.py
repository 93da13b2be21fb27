"""Open files of bus1: which commands a peer takes (B1-GEN-1 to B1-GEN-4), and its end."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL, ENOTTY
from typing import TYPE_CHECKING, Final

from ..base.errors import CommandError
from ..base.words import u64
from . import abi
from .commands import handle_release, handle_transfer, peer_query, peer_reset, slice_release
from .destroy import nodes_destroy
from .flush import flush
from .peer import Peer
from .receive import recv
from .send import send

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.identity import Pids
    from ..base.ports import Memory, Reader
    from .limits import User
    from .world_state import WorldState


class PeerFile(Peer):
    """An open file of bus1."""

    __slots__ = ("_is_closed", "_is_ending")

    def __init__(
        self, world: WorldState, peer_id: int, user: User, view: Reader, pids: dict[int, Pids], memory: Memory
    ) -> None:
        super().__init__(world, peer_id, user, view, pids, memory)
        self._is_ending = False
        self._is_closed = False

    def ioctl(self, call: Call) -> int:
        """0 or -errno (B1-GEN-1 to B1-GEN-4)."""
        try:
            if call.number == abi.CMD_PEER_DISCONNECT:
                return self._disconnect(call)
            self.check_active()
            at = call.number & 0xFF
            command = _COMMANDS[at] if at < len(_COMMANDS) else None
            if command is None or command.number != call.number:
                return -ENOTTY
            if call.error:
                return -EFAULT
            return command.run(self, call)
        except CommandError as error:
            return -error.errno

    def _disconnect(self, call: Call) -> int:
        """B1-PEER-7.  FUSE cannot carry its argument NULL: a pointer to 0 stands for it (B1-FUSE-1)."""
        if call.error:
            return -EFAULT
        if u64(call.data, 0):
            return -EINVAL
        self.check_active()
        self.disconnect()
        return 0

    def disconnect(self) -> None:
        """For ever: everything that it has goes, and whoever has to do with it is told (B1-PEER-7)."""
        if not self.is_active:
            return
        self.is_active = False
        self._is_ending = True
        self.world.changed.append(self)
        flush(self, keep_seed=False)
        self._is_ending = False
        if self._is_closed:
            self._end()

    def release(self) -> None:
        """The last close (B1-FILE-7)."""
        self.world.ends.begin(self.limits.user.uid, self._close)

    def _close(self) -> None:
        self.disconnect()
        self._is_closed = True
        if not self._is_ending:  # else whoever is busy with that goes on
            self._end()

    def _end(self) -> None:
        self.pool.close(self.world.turn)
        self.memory.close()
        self.world.closed(self)


class _Command:
    """A command and its number."""

    __slots__ = ("number", "run")

    def __init__(self, number: int, run: Callable[[Peer, Call], int]) -> None:
        self.number = number
        self.run = run


def _by_low_byte(*commands: _Command) -> list[_Command | None]:
    table: list[_Command | None] = [None] * (max(command.number & 0xFF for command in commands) + 1)
    for command in commands:
        table[command.number & 0xFF] = command
    return table


_COMMANDS: Final = _by_low_byte(
    _Command(abi.CMD_PEER_QUERY, peer_query),
    _Command(abi.CMD_PEER_RESET, peer_reset),
    _Command(abi.CMD_HANDLE_RELEASE, handle_release),
    _Command(abi.CMD_HANDLE_TRANSFER, handle_transfer),
    _Command(abi.CMD_NODES_DESTROY, nodes_destroy),
    _Command(abi.CMD_SLICE_RELEASE, slice_release),
    _Command(abi.CMD_SEND, send),
    _Command(abi.CMD_RECV, recv),
)

"""Messages: what a SEND carries after all checks, and the resources that travel with it."""

from __future__ import annotations

from errno import (
    E2BIG,
    EBADF,
    EBADMSG,
    EDESTADDRREQ,
    EDOM,
    EEXIST,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMSGSIZE,
    ENOTUNIQ,
    EOPNOTSUPP,
    ETXTBSY,
)
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from ..abi import constants as c
from ..abi.limits import MSG_MAX_FDS, MSG_MAX_ITEMS, MSG_MAX_PAYLOAD_VEC_SIZE
from ..abi.names import is_valid_name
from ..abi.values import ZERO_VEC_OFFSET, Body, Item, Notice, Part
from ..base.errors import CommandError

if TYPE_CHECKING:
    from ..abi.values import Sent
    from ..base.account import Account
    from ..base.ports import Caller, File
    from .users import User

F_SEALS_REQUIRED: Final = 0x0001 | 0x0002 | 0x0004 | 0x0008  # SEAL, SHRINK, GROW, WRITE
MESSAGE_COST: Final = 2048
"""Bytes charged for a message beside its size."""
_NO_FILES: Final[list[File]] = []


@mypyc_attr(acyclic=True, free_list_len=1)
class Resources:
    """What a sender's message keeps for all its copies: pinned files, and the charge for it (CLOSE-5).

    Reference-counted: the files are closed when the last queue entry, or the sender's command, releases them.
    memfds: of payload, in the order of the message; files: of the FDS item.
    """

    __slots__ = ("_account", "_cost", "_users", "files", "memfds")

    def __init__(self, account: Account, cost: int) -> None:
        """`account` of the sender is charged with `cost` bytes.  Raises CommandError(ENOBUFS)."""
        account.charge(cost)
        self._account = account
        self._cost = cost
        self._users = 1
        self.memfds: list[File] = _NO_FILES
        self.files: list[File] = _NO_FILES

    def add_memfd(self, file: File) -> None:
        """Another memfd with payload, pinned."""
        if not self.memfds:
            self.memfds = []
        self.memfds.append(file)

    def add_file(self, file: File) -> None:
        """Another file of the FDS item, pinned."""
        if not self.files:
            self.files = []
        self.files.append(file)

    def charge(self, cost: int) -> None:
        """Charge for data that was added later and lives as long as the message."""
        self._account.charge_unchecked(cost)
        self._cost += cost

    def retain(self) -> Resources:
        self._users += 1
        return self

    def release(self) -> None:
        """Drop a reference; the last one closes the files (SEND-23)."""
        self._users -= 1
        if self._users:
            return
        self._account.uncharge(self._cost)
        for file in self.memfds:
            file.close()
        for file in self.files:
            file.close()


@mypyc_attr(acyclic=True, free_list_len=1)
class Message(Body):
    """A message, of a connection or a notification of the bus (src_id 0).

    cookie_reply is the union with timeout_ns.  vectors: (address, size) in the sender's memory, address 0 for zeros;
    payload_size: bytes they fill in a pool; memfd_size: bytes of payload in memfds; name_id: of the name that it was
    addressed to; user: who it is accounted to at its receivers.  A notification has no `resources` and no `user`.
    """

    __slots__ = ("memfd_size", "name_id", "payload_size", "resources", "seqnum", "user", "vectors")

    def __init__(
        self,
        flags: int = 0,
        priority: int = 0,
        dst_id: int = 0,
        src_id: int = 0,
        cookie: int = 0,
        cookie_reply: int = 0,
        payload_type: int = c.PAYLOAD_KERNEL,
        notice: Notice | None = None,
    ) -> None:
        super().__init__(flags, priority, dst_id, src_id, cookie, cookie_reply, payload_type)
        self.notice = notice
        self.resources: Resources | None = None
        self.user: User | None = None
        self.vectors: list[tuple[int, int]] = []
        self.payload_size = 0
        self.memfd_size = 0
        self.name_id = 0
        self.seqnum = 0

    @property
    def timeout_ns(self) -> int:
        """The deadline of a request, CLOCK_MONOTONIC: the ABI has it in the place of a reply's `cookie_reply`."""
        return self.cookie_reply

    @property
    def address(self) -> tuple[int, bytes | None]:
        """Whom its sender addressed: the id and the name."""
        return self.dst_id, self.dst_name

    @property
    def has_files(self) -> bool:
        """Whether an FDS item travels along, for which the receiver needs ACCEPT_FD."""
        return self.file_count > 0


def make_message(sent: Sent, caller: Caller, conn_id: int, bloom_size: int, account: Account) -> Message:
    """The message of a SEND, after the checks SEND-9 to SEND-28 in their order.

    account: of the sender, charged as long as the message lives.
    The files it names are pinned; every error releases them (SEND-23).
    Raises CommandError with the errno of the row that is violated.
    """
    message, resources = begin_message(sent, conn_id, account)
    try:
        Scan(message, resources, caller, bloom_size).run(sent.items)
        check_source(sent, conn_id)
    except CommandError:
        resources.release()
        raise
    return message


def begin_message(sent: Sent, conn_id: int, account: Account) -> tuple[Message, Resources]:
    """The message of a SEND without its items, and its resources, which `account` is charged for."""
    message = Message(
        sent.flags, sent.priority, sent.dst_id, conn_id, sent.cookie, sent.timeout_ns, sent.payload_type
    )
    resources = message.resources = Resources(account, MESSAGE_COST + sent.size)
    return message, resources


def check_source(sent: Sent, conn_id: int) -> None:
    """SEND-28.  Raises CommandError(EINVAL)."""
    if sent.src_id and sent.src_id != conn_id:
        raise CommandError(EINVAL, "src_id of somebody else")


@mypyc_attr(acyclic=True, free_list_len=1)
class Scan:
    """The walk over a message's decoded items (SEND-9 to SEND-26)."""

    __slots__ = ("_bloom_size", "_broadcast", "_caller", "_has_fds", "_message", "_resources", "_vec_size")

    def __init__(self, message: Message, resources: Resources, caller: Caller, bloom_size: int) -> None:
        self._message = message
        self._resources = resources
        self._caller = caller
        self._bloom_size = bloom_size
        self._broadcast = message.dst_id == c.DST_ID_BROADCAST
        self._vec_size = 0
        self._has_fds = False

    def run(self, items: list[Item]) -> None:
        for number, item in enumerate(items):
            if number == MSG_MAX_ITEMS:
                raise CommandError(E2BIG, "too many items")
            kind = item.kind
            if kind == c.ITEM_PAYLOAD_VEC:
                self._vec(item.numbers[0], item.numbers[1])
            elif kind == c.ITEM_PAYLOAD_MEMFD:
                self._memfd(item.numbers)
            elif kind == c.ITEM_FDS:
                self._fds(item.numbers)
            elif kind == c.ITEM_BLOOM_FILTER:
                self._bloom_filter(item.numbers[0], item.text)
            elif kind == c.ITEM_DST_NAME:
                self._dst_name(item.text)
            else:
                raise CommandError(EINVAL, "item that no message may have")
        self._check_whole()

    def _note(self, kind: int) -> None:
        """Record the position of an item that is no payload: some families keep the order of the sender."""
        message = self._message
        if not message.extras:
            message.extras = []
        message.extras.append((len(message.parts), kind))

    def _add(self, part: Part) -> None:
        message = self._message
        if not message.parts:
            message.parts = []
        message.parts.append(part)

    def _vec(self, size: int, address: int) -> None:
        """SEND-10 to SEND-12, LAY-9, LAY-10."""
        self._vec_size += size
        if self._vec_size > MSG_MAX_PAYLOAD_VEC_SIZE:
            raise CommandError(EMSGSIZE, "vectors of more than 2 MiB")
        message = self._message
        if address:
            self._add(Part(size, message.payload_size))
            message.vectors.append((address, size))
            message.payload_size += size
        else:
            self._add(Part(size, ZERO_VEC_OFFSET))
            self._pad(size % 8)

    def _pad(self, size: int) -> None:
        if size:
            self._message.vectors.append((0, size))
            self._message.payload_size += size

    def _add_memfd(self, start: int, size: int) -> None:
        """LAY-11."""
        self._add(Part(size, start, is_memfd=True))
        self._pad(size % 8)

    def _check_range(self, start: int, size: int) -> None:
        if start + size > c.U64_MAX:
            raise CommandError(EMSGSIZE, "memfd range wraps")

    def _memfd(self, numbers: tuple[int, ...]) -> None:
        """SEND-13, LAY-11."""
        self._check_range(numbers[0], numbers[1])
        self._pin_memfd(numbers, EBADF)
        self._add_memfd(numbers[0], numbers[1])

    def _pin_memfd(self, numbers: tuple[int, ...], beyond: int) -> None:
        """SEND-13, L-59.  beyond: the errno for a range that the file does not have."""
        start, size, fd = numbers[0], numbers[1], numbers[2]
        file = self._caller.take_file(fd)
        self._resources.add_memfd(file)
        if file.is_path:
            raise CommandError(EBADF, "O_PATH descriptor as memfd")
        seals = file.seals()
        if seals is None:
            raise CommandError(EMEDIUMTYPE, "file that cannot be sealed")
        if seals & F_SEALS_REQUIRED != F_SEALS_REQUIRED:
            raise CommandError(ETXTBSY, "memfd not fully sealed")
        if start + size > file.size():
            raise CommandError(beyond, "memfd range beyond the file")
        self._message.memfd_size += size

    def _fds(self, fds: tuple[int, ...]) -> None:
        """SEND-15 to SEND-17."""
        if self._has_fds:
            raise CommandError(EEXIST, "second FDS item")
        self._has_fds = True
        self._note(c.ITEM_FDS)
        if self._broadcast:
            raise CommandError(ENOTUNIQ, "descriptors in a broadcast")
        if len(fds) > MSG_MAX_FDS:
            raise CommandError(EMFILE, "too many descriptors")
        for fd in fds:
            self._pin_file(fd)

    def _pin_file(self, fd: int, *, control: bool = False) -> None:
        """SEND-16, SEND-17; L-60 with `control`: files of that name are refused too."""
        if fd < 0:
            raise CommandError(EBADF, "negative descriptor")
        file = self._caller.take_file(fd)
        self._resources.add_file(file)
        self._message.file_count += 1
        if file.is_bus_file or file.is_unix_socket or (control and file.is_control):
            raise CommandError(EOPNOTSUPP, "descriptor that can itself carry descriptors")

    def _bloom_filter(self, generation: int, bits: bytes) -> None:
        """SEND-19."""
        if self._message.bloom is not None:
            raise CommandError(EEXIST, "second bloom filter")
        self._message.bloom = (generation, int.from_bytes(bits, "little"))
        self._message.bloom_size = self._bloom_size
        self._note(c.ITEM_BLOOM_FILTER)
        if len(bits) % 8:
            raise CommandError(EFAULT, "bloom filter is no multiple of 8")
        if len(bits) != self._bloom_size:
            raise CommandError(EDOM, "bloom filter of another size than the bus has")

    def _dst_name(self, name: bytes) -> None:
        """SEND-20."""
        if self._message.dst_name is not None:
            raise CommandError(EEXIST, "second destination name")
        self._message.dst_name = name
        self._note(c.ITEM_DST_NAME)
        if not is_valid_name(name):
            raise CommandError(EINVAL, "invalid destination name")

    def _check_whole(self) -> None:
        """SEND-24 to SEND-26."""
        message = self._message
        self._check_addressed()
        if self._broadcast:
            if message.dst_name is not None:
                raise CommandError(EBADMSG, "broadcast to a name")
            if not message.flags & c.MSG_SIGNAL:
                raise CommandError(EBADMSG, "broadcast that is no signal")
            if message.cookie_reply:
                raise CommandError(ENOTUNIQ, "broadcast with timeout or cookie_reply")
        self._check_bloom()

    def _check_addressed(self) -> None:
        message = self._message
        if message.dst_id == c.DST_ID_NAME and message.dst_name is None:
            raise CommandError(EDESTADDRREQ, "neither id nor name")

    def _check_bloom(self) -> None:
        message = self._message
        if bool(message.flags & c.MSG_SIGNAL) != (message.bloom is not None):
            raise CommandError(EBADMSG, "signal without bloom filter, or the reverse")

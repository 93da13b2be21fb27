"""A connection to a bus: names, messages, matches, and information about other connections."""

from __future__ import annotations

import errno as _errno
import itertools
import os
import select
import time
from collections.abc import Iterable
from types import TracebackType
from uuid import UUID

from ..abi import commands as k
from ..abi.v3 import constants as c
from ..abi.v3 import layouts
from ..abi.v3.items import RawItem
from . import decode, encode, raw
from .bloom import bloom_filter
from .dialect import DIALECTS
from .encode import Access, FileLike, Payload, Rule
from .message import Message
from .raw import Buffer, check

DEFAULT_TIMEOUT = 25.0
"""Seconds that `call` waits for its reply; the default of D-Bus clients."""

Destination = int | str
"""A connection's id, or a well-known name."""

_DEAD = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Lost(Exception):  # noqa: N818 - a report rather than a failure: the next `recv` goes on
    """`count` broadcasts found no room in this connection's queue since the last report (EOVERFLOW)."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


def deadline(seconds: float) -> int:
    """The absolute time `seconds` from now, as kdbus expects it: CLOCK_MONOTONIC, in ns."""
    return time.monotonic_ns() + int(seconds * 1_000_000_000)


class Connection:
    """A descriptor of an endpoint after HELLO, with its pool mapped.

    path: of the endpoint; or an open descriptor of one, which the connection then owns.
    pool_size: bytes, a multiple of the page size.  accept_fd: whether messages to it may contain descriptors.
    attach_send, attach_recv: ATTACH_* that it agrees to send, and requests from others; ATTACH_ANY is all.
    flags: HELLO_ACTIVATOR, HELLO_MONITOR or HELLO_POLICY_HOLDER.
    name, policy: the name of an activator or policy holder, and the rights to that name.
    description: for debugging.  items: more items of HELLO, as (type, payload).
    family: the ABI to use, "v3" or "last"; kinds of items and flags are those of v3 in either case.

    Attributes: fd; family; id; id128 (of the bus); bus_flags; attach_required (by the bus);
    bloom_size, n_hash (of the bus); pool (a read-only view of the whole pool).

    Every method raises OSError with the errno of its command; kdbusfs(7) lists them.
    Several threads may use one connection.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | int,
        *,
        pool_size: int = 16 << 20,
        accept_fd: bool = True,
        attach_send: int = c.ATTACH_ANY,
        attach_recv: int = 0,
        flags: int = 0,
        name: str | None = None,
        policy: Iterable[Access] = (),
        description: str | None = None,
        items: Iterable[RawItem] = (),
        family: str = "v3",
        system: raw.System = raw.LINUX,
    ) -> None:
        self.family = family
        self._dialect = dialect = DIALECTS[family]
        self._late: Message | None = None
        flags |= c.HELLO_ACCEPT_FD if accept_fd else 0
        item_bytes = b"" if name is None else encode.string_item(c.ITEM_NAME, name)
        item_bytes += encode.access_items(policy)
        if description is not None:
            item_bytes += encode.string_item(c.ITEM_CONN_DESCRIPTION, description)
        item_bytes += encode.more_items(items)
        hello = dialect.command(
            k.HELLO, item_bytes, flags=flags, attach_send=attach_send, attach_recv=attach_recv, pool_size=pool_size
        )
        self._system = system
        self._cookies = itertools.count(1)
        self.fd = path if isinstance(path, int) else system.open(os.fspath(path))
        try:
            error, block = raw.issue(system, self.fd, dialect.number(k.HELLO), hello)
            check(error, "HELLO")
            self.pool = system.map_pool(self.fd, pool_size)
            required = dialect.read(k.HELLO, "attach_send", block.view) & ~c.FLAG_KERNEL
            self.attach_required: int = required if family == "v3" else 0
            self.bus_flags: int = dialect.read(k.HELLO, "bus_flags", block.view)
            self.id: int = dialect.read(k.HELLO, "id", block.view)
            self.pool_size = pool_size
            at = dialect.at(k.HELLO, "id128")
            self.id128 = UUID(bytes=bytes(block.view[at : at + 16]))
            offset = dialect.read(k.HELLO, "offset", block.view)
            size = dialect.read(k.HELLO, "items_size", block.view)
            self.bloom_size, self.n_hash = dialect.bloom_parameters(self.pool, offset, size)
            if not flags & c.HELLO_POLICY_HOLDER:  # which cannot free anything (HELLO-19)
                self.free(offset)
        except BaseException:
            self.close()
            raise

    # Life cycle.

    def fileno(self) -> int:
        """The descriptor, for poll and similar calls."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor, which ends the connection.  The pool is unmapped when no view of it is left."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.pool = memoryview(b"")
            self._system.close(fd)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def byebye(self) -> None:
        """End the connection if its queue is empty: EBUSY, EALREADY.  The descriptor stays open."""
        if self.family == "v3":
            check(self._system.ioctl(self.fd, c.CMD_BYEBYE, 0), "BYEBYE")
        else:
            self._command(k.BYEBYE, self._dialect.command(k.BYEBYE), "BYEBYE")

    def update(
        self,
        *,
        attach_send: int | None = None,
        attach_recv: int | None = None,
        name: str | None = None,
        policy: Iterable[Access] = (),
        items: Iterable[RawItem] = (),
    ) -> None:
        """Change attach flags; for a policy holder, replace the name and its policy."""
        item_bytes = b""
        if attach_send is not None:
            item_bytes += encode.u64_item(c.ITEM_ATTACH_FLAGS_SEND, attach_send)
        if attach_recv is not None:
            item_bytes += encode.u64_item(c.ITEM_ATTACH_FLAGS_RECV, attach_recv)
        if name is not None:
            item_bytes += encode.string_item(c.ITEM_NAME, name)
        item_bytes += encode.access_items(policy) + encode.more_items(items)
        self._command(k.UPDATE, self._dialect.command(k.UPDATE, item_bytes), "CONN_UPDATE")

    def _command(self, kind: int, command: bytes, name: str) -> raw.Block:
        error, block = raw.issue(self._system, self.fd, self._dialect.number(kind), command)
        check(error, name)
        return block

    def free(self, offset: int) -> None:
        """Return the slice at `offset` to the pool (ENXIO).  `Message.free` does that for messages."""
        self._command(k.FREE, self._dialect.command(k.FREE, offset=offset), "FREE")

    def _free_message(self, offset: int) -> None:
        if self.fd < 0:
            return
        dialect = self._dialect
        error, _ = raw.issue(self._system, self.fd, dialect.number(k.FREE), dialect.command(k.FREE, offset=offset))
        if error != _errno.ECONNRESET:  # a dead connection has no slices left
            check(error, "FREE")

    # Names.

    def acquire(self, name: str, *, flags: int = 0) -> int:
        """Acquire a well-known name, or wait for it (NAME_QUEUE).

        Returns the flags of the name, with NAME_IN_QUEUE if the connection waits.
        """
        command = self._dialect.command(k.NAME_ACQUIRE, encode.string_item(c.ITEM_NAME, name), flags=flags)
        block = self._command(k.NAME_ACQUIRE, command, "NAME_ACQUIRE")
        return self._dialect.read(k.NAME_ACQUIRE, "acquired", block.view)

    def release(self, name: str) -> None:
        """Release a name, or leave its queue of waiters."""
        command = self._dialect.command(k.NAME_RELEASE, encode.string_item(c.ITEM_NAME, name))
        self._command(k.NAME_RELEASE, command, "NAME_RELEASE")

    def list_names(self, flags: int = c.NAME_LIST_NAMES) -> list[decode.NameInfo]:
        """The names and connections that NAME_LIST_* in `flags` select, in no particular order."""
        dialect = self._dialect
        block = self._command(k.LIST, dialect.command(k.LIST, flags=flags), "NAME_LIST")
        offset = dialect.read(k.LIST, "offset", block.view)
        try:
            return dialect.name_list(self.pool, offset, dialect.read(k.LIST, "size", block.view))
        finally:
            self.free(offset)

    # Sending.

    def _send(
        self,
        destination: Destination,
        payload: Payload,
        *,
        send_flags: int,
        msg_flags: int,
        dst_id: int,
        cookie: int,
        timeout_ns: int,
        priority: int,
        fds: Iterable[FileLike] | None,
        bloom: Buffer | tuple[int, Buffer] | None,
        payload_type: int,
        src_id: int,
        items: Iterable[RawItem],
        command_items: bytes = b"",
    ) -> raw.Block:
        pins: list[object] = []  # keeps the memory of the message's vectors until this call returns
        item_bytes = b""
        if isinstance(destination, str):
            item_bytes = encode.string_item(c.ITEM_DST_NAME, destination)
        else:
            dst_id = destination
        item_bytes += encode.payload_items(payload, pins)
        if fds is not None:
            item_bytes += encode.fds_item(fds)
        if bloom is not None:
            generation, filter_bytes = bloom if isinstance(bloom, tuple) else (0, bloom)
            item_bytes += encode.bloom_item(filter_bytes, generation)
        message = raw.Block(
            encode.message(
                dst_id=dst_id,
                items=self._dialect.to_wire(item_bytes + encode.more_items(items)),
                flags=msg_flags,
                priority=priority,
                src_id=src_id,
                payload_type=payload_type,
                cookie=cookie,
                timeout_ns=timeout_ns,
            )
        )
        command = self._dialect.command(k.SEND, command_items, flags=send_flags, msg_address=message.address)
        return self._command(k.SEND, command, "SEND")

    def send(
        self,
        destination: Destination,
        payload: Payload = b"",
        *,
        dst_id: int = c.DST_ID_NAME,
        cookie: int | None = None,
        reply_to: Message | int = 0,
        priority: int = 0,
        fds: Iterable[FileLike] | None = None,
        signal: bool | None = None,
        bloom: Buffer | tuple[int, Buffer] | None = None,
        expect_reply: bool = False,
        timeout_ns: int = 0,
        no_auto_start: bool = False,
        payload_type: int = c.PAYLOAD_DBUS,
        src_id: int = 0,
        items: Iterable[RawItem] = (),
    ) -> int:
        """Queue a message at `destination` without waiting; returns its cookie.

        dst_id: with a name, the id that its owner must have.  cookie: by default the connection's next.
        reply_to: the request that this answers, or its cookie.  priority: lower is more urgent.
        bloom: the filter of a signal, or (generation, filter).  signal: by default whether `bloom` is given.
        timeout_ns: with `expect_reply`, the absolute deadline of the reply, see `deadline`.
        items: more items of the message, as (type, payload).
        """
        if cookie is None:
            cookie = next(self._cookies)
        if signal is None:
            signal = bloom is not None
        reply_cookie = reply_to.cookie if isinstance(reply_to, Message) else reply_to
        self._send(
            destination,
            payload,
            send_flags=0,
            msg_flags=(c.MSG_EXPECT_REPLY if expect_reply else 0)
            | (c.MSG_NO_AUTO_START if no_auto_start else 0)
            | (c.MSG_SIGNAL if signal else 0),
            dst_id=dst_id,
            cookie=cookie,
            timeout_ns=timeout_ns or reply_cookie,  # one member of the message
            priority=priority,
            fds=fds,
            bloom=bloom,
            payload_type=payload_type,
            src_id=src_id,
            items=items,
        )
        return cookie

    def reply(
        self, request: Message, payload: Payload = b"", *, fds: Iterable[FileLike] | None = None
    ) -> int:
        """Answer a request: `send` to its sender.  Returns the cookie of the reply."""
        return self.send(request.src_id, payload, reply_to=request, fds=fds)

    def call(
        self,
        destination: Destination,
        payload: Payload = b"",
        *,
        timeout: float = DEFAULT_TIMEOUT,
        timeout_ns: int | None = None,
        dst_id: int = c.DST_ID_NAME,
        cookie: int | None = None,
        priority: int = 0,
        fds: Iterable[FileLike] | None = None,
        no_auto_start: bool = False,
        payload_type: int = c.PAYLOAD_DBUS,
        cancel_fd: FileLike | None = None,
    ) -> Message:
        """Send a request and wait for its reply, which the caller has to free.

        timeout: seconds (ETIMEDOUT); timeout_ns: an absolute deadline that replaces it.
        cancel_fd: ends the wait when it becomes readable (ECANCELED).
        """
        command_items = b""
        if cancel_fd is not None:
            payload_bytes = layouts.I32.pack(encode.fileno(cancel_fd))
            command_items = encode.more_items([(c.ITEM_CANCEL_FD, payload_bytes)])
        block = self._send(
            destination,
            payload,
            send_flags=c.SEND_SYNC_REPLY,
            msg_flags=c.MSG_EXPECT_REPLY | (c.MSG_NO_AUTO_START if no_auto_start else 0),
            dst_id=dst_id,
            cookie=next(self._cookies) if cookie is None else cookie,
            timeout_ns=deadline(timeout) if timeout_ns is None else timeout_ns,
            priority=priority,
            fds=fds,
            bloom=None,
            payload_type=payload_type,
            src_id=0,
            items=(),
            command_items=command_items,
        )
        return self._message(k.SEND, "reply", block)

    def _message(self, kind: int, member: str, block: raw.Block) -> Message:
        """The message whose place in the pool a command has returned in `member`."""
        offset, _, return_flags = layouts.MSG_INFO.unpack_from(block.view, self._dialect.at(kind, member))
        return Message(self.pool, offset, return_flags, self._free_message, self._dialect)

    def broadcast(
        self, payload: Payload = b"", *, bloom: Buffer | tuple[int, Buffer] | None = None, priority: int = 0
    ) -> int:
        """Send a signal to all connections whose matches accept it; returns its cookie.

        Without `bloom` the filter is empty: only masks without any bit accept it.
        """
        filter_ = bytes(self.bloom_size) if bloom is None else bloom
        return self.send(c.DST_ID_BROADCAST, payload, bloom=filter_, priority=priority)

    def bloom(self, *words: str | bytes) -> bytes:
        """A filter (or mask) of the size that the bus uses, see `bloom_filter`."""
        return bloom_filter(words, self.bloom_size, self.n_hash)

    # Receiving.

    def recv(self, *, peek: bool = False, drop: bool = False, priority: int | None = None) -> Message | None:
        """The next message, which the caller has to free; None if nothing is queued (EAGAIN), or with `drop`.

        peek: leave the message queued, without installing its descriptors.  drop: discard it.
        priority: return the most urgent message instead of the oldest, if its priority is this or lower (else ENOMSG).
        Raises Lost (EOVERFLOW).
        """
        late, self._late = self._late, None
        if late is not None:
            return late
        dialect = self._dialect
        flags = (c.RECV_PEEK if peek else 0) | (c.RECV_DROP if drop else 0)
        if priority is not None:
            flags |= c.RECV_USE_PRIORITY
        command = dialect.command(k.RECV, flags=flags, priority=priority or 0)
        error, block = raw.issue(self._system, self.fd, dialect.number(k.RECV), command)
        has_count = error in (0, _errno.EAGAIN) if dialect.tells_lost_with_message else error == _errno.EOVERFLOW
        lost = dialect.read(k.RECV, "dropped_msgs", block.view) if has_count else 0
        message: Message | None = None
        if error not in (_errno.EAGAIN, _errno.EOVERFLOW):
            check(error, "RECV")
            message = None if drop else self._message(k.RECV, "msg", block)
        if lost:
            # The next call returns the message that came with the report.
            self._late = message
            raise Lost(lost)
        return message

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (None: no limit) for a message; returns whether one is queued.

        Raises ConnectionResetError if the connection is dead.
        """
        if self._late is not None:
            return True
        ready = self._system.poll(self.fd, select.POLLIN, timeout)
        if ready & _DEAD:
            check(_errno.ECONNRESET, "poll")
        return bool(ready & select.POLLIN)

    def receive(self, timeout: float | None = None) -> Message:
        """Wait for a message and return it.  Raises TimeoutError after `timeout` seconds; Lost."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            message = self.recv()
            if message is not None:
                return message
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(_errno.ETIMEDOUT, os.strerror(_errno.ETIMEDOUT), "receive")
            self.wait(left)

    # Matches.

    def add_match(self, cookie: int, *rules: Rule | RawItem, replace: bool = False) -> None:
        """Receive the signals and notifications that all of `rules` accept; without rules, all of them.

        replace: remove the matches that have this cookie first.
        """
        command = self._dialect.command(
            k.MATCH_ADD, encode.more_items(rules), cookie=cookie, flags=c.MATCH_REPLACE if replace else 0
        )
        self._command(k.MATCH_ADD, command, "MATCH_ADD")

    def remove_match(self, cookie: int) -> None:
        """Remove all matches with this cookie (ENOENT, EBADSLT)."""
        self._command(k.MATCH_REMOVE, self._dialect.command(k.MATCH_REMOVE, cookie=cookie), "MATCH_REMOVE")

    # Information about connections and the bus.

    def conn_info(self, who: Destination, flags: int = 0) -> decode.Info:
        """Information about a connection, given by id or name.

        flags: the requested ATTACH_*; ATTACH_ANY is refused here.
        """
        items = encode.string_item(c.ITEM_NAME, who) if isinstance(who, str) else b""
        id = 0 if isinstance(who, str) else who
        command = self._dialect.command(k.CONN_INFO, items, attach_flags=flags, id=id)
        return self._info(k.CONN_INFO, command, "CONN_INFO")

    def creator_info(self, flags: int = 0) -> decode.Info:
        """Information about the bus and its maker; `flags` as for `conn_info`."""
        command = self._dialect.command(k.BUS_CREATOR_INFO, attach_flags=flags)
        return self._info(k.BUS_CREATOR_INFO, command, "BUS_CREATOR_INFO")

    def _info(self, kind: int, command: bytes, name: str) -> decode.Info:
        block = self._command(kind, command, name)
        offset = self._dialect.read(kind, "offset", block.view)
        try:
            return self._dialect.info(self.pool, offset)
        finally:
            self.free(offset)

"""A minimal fake domain with handles and calls, for tests of the channel and its requests."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from typing import Any

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.call import PENDING, Call
from kdbusfs.base.errors import CommandError
from kdbusfs.base.handle import Handle as CoreHandle
from kdbusfs.base.ports import Caller as CoreCaller
from kdbusfs.base.ports import ServedDomain
from tests.support.fake_host import FakeTurn

INTERRUPTED = -512

IDLE = select.POLLOUT | select.POLLWRNORM
READABLE = IDLE | select.POLLIN | select.POLLRDNORM

# Private commands: they are in no table, so their argument is a plain number.
PUSH = 0x95A0
POP = 0x95A1
COMPLETE = 0x95A2
HOLD_INTERRUPTS = 0x95A3
FAIL = 0x95A4
COMPLETE_AFTER = 0x95A5
OPEN_FILES = 0x95A6
DESCRIPTORS = 0x95A7
INTERRUPTS = 0x95A8
DEFERRED = 0x95A9
THREAD = 0x95AA
BASE = 100
"""Added to the numbers that private commands return, to tell them from PENDING."""


class Caller(CoreCaller):
    """A fake of the host's caller."""

    tid = 0
    pidfd = -1
    user = 1000

    def reset(self, tid: int, pidfd: int = -1) -> None:
        self.tid = tid
        self.pidfd = pidfd

    def defer(self) -> Caller:
        return self


class Domain(ServedDomain):
    """A counter of messages that all handles share, and the calls that wait."""

    def __init__(self) -> None:
        self.changed: list[Any] = []
        self.completed: list[Any] = []
        self.turn: FakeTurn = FakeTurn()
        self.handles: list[Handle] = []
        self.waiting: list[Call] = []
        self.messages = 0
        self.deadline = 0
        self.interrupts = 0
        self.hold_interrupts = False
        self.is_shut = False

    def open(self) -> Handle:
        handle = Handle(self)
        self.handles.append(handle)
        return handle

    def complete(self, result: int) -> None:
        for call in self.waiting:
            call.result = result
        self.completed += self.waiting
        self.waiting.clear()

    def interrupt(self, call: Call) -> None:
        self.interrupts += 1
        if not self.hold_interrupts:
            self.waiting.remove(call)
            call.result = INTERRUPTED
            self.completed.append(call)

    def next_deadline(self) -> int:
        return self.deadline

    def expire(self, now: int) -> None:
        assert now >= self.deadline
        self.deadline = 0
        self.complete(-errno.ETIMEDOUT)

    def shutdown(self) -> None:
        self.is_shut = True
        self.complete(-errno.ECONNRESET)


class Handle(CoreHandle):
    """An open file of the fake domain."""

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self.domain = domain
        self.released = 0

    def poll(self) -> int:
        return READABLE if self.domain.messages else IDLE

    def release(self) -> None:
        self.released += 1
        self.domain.handles.remove(self)

    def ioctl(self, call: Call) -> int:
        action = _ACTIONS.get(call.number)
        try:
            return action(self, call) if action is not None else -errno.ENOTTY
        except CommandError as fault:
            return -fault.errno


def _readable(handle: Handle, call: Call) -> int:
    domain = handle.domain
    domain.messages += 1 if call.number == PUSH else -1
    domain.changed += domain.handles
    return 0


def _complete(handle: Handle, call: Call) -> int:
    count = len(handle.domain.waiting)
    handle.domain.complete(-call.address)
    return BASE + count


def _hold(handle: Handle, call: Call) -> int:
    handle.domain.hold_interrupts = bool(call.address)
    return 0


def _fail(handle: Handle, call: Call) -> int:
    raise RuntimeError("as asked")


def _complete_after(handle: Handle, call: Call) -> int:
    handle.domain.deadline = time.monotonic_ns() + call.address * 1_000_000
    return 0


def _free(handle: Handle, call: Call) -> int:
    return -call.error


def _recv(handle: Handle, call: Call) -> int:
    """Reports the copied size in return_flags together with an error: the struct is copied out despite it."""
    if call.error:
        raise CommandError(call.error)
    call.command[24:32] = len(call.command).to_bytes(8, "little")
    return -errno.EAGAIN


def _send(handle: Handle, call: Call) -> int:
    if call.error:
        raise CommandError(call.error)
    if call.command[8] & c.SEND_SYNC_REPLY:
        handle.domain.waiting.append(call.defer())
        return PENDING
    if call.message_error:
        raise CommandError(call.message_error)
    assert call.message is not None
    call.command[32:40] = len(call.message).to_bytes(8, "little")
    call.command[48:56] = sum(call.message).to_bytes(8, "little")
    return 0


def _info(handle: Handle, call: Call) -> int:
    """Returns the sum of all bytes behind the fixed struct, and the last byte."""
    if call.error:
        raise CommandError(call.error)
    call.command[40:48] = sum(call.command[56:]).to_bytes(8, "little")
    return 0


def _thread(handle: Handle, call: Call) -> int:
    assert isinstance(call.caller, Caller)
    return call.caller.tid


_ACTIONS: dict[int, Callable[[Handle, Call], int]] = {
    PUSH: _readable,
    POP: _readable,
    COMPLETE: _complete,
    HOLD_INTERRUPTS: _hold,
    FAIL: _fail,
    COMPLETE_AFTER: _complete_after,
    OPEN_FILES: lambda handle, call: BASE + len(handle.domain.handles),
    DESCRIPTORS: lambda handle, call: BASE + len(os.listdir("/proc/self/fd")),
    INTERRUPTS: lambda handle, call: BASE + handle.domain.interrupts,
    DEFERRED: lambda handle, call: BASE + len(handle.domain.waiting),
    THREAD: _thread,
    c.CMD_FREE: _free,
    c.CMD_RECV: _recv,
    c.CMD_SEND: _send,
    c.CMD_CONN_INFO: _info,
}

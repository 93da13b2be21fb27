"""The calls into C that every message makes, without the cost of cffi's (`_calls.c`).

Pointers are numbers here: of a channel, and of where a pool is mapped.  Each returns what its function of the cffi
module does, but for `current_request`: the head, the command and the message of a channel's current ioctl, as they were
copied.  `step`, `payload` and `store` give the interpreter's lock back while they run, the others are too short for
that.  `Words(address, count)`: u64 to be looked at and set, in memory that lasts longer than the object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _calls
from ._calls import Words, answer, copy, current_request, payload, set_events, step, store
from ._native import ffi, lib

if TYPE_CHECKING:
    from ._native import CData


def address_of(pointer: CData) -> int:
    """The number of a cffi pointer."""
    return int(ffi.cast("intptr_t", pointer))


def new_number() -> CData:
    """An `int32_t *` to 0."""
    return ffi.new("int32_t *")


for _name, _function in (
    ("step", "kfs_channel_step"),
    ("set_events", "kfs_channel_set_events"),
    ("answer", "kfs_channel_answer_now"),
    ("copy", "kfs_copy"),
    ("payload", "kfs_client_payload_one"),
    ("store", "kfs_channel_store"),
):
    _calls.bind(_name, address_of(ffi.addressof(lib, _function)))

__all__ = [
    "Words",
    "address_of",
    "answer",
    "copy",
    "current_request",
    "new_number",
    "payload",
    "set_events",
    "step",
    "store",
]

"""Translate kdbus messages into the D-Bus wire format, for programs that read it.

kdbus does not define the format of the payload.  So the header is translated, and the payload becomes an array of bytes
(D-Bus specification, "Message Protocol"):

| kdbus | D-Bus |
|---|---|
| request | method call, member Request |
| other message | method call that expects no reply, member Message |
| reply | method return |
| signal, broadcast | signal, member Signal or Broadcast |
| ReplyTimeout, ReplyDead | error kdbus.ReplyTimeout, kdbus.ReplyDead |
| other notification | signal of kdbus.Notification, the member being its kind |

Connection N is :1.N, the bus itself :1.0.  Serials are the low 32 bits of cookies.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any, Final

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import IdChange, NameChange, NoReply

from .describe import flag_names
from .observed import MESSAGE_FLAGS, NOTIFICATIONS, Kind, Observed

if TYPE_CHECKING:
    from .peers import Peers

PATH: Final = "/kdbus"
INTERFACE: Final = "kdbus.Message"
NOTIFICATION_INTERFACE: Final = "kdbus.Notification"

_METHOD_CALL: Final = 1
_METHOD_RETURN: Final = 2
_ERROR: Final = 3
_SIGNAL: Final = 4
_NO_REPLY_EXPECTED: Final = 1
_NO_AUTO_START: Final = 2

# Header fields: code and signature.
_FIELD_PATH: Final = (1, b"o")
_FIELD_INTERFACE: Final = (2, b"s")
_FIELD_MEMBER: Final = (3, b"s")
_FIELD_ERROR_NAME: Final = (4, b"s")
_FIELD_REPLY_SERIAL: Final = (5, b"u")
_FIELD_DESTINATION: Final = (6, b"s")
_FIELD_SENDER: Final = (7, b"s")
_FIELD_SIGNATURE: Final = (8, b"g")
_FIELD_UNIX_FDS: Final = (9, b"u")

_HEAD: Final = struct.Struct("<cBBBIII")  # then the array of fields
_U32: Final = struct.Struct("<I")
_BARE: Final = re.compile(r"[\w.,|:/-]+", re.ASCII)
_U32_MAX: Final = 0xFFFFFFFF
_TYPES: Final = {
    Kind.REQUEST: _METHOD_CALL,
    Kind.MESSAGE: _METHOD_CALL,
    Kind.REPLY: _METHOD_RETURN,
    Kind.SIGNAL: _SIGNAL,
    Kind.BROADCAST: _SIGNAL,
    Kind.NOTIFICATION: _SIGNAL,
}

_Field = tuple[tuple[int, bytes], str | int]


def unique_name(id: int) -> str:
    """The D-Bus name of a connection."""
    return f":1.{id}"


def frame(observed: Observed, snaplen: int) -> tuple[bytes, int]:
    """The first `snaplen` bytes of the D-Bus message, and its full size; without bytes of memfds that were dropped."""
    message = observed.message
    type_ = _TYPES[observed.kind]
    flags = _NO_AUTO_START if message.flags & c.MSG_NO_AUTO_START else 0
    if observed.kind is not Kind.REQUEST:
        flags |= _NO_REPLY_EXPECTED
    fields: list[_Field] = [(_FIELD_SENDER, unique_name(message.src_id))]
    destination = _destination(observed)
    if destination is not None:
        fields.append((_FIELD_DESTINATION, destination))
    if observed.kind is Kind.NOTIFICATION:
        type_, more, body = _notification(observed)
        fields += more
        size = len(body)
    else:
        fields += _fields(observed)
        size = 4 + observed.size
        body = _U32.pack(min(observed.size, _U32_MAX)) + observed.payload(snaplen)
    head = _header(type_, flags, _serial(message.cookie), fields, min(size, _U32_MAX))
    return (head + body)[:snaplen], len(head) + size


def _fields(observed: Observed) -> list[_Field]:
    """Header fields of a connection's message, but its addresses."""
    fields: list[_Field] = [(_FIELD_SIGNATURE, "ay")]
    if observed.descriptors:
        fields.append((_FIELD_UNIX_FDS, observed.descriptors))
    if observed.kind is Kind.REPLY:
        return [(_FIELD_REPLY_SERIAL, _serial(observed.message.cookie_reply)), *fields]
    member = observed.kind.value.capitalize()
    return [(_FIELD_PATH, PATH), (_FIELD_INTERFACE, INTERFACE), (_FIELD_MEMBER, member), *fields]


def _destination(observed: Observed) -> str | None:
    message = observed.message
    if message.dst_name is not None:
        return str(message.dst_name)
    if message.dst_id in (c.DST_ID_BROADCAST, c.DST_ID_NAME):
        return None
    return unique_name(message.dst_id)


def _notification(observed: Observed) -> tuple[int, list[_Field], bytes]:
    """Type, header fields and body of a notification."""
    said = observed.notification
    name = "Unknown" if said is None else NOTIFICATIONS[said.kind]
    if isinstance(said, NoReply):
        error: list[_Field] = [
            (_FIELD_ERROR_NAME, f"kdbus.{name}"),
            (_FIELD_REPLY_SERIAL, _serial(observed.message.cookie_reply)),
        ]
        return _ERROR, error, b""
    fields: list[_Field] = [(_FIELD_PATH, PATH), (_FIELD_INTERFACE, NOTIFICATION_INTERFACE), (_FIELD_MEMBER, name)]
    body = b""
    if isinstance(said, NameChange):
        fields.append((_FIELD_SIGNATURE, "sss"))
        for text in (said.name, *(unique_name(id) if id else "" for id in (said.old_id, said.new_id))):
            body += bytes(-len(body) % 4) + _string(text)
    elif isinstance(said, IdChange):
        fields.append((_FIELD_SIGNATURE, "st"))
        body = _string(unique_name(said.id))
        body += bytes(-len(body) % 8) + struct.pack("<Q", said.flags)
    return _SIGNAL, fields, body


def _serial(cookie: int) -> int:
    """A serial from a cookie.  D-Bus does not allow 0."""
    return cookie & _U32_MAX or _U32_MAX


def _string(text: str) -> bytes:
    """A name as D-Bus string.  Replaces what is not ASCII, so that the message stays valid."""
    data = text.encode("ascii", "replace").replace(b"\0", b"?")
    return _U32.pack(len(data)) + data + b"\0"


def _header(type_: int, flags: int, serial: int, fields: list[_Field], body_size: int) -> bytes:
    array = b""
    for (code, signature), value in fields:
        array += bytes(-len(array) % 8) + bytes((code, 1)) + signature + b"\0"
        if isinstance(value, int):
            array += _U32.pack(value)
        elif signature == b"g":
            array += bytes((len(value),)) + value.encode() + b"\0"
        else:
            array += _string(value)
    head = _HEAD.pack(b"l", type_, flags, 1, body_size, serial, len(array)) + array
    return head + bytes(-len(head) % 8)


def comment(observed: Observed, peers: Peers) -> str:
    """Facts that a D-Bus header cannot hold, as KEY=VALUE; text of clients is quoted."""
    message = observed.message
    fields: dict[str, Any] = {"kind": observed.kind.value}
    if observed.notification is not None:
        fields["notification"] = NOTIFICATIONS[observed.notification.kind]
    fields["src"] = message.src_id
    names = peers.names(message.src_id)
    if names:
        fields["src_names"] = ",".join(names)
    fields["dst"] = "broadcast" if message.dst_id == c.DST_ID_BROADCAST else message.dst_id
    if message.dst_name is not None:
        fields["dst_name"] = message.dst_name
        owner = peers.owner(message.dst_name)
        if owner is not None:
            fields["dst_owner"] = owner
    fields["cookie"] = message.cookie
    if message.expects_reply:
        fields["timeout_ns"] = message.timeout_ns
    elif message.cookie_reply:
        fields["reply_to"] = message.cookie_reply
    fields["priority"] = message.priority
    fields["flags"] = "|".join(flag_names(message.flags, MESSAGE_FLAGS)) or "-"
    fields["payload_type"] = f"0x{message.payload_type:x}"
    fields["payload"] = observed.size
    if observed.descriptors:
        fields["fds"] = observed.descriptors
    if observed.is_incomplete:
        fields["incomplete_fds"] = "yes"
    timestamp = message.metadata.timestamp
    if timestamp is None:
        fields["time"] = "of-receipt"
    else:
        fields["seqnum"] = timestamp.seqnum
        fields["monotonic_ns"] = timestamp.monotonic_ns
    if message.src_id:
        process = peers.process(message.src_id)
        known = {"pid": process.pid, "uid": process.uid, "comm": process.comm}
        fields |= {key: value for key, value in known.items() if value is not None}
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    text = str(value)
    if _BARE.fullmatch(text):
        return text
    return '"' + text.encode("unicode_escape").decode().replace('"', '\\"') + '"'

"""Writing pcapng files: what Wireshark, tshark and capinfos open (draft-ietf-opsawg-pcapng).

Only what one interface and its packets need. Every block is written whole, so the file is valid wherever it ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final

LINKTYPE_DBUS: Final = 231

_SECTION_HEADER: Final = 0x0A0D0D0A
_INTERFACE_DESCRIPTION: Final = 1
_INTERFACE_STATISTICS: Final = 5
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D

_OPT_END: Final = 0
_OPT_COMMENT: Final = 1
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_DESCRIPTION: Final = 3
_IF_TSRESOL: Final = 9
_EPB_DROPCOUNT: Final = 4
_ISB_STARTTIME: Final = 2
_ISB_ENDTIME: Final = 3
_ISB_IFRECV: Final = 4
_ISB_IFDROP: Final = 5
_NANOSECONDS: Final = b"\x09"  # 10 to the power of -9

_OPTION_MAX: Final = 0xFFFF
_SIZE_MAX: Final = 0xFFFFFFFF
_HEAD: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")
_OPTION: Final = struct.Struct("<HH")
_PACKET: Final = struct.Struct("<IIIII")  # interface, time high, time low, captured, original
_U64: Final = struct.Struct("<Q")
_END_OF_OPTIONS: Final = _OPTION.pack(_OPT_END, 0)


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: int, text: str) -> bytes:
    """A text option, without its end where it is too long for one."""
    value = text.encode("utf-8", "backslashreplace")
    if len(value) > _OPTION_MAX:
        value = value[:_OPTION_MAX].decode("utf-8", "ignore").encode()
    return _option(code, value)


def _block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return _HEAD.pack(kind, size) + body + _LENGTH.pack(size)


def _time(time_ns: int) -> tuple[int, int]:
    return time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF


class PcapngWriter:
    """A section with one interface, written block by block to `write`.

    interface, description: what it is called; snaplen: how many bytes of a packet are kept at most, 0: all.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        *,
        interface: str,
        description: str,
        application: str,
        link_type: int = LINKTYPE_DBUS,
        snaplen: int = 0,
    ) -> None:
        self._write = write
        header = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
        self._write(_block(_SECTION_HEADER, header + _text(_SHB_USERAPPL, application) + _END_OF_OPTIONS))
        options = _text(_IF_NAME, interface) + _text(_IF_DESCRIPTION, description)
        options += _option(_IF_TSRESOL, _NANOSECONDS) + _END_OF_OPTIONS
        self._write(_block(_INTERFACE_DESCRIPTION, struct.pack("<HHI", link_type, 0, snaplen) + options))

    def packet(
        self, data: bytes, size: int, time_ns: int, *, comments: Iterable[str] = (), dropped: int = 0
    ) -> None:
        """A packet of `size` bytes of which `data` was kept, of `time_ns` (CLOCK_REALTIME).  There is no way to write a
        size of more than 32 bits; a memfd may have one.

        dropped: how many were lost between the one before and this one.
        """
        options = b"".join([_text(_OPT_COMMENT, comment) for comment in comments])
        if dropped:
            options += _option(_EPB_DROPCOUNT, _U64.pack(dropped))
        if options:
            options += _END_OF_OPTIONS
        head = _PACKET.pack(0, *_time(time_ns), len(data), min(size, _SIZE_MAX))
        self._write(_block(_ENHANCED_PACKET, head + data + bytes(-len(data) % 4) + options))

    def statistics(self, start_ns: int, end_ns: int, *, received: int, dropped: int) -> None:
        """How it went from `start_ns` to `end_ns`: packets that came, those that are here and others, and lost ones."""
        options = _option(_ISB_STARTTIME, struct.pack("<II", *_time(start_ns)))
        options += _option(_ISB_ENDTIME, struct.pack("<II", *_time(end_ns)))
        options += _option(_ISB_IFRECV, _U64.pack(received)) + _option(_ISB_IFDROP, _U64.pack(dropped))
        head = struct.pack("<III", 0, *_time(end_ns))
        self._write(_block(_INTERFACE_STATISTICS, head + options + _END_OF_OPTIONS))

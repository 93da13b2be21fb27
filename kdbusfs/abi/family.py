"""What an ABI of kdbus brings: a family decodes its commands once, and lays out what its connections get.

docs/architecture/families.md lists what a new family has to have.  Decoding raises CommandError in kdbus' order of
checks: which errno comes first is part of the specification.  The core judges what has been decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import commands as k

if TYPE_CHECKING:
    from librt.strings import BytesWriter

    from ..base.call import Call
    from .rules import Rules
    from .values import Body, Hello, Item, MatchRequest, Metadata, Query, Sent


class Family:
    """One ABI.  Stateless, and shared by all connections that speak it.

    name: for people; rules: what the core does otherwise for it; received_flags_offset, replied_flags_offset,
    incomplete_files: where the structs of RECV and SEND have their return flags for the message, and the flag that says
    that descriptors are missing.
    """

    name: str
    rules: Rules
    received_flags_offset: int
    replied_flags_offset: int
    incomplete_files: int

    def commands(self) -> list[k.Command]:
        """Every command whose struct the channel reads."""
        raise NotImplementedError

    def find(self, number: int) -> int:
        """The kind (`commands.*`) of a request by all its 32 bits; -1: not of this family."""
        raise NotImplementedError

    # Decoding.  Each sets call.flags.

    def decode(self, kind: int, call: Call) -> list[Item]:
        """The items of a command that has flags and items only, or is looked at in no other way.

        Raises CommandError: EFAULT, EINVAL, EMSGSIZE, and what its items are refused with.
        """
        raise NotImplementedError

    def decode_hello(self, call: Call) -> Hello:
        raise NotImplementedError

    def decode_send(self, call: Call) -> Sent:
        raise NotImplementedError

    def decode_recv(self, call: Call) -> int:
        """The priority, which counts with RECV_USE_PRIORITY only."""
        raise NotImplementedError

    def decode_free(self, call: Call) -> int:
        """The offset of the slice."""
        raise NotImplementedError

    def decode_query(self, call: Call) -> Query:
        """CONN_INFO."""
        raise NotImplementedError

    def decode_creator_query(self, call: Call) -> int:
        """The attach flags of BUS_CREATOR_INFO."""
        raise NotImplementedError

    def decode_match(self, kind: int, call: Call) -> MatchRequest:
        """MATCH_ADD, MATCH_REMOVE."""
        raise NotImplementedError

    # Results, stored in the client's struct.

    def done(self, kind: int, call: Call) -> None:
        """The command succeeded and returns no values."""
        raise NotImplementedError

    def hello_done(
        self,
        call: Call,
        *,
        required: int,
        bus_flags: int,
        connection_id: int,
        bus_id: bytes,
        offset: int,
        size: int,
    ) -> None:
        """HELLO succeeded: the slice at `offset` has what `hello_items` gave."""
        raise NotImplementedError

    def acquired(self, call: Call, flags: int) -> None:
        """NAME_ACQUIRE succeeded."""
        raise NotImplementedError

    def received(self, call: Call, lost: int, offset: int, size: int) -> None:
        """RECV: the message at `offset`, or how many were lost."""
        raise NotImplementedError

    def replied(self, call: Call, offset: int, size: int) -> None:
        """A synchronous SEND has its reply at `offset`."""
        raise NotImplementedError

    def listed(self, kind: int, call: Call, offset: int, size: int) -> None:
        """LIST, CONN_INFO or BUS_CREATOR_INFO has its result at `offset`."""
        raise NotImplementedError

    # What is laid out in the pool of a connection of this family.

    def message_size(self, body: Body, metadata_size: int) -> int:
        """Bytes of `body` with `metadata_size` bytes of metadata items."""
        raise NotImplementedError

    def write_message(self, writer: BytesWriter, body: Body, payload_offset: int, metadata: bytes) -> list[int]:
        """Append a message, every descriptor being -1 (LAY-1 to LAY-20).

        payload_offset: of the payload slice in the pool; with `Rules.one_slice` the payload goes behind what is
        written, which is a multiple of 8.  Gives back where in the message the numbers of descriptors go: of memfds in
        their order, then of the FDS item.
        """
        raise NotImplementedError

    def metadata(self, metadata: Metadata) -> bytes:
        """Its items, in the order of the ABI (META-1)."""
        raise NotImplementedError

    def hello_items(self, bloom_size: int, bloom_hashes: int) -> bytes:
        """The slice that HELLO returns (HELLO-17)."""
        raise NotImplementedError

    def connection_info(self, connection_id: int, flags: int, metadata: bytes) -> bytes:
        """The result of CONN_INFO."""
        raise NotImplementedError

    def bus_info(self, bus_id: int, flags: int, name: bytes, metadata: bytes) -> bytes:
        """The result of BUS_CREATOR_INFO."""
        raise NotImplementedError

    def write_record(
        self, writer: BytesWriter, owner_id: int, owner_flags: int, name: bytes | None, name_flags: int
    ) -> None:
        """Append one record of LIST; name: None for the connection itself."""
        raise NotImplementedError

    def list_header(self, size: int) -> bytes:
        """What the result of LIST has before `size` bytes of records."""
        raise NotImplementedError

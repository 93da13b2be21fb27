"""Counters of one connection, for its client and for those who look at a domain from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .message import Message


class Traffic:
    """What a connection has sent and received.

    sent, received: messages that it sent, and that others queued for it or answered it with; sent_bytes,
    received_bytes: of their payload; lost: broadcasts that could not be queued since the last report to the client,
    lost_before: those that were reported before.
    """

    __slots__ = ("lost", "lost_before", "received", "received_bytes", "sent", "sent_bytes")

    def __init__(self) -> None:
        self.lost = 0
        self.lost_before = 0
        self.received = 0
        self.received_bytes = 0
        self.sent = 0
        self.sent_bytes = 0

    def count_sent(self, message: Message) -> None:
        self.sent += 1
        self.sent_bytes += message.payload_size + message.memfd_size

    def count_received(self, message: Message) -> None:
        self.received += 1
        self.received_bytes += message.payload_size + message.memfd_size

    def report_lost(self) -> int:
        """How many broadcasts were lost since the last report."""
        lost, self.lost = self.lost, 0
        self.lost_before += lost
        return lost

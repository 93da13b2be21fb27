"""Rights of a connection: the questions to the policies of its bus and of its endpoint (POL-9, POL-10, POL-17).

`subject` is the calling thread for what a connection does itself, and its credentials of HELLO otherwise (POL-14).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..abi import constants as c

if TYPE_CHECKING:
    from ..abi.values import Notice
    from .connection import Connection
    from .policy import Subject


def may_own(connection: Connection, name: bytes, subject: Subject) -> bool:
    """POL-9."""
    custom = connection.endpoint.policy
    if custom is not None and custom.level(subject, name) < c.POLICY_OWN:
        return False
    return connection.privileged or connection.bus.policy.level(subject, name) >= c.POLICY_OWN


def may_talk(connection: Connection, peer: Connection, subject: Subject | None = None) -> bool:
    """POL-10."""
    if subject is None:
        subject = connection.credentials
    custom = connection.endpoint.policy
    if custom is not None and not custom.grants_any(subject, peer.names, c.POLICY_TALK):
        return False
    if connection.privileged or subject.ids().euid == peer.credentials.ids().uid:
        return True
    return connection.bus.policy.grants_any(subject, peer.names, c.POLICY_TALK)


def may_see_name(connection: Connection, name: bytes, subject: Subject | None = None) -> bool:
    """POL-17: only custom endpoints hide names."""
    custom = connection.endpoint.policy
    return custom is None or custom.level(subject or connection.credentials, name) >= c.POLICY_SEE


def may_see(connection: Connection, peer: Connection, subject: Subject) -> bool:
    """POL-17: a peer is visible through any of its names."""
    custom = connection.endpoint.policy
    return custom is None or custom.grants_any(subject, peer.names, c.POLICY_SEE)


def may_see_notice(connection: Connection, notice: Notice) -> bool:
    """NOTE-5; L-122."""
    if connection.endpoint.policy is None:
        return True
    if not notice.name:
        return connection.family.rules.ids_everywhere
    return may_see_name(connection, notice.name)

"""The policy check of a broadcast: one answer for all receivers with the same credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..abi import constants as c

if TYPE_CHECKING:
    from .connection import Connection
    from .policy import PinnedCredentials, PolicyDb

_NAMES_IN_A_UNIT: Final = 2


class _Answers:
    """Cached answers of one database, by the credentials of the receivers."""

    __slots__ = ("by_credentials", "changes")

    def __init__(self, changes: int) -> None:
        self.changes = changes
        self.by_credentials: dict[PinnedCredentials, bool] = {}


class Audience:
    """`rights.may_talk` from many receivers to one sender, with the receivers' credentials of HELLO (POL-14).

    An answer of a database counts for all receivers with the same credentials, until that database or the names of
    the sender change: other commands may run between two questions (POL-18).
    work: units of work that the checks have taken (`ports.Turn.spend`).
    """

    __slots__ = ("_answers", "_name_changes", "_source", "_uid", "work")

    def __init__(self, source: Connection) -> None:
        self._source = source
        self._uid: int = source.credentials.ids().uid
        self._name_changes = source.name_changes
        self._answers: dict[PolicyDb, _Answers] = {}
        self.work = 0

    def admits(self, receiver: Connection) -> bool:
        """The same as `may_talk(receiver, source)` now (POL-10)."""
        custom = receiver.endpoint.policy
        if custom is not None and not self._grants(custom, receiver.credentials):
            return False
        if receiver.privileged or receiver.credentials.ids().euid == self._uid:
            return True
        return self._grants(receiver.bus.policy, receiver.credentials)

    def _grants(self, database: PolicyDb, credentials: PinnedCredentials) -> bool:
        source = self._source
        if self._name_changes != source.name_changes:
            self._answers.clear()
            self._name_changes = source.name_changes
        answers = self._answers.get(database)
        if answers is None or answers.changes != database.changes:
            answers = self._answers[database] = _Answers(database.changes)
        known = answers.by_credentials.get(credentials)
        if known is None:
            known = database.grants_any(credentials, source.names, c.POLICY_TALK)
            answers.by_credentials[credentials] = known
            self.work += 1 + len(source.names) // _NAMES_IN_A_UNIT
        return known

"""POL-10, POL-14, POL-18, BC-1: the cached answers for the receivers of a broadcast against a check of each.

Endpoints, credentials and policies are few, so that receivers share them.  Everything changes between two checks, while
the `Audience` keeps its cache.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kdbusfs.abi.v3 import constants as c
from kdbusfs.core.audience import Audience
from kdbusfs.core.rights import may_talk
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World

NAMES = (b"a.b", b"a.c", b"a.b.c", b"x.y")
PATTERNS = (*NAMES, b"a.*", b"a.b.*")
IDS = (2001, 2002)
ENDPOINTS = ("1000-e", "1000-f")
PLACES = ("bus", *ENDPOINTS)

Access = tuple[int, int, int]
Policy = dict[bytes, list[Access]]

accesses = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.sampled_from(IDS)), max_size=4)
policies = st.dictionaries(st.sampled_from(PATTERNS), accesses, max_size=4)
subjects = st.tuples(
    st.sampled_from((1000, *IDS)), st.sampled_from((1000, *IDS)), st.lists(st.sampled_from(IDS), max_size=2)
)


def level(policy: Policy, subject: FakeProcess, name: bytes) -> int:
    """POL-3, POL-7, POL-23, by iterating over the items as they were uploaded."""
    items = policy.get(name, policy.get(name[: name.rindex(b".")] + b".*", []))
    granted = [
        right
        for kind, right, wanted in items
        if kind == c.POLICY_ACCESS_WORLD
        or (kind == c.POLICY_ACCESS_USER and wanted == subject.uid)
        or (kind == c.POLICY_ACCESS_GROUP and wanted in (subject.gid, *subject.aux))
    ]
    return max(granted, default=-1)


class AudienceMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.sender = self.world.connect()
        self.audience = Audience(self.sender.connection)
        self.endpoints: dict[str, Client] = {}
        self.policies: dict[str, Policy] = {place: {} for place in PLACES}
        for name in ENDPOINTS:
            self.endpoints[name] = self.world.open()
            assert self.endpoints[name].make_endpoint(name.encode(), c.MAKE_ACCESS_WORLD) == 0
        self.holders: dict[bytes, Client] = {}
        self.receivers: list[tuple[Client, str]] = []

    @staticmethod
    def items(policy: Policy) -> bytes:
        return b"".join(
            i.name(pattern) + b"".join(i.access(*access) for access in items) for pattern, items in policy.items()
        )

    @rule(endpoint=st.sampled_from(ENDPOINTS), policy=policies)
    def upload(self, endpoint: str, policy: Policy) -> None:
        assert self.endpoints[endpoint].update_endpoint(self.items(policy)) == 0
        self.policies[endpoint] = policy

    @rule(pattern=st.sampled_from(PATTERNS), items=st.none() | accesses)
    def hold(self, pattern: bytes, items: list[Access] | None) -> None:
        """Set the policy of the bus by policy holders, one for each name."""
        holder = self.holders.get(pattern)
        if items is None:
            if holder is not None:
                self.holders.pop(pattern).close()
                del self.policies["bus"][pattern]
            return
        entry = self.items({pattern: items})
        if holder is None:
            self.holders[pattern] = self.world.connect(flags=c.HELLO_POLICY_HOLDER, items=entry)
        else:
            assert holder.update(entry) == 0
        self.policies["bus"][pattern] = items

    @rule(name=st.sampled_from(NAMES))
    def change_names(self, name: bytes) -> None:
        if self.sender.acquire(name) != 0:
            assert self.sender.release_name(name) == 0

    @rule(place=st.sampled_from(PLACES), who=subjects)
    def join(self, place: str, who: tuple[int, int, list[int]]) -> None:
        uid, gid, groups = who
        process = FakeProcess(uid=uid, gid=gid, aux=tuple(groups))
        self.receivers.append((self.world.connect(process, endpoint=place), place))

    @rule(number=st.integers(0, 5))
    def leave(self, number: int) -> None:
        if number < len(self.receivers):
            self.receivers.pop(number)[0].close()

    def may_hear(self, receiver: Client, place: str) -> bool:
        def grants(where: str) -> bool:
            names = self.sender.connection.names
            return any(level(self.policies[where], receiver.process, name) >= c.POLICY_TALK for name in names)

        if place != "bus" and not grants(place):
            return False
        return receiver.process.uid == 1000 or grants("bus")

    @invariant()
    def admits_whom_the_model_admits(self) -> None:
        source = self.sender.connection
        for receiver, place in self.receivers:
            expected = self.may_hear(receiver, place)
            assert self.audience.admits(receiver.connection) is expected
            assert may_talk(receiver.connection, source) is expected

    @invariant()
    def shares_the_credentials_that_are_equal(self) -> None:
        clients = [self.sender, *self.holders.values(), *(receiver for receiver, _ in self.receivers)]
        different = {(client.process.uid, client.process.gid, client.process.aux) for client in clients}
        assert len({id(client.connection.credentials) for client in clients}) == len(different)
        assert len(self.world.domain.credentials) == len(different)

    def teardown(self) -> None:
        for client in (self.sender, *self.holders.values(), *(receiver for receiver, _ in self.receivers)):
            client.close()
        assert len(self.world.domain.credentials) == 0


TestAudience = AudienceMachine.TestCase

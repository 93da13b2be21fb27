"""Accounts: the bytes that one user, and all users together, make the daemon hold (base/account.py)."""

from __future__ import annotations

from errno import EAGAIN, ENOBUFS

import pytest

from kdbusfs.base.account import Account, Total
from kdbusfs.base.errors import CommandError
from kdbusfs.core.domain import Domain
from tests.support.core_client import FakeProcess, World
from tests.support.fake_host import FakeHost


def take_all(account: Account) -> int:
    """Charge byte by byte until it is refused.  Returns how many."""
    count = 0
    while True:
        try:
            account.check(1)
            account.charge(1)
        except CommandError as refused:
            assert refused.errno == ENOBUFS
            return count
        count += 1


def test_a_user_gets_no_more_than_his_limit() -> None:
    assert take_all(Account(1, 100, Total(1000))) == 100


def test_nor_more_than_he_leaves_for_others() -> None:
    total = Total(1000)
    assert [take_all(Account(uid, 5000, total)) for uid in range(8)] == [500, 250, 125, 62, 31, 16, 8, 4]
    assert total.used == 996


def test_what_cannot_be_refused_counts_for_all() -> None:
    total = Total(1000)
    first, second = Account(1, 500, total), Account(2, 500, total)
    first.charge_unchecked(900)
    assert take_all(second) == 50
    first.uncharge(900)
    assert take_all(second) == 450
    assert total.used == second.used == 500


@pytest.mark.parametrize(("limit", "given", "total"), [(100, 0, 200), (100, 1000, 1000), (1000, 1000, 2000)])
def test_the_limit_that_was_asked_for_one_user_can_be_reached(limit: int, given: int, total: int) -> None:
    domain = Domain(FakeHost(), limit, given)
    assert domain.users.memory.limit == total
    assert take_all(domain.users.get(1).account) == limit


def test_the_sum_is_that_of_the_accounts_and_comes_back(world: World) -> None:
    clients = [world.connect(FakeProcess(uid=uid, pid=uid, ipc_owner=True)) for uid in (1000, 2000, 3000)]
    for number, client in enumerate(clients):
        client.add_match(1)
        client.acquire(b"a.n%d" % number)
        for receiver in clients:
            assert client.send(dst=receiver.id, items=client.vec(bytes(3000))) == 0
    users = [world.domain.users.get(client.process.uid) for client in clients]
    assert world.domain.users.memory.used == sum(user.account.used for user in users) > 0
    for client in clients:
        client.close()
    world.control.close()
    assert world.domain.users.memory.used == 0


def test_a_message_beyond_the_sum_is_refused(world: World) -> None:
    """QUO: as beyond the limit of one user."""
    client = world.connect()
    world.domain.users.memory.limit = world.domain.users.memory.used + 1
    assert client.send(dst=client.id, items=client.vec(bytes(5000))) == -ENOBUFS
    assert client.recv() == -EAGAIN

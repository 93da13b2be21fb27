"""The vault: what a daemon leaves to its successor."""

from __future__ import annotations

import os

import pytest

from kdbusfs.host.memory import Passthrough
from kdbusfs.host.vault import Vault, VaultError
from kdbusfs.native._native import lib


@pytest.fixture
def vault() -> Vault:
    return Vault.create()


def test_a_new_one_knows_nothing(vault: Vault) -> None:
    assert (vault.epoch, vault.init, vault.nodeids) == (0, None, 0)
    assert list(vault.poll_handles()) == []


def test_what_one_daemon_stores_the_next_one_finds(vault: Vault) -> None:
    vault.begin()
    vault.keep_init(b"init" * 26, 1 << 37)
    vault.reserve_nodeids(1 << 50)
    found = Vault(vault.fd)
    assert (found.epoch, found.init, found.nodeids) == (1, (b"init" * 26, 1 << 37), 1 << 50)


def test_an_init_without_room_is_refused(vault: Vault) -> None:
    with pytest.raises(VaultError):
        vault.keep_init(bytes(1025), 0)
    assert vault.init is None


def test_another_descriptor_is_none(vault: Vault) -> None:
    for size in (0, os.fstat(vault.fd).st_size):
        other = os.memfd_create("other")
        os.ftruncate(other, size)
        with pytest.raises(VaultError):
            Vault(other)
        os.close(other)


def test_backing_ids_that_are_left_are_told_once_with_the_one_that_may_not_be_noted(vault: Vault) -> None:
    for backing_id in (5, 6, 7, 8):
        vault.backings.add(backing_id)
    vault.backings.remove(6)
    vault.backings.remove(1000)
    vault.backings.add(9)
    successor = Vault(vault.fd)
    assert sorted(successor.backings.left()) == [5, 7, 8, 9, 10]
    successor.backings.add(20)
    assert sorted(Vault(vault.fd).backings.left()) == [20, 21]


def test_a_pool_is_noted_as_long_as_it_is_registered(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def close(fuse_fd: int, backing_id: int) -> None:
        assert backing_id in list(vault.backings._places[:10])
        closed.append(backing_id)

    monkeypatch.setattr(
        "kdbusfs.host.memory.lib", type("Lib", (), {"kfs_backing_open": lambda *_: 41, "kfs_backing_close": close})
    )
    passthrough = Passthrough(3)
    passthrough.kept = vault.backings
    assert passthrough.open(4) == 41
    passthrough.close(41)
    assert closed == [41]
    assert list(Vault(vault.fd).backings.left()) == [42]


def test_there_is_room_for_every_slot(vault: Vault) -> None:
    kept = vault.kept()
    kept.slots = lib.KFS_KEPT_SLOTS
    kept.poll_handles[lib.KFS_KEPT_SLOTS - 1] = 3
    kept.slots = 5
    assert list(vault.poll_handles()) == []
    assert vault.backings._places[0] == 0

"""Commands that are carried out while another one waits for its client's memory, or lets others go first.

Most of it is B1-SEND-15.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EDQUOT, EFAULT, ENXIO, ESHUTDOWN, ESTALE
from struct import unpack

import pytest

from kdbusfs.base.errors import AbandonedError
from kdbusfs.bus1 import abi
from tests.support.bus1_client import (
    DATA,
    DESTROY,
    INVALID,
    PEEK,
    RELEASE,
    SEED,
    FakeFile,
    Process,
    World,
    check,
    pass_files,
)

CONTINUE, FLAG_SEED = abi.SEND_FLAG_CONTINUE, abi.SEND_FLAG_SEED
READS = 5
"""Accesses to memory of a SEND with bytes, handles and destinations, and one more."""


class Scene:
    """A peer whose process can be held up, without any other being so, and two others."""

    def __init__(self) -> None:
        self.world = World()
        self.slow = self.world.open(Process(pid=7))
        self.first, self.second = self.world.clients(2)
        self.to_first = self.first.give(8, self.slow)
        self.to_second = self.second.give(8, self.slow)

    def at(self, access: int, deed: Callable[[], object]) -> list[bool]:
        """Do something inside the access with that number, from 1 on; whether it was done."""
        done: list[bool] = []

        def count() -> None:
            nonlocal access
            access -= 1
            if access:
                self.slow.process.meanwhile = count
            else:
                done.append(True)
                deed()

        self.slow.process.meanwhile = count
        return done

    def finish(self) -> None:
        """Nothing is left, whatever came in between."""
        self.slow.process.meanwhile = None
        clients = [self.slow, self.first, self.second]
        check(self.world, [each for each in clients if each.peer.peer_id in self.world.core.peers])
        for client in clients:
            if client.peer.peer_id in self.world.core.peers:
                client.close()
        assert not self.world.core.users and not self.world.accounts.accounts


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("access", range(1, READS + 1))
@pytest.mark.parametrize("close", [False, True])
def test_a_receiver_goes(scene: Scene, access: int, close: bool) -> None:
    """B1-SEND-15: what it would have got is dropped; before the SEND comes to it, it is a destination that is gone."""
    slow = scene.slow
    done = scene.at(access, scene.second.close if close else scene.second.disconnect)
    result = slow.send(scene.to_first, scene.to_second, data=b"x", handles=[16])
    assert done == [True]
    assert result == (-ESHUTDOWN if access < READS else 0)
    assert len(scene.first.all()) == (0 if result else 1)
    scene.finish()


@pytest.mark.parametrize("access", range(1, READS + 1))
def test_the_sender_goes(scene: Scene, access: int) -> None:
    slow = scene.slow
    done = scene.at(access, slow.disconnect)
    result = slow.send(scene.to_first, scene.to_second, data=b"x", handles=[16])
    assert done == [True] and result in (-ESHUTDOWN, -ENXIO)
    assert [each.type for each in (*scene.first.all(), *scene.second.all())] == [RELEASE] * 2
    scene.finish()


@pytest.mark.parametrize("access", range(1, READS + 1))
@pytest.mark.parametrize("as_destination", [False, True])
def test_a_sibling_releases_what_is_named(scene: Scene, access: int, as_destination: bool) -> None:
    slow, third = scene.slow, scene.world.open()
    lost = third.give(8, slow)
    done = scene.at(access, lambda: slow.release(lost))
    if as_destination:
        result = slow.send(scene.to_first, lost, data=b"x", handles=[16])
    else:
        result = slow.send(scene.to_first, scene.to_second, data=b"x", handles=[16, lost])
    assert done == [True] and result == -ENXIO
    assert 16 not in slow.peer.table
    assert not scene.first.is_readable
    assert third.receive().told == (RELEASE, 8)
    third.close()
    scene.finish()


@pytest.mark.parametrize("access", range(1, READS + 1))
def test_a_sibling_makes_what_was_to_be_made(scene: Scene, access: int) -> None:
    slow = scene.slow
    ids: list[int] = []
    slow.process.handles[9] = scene.second.peer
    scene.at(access, lambda: ids.append(slow.give(16, scene.second)))
    assert slow.send(scene.to_first, 16, data=b"x", handles=[16]) == 0
    assert slow.receive(free=True).told == (DATA, 16)
    assert slow.peer.table[16].user == 2
    assert scene.second.send(ids[0], data=b"y") == 0
    (got,) = scene.first.all()
    assert scene.first.send(got.handles[0], data=b"z") == 0
    assert [each.data for each in slow.all()] == [b"y", b"z"]
    scene.finish()


@pytest.mark.parametrize("access", range(1, READS + 1))
def test_a_sibling_destroys_and_frees_an_id_of_its_own(scene: Scene, access: int) -> None:
    """As if it had done so before: the id makes another node."""
    slow = scene.slow
    old = slow.give(16, scene.second)
    scene.at(access, lambda: slow.destroy(16, release=True))
    assert slow.send(scene.to_first, 16, data=b"x", handles=[16]) == 0
    assert scene.second.receive().told == (DESTROY, old)
    assert scene.second.send(old) == -ESHUTDOWN
    (got,) = scene.first.all()
    assert scene.first.send(got.handles[0], data=b"new") == 0
    assert [each.told for each in slow.all()] == [(DATA, 16), (DATA, 16)]
    scene.finish()


def test_b1_send_11_a_destination_that_is_lost_meanwhile(scene: Scene) -> None:
    slow = scene.slow
    at = slow.process.place(bytes(16))
    done = scene.at(4, lambda: slow.release(scene.to_second))
    assert slow.send(scene.to_first, scene.to_second, data=b"x", flags=CONTINUE, errors=at) == 0
    assert done
    assert unpack("<qq", slow.process.read(at, 16)) == (0, -ENXIO)
    assert scene.first.receive().data == b"x"
    assert scene.second.receive().told == (RELEASE, 8)
    scene.finish()


def test_b1_send_11_errors_cannot_be_written_any_more(scene: Scene) -> None:
    slow = scene.slow
    at = slow.process.place(bytes(16))
    slow.process.writable = False
    assert slow.send(scene.to_first, data=b"x", flags=CONTINUE, errors=at) == -EFAULT
    assert not scene.first.is_readable
    scene.finish()


def test_siblings_that_keep_changing_the_ids(scene: Scene) -> None:
    """After 16 rounds it is EDQUOT, and nothing has happened."""
    slow = scene.slow

    def disturb() -> None:
        scene.world.turn.meanwhile = None
        assert slow.transfer(16) == 0
        assert slow.destroy(16, release=True) == 0
        assert slow.release(16) == 0
        scene.world.turn.meanwhile = disturb

    scene.world.turn.meanwhile = disturb
    assert slow.send(scene.to_first, data=b"x", handles=[16]) == -EDQUOT
    scene.world.turn.meanwhile = disturb
    assert slow.destroy(16, 24) == -EDQUOT
    scene.world.turn.meanwhile = None
    assert (not scene.first.is_readable and not slow.is_readable) or slow.recv() == -EAGAIN
    scene.finish()


def test_a_sender_that_is_killed_changes_nothing(scene: Scene) -> None:
    slow = scene.slow

    def die() -> None:
        raise AbandonedError("killed")

    for access in range(1, READS + 1):
        scene.at(access, die)
        files = pass_files(slow, FakeFile())
        result = slow.send(scene.to_first, scene.to_second, data=b"x", handles=[16], fds=files)
        assert result == -EFAULT
        assert not scene.first.is_readable and 16 not in slow.peer.table
    for access in range(1, 3):
        scene.at(access, die)
        assert slow.send(scene.to_first, data=b"x", flags=CONTINUE, errors=slow.process.place(bytes(8))) == -EFAULT
    scene.finish()
    assert not any(file.open_count for file in slow.process.files.values())


def test_b1_peer_4_a_receiver_flushes_while_a_message_is_copied(scene: Scene) -> None:
    """Messages committed later are not touched."""
    slow = scene.slow
    first = scene.first
    other = slow.give(16, first)
    assert other
    done = scene.at(4, lambda: first.send(8, data=b"flushed") or first.flush(seed=True))
    assert slow.send(scene.to_second, scene.to_first, data=b"x") in (0, -ESHUTDOWN)
    assert done
    assert DATA not in [each.type for each in first.all()]  # its node is gone
    scene.finish()


def test_a_seed_while_a_sibling_sets_another(scene: Scene) -> None:
    slow = scene.slow
    scene.at(2, lambda: slow.send(data=b"inner", flags=FLAG_SEED))
    assert slow.send(data=b"outer", handles=[scene.to_first], flags=FLAG_SEED) == 0
    got = slow.receive(SEED, free=True)
    assert got.data == b"outer" and got.handles == [scene.to_first]
    assert slow.recv(SEED) == -EAGAIN
    scene.finish()


def test_destroying_what_a_sibling_destroys(scene: Scene) -> None:
    """B1-HAND-5: ESTALE, and by then the other is over."""
    slow = scene.slow
    handles = [slow.give(16, scene.first), slow.give(24, scene.first)]
    scene.at(1, lambda: slow.destroy(24))
    assert slow.destroy(16, 24) == -ESTALE
    assert scene.first.receive().told == (DESTROY, handles[1])
    assert slow.destroy(16) == 0
    scene.finish()


@pytest.mark.parametrize("pause", range(1, 12))
@pytest.mark.parametrize("deed", ["destroy", "flush", "disconnect", "transfer", "send", "leave"])
def test_at_the_pauses_of_a_destruction(scene: Scene, pause: int, deed: str) -> None:
    slow, first, second = scene.slow, scene.first, scene.second
    ids = [slow.give(16, first), slow.give(24, first), slow.give(16, second)]
    back = first.give(40, slow)
    results: list[int] = []

    def other() -> None:
        nonlocal pause
        pause -= 1
        if pause:
            return
        scene.world.turn.meanwhile = None
        if deed == "destroy":
            results.append(slow.destroy(24, 32))
        elif deed == "flush":
            results.append(slow.flush())
        elif deed == "disconnect":
            results.append(slow.disconnect())
        elif deed == "transfer":
            first.process.handles[9] = second.peer
            results.append(first.transfer(ids[1], 9))
        elif deed == "send":
            results.append(slow.send(back, data=b"x", handles=[16, 24]))
        else:
            first.close()
            results.append(0)

    scene.world.turn.meanwhile = other
    result = slow.destroy(16, 24)
    scene.world.turn.meanwhile = None
    assert result in (0, -ESTALE, -ESHUTDOWN)
    if pause > 0:  # it has fewer
        pause = 1
        other()
    assert results[0] in (0, -ESTALE, -ESHUTDOWN)
    for client in (first, second):
        if client.peer.peer_id in scene.world.core.peers:
            told = client.all()
            destroyed = [each.destination for each in told if each.type == DESTROY]
            assert len(set(destroyed)) == len(destroyed)
            for id, handle in client.peer.table.items():
                assert not handle.node.is_destroyed or id in destroyed or not id & 1
            before = True
            for each in told:
                before = before and each.type != DESTROY
                if each.type == DATA:
                    assert (INVALID in each.handles) != before
    scene.finish()


@pytest.mark.parametrize("pause", range(1, 9))
@pytest.mark.parametrize("deed", ["recv", "flush", "disconnect", "close", "release"])
@pytest.mark.parametrize("flags", [0, PEEK])
def test_at_the_pauses_of_a_recv(scene: Scene, pause: int, deed: str, flags: int) -> None:
    """A message with many handles is received by one RECV, and a flush comes before or after it."""
    slow, first = scene.slow, scene.first
    assert slow.send(scene.to_first, data=b"x", handles=[16, 24, 32]) == 0
    results: list[int] = []

    def other() -> None:
        nonlocal pause
        pause -= 1
        if pause:
            return
        scene.world.turn.meanwhile = None
        if deed == "recv":
            results.append(first.recv())
        elif deed == "flush":
            results.append(first.flush())
        elif deed == "disconnect":
            results.append(first.disconnect())
        elif deed == "close":
            first.close()
        else:
            results.append(first.release(0xB))

    scene.world.turn.meanwhile = other
    result = first.recv(flags)
    scene.world.turn.meanwhile = None
    if pause > 0:  # it has fewer
        pause = 1
        other()
    if deed in ("flush", "disconnect", "close"):
        assert result in (0, -EAGAIN, -ESHUTDOWN)
        assert not first.peer.table and first.peer.limits.handles == 0
        assert not slow.peer.table[16].node.strong
    else:
        assert result == 0
    scene.finish()

"""PEER, HAND: the commands beside SEND and RECV."""

from __future__ import annotations

from errno import EBADF, EBUSY, EDQUOT, EFAULT, EINVAL, ENOTUNIQ, ENXIO, EOPNOTSUPP, EREMOTE, ESHUTDOWN, ESTALE
from struct import pack, unpack_from

import pytest

from kdbusfs.base.handle import Handle
from kdbusfs.bus1 import abi
from kdbusfs.bus1.destroy import FRESH_MAX
from tests.support.bus1_client import DATA, DESTROY, INVALID, PEEK, RELEASE, SEED, World

from .conftest import Peers

FLAG_SEED = abi.SEND_FLAG_SEED


def test_b1_peer_1_query_tells_the_limits_of_the_peer(peers: Peers) -> None:
    first = peers[0]
    assert first.query() == (0, 0, 16384, 65536, 16 << 20, 4096)
    assert first.reset(0, 1, 1, 2, 3, 4) == 0
    assert first.query() == (0, 1, 1, 2, 3, 4)
    assert first.run(abi.CMD_PEER_QUERY, pack("<QQIIII", 1, 0, 0, 0, 0, 0)) == -EINVAL


def test_b1_peer_2_reset_checks_everything_before_any_effect(peers: Peers) -> None:
    first = peers[0]
    before = first.query()
    assert first.send(8) == 0
    for wrong in (
        {"flags": 4 | 1},
        {"flags": 1, "peer_flags": 2},
        {"flags": 1, "peer_flags": 1, "slices": 0x80000000},
        {"flags": 1, "slices": 5, "handles": 0xFFFFFFFE},
        {"flags": 1, "slices": 5, "inflight_bytes": 0x80000000},
        {"flags": 1, "slices": 5, "inflight_fds": 0x80000000},
    ):
        assert first.reset(**wrong) == -EINVAL
    assert first.query() == before
    assert first.is_readable
    assert first.reset(0, abi.U64_MAX, 0x7FFFFFFF, abi.UNCHANGED, 0x7FFFFFFF, 0) == 0
    assert first.query() == (0, 0, 0x7FFFFFFF, 65536, 0x7FFFFFFF, 0)


def test_b1_peer_3_a_limit_below_what_is_in_use(peers: Peers) -> None:
    first = peers[0]
    for _ in range(3):
        assert first.send(8) == 0
    assert first.reset(slices=2) == 0
    assert first.send(8) == -EDQUOT
    for _ in range(2):
        first.receive(free=True)
    assert first.send(8) == 0
    assert first.send(8) == -EDQUOT
    assert first.reset(handles=1) == 0
    assert first.transfer(8) == -EDQUOT
    assert first.transfer(16) == -EDQUOT and 16 not in first.peer.table


def test_b1_peer_4_flush(peers: Peers) -> None:
    first, second, third = peers
    handle = first.give(8, second)
    foreign = second.give(16, first)
    third.give(24, first)
    assert second.send(handle, data=b"queued") == 0
    assert second.send(handle, data=b"published") == 0
    first.receive()
    first.reset(peer_flags=1, slices=77)
    assert first.flush() == 0
    assert not first.peer.table
    assert first.recv() == -11
    assert first.peer.limits.slices == first.peer.limits.handles == 0
    assert (DESTROY, handle) in [each.told for each in second.all()]
    assert third.receive().told == (RELEASE, 24)
    assert first.send(foreign) == -ENXIO
    assert first.query()[:3] == (0, 1, 77)
    assert second.give(40, first) == 8 * 3 | 3


def test_b1_peer_4_one_transaction_for_all_nodes(peers: Peers) -> None:
    first, second, _ = peers
    for id in (0, 8, 16):
        first.give(id, second)
    assert first.flush() == 0
    assert [each.continues for each in second.all()] == [True, True, False]


def test_b1_peer_4_messages_committed_later_are_not_touched(peers: Peers) -> None:
    first, second, _ = peers
    assert first.flush() == 0
    handle = first.give(8, second)
    assert second.send(handle, data=b"later") == 0
    assert first.receive().data == b"later"


def test_b1_peer_5_flush_seed_drops_the_seed_alone(peers: Peers) -> None:
    first = peers[0]
    assert first.send(data=b"seed", handles=[8], flags=FLAG_SEED) == 0
    assert first.send(8, data=b"queued") == 0
    assert first.reset(abi.PEER_RESET_FLAG_FLUSH_SEED) == 0
    assert first.recv(SEED) == -11
    assert [each.told for each in first.all()] == [(DATA, 8), (RELEASE, 8)]
    assert first.reset(abi.PEER_RESET_FLAG_FLUSH_SEED) == 0


def test_b1_peer_6_a_flush_keeps_what_the_seed_carries(peers: Peers) -> None:
    first, second, third = peers
    foreign = second.give(16, first)
    handle = first.give(8, third)
    assert first.transfer(8) == 0  # another reference of its own
    assert first.send(data=b"seed", handles=[8, foreign], flags=FLAG_SEED) == 0
    assert first.give(24, third)
    assert first.flush() == 0
    assert set(first.peer.table) == {8} and first.peer.table[8].user == 1
    assert third.send(handle, data=b"alive") == 0
    assert [each.type for each in third.all()] == [DESTROY]
    assert not second.is_readable  # the seed still holds it
    seed = first.receive(SEED | PEEK)
    assert seed.handles[0] == 8 and seed.handles[1] not in (foreign, INVALID)
    assert first.flush(seed=True) == 0
    assert second.receive().told == (RELEASE, 16)
    assert not first.peer.table


def test_b1_peer_7_disconnect_is_for_ever(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.send(data=b"seed", flags=FLAG_SEED) == 0
    assert first.send(8, data=b"x") == 0
    first.receive(PEEK)
    assert first.disconnect() == 0
    assert first.disconnect() == -ESHUTDOWN
    assert second.receive().told == (DESTROY, handle)
    assert not first.memory.closed  # its map stays readable
    assert first.peer.limits.slices == first.peer.limits.handles == 0
    first.close()
    assert first.memory.closed


def test_b1_hand_1_release(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert second.release(handle) == 0
    assert second.release(handle) == -ENXIO
    assert second.release(7) == -ENXIO
    assert second.release(8) == -EBUSY
    assert first.release(8) == -EBUSY


def test_b1_hand_2_the_order_of_checks(peers: Peers) -> None:
    first, second, third = peers
    first.process.handles |= {9: second.peer, 10: None, 11: Handle(), 12: third.peer}
    assert first.transfer(3, 99, flags=1) == -EINVAL
    assert first.transfer(3, 99) == -EBADF
    assert first.transfer(3, 10) == -EOPNOTSUPP
    assert first.transfer(3, 11) == -EOPNOTSUPP
    assert third.disconnect() == 0
    assert first.transfer(3, 12) == -ESHUTDOWN
    assert first.transfer(3, 9) == -ENXIO
    for fd in (1 << 32, (1 << 32) + 9, abi.U64_MAX - 1):
        assert first.transfer(8, fd) == -EBADF
    assert first.transfer(8, abi.U64_MAX) == 0 and first.given == 8


def test_b1_hand_2_a_peer_of_another_mount_is_none_of_ours(peers: Peers) -> None:
    first = peers[0]
    other = World().open()
    first.process.handles[9] = other.peer
    assert first.transfer(8, 9) == -EOPNOTSUPP
    assert not first.peer.table


def test_b1_hand_3_of_a_destroyed_node_nothing_is_given(peers: Peers) -> None:
    first, second, third = peers
    handle = first.give(8, second)
    assert first.destroy(8) == 0
    second.process.handles[9] = third.peer
    assert second.transfer(handle, 9) == 0
    assert second.given == INVALID
    assert not third.peer.limits.handles and not third.peer.table
    assert third.reset(handles=0) == 0
    assert second.transfer(handle, 9) == 0


def test_b1_hand_4_what_is_charged(peers: Peers) -> None:
    first, second, third = peers
    assert first.transfer(8) == 0
    assert first.peer.limits.handles == first.peer.table[8].user == 2
    assert not first.is_readable
    first.give(16, second)
    assert first.peer.limits.handles == 3 and second.peer.limits.handles == 1
    assert second.reset(handles=1) == 0
    first.process.handles[9] = second.peer
    assert first.transfer(24, 9) == -EDQUOT and first.transfer(8, 9) == -EDQUOT
    assert first.reset(handles=3) == 0
    first.process.handles[9] = third.peer
    assert first.transfer(24, 9) == -EDQUOT
    assert set(first.peer.table) == {8, 16}
    assert third.peer.limits.handles == 0 and first.peer.limits.handles == 3
    assert first.transfer(8, 9) == 0


def test_b1_hand_5_nodes_destroy_checks(peers: Peers) -> None:
    first, second, _ = peers
    foreign = second.give(8, first)
    assert first.destroy(8, flags=2) == -EINVAL
    assert first.destroy_at(0, 65537) == -EINVAL
    assert first.destroy_at(1 << 40, 1) == -EFAULT
    assert first.destroy() == 0
    assert first.destroy(16, 16) == -ENOTUNIQ
    assert first.destroy(16, foreign) == -EREMOTE
    assert first.destroy(16, 3, 16) == -ENXIO
    assert first.destroy(8) == 0
    assert first.destroy(16, 8) == -ESTALE
    assert set(first.peer.table) == {8, foreign}
    assert [each.told for each in first.all()] == [(DESTROY, 8)]
    assert first.reset(handles=first.peer.limits.handles) == 0
    assert first.destroy(16) == -EDQUOT
    assert first.destroy(16, 24) == -EDQUOT and 16 not in first.peer.table
    assert first.recv() == -11


def test_b1_hand_5_ids_are_checked_one_by_one(peers: Peers) -> None:
    """What is wrong with an id comes before an array that ends where memory does."""
    first = peers[0]
    assert first.destroy_at(first.ids([8, 3]), 3) == -ENXIO
    assert first.destroy_at(first.ids([8, 8]), 3) == -ENOTUNIQ
    assert first.destroy_at(first.ids([8, 16]), 3) == -EFAULT
    assert not first.peer.table


def test_b1_hand_5_a_fresh_id_is_made_destroyed_and_told_of(peers: Peers) -> None:
    first = peers[0]
    assert first.destroy(8, 16) == 0
    assert first.peer.limits.handles == 2
    assert [each.told for each in first.all()] == [(DESTROY, 8), (DESTROY, 16)]
    assert first.release(8) == 0 and first.release(16) == 0
    assert first.release(8) == -EBUSY


def test_b1_hand_5_too_many_fresh_ids_in_one_command(peers: Peers) -> None:
    """All that exist before the command may be destroyed by it."""
    first = peers[0]
    ids = [8 * number for number in range(1, FRESH_MAX + 2)]
    assert first.destroy(*ids) == -EDQUOT
    assert first.peer.limits.handles == 0 and not first.peer.table
    assert first.transfer(ids[-1]) == 0
    assert first.destroy(*ids) == 0


def test_b1_hand_6_with_release_handles_a_reference_of_each_goes(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.transfer(16) == 0
    assert first.destroy(8, 16, 24, release=True) == 0
    assert set(first.peer.table) == {16} and first.peer.table[16].user == 1
    assert [each.told for each in first.all()] == [(DESTROY, 16)]
    assert second.receive().told == (DESTROY, handle)
    assert first.destroy(8, release=True) == 0


def test_b1_hand_7_b1_pool_2_only_a_published_slice_can_be_given_back(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, data=b"a" * 16) == 0 and first.send(8, data=b"b" * 16) == 0
    assert first.free(0) == -ENXIO
    received = first.receive()
    assert first.free(received.offset + 8) == -ENXIO
    assert first.free(1 << 40) == -ENXIO
    assert first.free(received.offset) == 0
    assert first.free(received.offset) == -ENXIO
    assert first.peer.limits.slices == 1


def test_freeing_that_was_answered_already(peers: Peers) -> None:
    """B1-HAND-7: the channel answers a SLICE_RELEASE by itself and tells later."""
    first = peers[0]
    assert first.send(8, data=b"a") == 0
    first.peer.freed(first.receive().offset)
    assert first.peer.limits.slices == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_query_reads_words_as_the_struct_has_them(peers: Peers, count: int) -> None:
    """B1-PEER-1: two 32-bit limits in each u64."""
    first = peers[0]
    first.reset(slices=count, handles=count + 1, inflight_bytes=count + 2, inflight_fds=count + 3)
    first.query()
    assert unpack_from("<4I", first.out, 16) == (count, count + 1, count + 2, count + 3)

"""IDEA, NODE: ids, references, release and destruction."""

from __future__ import annotations

from errno import EBUSY, EDQUOT, ENXIO, ESHUTDOWN

import pytest

from kdbusfs.bus1 import abi
from tests.support.bus1_client import DATA, DESTROY, INVALID, RELEASE, Client

from .conftest import Peers

FRESH = (0, 4, 8, 12, 1 << 40, abi.U64_MAX - 3)


@pytest.mark.parametrize("id", FRESH)
def test_b1_node_1_any_id_with_both_flags_clear_makes_a_node(peers: Peers, id: int) -> None:
    first, second, third = peers
    assert first.send(id, data=b"x") == 0
    assert first.receive().destination == id
    assert second.send(handles=[id]) == 0 and id in second.peer.table
    assert third.destroy(id) == 0
    assert third.receive().told == (DESTROY, id)


@pytest.mark.parametrize("id", [1, 2, 3, 0xB, abi.U64_MAX, abi.U64_MAX - 1])
def test_b1_node_1_an_unknown_id_with_a_flag_is_enxio(peers: Peers, id: int) -> None:
    first = peers[0]
    assert first.send(id) == -ENXIO
    assert first.send(handles=[id]) == -ENXIO
    assert first.destroy(id) == -ENXIO
    assert first.transfer(id) == -ENXIO
    assert first.release(id) == -ENXIO
    assert not first.peer.table


def test_b1_node_1_release_makes_no_node(peers: Peers) -> None:
    assert peers[0].release(8) == -EBUSY
    assert not peers[0].peer.table


def test_b1_node_2_a_command_that_fails_makes_nothing(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, 3, handles=[16]) == -ENXIO
    assert first.destroy(8, 3) == -ENXIO
    assert first.send(handles=[16, 3]) == -ENXIO
    assert not first.peer.table
    assert first.peer.limits.handles == first.peer.limits.slices == 0


def test_b1_node_2_named_several_times_it_is_made_once(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, handles=[8, 16, 16, 8]) == 0
    assert set(first.peer.table) == {8, 16}
    assert first.receive().handles == [8, 16, 16, 8]
    assert first.peer.table[8].user == 3 and first.peer.table[16].user == 3


def test_b1_node_3_the_pinned_reference_is_not_strong(peers: Peers) -> None:
    """B1-NODE-3, B1-NODE-8: the owner hears of the release though it has a reference."""
    first, second, _ = peers
    handle = first.give(8, second)
    assert second.release(handle) == 0
    assert first.receive().told == (RELEASE, 8)


def test_b1_node_4_got_again_it_has_the_same_id(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.give(8, second) == handle
    assert first.send(second.give(16, first), handles=[8, 8]) == 0
    assert second.receive().handles == [handle, handle]
    for _ in range(3):
        assert second.release(handle) == 0
        assert not first.is_readable
    assert second.release(handle) == 0
    assert second.release(handle) == -ENXIO
    assert first.receive().told == (RELEASE, 8)


def test_b1_node_5_ids_count_from_0xb_by_8(peers: Peers) -> None:
    first, second, third = peers
    assert [first.give(8 * each, second) for each in range(3)] == [0xB, 0x13, 0x1B]
    assert second.flush() == 0
    assert first.give(0, second) == 0x23
    assert first.give(0, third) == 0xB
    # An owner sees its node under the id that it chose.
    assert second.give(0x23, first) == 0


def test_b1_node_6_a_managed_id_is_never_given_again(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert second.release(handle) == 0
    assert first.give(8, second) == handle + 8
    assert second.send(handle) == -ENXIO


def test_b1_node_6_an_id_of_its_own_can_be_chosen_again(peers: Peers) -> None:
    first, second, _ = peers
    old = first.give(8, second)
    assert first.destroy(8, release=True) == 0
    assert 8 not in first.peer.table
    new = first.give(8, second)
    assert new != old
    assert second.send(old) == -ESHUTDOWN and second.send(new, data=b"x") == 0
    assert [each.told for each in first.all()] == [(DATA, 8)]
    assert [each.told for each in second.all()] == [(DESTROY, old)]


def test_b1_node_7_a_handle_in_flight_counts_as_strong(peers: Peers) -> None:
    first, second, third = peers
    handle = first.give(8, second)
    to_third = third.give(16, second)
    assert second.send(to_third, handles=[handle]) == 0
    assert second.release(handle) == 0
    assert not first.is_readable
    received = third.receive()
    assert third.release(received.handles[0]) == 0
    assert first.receive().told == (RELEASE, 8)


def test_b1_node_7_discarding_the_message_releases(peers: Peers) -> None:
    first, second, third = peers
    handle = first.give(8, second)
    to_third = third.give(16, second)
    assert second.send(to_third, handles=[handle]) == 0
    assert second.release(handle) == 0
    assert third.destroy(16, release=True) == 0
    assert third.recv() == -11
    assert first.receive().told == (RELEASE, 8)


def test_b1_node_8_a_queued_release_is_taken_out_and_comes_again(peers: Peers) -> None:
    first, second, _ = peers
    for _ in range(3):
        handle = first.give(8, second)
        assert not first.is_readable
        assert second.release(handle) == 0
        assert first.is_readable
    assert [each.told for each in first.all()] == [(RELEASE, 8)]
    assert second.release(first.give(8, second)) == 0
    assert [each.told for each in first.all()] == [(RELEASE, 8)]


def test_b1_node_8_sending_the_handle_takes_the_release_out(peers: Peers) -> None:
    first, second, _ = peers
    to_second = second.give(16, first)
    assert second.release(first.give(8, second)) == 0
    assert first.send(to_second, handles=[8]) == 0
    assert not first.is_readable
    assert second.receive().n_handles == 1


def test_b1_node_8_one_that_was_never_given_has_none(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8) == 0
    first.receive()
    assert first.send(16, handles=[24]) == 0
    assert first.recv() == 0
    assert first.recv() == -11


def test_b1_node_8_an_owners_reference_to_its_own_node_counts(peers: Peers) -> None:
    """api_handle of upstream's tests: a handle of one's own as payload, then its release."""
    first = peers[0]
    assert first.send(8, handles=[8]) == 0
    assert first.receive().handles == [8]
    assert first.release(8) == 0
    assert first.receive().told == (RELEASE, 8)
    assert first.release(8) == -EBUSY


def test_b1_node_9_the_last_reference_to_a_live_node_stays(peers: Peers) -> None:
    first = peers[0]
    assert first.transfer(8) == 0 and first.given == 8
    assert first.release(8) == 0
    assert first.release(8) == -EBUSY
    assert first.receive().told == (RELEASE, 8)


def test_b1_node_10_everybody_is_told_of_a_destruction(peers: Peers) -> None:
    first, second, third = peers
    a, b = first.give(8, second), first.give(8, third)
    assert second.release(first.give(16, second)) == 0  # a release that is queued goes
    assert first.destroy(8, 16) == 0
    one, two = first.all()
    assert (one.told, two.told) == ((DESTROY, 8), (DESTROY, 16))
    assert one.continues and not two.continues
    assert second.receive().told == (DESTROY, a)
    assert third.receive().told == (DESTROY, b)
    for client in peers:
        assert client.recv() == -11


def test_b1_node_10_flush_disconnect_and_close_destroy(peers: Peers) -> None:
    first, second, third = peers
    handles = [client.give(8, third) for client in (first, first, second)]
    assert first.flush() == 0
    assert third.receive().told == (DESTROY, handles[0])
    assert first.recv() == -11
    handles.append(first.give(8, third))
    assert first.disconnect() == 0
    assert third.receive().told == (DESTROY, handles[3])
    second.close()
    assert third.receive().told == (DESTROY, handles[2])


def test_b1_node_11_handles_of_dead_nodes_stay_without_a_release(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.destroy(8) == 0
    assert second.receive().told == (DESTROY, handle)
    assert second.release(handle) == 0
    assert [each.told for each in first.all()] == [(DESTROY, 8)]
    assert first.release(8) == 0
    assert not first.peer.table and not second.peer.table


def test_b1_node_12_b1_idea_2_a_released_node_takes_nothing(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert second.send(handle, data=b"lost") == 0
    assert first.destroy(8, release=True) == 0
    assert second.send(handle) == -ESHUTDOWN
    assert first.recv() == -11
    assert first.peer.limits.slices == 0


def test_b1_node_13_a_peer_that_goes_releases_its_handles(peers: Peers) -> None:
    first, second, third = peers
    first.give(8, second)
    first.give(16, third)
    assert second.disconnect() == 0
    assert first.receive().told == (RELEASE, 8)
    third.close()
    assert first.receive().told == (RELEASE, 16)


def test_b1_node_14_b1_recv_7_the_owner_gets_no_reference_to_what_it_gave_up(peers: Peers) -> None:
    first, second, _ = peers
    to_first = first.give(16, second)
    handle = first.give(8, second)
    assert second.send(to_first, handles=[handle, handle]) == 0
    assert first.destroy(8, release=True) == 0
    assert first.receive(free=True).handles == [INVALID, INVALID]
    assert first.release(8) == -EBUSY


def test_b1_node_14_the_last_reference_is_the_pinned_one(peers: Peers) -> None:
    first, second, _ = peers
    to_first = first.give(16, second)
    handle = first.give(8, second)
    assert second.send(to_first, handles=[handle]) == 0
    assert first.destroy(8) == 0
    assert first.receive(free=True).handles == [8]
    node = first.peer.table[8].node
    assert first.release(8) == 0
    assert (node.is_pinned, first.release(8), node.is_pinned) == (True, 0, False)
    assert second.release(handle) == 0 and node.strong == 0


def test_b1_idea_3_b1_idea_4_all_or_none(peers: Peers) -> None:
    first, second, third = peers
    handles = [second.give(8, first), third.give(8, first)]
    assert third.reset(slices=0) == 0
    assert first.send(*handles, data=b"x") == -EDQUOT
    assert second.recv() == third.recv() == -11
    assert third.reset(slices=1) == 0
    assert first.send(*handles, data=b"x") == 0
    assert second.receive().data == third.receive().data == b"x"


def test_b1_idea_5_b1_idea_6_an_owner_is_told_and_nothing_is_dropped(peers: Peers) -> None:
    first, second, third = peers
    handle = first.give(8, second)
    second.process.handles[9] = third.peer
    assert second.transfer(handle, 9) == 0
    copy = second.given
    assert second.release(handle) == 0
    assert first.recv() == -11
    assert third.release(copy) == 0
    assert first.receive().told == (RELEASE, 8)


def give_many(owner: Client, holder: Client, count: int) -> list[int]:
    return [owner.give(8 * each, holder) for each in range(count)]


def test_b1_node_10_the_order_is_that_of_the_ids(peers: Peers) -> None:
    """B1-ORD-4: of a destruction, in the order of the array."""
    first, second, _ = peers
    handles = give_many(first, second, 5)
    order = [3, 0, 4, 1, 2]
    assert first.destroy(*(8 * each for each in order)) == 0
    told = second.all()
    assert [each.destination for each in told] == [handles[each] for each in order]
    assert [each.continues for each in told] == [True] * 4 + [False]

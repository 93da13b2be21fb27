"""ORD: one order of everything, for all who see any of it."""

from __future__ import annotations

from tests.support.bus1_client import DATA, DESTROY, INVALID, RELEASE, Client, Process, World, check

from .conftest import Peers


def two_receivers(peers: Peers) -> tuple[Client, list[int], list[int]]:
    """The third can send to both of the others; so can the first."""
    first, second, third = peers
    return first, [first.give(8, third), second.give(8, third)], [8, second.give(16, first)]


def test_b1_ord_1_two_receivers_see_the_same_order(peers: Peers) -> None:
    first, of_third, of_first = two_receivers(peers)
    _, second, third = peers
    for number in range(6):
        if number % 2:
            assert third.send(*of_third, data=b"%d" % number) == 0
        else:
            assert first.send(*reversed(of_first), data=b"%d" % number) == 0
    expected = [b"%d" % number for number in range(6)]
    assert [each.data for each in first.all()] == [each.data for each in second.all()] == expected


def test_b1_ord_1_also_when_one_of_them_is_held_up(world: World) -> None:
    """B1-ORD-1, B1-ORD-3: what began first and is committed last comes last, everywhere."""
    slow = world.open(Process())
    others = first, second = world.clients(2)
    slow_to = [first.give(8, slow), second.give(8, slow)]
    quick_to = [8, second.give(16, first)]
    slow.process.meanwhile = lambda: first.send(*quick_to, data=b"quick")
    assert slow.send(*slow_to, data=b"slow") == 0
    for client in others:
        assert [each.data for each in client.all()] == [b"quick", b"slow"]
    check(world, [slow, *others])


def test_b1_ord_1_at_every_pause_of_a_multicast(world: World) -> None:
    """Whatever is committed between two receivers of a multicast, all of them see the same order of both."""
    receivers = world.clients(5)
    one, two = world.open(), world.open()
    to_one = [each.give(8, one) for each in receivers]
    to_two = [each.give(16, two) for each in receivers]
    sent: list[bytes] = []

    def others() -> None:
        world.turn.meanwhile = None
        sent.append(b"other%d" % len(sent))
        assert two.send(*reversed(to_two), data=sent[-1]) == 0
        world.turn.meanwhile = others if len(sent) < 12 else None

    world.turn.meanwhile = others
    assert one.send(*to_one, data=b"one") == 0
    world.turn.meanwhile = None
    assert len(sent) == 12
    orders = {tuple(each.data for each in receiver.all()) for receiver in receivers}
    assert len(orders) == 1
    assert sorted(orders.pop()) == sorted([*sent, b"one"])
    check(world, [*receivers, one, two])


def test_b1_ord_2_causes_come_before_effects(peers: Peers) -> None:
    """Also by a way beside bus1: what had been sent when another began to send is before it."""
    first, second, third = peers
    to_first = [first.give(8, second), first.give(16, third)]
    assert second.send(to_first[0], data=b"cause") == 0
    assert third.send(to_first[1], data=b"effect") == 0
    assert [each.data for each in first.all()] == [b"cause", b"effect"]


def test_b1_ord_2_a_release_is_before_what_is_sent_after_it(peers: Peers) -> None:
    first, second, _ = peers
    handle, other = first.give(8, second), first.give(16, second)
    assert second.release(handle) == 0
    assert second.send(other) == 0
    assert [each.told for each in first.all()] == [(RELEASE, 8), (DATA, 16)]


def test_b1_ord_3_nothing_of_a_multicast_is_seen_before_all_of_it(world: World) -> None:
    receivers = world.clients(4)
    sender = world.open()
    handles = [each.give(8, sender) for each in receivers]
    seen: list[list[bool]] = []
    world.turn.meanwhile = lambda: seen.append([each.is_readable for each in receivers])
    received: list[int] = []

    def look() -> None:
        received.append(sum(each.peer.queue.front() is not None for each in receivers))

    world.turn.meanwhile = look
    assert sender.send(*handles, data=b"x") == 0
    world.turn.meanwhile = None
    assert set(received) == {0, 4}
    assert received == sorted(received)


def test_b1_ord_4_in_the_order_of_the_array(peers: Peers) -> None:
    first, second, _ = peers
    handles = [second.give(8 * each, first) for each in range(4)]
    order = [2, 0, 3, 1]
    assert first.send(*(handles[each] for each in order)) == 0
    assert [each.destination for each in second.all()] == [8 * each for each in order]


def test_b1_ord_5_continue_says_that_the_next_is_of_the_same_transaction(peers: Peers) -> None:
    """unicast and multicast of upstream's tests."""
    first, second, _ = peers
    handles = [first.give(8, second), first.give(16, second)]
    assert second.send(handles[0], data=b"a") == 0
    assert second.send(*handles, data=b"b") == 0
    assert second.send(handles[1], data=b"c") == 0
    assert [each.continues for each in first.all()] == [False, True, False, False]


def test_b1_ord_5_what_is_discarded_counts(peers: Peers) -> None:
    first, second, _ = peers
    handles = [first.give(8, second), first.give(16, second)]
    assert second.send(*handles, data=b"b") == 0
    assert first.destroy(16, release=True) == 0
    assert [(each.told, each.continues) for each in first.all()] == [((DATA, 8), True)]


def test_b1_ord_6_before_and_after_a_destruction(peers: Peers) -> None:
    first, second, third = peers
    to_third = third.give(8, second)
    to_first = first.give(16, second)
    handle = first.give(24, second)
    assert second.send(to_third, to_first, data=b"before", handles=[handle]) == 0
    assert second.send(handle, data=b"to it") == 0
    assert first.destroy(24) == 0
    assert second.send(to_third, to_first, data=b"after", handles=[handle]) == 0
    assert second.send(handle, data=b"too late") == 0
    got = third.all()
    id = got[0].handles[0]
    assert id != INVALID
    assert [each.told for each in got] == [(DATA, 8), (DESTROY, id), (DATA, 8)]
    assert got[2].handles == [INVALID]
    mine = first.all()
    assert [each.told for each in mine] == [(DATA, 16), (DATA, 24), (DESTROY, 24), (DATA, 16)]
    assert mine[0].handles == [24] and mine[3].handles == [INVALID]


def test_b1_ord_6_who_had_no_handle_gets_none_of_a_dead_node(peers: Peers) -> None:
    first, second, third = peers
    to_third = third.give(8, first)
    assert first.destroy(24) == 0
    assert first.send(to_third, handles=[24]) == 0
    assert third.receive().handles == [INVALID]
    assert third.recv() == -11
    assert not second.is_readable


def test_b1_ord_6_a_destruction_in_the_middle_of_a_send(world: World) -> None:
    """The handle travels, and the node is destroyed before the message is committed."""
    sender = world.open(Process())
    owner, receiver = world.clients(2)
    handle = owner.give(8, sender)
    to_receiver = receiver.give(16, sender)
    sender.process.meanwhile = lambda: owner.destroy(8)
    assert sender.send(to_receiver, data=b"x", handles=[handle]) == 0
    assert receiver.receive(free=True).handles == [INVALID]
    assert receiver.recv() == -11
    check(world, [sender, owner, receiver])


def test_b1_ord_6_a_destruction_at_each_pause_of_a_multicast(world: World) -> None:
    """Alive and then told of, or dead: everywhere the same."""
    outcomes = set()
    for pause in range(60):
        receivers = world.clients(4)
        sender, owner = world.clients(2)
        handle = owner.give(8, sender)
        to = [each.give(16, sender) for each in receivers]
        countdown = [pause]

        def destroy(owner: Client = owner, countdown: list[int] = countdown) -> None:
            countdown[0] -= 1
            if countdown[0] == 0:
                assert owner.destroy(8) == 0

        world.turn.meanwhile = destroy
        assert sender.send(*to, data=b"x", handles=[handle]) == 0
        world.turn.meanwhile = None
        kinds = {tuple((each.type, each.handles == [INVALID]) for each in receiver.all()) for receiver in receivers}
        assert len(kinds) == 1, pause
        outcomes |= kinds
        check(world, [*receivers, sender, owner])
        for each in (*receivers, sender, owner):
            each.close()
    assert outcomes == {((DATA, False), (DESTROY, False)), ((DATA, True),), ((DATA, False),)}

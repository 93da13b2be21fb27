"""RECV, CRED, LIM, POOL: what a receiver gets, and what it is charged with."""

from __future__ import annotations

from errno import EAGAIN, EDQUOT, EINVAL, EMFILE, EMSGSIZE, ENOMEM, ENXIO, ERANGE, ESHUTDOWN
from struct import pack

import pytest

from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import Pids
from kdbusfs.bus1 import abi
from tests.support.bus1_client import (
    DATA,
    DESTROY,
    INSTALL,
    INVALID,
    PEEK,
    RELEASE,
    SEED,
    Client,
    FakeFile,
    Maxima,
    Process,
    World,
    check,
    pass_files,
)

from .conftest import Peers

NOBODY = 0xFFFFFFFF


def test_b1_recv_1_flags_and_an_empty_queue(peers: Peers) -> None:
    first = peers[0]
    for flags in (8, 1 << 63, 7 | 16):
        assert first.recv(flags) == -EINVAL
    for flags in range(8):
        assert first.recv(flags) == -EAGAIN


def test_b1_recv_2_msg_is_filled_whole_and_the_rest_comes_back(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, data=b"x") == 0
    assert first.run(abi.CMD_RECV, pack("<12Q", PEEK, 1 << 40, *(abi.U64_MAX,) * 10)) == 0
    ids, pids = 1000 | 1000 << 32, 100 | 101 << 32
    assert first.out == pack("<12Q", PEEK, 1 << 40, DATA, 0, 8, ids, pids, 0, 1, 0, 0, 0)
    first.memory.failing = 0
    first.receive()
    assert first.destroy(8) == 0
    assert first.run(abi.CMD_RECV, pack("<12Q", 0, 0, *(7,) * 10)) == 0
    nobody = NOBODY | NOBODY << 32
    assert first.out == pack("<12Q", 0, 0, DESTROY, 0, 8, nobody, 0, abi.OFFSET_INVALID, 0, 0, 0, 0)


def test_b1_recv_2_on_an_error_the_entry_stays(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, data=b"x", handles=[8]) == 0
    for flags in (0, PEEK):
        first.memory.failing = ENOMEM
        assert first.recv(flags) == -ENOMEM
        first.memory.failing = 0
        assert first.recv(flags, max_offset=1) == -ERANGE
    check(first.world, peers)
    assert first.receive().handles == [8]


def test_b1_recv_3_the_senders_handle_does_not_matter(peers: Peers) -> None:
    """The reference loses a message whose sender has released the handle that it used."""
    first, second, _ = peers
    handle = first.give(8, second)
    assert second.send(handle, data=b"x") == 0
    assert second.release(handle) == 0
    got = first.receive()
    assert got.data == b"x" and got.destination == 8


def test_b1_recv_3_what_nobody_can_use_is_discarded_when_it_comes_to_the_front(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    other = first.give(16, second)
    assert second.send(other, data=b"front") == 0
    assert second.send(handle, data=b"void") == 0
    assert first.destroy(8, release=True) == 0
    assert first.peer.limits.slices == 2
    assert first.receive(free=True).data == b"front"
    assert first.peer.limits.slices == 1  # not earlier
    assert first.recv() == -EAGAIN
    assert first.peer.limits.slices == 0
    assert second.receive().told == (DESTROY, handle)


def test_b1_recv_3_b1_node_7_a_notice_of_what_it_has_given_back(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.destroy(8) == 0
    assert second.release(handle) == 0
    assert second.is_readable
    assert second.recv() == -EAGAIN


def test_b1_recv_4_max_offset(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, data=b"x" * 20) == 0
    assert first.recv(max_offset=23) == -ERANGE
    assert first.recv(PEEK, max_offset=24) == 0
    assert first.recv(max_offset=24) == 0
    assert first.destroy(8) == 0
    assert first.recv(max_offset=0) == 0


def test_b1_recv_5_destinations_are_ids_of_the_receiver(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(16, second)
    assert second.send(handle) == 0
    assert first.receive().destination == 16 != handle


def test_b1_recv_6_handles_that_were_received_can_be_used(peers: Peers) -> None:
    first, second, third = peers
    to_second = second.give(8, first)
    assert first.send(to_second, handles=[16, 16, 24]) == 0
    got = second.receive(free=True)
    one, again, two = got.handles
    assert one == again and one & 3 == 3 and two & 3 == 3
    assert second.peer.limits.handles == 1 + 3
    assert second.send(one, data=b"back", handles=[two]) == 0
    mine = first.receive()
    assert (mine.destination, mine.data, mine.handles) == (16, b"back", [24])
    second.process.handles[9] = third.peer
    assert second.transfer(two, 9) == 0


def test_b1_recv_8_charges_of_places_become_those_of_references(peers: Peers) -> None:
    first, second, third = peers
    to_second = second.give(8, first)
    dead = third.give(8, first)
    assert third.destroy(8) == 0
    assert first.send(to_second, handles=[16, dead, 16]) == 0
    assert second.peer.limits.handles == 4
    assert second.receive(free=True).handles[1] == INVALID
    assert second.peer.limits.handles == 3


def install(client: Client, errno: int = 0) -> None:
    """What the installer does: the numbers are 40 and so on."""
    installing = client.installing
    for number, (_, memory, offset) in enumerate(installing.entries):
        if not errno:
            memory.store(offset, pack("<i", 40 + number))
    installing.conclude(errno)


def test_b1_recv_9_b1_fuse_4_descriptors_are_installed(peers: Peers) -> None:
    first = peers[0]
    files = [FakeFile(), FakeFile()]
    assert first.send(8, data=b"abc", handles=[16], fds=pass_files(first, *files)) == 0
    assert first.send(8, data=b"next") == 0
    got = first.receive(INSTALL)
    assert [file for file, _, _ in first.installing.entries] == files
    # Until that is over the message is at the front, and nobody sees it.  What is behind it makes the peer readable.
    call = first.call
    assert (first.is_readable, first.recv()) == (True, -EAGAIN)
    first.call = call
    install(first)
    assert first.peer.queue.is_readable()
    first.read(got)
    assert (got.n_fds, got.fds, got.handles) == (2, [40, 41], [16])
    assert not any(file.open_count for file in files)
    assert first.receive().data == b"next"
    assert first.free(got.offset) == 0


@pytest.mark.parametrize("flags", [INSTALL, INSTALL | PEEK])
def test_b1_recv_9_all_or_none(peers: Peers, flags: int) -> None:
    first, second, _ = peers
    file = FakeFile()
    foreign = second.give(24, first)
    assert first.send(8, data=b"abc", handles=[16, foreign, 16], fds=pass_files(first, file)) == 0
    assert first.release(foreign) == 0
    before = first.peer.limits.handles, first.peer.limits.slices
    first.receive(flags)
    installing = first.installing
    install(first, EMFILE)
    installing.conclude(0)  # once is enough
    assert (first.peer.limits.handles, first.peer.limits.slices) == before
    assert first.is_readable and file.open_count == 1
    assert first.free(0) == -ENXIO
    check(first.world, peers)
    got = first.receive(free=True)
    assert got.handles[0] == 16 and got.fds == [-1]
    # The id that was picked stays with its handle.
    assert got.handles[1] == foreign + 8
    assert file.open_count == 0


def test_b1_recv_9_a_refusal_is_a_failure(peers: Peers) -> None:
    """Where nothing can be installed at all."""
    first = peers[0]
    assert first.send(8, fds=pass_files(first, FakeFile())) == 0
    first.receive(INSTALL)
    first.installing.conclude(1)
    assert first.receive(free=True).fds == [-1]


@pytest.mark.parametrize("errno", [0, EMFILE])
@pytest.mark.parametrize("peek", [False, True])
@pytest.mark.parametrize("what", ["flush", "disconnect", "close", "release"])
def test_b1_recv_9_what_happens_while_they_are_installed(peers: Peers, errno: int, peek: bool, what: str) -> None:
    first, second, _ = peers
    foreign = second.give(24, first)
    assert first.send(8, data=b"abc", handles=[16, foreign], fds=pass_files(first, FakeFile())) == 0
    assert first.send(8, data=b"next") == 0
    got = first.receive(INSTALL | (PEEK if peek else 0))
    installing = first.installing
    if what == "flush":
        assert first.flush() == 0
    elif what == "disconnect":
        assert first.disconnect() == 0
    elif what == "close":
        first.close()
    else:
        assert first.release(foreign) == 0 and first.release(foreign) == 0
        assert first.release(16) == 0
        first.free(got.offset)
    installing.conclude(errno)
    if first.peer.is_active:
        first.all()
    check(first.world, [client for client in peers if client.peer.peer_id in first.world.core.peers])


def test_b1_recv_9_a_seed_with_descriptors(peers: Peers) -> None:
    first = peers[0]
    file = FakeFile()
    assert first.send(data=b"s", fds=pass_files(first, file), flags=abi.SEND_FLAG_SEED) == 0
    first.receive(SEED | INSTALL)
    call = first.call
    assert first.recv(SEED) == -EAGAIN
    first.call = call
    install(first, EMFILE)
    first.receive(SEED | INSTALL)
    call = first.call
    assert first.send(data=b"t", flags=abi.SEND_FLAG_SEED) == 0
    first.call = call
    install(first)
    assert first.receive(SEED).data == b"t"
    assert file.open_count == 0


def test_b1_recv_10_publishing_is_a_bit(peers: Peers) -> None:
    """B1-RECV-10, B1-RECV-11: PEEK twice and RECV publish once."""
    first = peers[0]
    assert first.send(8) == 0
    offsets = {first.receive(flags).offset for flags in (PEEK, PEEK, 0)}
    (offset,) = offsets
    assert first.peer.limits.slices == 1
    assert first.free(offset) == 0
    assert first.free(offset) == -ENXIO
    assert first.peer.limits.slices == 0


def test_b1_recv_10_slices_that_are_not_given_back_run_out(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.reset(slices=2) == 0
    offsets = []
    for _ in range(2):
        assert second.send(handle) == 0
        offsets.append(first.receive().offset)
    assert second.send(handle) == -EDQUOT
    assert first.free(offsets[0]) == 0
    assert second.send(handle) == 0


def test_b1_recv_11_each_peek_gives_references(peers: Peers) -> None:
    first, second, _ = peers
    to_second = second.give(8, first)
    assert first.send(to_second, data=b"x", handles=[16, 24]) == 0
    seen = [second.receive(PEEK).handles, second.receive(PEEK).handles]
    assert second.peer.limits.handles == 1 + 2 + 2 + 2
    check(first.world, peers)
    seen.append(second.receive().handles)
    assert seen[0] == seen[1] == seen[2]
    one, two = seen[0]
    for _ in range(3):
        assert second.release(one) == second.release(two) == 0
    assert second.release(one) == -ENXIO
    assert [each.told for each in first.all()] == [(RELEASE, 16), (RELEASE, 24)]


def test_b1_recv_11_what_peek_is_charged_with(peers: Peers) -> None:
    first, second, _ = peers
    to_second = second.give(8, first)
    assert first.send(to_second, handles=[16, 24]) == 0
    assert second.reset(handles=4) == 0
    assert second.recv(PEEK) == -EDQUOT
    assert second.peer.limits.handles == 3 and second.free(0) == -ENXIO
    assert second.reset(handles=5) == 0
    assert second.recv(PEEK) == 0
    assert second.recv() == 0


def test_b1_recv_11_a_slice_that_is_given_back_before_it_is_received(peers: Peers) -> None:
    """B1-RECV-11, B1-POOL-3: slice and charge stay, and ids are written anew."""
    first, second, _ = peers
    to_second = second.give(8, first)
    assert first.send(to_second, data=b"x", handles=[16]) == 0
    peeked = second.receive(PEEK)
    assert second.free(peeked.offset) == 0
    assert second.peer.limits.slices == 1
    assert second.free(peeked.offset) == -ENXIO
    assert second.release(peeked.handles[0]) == 0
    got = second.receive()
    assert got.offset == peeked.offset and got.data == b"x"
    assert got.handles == [peeked.handles[0] + 8]  # with the last reference the id was forgotten
    assert second.free(got.offset) == 0 and second.peer.limits.slices == 0


def test_b1_recv_12_peek_of_a_notification_leaves_it(peers: Peers) -> None:
    first = peers[0]
    assert first.destroy(8, 16) == 0
    one = first.receive(PEEK)
    assert one.told == (DESTROY, 8) and one.continues
    assert first.receive() == one
    assert not first.receive(PEEK).continues
    assert first.receive().told == (DESTROY, 16)


def test_b1_recv_13_notifications(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert second.release(first.give(16, second)) == 0
    assert first.destroy(8) == 0
    for client, kind, id in ((first, RELEASE, 16), (first, DESTROY, 8), (second, DESTROY, handle)):
        got = client.receive()
        assert got.told == (kind, id)
        assert (got.flags, got.uid, got.gid, got.pid, got.tid) == (0, NOBODY, NOBODY, 0, 0)
        assert got.offset == abi.OFFSET_INVALID
        assert not (got.n_bytes or got.n_handles or got.n_fds or got.n_secctx)
        assert client.peer.limits.slices == 0


def test_b1_recv_14_handles_of_a_seed_live_if_they_live_now(peers: Peers) -> None:
    first, second, _ = peers
    foreign = second.give(8, first)
    assert first.send(handles=[foreign, 16], flags=abi.SEND_FLAG_SEED) == 0
    assert first.receive(SEED | PEEK).handles == [foreign, 16]
    assert second.destroy(8) == 0
    assert first.receive(SEED | PEEK).handles == [INVALID, 16]
    assert first.recv(SEED, max_offset=3) == -ERANGE
    assert first.destroy(16) == 0
    assert first.receive(SEED).handles == [INVALID, INVALID]
    first.all()


def test_b1_cred_1_b1_fuse_8_credentials_as_the_receiver_sees_them() -> None:
    world = World()
    inside = {0: 100000, 5: 100005}
    sender = Process(uid=100005, euid=7, gid=100000, numbers={1: Pids(500, 501, 1), 2: Pids(5, 6, 1)})
    one = world.open(sender)
    outer, inner = world.open(Process(uid=1)), world.open(Process(uid=100000, uid_map=inside, pid_ns=2))
    elsewhere = world.open(Process(uid=9, uid_map={0: 9}, pid_ns=3))
    clients = [outer, inner, elsewhere]
    handles = [client.give(8, one) for client in clients]
    assert one.send(*handles) == 0
    # The view is that of who opened the file, whoever receives.
    for client in clients:
        client.process.uid_map, client.process.pid_ns = {}, 99
    sender.uid = 0
    seen = [(each.uid, each.gid, each.pid, each.tid) for each in (client.receive() for client in clients)]
    assert seen == [(100005, 100000, 500, 501), (5, 0, 5, 6), (65534, 65534, 0, 0)]


def test_b1_cred_1_they_are_taken_at_send(peers: Peers) -> None:
    first = peers[0]
    for uid in (1000, 1001):
        first.process.uid = uid
        assert first.send(8) == 0
    assert [each.uid for each in first.all()] == [1000, 1001]
    first.process.uid = 1000


def test_b1_cred_2_a_seed_has_those_of_who_set_it(peers: Peers) -> None:
    first = peers[0]
    first.process.uid = 1234
    assert first.send(flags=abi.SEND_FLAG_SEED) == 0
    first.process.uid = 1000
    assert first.receive(SEED).uid == 1234


def test_b1_lim_1_users_start_with_the_maxima_of_the_mount() -> None:
    world = World()
    assert world.open().query()[2:] == (16384, 65536, 16 << 20, 4096)
    world = World(Maxima(1, 2, 3, 4))
    client = world.open()
    assert client.query()[2:] == (1, 2, 3, 4)
    client.close()
    assert not world.core.users


def test_b1_lim_1_peers_of_a_user_share_its_maxima() -> None:
    world = World(Maxima(slices=2, handles=3))
    first, second, other = world.open(), world.open(), world.open(Process(uid=7))
    assert first.send(8) == 0 and second.send(8) == 0
    assert first.send(8) == -EDQUOT
    assert other.send(8) == 0
    assert first.transfer(8) == 0
    assert second.transfer(8) == -EDQUOT
    first.receive(free=True)
    assert second.send(8) == 0
    check(world, [first, second, other])


def test_b1_lim_2_b1_lim_3_both_are_asked(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.reset(slices=1) == 0
    assert second.send(handle) == 0
    assert second.send(handle) == -EDQUOT
    assert first.reset(slices=0x7FFFFFFF, handles=0) == 0
    # A charge of nothing always fits.
    assert second.send(handle) == 0
    assert second.send(handle, handles=[handle]) == -EDQUOT
    assert len(first.all()) == 2


def test_b1_lim_4_what_there_is_is_what_is_charged(peers: Peers) -> None:
    first, second, third = peers
    to_second, to_third = second.give(8, first), third.give(8, first)
    assert first.send(to_second, to_third, to_second + 0, handles=[16, 16]) != 0
    assert first.send(to_second, to_third, handles=[16, 16]) == 0
    check(first.world, peers)
    second.receive(PEEK)
    check(first.world, peers)
    second.receive()
    third.receive()
    check(first.world, peers)


def test_b1_pool_1_the_greatest_slice(peers: Peers) -> None:
    first = peers[0]
    part = first.peer.allocate(0x1FFFFFF8)
    assert part.size == 0x1FFFFFF8
    first.peer.pool.release(part)
    with pytest.raises(CommandError) as caught:
        first.peer.allocate(0x1FFFFFF9)
    assert caught.value.errno == EMSGSIZE


def test_b1_pool_1_offsets_are_multiples_of_8_and_neighbours_merge(peers: Peers) -> None:
    first = peers[0]
    for size in (1, 9, 100, 8):
        assert first.send(8, data=bytes(size)) == 0
    got = first.all(free=False)
    assert all(each.offset % 8 == 0 for each in got)
    for each in (got[1], got[3], got[0], got[2]):
        assert first.free(each.offset) == 0
    assert first.send(8, data=bytes(1000)) == 0
    assert first.receive().offset == 0


def test_b1_gen_1_what_was_received_before_a_disconnect_stays_readable(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, data=b"still here") == 0
    got = first.receive()
    assert first.disconnect() == 0
    assert first.memory.data[got.offset : got.offset + 10] == b"still here"
    assert first.free(got.offset) == -ESHUTDOWN

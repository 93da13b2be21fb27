"""SEND: checks, destinations, what receivers get, CONTINUE and SEED."""

from __future__ import annotations

from errno import (
    EBADF,
    EDQUOT,
    EFAULT,
    EINVAL,
    EMSGSIZE,
    ENOMEM,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    ESHUTDOWN,
    EXFULL,
)
from struct import pack, unpack

import pytest

from kdbusfs.bus1 import abi
from tests.support.bus1_client import (
    DATA,
    DESTROY,
    INVALID,
    PEEK,
    RELEASE,
    SEED,
    Client,
    FakeFile,
    Maxima,
    Process,
    World,
    pass_files,
)

from .conftest import Peers

CONTINUE, FLAG_SEED = abi.SEND_FLAG_CONTINUE, abi.SEND_FLAG_SEED
BAD = 1 << 40  # an address where nothing is


def untouched(client: Client) -> bool:
    peer = client.peer
    return not any((peer.table, peer.limits.handles, peer.limits.slices, peer.pool.busy, peer.queue.count))


def test_b1_send_1_flags_then_sizes_then_the_rest(peers: Peers) -> None:
    first = peers[0]
    big = {"n_destinations": 1 << 31, "n_vecs": 1025, "n_fds": 257}
    assert first.send_raw(flags=4, **big) == -EINVAL
    for name, value in big.items():
        assert first.send_raw(**{name: value}) == -EMSGSIZE
    assert first.send_raw(n_destinations=65537, n_vecs=1, ptr_vecs=BAD) == -EINVAL
    assert untouched(first)


def test_b1_send_1_vectors_handles_descriptors_seed_destinations_charge(peers: Peers) -> None:
    """Each step takes away what was wrong first."""
    first = peers[0]
    members = {
        "flags": CONTINUE | FLAG_SEED,
        "ptr_destinations": BAD,
        "n_destinations": 1,
        "ptr_vecs": BAD,
        "n_vecs": 1,
        "ptr_handles": first.ids([3]),
        "n_handles": 65537,
        "ptr_fds": first.process.place(pack("<i", -1)),
        "n_fds": 1,
    }
    steps: list[tuple[int, dict[str, int]]] = [
        (EFAULT, {"n_vecs": 0}),
        (EDQUOT, {"n_handles": 1}),
        (ENXIO, {"ptr_handles": first.ids([8])}),
        (EBADF, {"n_fds": 0}),
        (EINVAL, {"flags": FLAG_SEED}),
        (EINVAL, {"flags": CONTINUE}),
        (EFAULT, {"ptr_destinations": first.ids([16])}),
    ]
    for errno, change in steps:
        assert first.send_raw(**members) == -errno
        assert untouched(first)
        members |= change
    first.reset(handles=2)
    assert first.send_raw(**members) == -EDQUOT  # one place at the receiver, two nodes of the sender
    assert untouched(first)
    first.reset(handles=3)
    assert first.send_raw(**members) == 0


def test_b1_send_2_without_destinations_everything_is_checked(peers: Peers) -> None:
    first = peers[0]
    assert first.send(data=b"x", handles=[8]) == 0
    assert set(first.peer.table) == {8}
    assert first.recv() == -11
    assert first.send(handles=[3]) == -ENXIO
    assert first.send_raw(ptr_vecs=first.process.place(pack("<QQ", 0, 1)), n_vecs=1) == -EFAULT
    assert first.send(fds=[99]) == -EBADF
    assert first.peer.limits.slices == 0


def test_b1_send_3_what_can_be_wrong_with_a_destination(peers: Peers) -> None:
    first, second, third = peers
    handle = second.give(8, first)
    gone = third.give(8, first)
    assert first.send(handle, 7) == -ENXIO
    assert first.send(handle, handle) == -ENOTUNIQ
    third.close()
    assert first.send(handle, gone) == -ESHUTDOWN
    assert first.send_raw(ptr_destinations=BAD, n_destinations=2) == -EFAULT
    assert first.send_raw(ptr_destinations=first.ids([handle]), n_destinations=2) == -EFAULT
    assert first.send_raw(ptr_destinations=first.ids([7]), n_destinations=2) == -ENXIO
    assert second.reset(slices=0) == 0
    assert first.send(handle) == -EDQUOT
    assert second.reset(slices=1, handles=3) == 0
    assert first.send(handle, handles=[handle, handle, handle]) == -EDQUOT
    assert first.send(handle, handles=[handle, handle]) == 0
    assert second.receive(free=True).handles == [8, 8]
    assert second.recv() == -11


def test_b1_send_3_the_pool_of_a_receiver(peers: Peers) -> None:
    first, second, _ = peers
    handle = second.give(8, first)
    vecs = first.process.place(pack("<QQ", 1, abi.POOL_SIZE))
    assert first.send_raw(ptr_destinations=first.ids([handle]), n_destinations=1, ptr_vecs=vecs, n_vecs=1) == -EMSGSIZE
    part = second.peer.pool.allocate(abi.SLICE_MAX - 8)
    assert first.send(handle, data=b"x" * 8) == 0
    assert first.send(handle, data=b"x" * 8) == -EXFULL
    second.peer.pool.release(part)
    second.memory.failing = ENOMEM
    assert first.send(handle, data=b"x") == -ENOMEM
    second.memory.failing = 0
    vecs = first.process.place(pack("<QQ", BAD, 5))
    assert first.send_raw(ptr_destinations=first.ids([handle]), n_destinations=1, ptr_vecs=vecs, n_vecs=1) == -EFAULT
    assert len(second.all()) == 1
    assert not second.peer.pool.busy


def test_b1_send_3_own_nodes_and_fresh_ids_are_legal(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, 16, data=b"x") == 0
    assert first.send(8, data=b"y") == 0
    assert [(each.destination, each.data) for each in first.all()] == [(8, b"x"), (16, b"x"), (8, b"y")]


def test_b1_send_4_a_destroyed_node_takes_messages_that_nobody_gets(peers: Peers) -> None:
    first, second, _ = peers
    handle = first.give(8, second)
    assert first.destroy(8) == 0
    assert second.send(handle, data=b"x") == 0
    assert first.send(8, data=b"y") == 0
    assert first.peer.limits.slices == 2
    assert [each.told for each in first.all()] == [(DESTROY, 8)]
    assert first.peer.limits.slices == 0


def test_b1_send_5_several_nodes_of_one_peer(peers: Peers) -> None:
    first, second, _ = peers
    handles = [second.give(8 * each, first) for each in range(3)]
    assert first.send(*handles, data=b"x") == 0
    got = second.all(free=False)
    assert [each.destination for each in got] == [0, 8, 16]
    assert len({each.offset for each in got}) == 3
    assert [each.continues for each in got] == [True, True, False]


@pytest.mark.parametrize("compat", [False, True])
def test_b1_send_6_b1_fuse_7_vectors(world: World, compat: bool) -> None:
    first = world.open(Process(compat=compat))
    assert first.send(8, data=[b"one", b"two", b"three"]) == 0
    assert first.receive().data == b"onetwothree"
    top = (1 << 31) - 1 if compat else (1 << 63) - 1
    here = first.process.place(b"data")
    for vectors, errno in (
        ([(here, 2), (0, 0), (here + 2, 2)], 0),
        ([(0, 1)], EFAULT),
        ([(here, top + 1)], EMSGSIZE),
        ([(here, top)], EMSGSIZE),
        ([(here, 0x7FFFF000), (here, 1)], EMSGSIZE),
        ([(BAD, 1), (here, top + 1)] if not compat else [(0, 1)], EMSGSIZE if not compat else EFAULT),
    ):
        packed = b"".join(first.vector(*each) for each in vectors)
        address = first.process.place(packed)
        result = first.send_raw(
            ptr_destinations=first.ids([8]), n_destinations=1, ptr_vecs=address, n_vecs=len(vectors)
        )
        assert result == -errno
    assert first.receive().data == b"data"
    assert first.recv() == -11
    assert first.send_raw(ptr_vecs=BAD, n_vecs=1) == -EFAULT
    if not compat:
        assert first.send_raw(ptr_vecs=first.process.place(pack("<QQ", 1 << 63, 8)), n_vecs=1) == -EFAULT
        assert first.send_raw(ptr_vecs=abi.U64_MAX - 8, n_vecs=1) == -EFAULT


def test_b1_send_6_a_thousand_vectors(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8, data=[b"ab"] * 1024) == 0
    assert first.receive().data == b"ab" * 1024


def test_b1_send_7_handles(peers: Peers) -> None:
    first, second, third = peers
    to_third = third.give(8, first)
    foreign = second.give(8, first)
    assert first.send(to_third, handles=[foreign, 16, foreign, to_third]) == 0
    got = third.receive(free=True).handles
    assert got[0] == got[2] and got[3] == 8 and len(set(got)) == 3
    assert third.send(got[0], data=b"hi") == 0 and third.send(got[1], data=b"ho") == 0
    assert second.receive(free=True).data == b"hi" and first.receive(free=True).data == b"ho"
    assert first.send_raw(ptr_handles=BAD, n_handles=1) == -EFAULT


def test_b1_send_7_more_handles_than_a_user_can_have() -> None:
    world = World(Maxima(handles=5))
    first = world.open()
    assert first.send_raw(ptr_handles=BAD, n_handles=6) == -EDQUOT
    assert first.send_raw(ptr_handles=BAD, n_handles=5) == -EFAULT


def test_b1_send_8_descriptors(peers: Peers) -> None:
    first = peers[0]
    good, bus, unix = FakeFile(), FakeFile(is_bus_file=True), FakeFile(is_unix_socket=True)
    paths = [FakeFile(is_bus_file=True, is_path=True), FakeFile(is_unix_socket=True, is_path=True)]
    one, two, three, *others = pass_files(first, good, bus, unix, *paths)
    assert first.send(8, fds=[one, 99]) == -EBADF
    assert first.send(8, fds=[one, -1]) == -EBADF
    assert first.send(8, fds=[one, two]) == -EOPNOTSUPP
    assert first.send(8, fds=[one, three]) == -EOPNOTSUPP
    assert first.send_raw(ptr_fds=BAD, n_fds=1) == -EFAULT
    assert good.open_count == bus.open_count == unix.open_count == 0
    assert first.send(8, fds=[one, one, *others]) == 0
    assert good.open_count == 2
    assert first.receive(free=True).n_fds == 4
    assert good.open_count == 0


def test_b1_send_9_each_receiver_has_its_own_handles(peers: Peers) -> None:
    first, second, third = peers
    handles = [second.give(8, first), third.give(8, first)]
    file = FakeFile()
    assert first.send(*handles, data=b"x", handles=[16], fds=pass_files(first, file)) == 0
    node = first.peer.table[16].node
    assert node.strong == 2 and file.open_count == 1
    got = [second.receive(free=True).handles[0], third.receive(free=True).handles[0]]
    assert file.open_count == 0
    assert second.release(got[0]) == 0
    assert not first.is_readable
    assert third.release(got[1]) == 0
    assert first.receive().told == (RELEASE, 16)


def test_b1_send_10_charges(peers: Peers) -> None:
    first, second, _ = peers
    handle = second.give(8, first)
    before = second.peer.limits.handles
    assert first.send(handle, handles=[16, 24, 16]) == 0
    assert second.peer.limits.slices == 1 and second.peer.limits.handles == before + 3
    assert first.peer.limits.slices == 0 and first.peer.limits.handles == 3


def errors_of(client: Client, address: int, count: int) -> list[int]:
    return [-each for each in unpack(f"<{count}q", client.process.read(address, 8 * count))]


def test_b1_send_11_with_continue_the_rest_goes_on(peers: Peers) -> None:
    first, second, third = peers
    good, full = second.give(8, first), third.give(8, first)
    assert third.reset(slices=0) == 0
    assert third.destroy(16) == 0
    gone = World().open()
    assert gone.disconnect() == 0
    at = first.process.place(b"\x55" * 40)
    assert first.send(good, 7, full, 24, data=b"x", flags=CONTINUE, errors=at) == 0
    assert errors_of(first, at, 4) == [0, ENXIO, EDQUOT, 0]
    assert first.process.read(at + 32, 8) == b"\x55" * 8
    assert second.receive().data == first.receive().data == b"x"
    assert third.all()[0].told == (DESTROY, 16)
    assert first.send(7, flags=CONTINUE) == 0


def test_b1_send_11_what_continue_reports_and_what_fails_the_whole(peers: Peers) -> None:
    first, second, third = peers
    one, gone = second.give(8, first), third.give(8, first)
    third.close()
    at = first.process.place(bytes(16))
    assert first.send(one, gone, flags=CONTINUE, errors=at) == 0
    assert errors_of(first, at, 2) == [0, ESHUTDOWN]
    part = second.peer.pool.allocate(abi.SLICE_MAX - 16)
    assert first.send(one, data=b"x" * 64, flags=CONTINUE, errors=at) == 0
    assert errors_of(first, at, 1) == [EXFULL]
    second.peer.pool.release(part)
    second.memory.failing = ENOMEM
    assert first.send(one, data=b"x", flags=CONTINUE, errors=at) == 0
    assert errors_of(first, at, 1) == [ENOMEM]
    second.memory.failing = 0
    vecs = first.process.place(pack("<QQ", 1, abi.POOL_SIZE))
    huge = {"ptr_destinations": first.ids([one]), "n_destinations": 1, "ptr_vecs": vecs, "n_vecs": 1}
    assert first.send_raw(flags=CONTINUE, ptr_errors=at, **huge) == 0
    assert errors_of(first, at, 1) == [EMSGSIZE]
    assert first.send(one, one, flags=CONTINUE, errors=at) == -ENOTUNIQ
    assert first.send(one, flags=CONTINUE, errors=BAD) == -EFAULT
    assert first.send_raw(flags=CONTINUE, ptr_destinations=BAD, n_destinations=1) == -EFAULT
    assert first.send(one, handles=[7], flags=CONTINUE, errors=at) == -ENXIO
    assert len(second.all()) == 1


def test_b1_send_11_without_continue_no_errors_are_written(peers: Peers) -> None:
    first = peers[0]
    at = first.process.place(b"\x55" * 8)
    assert first.send(8, errors=at) == 0
    assert first.process.read(at, 8) == b"\x55" * 8


def test_b1_send_11_a_fresh_destination_that_fails_is_not_made(peers: Peers) -> None:
    first = peers[0]
    assert first.reset(slices=0) == 0
    assert first.send(8, flags=CONTINUE) == 0
    assert untouched(first)
    assert first.send(8, handles=[8], flags=CONTINUE) == 0
    assert set(first.peer.table) == {8}


def test_b1_send_12_b1_recv_14_seeds(peers: Peers) -> None:
    first, second, _ = peers
    foreign = second.give(8, first)
    assert first.recv(SEED) == -11
    assert first.send(8, flags=FLAG_SEED) == -EINVAL
    assert first.send(flags=FLAG_SEED | CONTINUE) == -EINVAL
    assert first.send(data=b"seed", handles=[16, foreign], flags=FLAG_SEED) == 0
    assert not first.is_readable and first.recv() == -11
    assert first.peer.limits.slices == 1 and first.peer.limits.handles == 4
    for flags in (SEED | PEEK, SEED):
        seed = first.receive(flags)
        assert (seed.type, seed.flags, seed.destination) == (DATA, 0, INVALID)
        assert seed.data == b"seed" and seed.handles == [16, foreign]
    assert first.recv(SEED) == -11
    assert first.peer.table[16].user == 3


def test_b1_send_12_another_seed_takes_the_place_of_the_former(peers: Peers) -> None:
    first, second, _ = peers
    foreign = second.give(8, first)
    assert first.send(data=b"one", handles=[foreign], flags=FLAG_SEED) == 0
    assert first.release(foreign) == 0
    assert not second.is_readable
    assert first.send(data=b"two", flags=FLAG_SEED) == 0
    assert second.receive().told == (RELEASE, 8)
    assert first.receive(SEED).data == b"two"
    assert first.reset(slices=1) == 0  # what was received is still published
    assert first.send(flags=FLAG_SEED) == -EDQUOT


def test_b1_send_13_the_layout_of_a_slice(peers: Peers) -> None:
    first = peers[0]
    files = pass_files(first, FakeFile(), FakeFile(), FakeFile())
    assert first.send(8, data=b"12345", handles=[16, 8], fds=files) == 0
    part = first.front.part
    assert part.size == 8 + 16 + 16
    got = first.receive()
    memory = bytes(first.memory.data[got.offset :])
    assert memory[:5] == b"12345"
    assert memory[8:24] == pack("<QQ", 16, 8)
    assert memory[24:36] == pack("<iii", -1, -1, -1)
    assert first.send(8) == 0
    assert first.front.part.size == 8


def test_b1_send_14_the_security_context() -> None:
    world = World()
    sender, wants, does_not = world.open(Process(context=b"label")), world.open(), world.open()
    assert wants.reset(peer_flags=abi.PEER_FLAG_WANT_SECCTX) == 0
    handles = [wants.give(8, sender), does_not.give(8, sender)]
    assert sender.send(*handles, data=b"abc") == 0
    assert wants.front.part.size == does_not.front.part.size == 16
    assert does_not.reset(peer_flags=abi.PEER_FLAG_WANT_SECCTX) == 0  # too late
    one, two = wants.receive(), does_not.receive()
    assert (one.flags, one.n_secctx, one.secctx) == (abi.MSG_FLAG_HAS_SECCTX, 5, b"label")
    assert (two.flags, two.n_secctx) == (0, 0)
    sender.process.context = b""
    assert sender.send(handles[0]) == 0
    empty = wants.receive()
    assert (empty.flags, empty.n_secctx) == (abi.MSG_FLAG_HAS_SECCTX, 0)
    sender.process.context = None
    assert sender.send(handles[0]) == 0
    assert wants.receive().flags == 0


def test_b1_lim_5_the_daemons_own_bounds_are_edquot() -> None:
    world = World(memory_limit=80_000)
    first = world.open()
    results = {first.send(8, data=bytes(5000)) for _ in range(20)}
    assert results == {0, -EDQUOT}
    got = first.all()
    assert got and first.send(8, data=bytes(5000)) == 0
    assert {first.transfer(8) for _ in range(200)} == {0, -EDQUOT}


def test_notifications_that_nobody_reads_are_charged() -> None:
    """B1-LIM-5, B1-HAND-6: whoever makes and destroys without end and never receives is stopped."""
    world = World(memory_limit=80_000)
    first = world.open()
    results = [first.destroy(8, release=True) for _ in range(1000)]
    assert results[0] == 0 and results[-1] == -EDQUOT
    assert first.recv() == -11
    assert first.destroy(8, release=True) == 0

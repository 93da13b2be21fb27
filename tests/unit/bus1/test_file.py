"""FILE, GEN: the open file, its states, and what all commands have in common."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOMEM, ENOTTY, EPERM, ESHUTDOWN
from select import POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from struct import pack

import pytest

from kdbusfs.base.errors import CommandError
from kdbusfs.bus1 import abi
from tests.support.bus1_client import Caller, Process, SparseMemory, World

from .conftest import Peers

WRITABLE = POLLOUT | POLLWRNORM
READABLE = POLLIN | POLLRDNORM


def test_b1_file_2_b1_idea_1_two_opens_are_two_peers(peers: Peers) -> None:
    first, second, _ = peers
    assert first.send(8, data=b"to itself") == 0
    assert first.is_readable and not second.is_readable
    assert second.release(8) != 0
    assert first.all()[0].data == b"to itself"


def test_b1_file_2_no_memory_for_a_pool_fails_the_open(world: World) -> None:
    memory = SparseMemory()
    memory.resize_errno = ENOMEM
    with pytest.raises(CommandError) as caught:
        world.core.open(Caller(Process()), memory)
    assert caught.value.errno == ENOMEM
    assert not world.core.users and not world.accounts.accounts


def test_b1_file_2_a_user_without_memory_cannot_open(world: World) -> None:
    small = World(memory_limit=20_000)
    client = small.open()
    with pytest.raises(CommandError) as caught:
        small.open()
    assert caught.value.errno == ENOMEM
    client.close()
    assert not small.accounts.accounts


def test_b1_file_2_nobody_opens_when_the_mount_goes(world: World) -> None:
    client = world.open()
    world.core.shut_down()
    assert client.recv() == -ESHUTDOWN
    with pytest.raises(CommandError) as caught:
        world.open()
    assert caught.value.errno == ESHUTDOWN


def test_b1_file_3_the_account_is_that_of_who_opened(world: World) -> None:
    """B1-FILE-3, B1-LIM-1: whoever uses the descriptor later."""
    process = Process(uid=1001)
    client = world.open(process)
    process.uid = 1002
    assert client.send(8) == 0
    assert set(world.core.users) == {1001}
    assert client.peer.limits.user.uid == 1001


def test_b1_file_5_the_pool_is_there_from_open_on(world: World) -> None:
    assert world.open().memory.size == abi.POOL_SIZE == 1 << 29


def test_b1_file_6_poll_follows_the_queue(peers: Peers) -> None:
    first, second, _ = peers
    world = first.world
    assert first.peer.poll() == WRITABLE
    handle = first.give(8, second)
    world.changed.clear()
    assert second.send(handle) == 0
    assert world.changed == [first.peer]
    assert first.peer.poll() == WRITABLE | READABLE
    assert second.send(handle) == 0
    assert world.changed == [first.peer]
    first.receive()
    assert first.is_readable
    first.receive()
    assert first.peer.poll() == WRITABLE
    assert world.changed == [first.peer] * 2


def test_b1_file_6_after_a_disconnect_there_is_pollhup_alone(peers: Peers) -> None:
    first = peers[0]
    assert first.send(8) == 0
    first.world.changed.clear()
    assert first.disconnect() == 0
    assert first.peer.poll() == POLLHUP
    assert first.peer in first.world.changed


def test_b1_file_6_a_front_that_recv_discards_counts(peers: Peers) -> None:
    """B1-FILE-6, B1-HAND-6."""
    first = peers[0]
    assert first.destroy(8, release=True) == 0
    assert first.is_readable
    assert first.recv() == -11
    assert not first.is_readable


def test_b1_file_7_the_last_close_disconnects(peers: Peers) -> None:
    first, second, third = peers
    handle = first.give(8, second)
    back = second.give(16, first)
    assert first.send(back, data=b"stays") == 0
    first.close()
    assert second.send(handle) == -ESHUTDOWN
    assert [each.told for each in second.all()] == [(abi.MSG_DATA, 16), (abi.MSG_NODE_DESTROY, handle), (3, 16)]
    assert first.memory.closed
    assert not third.is_readable


def test_b1_gen_1_disconnected_everything_is_eshutdown(peers: Peers) -> None:
    first = peers[0]
    assert first.disconnect() == 0
    for number in (*abi.COMMANDS[1:], 0x1234, 0xC0089699):
        assert first.run(number, bytes(96)) == -ESHUTDOWN
    assert first.disconnect() == -ESHUTDOWN


@pytest.mark.parametrize("number", [0xC0089601, 0x80209601, 0xC0209701, 0xC00896FF, 0xC0089621, 0, abi.CMD_SEND + 1])
def test_b1_gen_2_the_whole_number_has_to_match(peers: Peers, number: int) -> None:
    assert peers[0].run(number, bytes(96)) == -ENOTTY


def test_b1_gen_3_b1_fuse_1_the_argument_of_disconnect(peers: Peers) -> None:
    """A pointer to 0 stands for NULL; it is looked at before the state."""
    first = peers[0]
    assert first.disconnect(1) == -EINVAL
    assert first.recv() == -11
    assert first.disconnect() == 0
    assert first.disconnect(1) == -EINVAL


def test_b1_gen_4_state_then_struct_then_flags(peers: Peers) -> None:
    first = peers[0]
    for number in abi.COMMANDS:
        assert first.run(number, b"\xff" * 96, error=EFAULT) == -EFAULT
    # Its copy may fail for another reason, which is EFAULT to the client.
    assert first.run(abi.CMD_RECV, bytes(96), error=EPERM) == -EFAULT
    assert first.disconnect() == 0
    for number in abi.COMMANDS[1:]:
        assert first.run(number, b"\xff" * 96, error=EFAULT) == -ESHUTDOWN


def test_b1_gen_4_unread_members_need_not_be_0(peers: Peers) -> None:
    first = peers[0]
    assert first.query()[:2] == (0, 0)
    assert first.run(abi.CMD_PEER_RESET, pack("<QQIIII", 0, abi.U64_MAX, *(abi.UNCHANGED,) * 4)) == 0
    assert first.transfer(8) == 0  # dst_handle is 5
    members = {f"ptr_{name}": 1 for name in ("destinations", "errors", "vecs", "handles", "fds")}
    assert first.send_raw(**members) == 0


def test_b1_gen_5_what_travels_back(peers: Peers) -> None:
    """On success only; the others leave the struct as it is."""
    first = peers[0]
    for number, struct in ((abi.CMD_PEER_QUERY, b"\1" * 32), (abi.CMD_RECV, b"\7" + bytes(95))):
        first.run(number, struct)
        assert first.out == struct
    assert first.recv() == -11
    assert first.out == pack("<12Q", 0, abi.U64_MAX, *(5,) * 10)
    before = pack("<QQQ", 0, 0, 0)
    assert first.run(abi.CMD_NODES_DESTROY, before) == 0 and first.out == before


def test_b1_gen_7_a_peer_that_goes_during_a_transfer_is_refused(world: World) -> None:
    first, second = world.open(Process()), world.open(Process())
    first.process.handles[9] = second.peer
    first.process.meanwhile = second.close
    assert first.transfer(8, 9) == -ESHUTDOWN
    assert not first.peer.table and not first.peer.limits.handles

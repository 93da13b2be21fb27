"""The node table: node ids, lookup counts, and what becomes of a second open of one node id (FS-33)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kdbusfs.abi.constants import MAKE_ACCESS_WORLD
from kdbusfs.core.bus import Bus
from kdbusfs.core.domain import Domain
from kdbusfs.core.endpoint import Endpoint
from kdbusfs.fuse.nodes import Admission, EndpointNode, NodeIds, NodeTable, PrivateNode
from tests.support.fake_host import FakeHost
from tests.support.fake_tree import FakeHandle, FakeMemory

ME, OTHER = 100, 200


@pytest.fixture
def table() -> NodeTable:
    return NodeTable(itertools.count(1000).__next__)


class Buses:
    """Makes buses of one domain."""

    def __init__(self) -> None:
        self._domain = Domain(FakeHost())

    def make_bus(self, name: str) -> Bus:
        bus = Bus(self._domain, name, MAKE_ACCESS_WORLD, 0, 0)
        bus.ino = self._domain.inos.take()
        bus.add_endpoint(Endpoint(bus, "bus", MAKE_ACCESS_WORLD, 0, 0))
        return bus


@pytest.fixture
def endpoint() -> Endpoint:
    return Buses().make_bus("0-a").endpoints["bus"]


def open_first(table: NodeTable, node: EndpointNode, fh: int, backing_id: int = 1) -> Any:
    """An open that is alone on its node."""
    handle: Any = FakeHandle(node.endpoint, FakeMemory(backing_id))
    table.opened(node, fh, handle)
    return handle


def private_node(table: NodeTable, handle: Any) -> PrivateNode:
    node = table.look_up_pool(handle)
    assert node is not None
    return node


def test_no_node_id_is_given_out_again_by_a_later_daemon() -> None:
    reserved = [0]
    given: set[int] = set()
    for _ in range(3):
        ids = NodeIds(reserved[-1], reserved.append)
        some = [ids.fresh() for _ in range(70_000)]
        assert min(some) >= 64 and max(some) < reserved[-1]
        assert given.isdisjoint(some)
        given.update(some)
    assert len(given) == 210_000
    assert len(reserved) == 1 + 3 * 2


def test_root_and_control_are_known_from_the_start_and_never_forgotten(table: NodeTable) -> None:
    for nodeid in (1, 2):
        table.forget(nodeid, 1 << 40)
        node = table.get(nodeid)
        assert node is not None and node.ino == nodeid


def test_files_that_are_always_there_have_numbers_that_no_bus_can_get(table: NodeTable) -> None:
    directory = table.add_directory(table.root, ".kdbusfs")
    file = table.add_file(directory, "stats", 0o400)
    assert table.get(file.nodeid) is file
    assert min(directory.ino, file.ino) > 1 << 30
    table.forget(file.nodeid, 5)
    assert table.get(file.nodeid) is file


def test_a_bus_keeps_its_node_id_until_every_lookup_is_forgotten(table: NodeTable) -> None:
    bus = Buses().make_bus("0-a")
    node = table.look_up_bus(bus)
    assert table.look_up_bus(bus) is node
    table.forget(node.nodeid, 1)
    assert table.get(node.nodeid) is node
    table.forget(node.nodeid, 1)
    assert table.get(node.nodeid) is None
    again = table.look_up_bus(bus)
    assert again.nodeid != node.nodeid
    assert again.ino == node.ino == bus.ino


def test_a_new_bus_of_an_old_name_has_another_node_id(table: NodeTable) -> None:
    domain = Buses()
    old = table.look_up_bus(domain.make_bus("0-a"))
    new = table.look_up_bus(domain.make_bus("0-a"))
    assert old.nodeid != new.nodeid


def test_every_lookup_of_an_endpoint_is_a_node_that_nobody_has_open_with_the_same_ino(
    table: NodeTable, endpoint: Endpoint
) -> None:
    """FS-33"""
    nodes = []
    for fh in range(5):
        node = table.look_up_endpoint(endpoint, ME)
        assert table.look_up_endpoint(endpoint, ME) is node
        assert not node.opens
        open_first(table, node, fh)
        nodes.append(node)
    assert len({node.nodeid for node in nodes}) == 5
    assert {node.ino for node in nodes} == {endpoint.ino}


def test_the_last_node_serves_again_when_it_is_closed_and_as_long_as_the_kernel_knows_it(
    table: NodeTable, endpoint: Endpoint
) -> None:
    node = table.look_up_endpoint(endpoint, ME)
    open_first(table, node, 1)
    table.closed(1)
    assert table.look_up_endpoint(endpoint, ME) is node
    table.forget(node.nodeid, 2)
    assert table.look_up_endpoint(endpoint, ME) is not node


def test_a_thread_that_was_told_estale_gets_a_node_that_no_other_thread_is_given(
    table: NodeTable, endpoint: Endpoint
) -> None:
    """The kernel walks the path once more, and not a third time."""
    first = table.look_up_endpoint(endpoint, ME)
    open_first(table, first, 1)
    assert table.admit(first, OTHER) is Admission.STALE
    mine = table.look_up_endpoint(endpoint, OTHER)
    assert table.look_up_endpoint(endpoint, ME) is not mine
    again = table.look_up_endpoint(endpoint, OTHER)
    assert again is not mine
    assert table.admit(again, OTHER) is Admission.FIRST


def test_an_inode_whose_page_cache_has_copies_serves_once(table: NodeTable, endpoint: Endpoint) -> None:
    """FS-33: what a pool held must not show in the pool of whoever opens the endpoint next."""
    node = table.look_up_endpoint(endpoint, ME)
    handle = open_first(table, node, 1)
    handle.connection = object()
    assert table.copied_by(1) is handle.memory
    table.closed(1)
    assert table.look_up_endpoint(endpoint, ME) is not node


def test_times_stay_while_an_inode_is_held_and_are_new_after_the_last(
    table: NodeTable, endpoint: Endpoint
) -> None:
    """FS-10"""
    first = table.look_up_endpoint(endpoint, ME)
    second = table.look_up_endpoint(endpoint, ME)
    table.forget(first.nodeid, 1)
    third = table.look_up_endpoint(endpoint, ME)
    assert first.changed_ns == second.changed_ns == third.changed_ns
    table.forget(second.nodeid, 1)
    table.forget(third.nodeid, 1)
    assert table.look_up_endpoint(endpoint, ME).changed_ns > first.changed_ns


def test_the_table_is_back_at_its_size_when_everything_is_forgotten(
    table: NodeTable, endpoint: Endpoint
) -> None:
    before = len(table)
    ids = [table.look_up_endpoint(endpoint, ME).nodeid for _ in range(100)]
    ids += [table.look_up_bus(endpoint.bus).nodeid for _ in range(100)]
    ids += [private_node(table, FakeHandle(endpoint, FakeMemory(1))).nodeid for _ in range(100)]
    for nodeid in ids:
        table.forget(nodeid, 1)
    assert len(table) == before
    table.forget(ids[0], 1)  # of what is unknown: no harm


def test_the_first_open_of_a_node_is_admitted(table: NodeTable, endpoint: Endpoint) -> None:
    assert table.admit(table.look_up_endpoint(endpoint, ME), ME) is Admission.FIRST


def test_a_second_open_is_told_to_look_again_and_shares_if_there_is_nothing_else(
    table: NodeTable, endpoint: Endpoint
) -> None:
    node = table.look_up_endpoint(endpoint, ME)
    open_first(table, node, fh=1)
    assert table.admit(node, ME) is Admission.STALE
    assert table.admit(node, ME) is Admission.SHARED


def test_a_thread_that_found_a_fresh_node_is_told_to_look_again_the_next_time(
    table: NodeTable, endpoint: Endpoint
) -> None:
    node = table.look_up_endpoint(endpoint, ME)
    open_first(table, node, fh=1)
    assert table.admit(node, ME) is Admission.STALE
    assert table.admit(table.look_up_endpoint(endpoint, ME), ME) is Admission.FIRST
    assert table.admit(node, ME) is Admission.STALE


def test_every_thread_is_told_for_itself(table: NodeTable, endpoint: Endpoint) -> None:
    node = table.look_up_endpoint(endpoint, ME)
    open_first(table, node, fh=1)
    assert table.admit(node, ME) is Admission.STALE
    assert table.admit(node, OTHER) is Admission.STALE
    assert table.admit(node, ME) is Admission.SHARED
    assert table.admit(node, OTHER) is Admission.SHARED


def test_a_node_whose_holder_said_hello_is_busy(table: NodeTable, endpoint: Endpoint) -> None:
    node = table.look_up_endpoint(endpoint, ME)
    open_first(table, node, fh=1).connection = object()
    assert table.admit(node, ME) is Admission.STALE
    assert table.admit(node, ME) is Admission.BUSY


def test_a_node_whose_holder_moved_to_its_private_node_is_free_again(
    table: NodeTable, endpoint: Endpoint
) -> None:
    node = table.look_up_endpoint(endpoint, ME)
    handle = open_first(table, node, fh=1)
    handle.connection = object()
    table.opened(private_node(table, handle), 2, handle)
    table.closed(1)
    assert table.admit(node, ME) is Admission.FIRST


def test_what_is_left_open_of_a_node_by_who_has_moved_keeps_nobody_out(
    table: NodeTable, endpoint: Endpoint
) -> None:
    """A duplicate from before HELLO."""
    node = table.look_up_endpoint(endpoint, ME)
    handle = open_first(table, node, fh=1)
    handle.connection = object()
    table.opened(private_node(table, handle), 2, handle)
    assert table.admit(node, ME) is Admission.STALE
    assert table.admit(node, ME) is Admission.SHARED
    table.copied_by(1)
    assert table.admit(node, ME) is Admission.STALE
    assert table.admit(node, ME) is Admission.BUSY, "it has been looked at"


def test_a_private_node_is_found_until_it_is_opened_and_holds_nothing_after_its_close(
    table: NodeTable, endpoint: Endpoint
) -> None:
    handle = open_first(table, table.look_up_endpoint(endpoint, ME), fh=1)
    private_node(table, handle)
    private = private_node(table, handle)
    table.opened(private, 2, handle)
    assert table.look_up_pool(handle) is None
    table.closed(2)
    assert private.handle is None
    private_node(table, handle)


def test_closing_what_is_no_endpoint_file_is_ignored(table: NodeTable) -> None:
    table.closed(12345)


def test_threads_that_do_not_come_back_leave_no_more_than_a_bounded_trace(
    table: NodeTable, endpoint: Endpoint
) -> None:
    node = table.look_up_endpoint(endpoint, ME)
    open_first(table, node, fh=1)
    for tid in range(20_000):
        assert table.admit(node, tid) is Admission.STALE
    assert table.admit(node, 0) is Admission.STALE  # forgotten long since
    assert table.admit(node, 19_999) is Admission.SHARED


def test_many_nodes_without_an_open_are_a_crowd(table: NodeTable) -> None:
    """Files before their buses; and not again before there are many more, forgotten or not."""
    domain = Buses()
    files = []
    buses: list[int] = []
    opened = 0
    while not (crowd := table.prunable()):
        bus = domain.make_bus(f"0-{len(buses)}")
        buses.append(table.look_up_bus(bus).nodeid)
        node = table.look_up_endpoint(bus.endpoints["bus"], ME)
        if len(buses) == 5:
            open_first(table, node, 500)
            opened = node.nodeid
        files.append(node.nodeid)
        assert len(table) < 2000
    assert crowd == [nodeid for nodeid in files if nodeid != opened] + buses
    held = len(table)
    for index in range(500):
        table.look_up_bus(domain.make_bus(f"0-more-{index}"))
        assert not table.prunable()
    for nodeid in crowd:
        table.forget(nodeid, 1)
    left = len(table)
    assert left < held
    for index in range(1023):
        table.look_up_bus(domain.make_bus(f"0-again-{index}"))
        assert not table.prunable()
    table.look_up_bus(domain.make_bus("0-last"))
    assert len(table) == left + 1024 and table.prunable()

"""What is told of peers, for people who look into a mount."""

from __future__ import annotations

from typing import Any

from kdbusfs.base.identity import Pids
from kdbusfs.bus1 import abi
from kdbusfs.bus1.details import QUEUED_MOST
from tests.support.bus1_client import FakeFile, Process, World, pass_files

NS = 4


def told(world: World, pid_ns: int = NS) -> list[dict[str, Any]]:
    """All of it at once."""
    return [
        {**summary, "nodes": list(nodes), "handles": list(handles), "queue": list(queue)}
        for summary, nodes, handles, queue in world.core.peer_details(pid_ns)
    ]


def test_a_peer_that_has_nothing(world: World) -> None:
    world.open(Process(uid=1000, numbers={NS: Pids(77, 78, 1)}))
    (peer,) = told(world)
    assert peer == {
        "peer": 1,
        "uid": 1000,
        "pid": 77,
        "slices": 0,
        "max_slices": 16384,
        "references": 0,
        "max_handles": 65536,
        "pool_used": 0,
        "queued": 0,
        "seed": False,
        "nodes": [],
        "handles": [],
        "queue": [],
    }
    assert told(world, NS + 1)[0]["pid"] is None


def test_nodes_and_handles(world: World) -> None:
    owner, holder = world.clients(2)
    handle = owner.give(8, holder)
    owner.give(8, holder)
    owner.give(16, owner)
    first, second = told(world)
    assert first["nodes"] == [
        {"id": 8, "holders": 1, "references": 2, "destroyed": False},
        {"id": 16, "holders": 0, "references": 1, "destroyed": False},
    ]
    assert (first["handles"], second["nodes"]) == ([], [])
    expected = {"id": handle, "owner": 1, "node": 8, "references": 2, "destroyed": False}
    assert second["handles"] == [expected]
    assert owner.destroy(8, release=True) == 0
    first, second = told(world)
    assert [node["id"] for node in first["nodes"]] == [16]
    assert second["handles"] == [{**expected, "node": None, "destroyed": True}]


def test_queues(world: World) -> None:
    owner, sender = world.clients(2)
    handle = owner.give(8, sender)
    assert sender.send(handle, data=b"12345", handles=[0x40, 0x44], fds=pass_files(sender, FakeFile())) == 0
    assert sender.release(handle) == 0
    first, second = told(world)
    data = {"type": "data", "destination": 8, "uid": sender.process.uid, "bytes": 5, "handles": 2, "fds": 1}
    assert first["queue"] == [data, {"type": "release", "destination": 8}]
    assert (first["queued"], first["slices"], first["references"]) == (2, 1, 3)
    assert first["pool_used"] >= 5
    assert [node["holders"] for node in second["nodes"]] == [1, 1], "a message with a handle counts"
    assert owner.send_raw(flags=abi.SEND_FLAG_SEED) == 0
    again = owner.give(8, sender)
    assert owner.destroy(8) == 0
    first, second = told(world)
    assert first["seed"]
    assert first["queue"] == [data, {"type": "destroy", "destination": 8}]
    assert second["queue"] == [{"type": "destroy", "destination": again}]


def test_of_a_long_queue_the_front_is_told(world: World) -> None:
    (peer,) = world.clients(1)
    for _ in range(QUEUED_MOST + 5):
        assert peer.send(8) == 0
    (found,) = told(world)
    assert (found["queued"], len(found["queue"])) == (QUEUED_MOST + 5, QUEUED_MOST)


def test_who_goes_while_it_is_read_is_left_out(world: World) -> None:
    first, second, third = world.clients(3)
    for other in (second, third):
        first.give(8, other)
        first.give(16, other)
    details = world.core.peer_details(NS)
    _, nodes, _, _ = next(details)
    assert next(nodes)["id"] == 8
    second.close()
    first.close()
    assert list(nodes) == [], "its ids are gone"
    ((summary, _, handles, _),) = details
    assert summary["peer"] == 3
    assert next(handles)["id"] == 0xB
    third.close()
    assert list(handles) == []

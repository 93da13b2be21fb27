"""Policies, endpoints, activators, monitors, pending calls and descriptors at once, with clients that are killed."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, make_bus, make_endpoint, world
from tests.support.actors import Actors, Link, until
from tests.support.crew import NAMES, Crew
from tests.support.steady import Steady

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

SEED = 20150116
SEEDS = (1, 2)
DEATHS = 120
AT_ONCE = 6
OWNERS = 10


def outline(domain: DomainMount) -> list[dict[str, Any]]:
    """The buses, with the figures that do not change while their clients talk."""
    found = []
    for bus in domain.stats()["buses"]:
        kept = ("id", "endpoint", "flags", "uid", "names", "matches")
        connections = [{key: connection[key] for key in kept} for connection in bus["connections"]]
        found.append({**bus, "connections": connections})
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_clients_that_use_everything_are_killed(
    domain_mount: DomainMount, actors: Actors, healthy: None, seed: int
) -> None:
    """CLOSE-1, CLOSE-2, SYNC-5, POL-19, ACT-7, ACT-8, FS-25: the remaining clients of the bus are not affected"""
    steady = Steady(domain_mount.path, actors)
    before = outline(domain_mount)

    def kill_many(link: Link) -> int:
        chance = random.Random(seed)
        crew = Crew(steady.path, seed, AT_ONCE)
        for _ in range(DEATHS):
            time.sleep(chance.random() * 0.02)
            crew.replace(chance.randrange(AT_ONCE))
        crew.kill()
        return DEATHS

    assert actors(kill_many).result() == DEATHS
    until("the end of all that was of the dead", lambda: outline(domain_mount) == before)
    steady.end()


def test_the_owner_of_a_bus_is_killed_while_everything_is_used(
    domain_mount: DomainMount, actors: Actors, healthy: None
) -> None:
    """FS-24, SHUT-1 to SHUT-3: all activity of its clients ends, other buses stay"""
    steady = Steady(domain_mount.path, actors)
    before = outline(domain_mount)

    def own(link: Link) -> None:
        rights = [world(c.POLICY_TALK)]
        with (
            make_bus(domain_mount.path, "doomed", access=c.MAKE_ACCESS_WORLD) as bus,
            Connection(bus, flags=c.HELLO_POLICY_HOLDER, name="org.example.Doomed", policy=rights),
            Connection(bus, flags=c.HELLO_MONITOR, attach_recv=c.ATTACH_ANY),
            make_endpoint(bus, "crew", access=c.MAKE_ACCESS_WORLD, policy={NAMES[0]: rights}),
        ):
            link.say(bus.path)
            link.hear("the end", 3600)

    def sail(path: str, seed: int) -> Any:
        def play(link: Link) -> None:
            crew = Crew(path, seed, AT_ONCE)
            link.say()
            crew.wait()

        return play

    chance = random.Random(SEED)
    for number in range(OWNERS):
        owner = actors(own, name=f"owner {number}")
        crew = actors(sail(owner.hear("its bus"), SEED + number), name=f"crew {number}")
        crew.hear("its members")
        time.sleep(chance.random() * 0.5)
        owner.kill()
        owner.wait()
        crew.result()
        until("the end of the bus", lambda: outline(domain_mount) == before)
    steady.end()

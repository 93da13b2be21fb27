"""Everything that ends is freed by its reference count: the garbage collector does not run while requests wait."""

from __future__ import annotations

from random import Random

from tests.support.core_client import World
from tests.support.garbage import watched

from .test_together import STEPS, Play


def _play(seed: int) -> World:
    play = Play(Random(seed), old=(1.0, 0.5)[seed % 2])
    for _ in range(STEPS):
        play.step()
        play.check()
    play.end()
    play.world.host.watched.clear()
    play.world.domain.changed.clear()
    return play.world


def test_no_play_leaves_cycles() -> None:
    with watched() as garbage:
        worlds = [_play(seed) for seed in range(40)]
    assert not garbage.found
    assert all(not world.domain.buses for world in worlds)

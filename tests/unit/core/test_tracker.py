"""The life of a request's tracker: every event in every state (`core/reply.py`), alone and by commands."""

from __future__ import annotations

from collections.abc import Callable
from errno import ECANCELED, EPERM, EPIPE, ETIMEDOUT

import pytest

from kdbusfs.base.call import ERESTARTSYS
from kdbusfs.core import reply as tracker_module
from kdbusfs.core.message import Message
from kdbusfs.core.reply import TRANSITIONS, Event, State, Tracker
from kdbusfs.core.send import CancelToken
from tests.support.core_client import PENDING, Client, World
from tests.support.core_scenes import drain, expire, reply, request, results

PATHS: dict[State, tuple[Event, ...]] = {
    State.NEW: (),
    State.OWED: (Event.QUEUE,),
    State.STARTING: (Event.QUEUE_BLOCKING,),
    State.BLOCKED: (Event.QUEUE_BLOCKING, Event.BLOCK),
    State.INTERRUPTED: (Event.QUEUE_BLOCKING, Event.BLOCK, Event.INTERRUPT),
    State.EARLY: (Event.QUEUE_BLOCKING, Event.OUTCOME),
    State.KEPT: (Event.QUEUE_BLOCKING, Event.BLOCK, Event.INTERRUPT, Event.OUTCOME),
    State.DONE: (Event.QUEUE, Event.END),
}
"""The shortest way to each state."""


def make(world: World, *path: Event) -> Tracker:
    replier, requester = world.connect().connection, world.connect().connection
    tracker = Tracker(replier, requester, Message(cookie=1), is_blocking=Event.QUEUE_BLOCKING in path)
    for event in path:
        tracker.advance(event)
    return tracker


def test_the_numbers_of_the_hot_path_are_those_of_the_enums() -> None:
    assert {state.name: getattr(tracker_module, state.name) for state in State} == dict(State.__members__)
    assert {event.name: getattr(tracker_module, event.name) for event in Event} == dict(Event.__members__)


def test_every_state_has_a_row_and_can_be_reached(world: World) -> None:
    assert list(TRANSITIONS) == list(State) == list(PATHS)
    for state, path in PATHS.items():
        assert make(world, *path).state == state


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_event_in_every_state(world: World, state: State, event: Event) -> None:
    """A step leads where the table says; one that the table lacks is refused, and nothing has changed."""
    tracker = make(world, *PATHS[state])
    expected = TRANSITIONS[state].get(event)
    if expected is None:
        with pytest.raises(AssertionError):
            tracker.advance(event)
        assert tracker.state == state
    else:
        tracker.advance(event)
        assert tracker.state == expected


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_what_a_state_means(world: World, state: State) -> None:
    tracker = make(world, *PATHS[state])
    assert tracker.is_linked is (state not in (State.NEW, State.DONE))
    assert tracker.has_outcome is (state in (State.EARLY, State.KEPT))


# The same steps, brought about by commands.


class Scene:
    """A requester and a replier, and the tracker between them."""

    def __init__(self, world: World, state: State) -> None:
        self.world = world
        self.client: Client = world.connect()
        self.server: Client = world.connect()
        now = world.host.clock.now
        self.deadline = now + 1000
        if state is State.OWED:
            assert request(self.client, self.server.id, 7, timeout=self.deadline) == 0
        else:
            assert self.send() == PENDING
        (self.tracker,) = self.server.connection.requests.owed
        if state in (State.INTERRUPTED, State.KEPT):
            (call,) = world.domain.waiting
            world.domain.interrupt(call)
            assert results(world) == [-ERESTARTSYS]
        if state is State.KEPT:
            assert reply(self.server, self.client.id, 7) == 0
        assert self.tracker.state == state

    def send(self) -> int:
        return request(self.client, self.server.id, 7, timeout=self.deadline, sync=True)

    def reply(self) -> int:
        return reply(self.server, self.client.id, 7)

    def expire(self) -> None:
        expire(self.world, self.deadline)


LINKED = (State.OWED, State.BLOCKED, State.INTERRUPTED, State.KEPT)
AFTER_OUTCOME = {**dict.fromkeys(LINKED, State.DONE), State.INTERRUPTED: State.KEPT, State.KEPT: State.KEPT}


@pytest.mark.parametrize("state", LINKED, ids=lambda state: state.name)
def test_rep_7_and_sync_4_a_reply_in_each_state(world: World, state: State) -> None:
    scene = Scene(world, state)
    assert scene.reply() == (-EPERM if state is State.KEPT else 0)
    assert scene.tracker.state == AFTER_OUTCOME[state]
    assert scene.reply() == -EPERM, "there is one reply at most"


@pytest.mark.parametrize("state", LINKED, ids=lambda state: state.name)
def test_rep_11_the_replier_leaves_in_each_state(world: World, state: State) -> None:
    scene = Scene(world, state)
    scene.server.close()
    assert scene.tracker.state == AFTER_OUTCOME[state]
    assert results(world) == ([-EPIPE] if state is State.BLOCKED else [])
    if state is State.INTERRUPTED:
        assert scene.send() == -EPIPE
    assert not scene.server.connection.requests.owed


@pytest.mark.parametrize("end", ["the deadline", "the requester"], ids=lambda end: end.replace(" ", "-"))
@pytest.mark.parametrize("state", LINKED, ids=lambda state: state.name)
def test_rep_4_rep_13_sync_3_the_end_of_each_state(world: World, state: State, end: str) -> None:
    scene = Scene(world, state)
    deed: Callable[[], None] = scene.expire if end == "the deadline" else scene.client.close
    deed()
    assert scene.tracker.state == State.DONE
    if state is State.BLOCKED and end == "the deadline":
        assert results(world) == [-ETIMEDOUT]
    assert not scene.client.connection.requests.trackers and not scene.server.connection.requests.owed
    drain(scene.server)
    assert scene.client.connection.requests.count == 0


@pytest.mark.parametrize("state", [State.INTERRUPTED, State.KEPT], ids=lambda state: state.name)
def test_sync_2_and_sync_4_a_restart_in_each_state(world: World, state: State) -> None:
    scene = Scene(world, state)
    assert scene.send() == (PENDING if state is State.INTERRUPTED else 0)
    assert scene.tracker.state == (State.BLOCKED if state is State.INTERRUPTED else State.DONE)
    assert scene.server.connection.queue.count == 1, "the request is not queued again"


def test_sync_1_a_cancelled_wait_is_done(world: World) -> None:
    scene = Scene(world, State.BLOCKED)
    token = CancelToken()
    token.block(scene.tracker)
    token.cancelled()
    assert results(world) == [-ECANCELED]
    assert scene.tracker.state == State.DONE
    token.cancelled()
    assert results(world) == [], "a second time nothing happens"

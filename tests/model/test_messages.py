"""SEND, RECV, REP: random traffic against a naive model of queues, trackers, files and slices."""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EAGAIN, ECONNRESET, ENXIO, EPERM, EPIPE, ETIMEDOUT

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.call import ERESTARTSYS, Call
from tests.support.core_client import PENDING, Client, World
from tests.support.core_scenes import pass_files, pass_memfd
from tests.support.fake_host import FakeFile, sealed_memfd

peers = st.integers(0, 2)
DEAD, TIMEOUT = c.ITEM_REPLY_DEAD, c.ITEM_REPLY_TIMEOUT


@dataclass(eq=False)
class Sent:
    """A queued message: `key` is its cookie, or the cookie_reply of a notification."""

    key: int
    priority: int
    payload: bytes
    tracker: Tracker | None = None
    notification: int = 0


@dataclass(eq=False)
class Tracker:
    requester: Peer
    replier: Peer
    cookie: int
    deadline: int
    sync: bool
    call: Call | None = None


@dataclass(eq=False)
class Peer:
    client: Client
    queue: list[Sent] = field(default_factory=list)
    published: list[tuple[int, int]] = field(default_factory=list)  # offset, key


class MessagesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.peers = [Peer(self.world.connect()) for _ in range(3)]
        self.trackers: list[Tracker] = []
        self.files: list[FakeFile] = []
        self.cookie = 0
        self.finished: dict[Call, int] = {}

    # Helpers

    def payload(self, sender: Client, size: int, files: bool) -> tuple[bytes, bytes]:
        data = bytes(self.cookie % 251 for _ in range(size))
        items = sender.vec(data) if size else b""
        if files:
            file, memfd = FakeFile(), sealed_memfd(8)
            self.files += [file, memfd]
            sender.process.files.clear()
            items += pass_files(sender.process, file) + pass_memfd(sender.process, 8, file=memfd)
        return data, items

    def end(self, tracker: Tracker, kind: int, errno: int) -> None:
        """The tracker ends without a reply."""
        self.trackers.remove(tracker)
        if tracker.sync:
            assert tracker.call is not None
            self.finished[tracker.call] = -errno
        else:
            tracker.requester.queue.append(Sent(tracker.cookie, 0, b"", notification=kind))

    def check_finished(self) -> None:
        done = {call: call.result for call in self.world.domain.completed}
        assert len(done) == len(self.world.domain.completed)
        self.world.domain.completed.clear()
        assert {id(call): result for call, result in done.items()} == {
            id(call): result for call, result in self.finished.items()
        }
        self.finished = {}

    # Rules

    @rule(source=peers, to=peers, priority=st.integers(-2, 2), size=st.integers(0, 40), files=st.booleans())
    def send(self, source: int, to: int, priority: int, size: int, files: bool) -> None:
        sender, receiver = self.peers[source], self.peers[to]
        if len(receiver.queue) >= 16:  # the quota has tests of its own
            return
        self.cookie += 1
        data, items = self.payload(sender.client, size, files)
        assert sender.client.send(dst=receiver.client.id, cookie=self.cookie, priority=priority, items=items) == 0
        receiver.queue.append(Sent(self.cookie, priority, data))

    @rule(source=peers, to=peers, sync=st.booleans(), wait=st.integers(1, 50), size=st.integers(0, 40))
    def request(self, source: int, to: int, sync: bool, wait: int, size: int) -> None:
        sender, receiver = self.peers[source], self.peers[to]
        if len(receiver.queue) >= 16:
            return
        self.cookie += 1
        data, items = self.payload(sender.client, size, files=False)
        deadline = self.world.host.clock.now + wait
        before = set(self.world.domain.waiting)
        result = sender.client.send(
            dst=receiver.client.id,
            flags=c.MSG_EXPECT_REPLY,
            cookie=self.cookie,
            cookie_reply=deadline,
            send_flags=c.SEND_SYNC_REPLY if sync else 0,
            items=items,
        )
        assert result == (PENDING if sync else 0)
        tracker = Tracker(sender, receiver, self.cookie, deadline, sync)
        if sync:
            (tracker.call,) = set(self.world.domain.waiting) - before
        self.trackers.append(tracker)
        receiver.queue.append(Sent(self.cookie, 0, data, tracker))

    @rule(source=peers, data=st.data(), files=st.booleans())
    def reply(self, source: int, data: st.DataObject, files: bool) -> None:
        replier = self.peers[source]
        mine = [tracker for tracker in self.trackers if tracker.replier is replier]
        if not mine:
            assert replier.client.send(dst=replier.client.id, cookie_reply=self.cookie + 1) == -EPERM
            return
        tracker = data.draw(st.sampled_from(mine))
        if not tracker.sync and len(tracker.requester.queue) >= 16:
            return
        self.cookie += 1
        sent, items = self.payload(replier.client, 9, files)
        requester = tracker.requester
        result = replier.client.send(
            dst=requester.client.id, cookie=self.cookie, cookie_reply=tracker.cookie, items=items
        )
        assert result == 0
        self.trackers.remove(tracker)
        if not tracker.sync:
            requester.queue.append(Sent(self.cookie, 0, sent))
            return
        assert tracker.call is not None
        self.finished[tracker.call] = 0
        requester.client.last_call = tracker.call
        self.read(requester, Sent(self.cookie, 0, sent))

    @rule(data=st.data(), answered=st.booleans())
    def signal_and_restart(self, data: st.DataObject, answered: bool) -> None:
        blocked = [tracker for tracker in self.trackers if tracker.sync]
        if not blocked:
            return
        tracker = data.draw(st.sampled_from(blocked))
        assert tracker.call is not None
        self.world.domain.interrupt(tracker.call)
        self.finished[tracker.call] = -ERESTARTSYS
        self.check_finished()
        requester, replier = tracker.requester.client, tracker.replier.client
        sent, items = b"", b""
        if answered:
            self.cookie += 1
            sent, items = self.payload(replier, 9, files=True)
            assert replier.send(dst=requester.id, cookie=self.cookie, cookie_reply=tracker.cookie, items=items) == 0
        before = set(self.world.domain.waiting)
        result = requester.send(
            dst=replier.id,
            flags=c.MSG_EXPECT_REPLY,
            cookie=tracker.cookie,
            cookie_reply=tracker.deadline,
            send_flags=c.SEND_SYNC_REPLY,
        )
        if answered:
            assert result == 0
            self.trackers.remove(tracker)
            self.read(tracker.requester, Sent(self.cookie, 0, sent))
        else:
            assert result == PENDING
            (tracker.call,) = set(self.world.domain.waiting) - before

    def read(self, peer: Peer, expected: Sent, peek: bool = False) -> None:
        message = peer.client.last_message()
        if expected.notification:
            assert message.kinds() == [expected.notification]
            assert message.cookie_reply == expected.key
        else:
            assert message.cookie == expected.key
            assert b"".join(part or b"" for part in peer.client.payloads(message)) == expected.payload
        if message.installation is not None:
            assert not peek
            message.installation.done()
        peer.published.append((message.offset, expected.key))

    def pick(self, peer: Peer, by_priority: bool) -> Sent:
        return min(peer.queue, key=lambda sent: sent.priority) if by_priority else peer.queue[0]

    @rule(number=peers, by_priority=st.booleans(), how=st.sampled_from(["recv", "peek", "drop"]))
    def receive(self, number: int, by_priority: bool, how: str) -> None:
        peer = self.peers[number]
        flags = c.RECV_USE_PRIORITY if by_priority else 0
        flags |= {"recv": 0, "peek": c.RECV_PEEK, "drop": c.RECV_DROP}[how]
        result = peer.client.recv(flags=flags, priority=99)
        if not peer.queue:
            assert result == -EAGAIN
            return
        assert result == 0
        expected = self.pick(peer, by_priority)
        if how != "drop":
            self.read(peer, expected, peek=how == "peek")
        if how != "peek":
            peer.queue.remove(expected)
        if how == "drop" and expected.tracker in self.trackers:
            self.end(expected.tracker, DEAD, EPIPE)

    @rule(number=peers, data=st.data())
    def free(self, number: int, data: st.DataObject) -> None:
        peer = self.peers[number]
        if peer.published:
            offset, _ = peer.published.pop(data.draw(st.integers(0, len(peer.published) - 1)))
            assert peer.client.free(offset) == 0
        assert peer.client.free(4) == -ENXIO

    @rule(step=st.integers(1, 60))
    def time_passes(self, step: int) -> None:
        clock = self.world.host.clock
        clock.now += step
        self.world.domain.expire(clock.now)
        for tracker in reversed(list(self.trackers)):
            if tracker.deadline <= clock.now:
                self.end(tracker, TIMEOUT, ETIMEDOUT)

    @rule(number=peers)
    def close(self, number: int) -> None:
        peer = self.peers[number]
        for tracker in list(self.trackers):
            if tracker.requester is peer:
                self.trackers.remove(tracker)
                if tracker.call is not None:
                    self.finished[tracker.call] = -ECONNRESET
        unread = [sent.tracker for sent in peer.queue if sent.tracker in self.trackers]
        for tracker in unread + [tracker for tracker in reversed(self.trackers) if tracker not in unread]:
            if tracker.replier is peer:
                self.end(tracker, DEAD, EPIPE)
        peer.client.close()
        self.peers[number] = Peer(self.world.connect())

    @invariant()
    def agrees(self) -> None:
        self.check_finished()
        assert len(self.world.domain.waiting) == len([tracker for tracker in self.trackers if tracker.sync])
        for peer in self.peers:
            connection = peer.client.connection
            assert [
                entry.message.cookie_reply if entry.message.notice is not None else entry.message.cookie
                for entry in connection.queue.entries()
            ] == [sent.key for sent in peer.queue]
            assert len(connection.requests.trackers) == len([t for t in self.trackers if t.requester is peer])
            assert len(connection.requests.owed) == len([t for t in self.trackers if t.replier is peer])
            queued = {sent.tracker for other in self.peers for sent in other.queue if sent.tracker}
            slots = {t for t in self.trackers if t.requester is peer} | {t for t in queued if t.requester is peer}
            assert connection.requests.count == len(slots)

    def teardown(self) -> None:
        for peer in self.peers:
            while peer.client.recv() == 0:
                self.read(peer, peer.queue.pop(0))
            assert peer.queue == []
            for offset, _ in peer.published:
                assert peer.client.free(offset) == 0
            assert peer.client.connection.pool.slices == 0
        for peer in self.peers:
            peer.client.close()
        assert all(file.open_count == 0 for file in self.files)
        assert not self.world.domain.waiting
        assert self.world.domain.next_deadline() == 0
        self.world.control.close()
        assert len(self.world.domain.users) == 0


TestMessages = MessagesMachine.TestCase

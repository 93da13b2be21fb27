"""Hostile clients: any command on a file in any state gets an answer, and no resource leaks."""

from __future__ import annotations

from random import Random
from struct import pack, pack_into, unpack_from
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.commands import COMMANDS
from kdbusfs.abi.v3.items import make_item
from kdbusfs.base.call import PENDING, Call
from tests.support import items as i
from tests.support.core_client import Client, FakeProcess, World
from tests.support.fake_host import FakeCaller, FakeFile, sealed_memfd

NUMBERS = (*COMMANDS, c.CMD_BYEBYE)
TEXTS = (b"a.b", b"a.c", b"a.*", b"1000-x", b"1000-y", b"bad", b"", b"x" * 64, b"a." + b"n" * 253)
FDS = (-1, 0, 3, 4, 5, 6, 7, 8, 99, 2**31 - 1)
WORDS = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    40,
    64,
    4096,
    8192,
    1 << 31,
    1 << 32,
    1 << 62,
    1 << 63,
    c.U64_MAX - 7,
    c.U64_MAX,
)

words = st.one_of(st.sampled_from(WORDS), st.integers(0, 20), st.integers(0, c.U64_MAX))
flag_bits = st.one_of(st.just(0), st.integers(0, 31), st.sampled_from((1 << 13, 1 << 63, c.U64_MAX, 0x3FFF)))
kinds = st.sampled_from(
    sorted({value for name, value in vars(c).items() if name.startswith("ITEM_")} | {0, 0x4242})
)
texts = st.sampled_from(TEXTS).map(lambda text: text + b"\0")
payloads = st.one_of(
    st.binary(max_size=48),
    texts,
    st.lists(words, max_size=5).map(lambda values: pack(f"<{len(values)}Q", *values)),
    st.lists(st.sampled_from(FDS), max_size=3).map(lambda fds: pack(f"<{len(fds)}i", *fds)),
    st.builds(
        lambda values, text: pack("<QQQQ", *values) + text, st.tuples(words, words, words, words), texts
    ),
)
items = st.one_of(
    st.builds(make_item, kinds, payloads),
    st.builds(
        lambda fd, size: make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 0, size, fd, 0)),
        st.sampled_from(FDS),
        st.integers(0, 130),
    ),
    st.builds(
        lambda fds: make_item(c.ITEM_FDS, pack(f"<{len(fds)}i", *fds)),
        st.lists(st.sampled_from(FDS[2:7]), max_size=3),
    ),
    st.builds(lambda fd: make_item(c.ITEM_CANCEL_FD, pack("<i", fd)), st.sampled_from(FDS)),
    st.builds(
        lambda size, address: make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", size, address)),
        st.sampled_from((1, 7, 64, 4096, 70000, 2 << 20, 3 << 20)),
        st.sampled_from((0, 0x1000, 0x1003, 0x9000000)),
    ),
    st.sampled_from(
        [
            i.bloom_filter(),
            i.bloom_parameter(64),
            i.name(b"a.b"),
            i.name(b"a.c"),
            i.world(2),
            i.world(1),
            i.string(c.ITEM_DST_NAME, b"a.b"),
            i.string(c.ITEM_MAKE_NAME, b"1000-x"),
            i.creds(*[1] * 8),
            i.pids(1, 1, 1),
            i.string(c.ITEM_CONN_DESCRIPTION, b"d"),
        ]
    ),
)
item_lists = st.one_of(st.just(b""), st.lists(items, max_size=4).map(b"".join), st.binary(max_size=60))
sizes = st.one_of(st.none(), st.none(), st.none(), words)
messages = st.builds(
    lambda size, flags, priority, dst, src, kind, cookie, timeout, body: (
        pack(
            "<QQQQQQQQ",
            64 + len(body) if size is None else size,
            flags,
            priority,
            dst,
            src,
            kind,
            cookie,
            timeout,
        )
        + body
    ),
    sizes,
    st.integers(0, 8),
    words,
    st.one_of(st.integers(0, 12), st.just(c.U64_MAX)),
    st.sampled_from((0, 0, 0, 1, 5)),
    st.sampled_from((0, 1, c.PAYLOAD_DBUS)),
    st.integers(0, 3),
    st.one_of(st.integers(0, 3), st.just(2 * 10**9), words),
    item_lists,
)
commands = st.fixed_dictionaries(
    {
        "who": st.one_of(st.integers(4, 6), st.integers(0, 30)),
        "number": st.one_of(
            st.sampled_from((*NUMBERS, *[c.CMD_SEND] * 12)),
            st.sampled_from(NUMBERS),
            st.integers(0, 2**32 - 1),
        ),
        "size": sizes,
        "flags": flag_bits,
        "members": st.one_of(st.just([0] * 13), st.lists(words, min_size=13, max_size=13)),
        "items": item_lists,
        "error": st.sampled_from((0,) * 9 + (14,)),
        "message": messages,
        "message_error": st.sampled_from((0,) * 9 + (14,)),
    }
)
TEMPLATES: dict[int, tuple[bytes, ...]] = {  # items that a command accepts, at least in some state
    c.CMD_BUS_MAKE: (i.string(c.ITEM_MAKE_NAME, b"1000-x") + i.bloom_parameter(64),),
    c.CMD_ENDPOINT_MAKE: (i.string(c.ITEM_MAKE_NAME, b"1000-x") + i.name(b"a.*") + i.world(2),),
    c.CMD_HELLO: (
        b"",
        i.name(b"a.b") + i.world(2),
        i.name(b"n.n") + i.user(1, 2000),
        i.creds(*[1] * 8) + i.pids(1, 0, 1),
        i.string(c.ITEM_CONN_DESCRIPTION, b"d") + i.string(c.ITEM_SECLABEL, b"l"),
    ),
    c.CMD_NAME_ACQUIRE: (i.name(b"a.b"), i.name(b"a.c")),
    c.CMD_NAME_RELEASE: (i.name(b"a.b"), i.name(b"a.c")),
    c.CMD_CONN_INFO: (b"", i.name(b"a.b"), i.name(b"a.c")),
    c.CMD_CONN_UPDATE: (
        i.u64(c.ITEM_ATTACH_FLAGS_SEND, c.ATTACH_ANY),
        i.u64(c.ITEM_ATTACH_FLAGS_RECV, 0),
        i.name(b"a.c") + i.group(2, 1000),
    ),
    c.CMD_ENDPOINT_UPDATE: (b"", i.name(b"a.b") + i.world(1) + i.name(b"a.c") + i.world(0)),
    c.CMD_MATCH_ADD: (
        make_item(c.ITEM_BLOOM_MASK, bytes(64)),
        make_item(c.ITEM_BLOOM_MASK, b"\1" * 128),
        i.u64(c.ITEM_ID, 1),
        i.name(b"a.b"),
        i.name_change(c.ITEM_NAME_CHANGE, b"a.b"),
        i.id_change(c.ITEM_ID_REMOVE),
        i.name_change(c.ITEM_NAME_ADD),
        i.u64(c.ITEM_ID, 2) + i.id_change(c.ITEM_ID_ADD),
    ),
}
VECTOR = make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 3001, 0x1003))
PARTS = (
    b"",
    VECTOR,
    VECTOR + make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 13, 0)),
    make_item(c.ITEM_FDS, pack("<2i", 4, 8)),
    make_item(c.ITEM_PAYLOAD_MEMFD, pack("<QQiI", 1, 127, 3, 0)) + VECTOR,
    make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 40000, 0x1000)),
    make_item(c.ITEM_PAYLOAD_VEC, pack("<QQ", 8, 0x9000000)),
    i.string(c.ITEM_DST_NAME, b"a.b"),
    i.string(c.ITEM_DST_NAME, b"a.b") + make_item(c.ITEM_FDS, pack("<i", 5)),
)
KINDS = (
    "plain",
    "plain",
    "request",
    "sync",
    "sync",
    "reply",
    "reply",
    "reply",
    "signal",
    "recv",
    "recv",
    "recv",
    "peek",
    "drop",
    "urgent",
    "acquire",
    "release",
)
OTHERS = ("close", "interrupt", "interrupt", "cancel", "expire", "hello", "hello")


def sound_command(random: Random) -> dict[str, Any]:
    """A command that could succeed in some state of the scene."""
    number = random.choice(NUMBERS)
    flags = (
        random.getrandbits(4) & COMMANDS[number].flags if number in COMMANDS and random.random() < 0.5 else 0
    )
    members = [0] * 13 if random.random() < 0.5 else [random.randrange(9) for _ in range(13)]
    return {
        "who": random.randrange(31),
        "number": number,
        "size": None,
        "flags": flags,
        "members": members,
        "error": 0,
        "items": random.choice(TEMPLATES.get(number, (b"",))),
        "message": bytes(64),
        "message_error": 0,
    }


def request(random: Random) -> dict[str, Any]:
    """A command of the connections that talk to each other."""
    dst = random.choice((1, 2, 3, 1, 2, 3, 1, 2, 3, random.randrange(11), c.U64_MAX))
    return {
        "who": random.randrange(31),
        "dst": dst,
        "kind": random.choice(KINDS),
        "cookie": random.randrange(1, 3),
        "items": random.choice(PARTS),
    }


class Scene:
    """Files in every state that a file can have, of three users with the same descriptors."""

    def __init__(self) -> None:
        self.world = World()
        self.files: list[FakeFile] = []
        self.processes = [self.process(uid) for uid in (1000, 1000, 2000)]
        first = self.processes[0]
        self.clients = [
            self.world.control,
            self.world.open_control(first),
            self.world.open(first),
            self.world.open(self.processes[2]),
            *[
                self.world.connect(process, recv=c.ATTACH_ALL, pool_size=1 << 16)
                for process in self.processes
            ],
            self.world.connect(first, flags=c.HELLO_ACTIVATOR, items=i.name(b"a.b") + i.world(2)),
            self.world.connect(first, flags=c.HELLO_MONITOR, recv=c.ATTACH_ALL, pool_size=4096),
            self.world.connect(first, flags=c.HELLO_POLICY_HOLDER, items=i.name(b"a.c") + i.world(2)),
        ]
        owner = self.world.open(first)
        assert owner.make_endpoint(b"1000-ep", c.MAKE_ACCESS_WORLD, i.name(b"a.b") + i.world(2)) == 0
        dead = self.world.connect(self.processes[2])
        assert dead.byebye() == 0
        self.clients += [owner, self.world.connect(self.processes[2], endpoint="1000-ep"), dead]
        for client in self.clients[4:7]:
            assert client.add_match(1) == 0

    def process(self, uid: int) -> FakeProcess:
        process = FakeProcess(uid=uid)
        process.memory[0x1000] = bytearray(b"payload!" * 9000)
        process.files = {
            3: sealed_memfd(128),
            4: FakeFile(),
            5: FakeFile(pollable=False),
            6: FakeFile(is_bus_file=True),
            7: FakeFile(is_unix_socket=True),
            8: FakeFile(is_path=True),
        }
        self.files += process.files.values()
        return process

    def run(self, client: Client, call: Call) -> None:
        """Run one command; its descriptors are taken at once."""
        result = client.handle.ioctl(call)
        assert result == PENDING or -530 < result <= 0, result
        self.take(call)
        self.drain()

    def take(self, call: Call) -> None:
        if call.installation is not None:
            for file, memory, offset in call.installation.entries:
                assert isinstance(file, FakeFile)
                assert file.open_count > 0
                memory.store(offset, pack("<i", 77))
            call.installation.done()
            call.installation.done()

    def drain(self) -> None:
        domain = self.world.domain
        for call in domain.completed:
            assert -530 < call.result <= 0
            self.take(call)
        domain.completed.clear()
        for handle in domain.changed:
            assert handle.poll() >= 0
        domain.changed.clear()

    def command(self, action: dict[str, Any]) -> None:
        """A call as the channel makes it: the fixed part always, the tail only if its size is legal."""
        number = action["number"]
        assert isinstance(number, int)
        client = self.clients[action["who"] % len(self.clients)]
        command = COMMANDS.get(number)
        fixed = bytearray(command.size if command is not None else number >> 16 & 0x3FFF)
        for index, value in enumerate(action["members"][: len(fixed) // 8]):
            pack_into("<Q", fixed, 8 * index, value)
        whole = fixed + action["items"]
        size = len(whole) if action["size"] is None else action["size"]
        if command is not None:
            pack_into("<Q", whole, 0, size)
            pack_into("<Q", whole, command.flags_offset, action["flags"])
            if number == c.CMD_HELLO and action["size"] is None:
                pack_into("<QQQQQ", whole, 32, c.ATTACH_ALL, 0, 0, 0, 4096)
            legal = command.size <= size <= command.max_size
            whole = whole.ljust(size, b"\0")[:size] if legal else whole[: command.size]
        else:
            whole = fixed
        call = Call()
        call.number, call.address, call.tag, call.result, call.installation = number, 0, 0, 0, None
        call.address = client.process.place(bytes(whole))
        call.data = bytes(whole)
        call.command = memoryview(whole)
        call.words = call.command[: len(fixed) // 8 * 8].cast("Q")
        call.error = action["error"]
        call.message_error = action["message_error"]
        call.message = None if call.message_error else action["message"]
        call.caller = FakeCaller(client.process)
        self.run(client, call)

    def request(self, action: dict[str, Any]) -> None:
        """A command that would mostly succeed."""
        client = self.clients[(4, 5, 6, 4, 5, 6, 7, 8, 11)[action["who"] % 9]]
        kind, cookie = action["kind"], action["cookie"]
        if kind in ("recv", "peek", "drop", "urgent"):
            receive = {"recv": 0, "peek": c.RECV_PEEK, "drop": c.RECV_DROP, "urgent": c.RECV_USE_PRIORITY}
            flags = receive[kind]
            self.run(client, client.call(c.CMD_RECV, pack("<QQ", 0, flags) + bytes(56)))
            return
        if kind in ("acquire", "release"):
            number = c.CMD_NAME_ACQUIRE if kind == "acquire" else c.CMD_NAME_RELEASE
            flags = cookie * 3 if kind == "acquire" else 0
            self.run(client, client.call(number, pack("<QQQQ", 0, flags, 0, 0), i.name(b"a.b")))
            return
        flags = {"request": 1, "sync": 1, "signal": 4}.get(kind, 0)
        last = {"request": 2 * 10**9, "sync": 2 * 10**9, "reply": cookie}.get(kind, 0)
        body = action["items"] + (i.bloom_filter() if kind == "signal" else b"")
        dst = 0 if body.startswith(PARTS[-2]) else action["dst"]
        message = client.message(dst=dst, flags=flags, cookie=cookie, cookie_reply=last, items=body)
        sync = int(kind == "sync")
        cancel = make_item(c.ITEM_CANCEL_FD, pack("<i", 4)) if sync and cookie == 1 else b""
        call = client.call(c.CMD_SEND, pack("<QQ", 0, sync) + bytes(56), cancel)
        call.message = message
        self.run(client, call)

    def other(self, what: str, which: int) -> None:
        domain = self.world.domain
        client = self.clients[which % len(self.clients)]
        if what == "close" and which % 3 == 0:
            client.close()
            self.clients[self.clients.index(client)] = self.world.open_control(self.processes[0])
        elif what == "interrupt":
            for call in list(domain.waiting):
                domain.interrupt(call)
                domain.interrupt(call)
        elif what == "cancel":
            for _, token, cancellation in self.world.host.watched:
                if cancellation.open:
                    domain.cancelled(token)
        elif what == "expire":
            self.world.host.clock.now += which * 10**8
            domain.expire(self.world.host.clock.now)
            assert domain.next_deadline() >= 0
        elif what == "hello" and "1000-test" in domain.buses:
            self.clients.append(self.world.open(self.processes[which % 3]))
            self.clients[-1].hello(pool_size=4096)
        self.drain()

    def end(self) -> None:
        """Invariant: every resource was given back."""
        for client in self.clients:
            client.close()
            self.drain()
        domain = self.world.domain
        assert domain.stats() == {"users": 0, "credentials": 0, "waiting": 0, "buses": []}
        assert len(domain.users) == 0
        assert [file.open_count for file in self.files] == [0] * len(self.files)
        assert domain.next_deadline() == 0
        assert not any(cancellation.open for _, _, cancellation in self.world.host.watched)


@given(st.lists(commands, max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_hostile_commands_are_answered_and_leave_nothing_behind(todo: list[dict[str, Any]]) -> None:
    """SEND-23, and all GEN rows: 0, -errno or PENDING, never an exception."""
    scene = Scene()
    for action in todo:
        scene.command(action)
    scene.end()


@given(st.integers(0, 1 << 48))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_long_lives_leave_nothing_behind(seed: int) -> None:
    """CLOSE-2, CLOSE-5, SYNC-2, SYNC-3: commands that mostly succeed, with signals, time-outs and closes."""
    random = Random(seed)
    scene = Scene()
    for _ in range(random.randrange(20, 200)):
        dice = random.random()
        if dice < 0.7:
            scene.request(request(random))
        elif dice < 0.9:
            scene.command(sound_command(random))
        else:
            scene.other(random.choice(OTHERS), random.randrange(31))
    if random.random() < 0.2:
        scene.world.domain.shutdown()
        scene.drain()
    scene.end()


def test_the_scene_itself_leaves_nothing_behind() -> None:
    """CLOSE-2: also with a request, a blocked call, a queued file and a take-over in progress."""
    scene = Scene()
    first, second, other = scene.clients[4:7]
    fds = make_item(c.ITEM_FDS, pack("<2i", 3, 4))
    assert first.send(dst=second.id, items=fds) == 0
    assert first.send(items=i.string(c.ITEM_DST_NAME, b"a.b") + first.vec(b"data"), cookie=5) == 0
    scene.request({"who": 0, "dst": second.id, "kind": "sync", "cookie": 1, "items": fds})
    scene.request({"who": 1, "dst": first.id, "kind": "request", "cookie": 2, "items": b""})
    assert scene.world.domain.stats()["waiting"] == 1
    assert other.acquire(b"a.b") == 0
    assert unpack_from("<Q", other.last, 8)[0] == 0
    scene.end()

"""kdbusctl monitor, capture and top on a real domain: output, reports of losses, and their end."""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, Memfd, Zero, deadline, make_bus, make_endpoint, sealed_memfd
from kdbusfs.ctl.failure import EXIT_DENIED, EXIT_FAILED, EXIT_USAGE
from tests.support.actors import PATIENCE, Actors, Link
from tests.support.ctl import COMMAND, Ended, Running, as_user, check_refused, environment, kdbusctl
from tests.unit.test_ctl_capture import blocks, options, packet

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

NOBODY = 65534


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(domain_mount.path, "live", access=c.MAKE_ACCESS_WORLD, bloom=(64, 4)) as owner:
        yield owner


class Watching(Running):
    """A running monitor or capture that already receives all messages."""

    def __init__(self, bus: BusOwner, command: str, *arguments: str) -> None:
        super().__init__(command, "--bus", bus.path, *arguments)
        self.began = self.error("the beginning")

    def end(self) -> Ended:
        """Send Ctrl-C; returns the output that was not read yet."""
        code = self.interrupt()
        out, err = self.rest()
        return Ended(code, "\n".join(out), "\n".join(err))


def scene(bus: BusOwner) -> tuple[int, int]:
    """Send one message of every kind; returns the ids of client and service."""
    with Connection(bus.path, pool_size=1 << 20) as service, Connection(bus.path, pool_size=1 << 20) as client:
        service.acquire("org.example.Echo")

        def answer() -> None:
            with service.receive(timeout=PATIENCE) as request:
                service.reply(request, request.data().upper())

        thread = threading.Thread(target=answer)
        thread.start()
        with client.call("org.example.Echo", b"hello", timeout=PATIENCE) as reply:
            assert reply.data() == b"HELLO"
        thread.join()
        client.send(service.id, b"\x1b[31mplain\0", priority=3)
        service.add_match(1)
        client.send(service.id, b"to you", bloom=client.bloom("word"))
        client.broadcast(b"to all")
        cookie = client.send(service.id, b"late", expect_reply=True, timeout_ns=deadline(0.05))
        with client.receive(timeout=PATIENCE) as nothing:
            assert nothing.cookie_reply == cookie
        return client.id, service.id


KINDS = [
    *("notification",) * 3,  # two connections and a name
    *("request", "reply", "message", "signal", "broadcast", "request", "notification"),
    *("notification",) * 3,
]


# monitor


def test_monitor_shows_every_message_in_order(bus: BusOwner) -> None:
    """MON-1, MON-8"""
    with Watching(bus, "monitor", "--json") as monitor:
        client, service = scene(bus)
        found = [monitor.record() for _ in KINDS]
        assert [each["kind"] for each in found] == KINDS
        assert [each["seqnum"] for each in found] == sorted(each["seqnum"] for each in found)
        request, reply, plain, signalled, broadcast = found[3:8]
        assert (request["source"], request["destination"]) == (client, service)
        assert request["destination_name"] == "org.example.Echo" and request["payload"]["text"] == "hello"
        assert (reply["source"], reply["source_names"]) == (service, ["org.example.Echo"])
        assert (reply["cookie_reply"], reply["payload"]["text"]) == (request["cookie"], "HELLO")
        assert base64.b64decode(plain["payload"]["base64"]) == b"\x1b[31mplain\0" and plain["priority"] == 3
        assert (signalled["destination"], broadcast["destination"]) == (service, None)
        assert [each["notification"]["kind"] for each in found if each["kind"] == "notification"] == [
            *("IdAdd", "IdAdd", "NameAdd", "ReplyTimeout", "IdRemove", "NameRemove", "IdRemove"),
        ]
        assert monitor.end() == Ended(0, "", "")


def test_monitor_as_text_escapes_what_clients_send(bus: BusOwner) -> None:
    with Watching(bus, "monitor", "--color", "always", "--kind", "message", "--kind", "reply") as monitor:
        client, service = scene(bus)
        reply, plain = monitor.line(), monitor.line()
        assert 'reply' in reply and '"HELLO"' in reply and f"\x1b[1m{service}\x1b[0m org.example.Echo" in reply
        assert '11 B "\\x1b[31mplain\\x00"' in plain and "\x1b[31m" not in plain
        assert "cookie 2, priority 3" in plain and f"\x1b[1m{client}\x1b[0m" in plain
        assert monitor.end() == Ended(0, "", "")


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["--kind", "request"], ["request", "request"]),
        (["--name", "org.example.Other"], []),
        (["--name", "org.*", "--kind", "reply", "--kind", "signal"], ["reply", "signal"]),
        (["--id", "0", "--kind", "notification"], [each for each in KINDS if each == "notification"]),
        (["--id", "4711"], []),
    ],
)
def test_monitor_filters(bus: BusOwner, arguments: list[str], kinds: list[str]) -> None:
    with Watching(bus, "monitor", "--json", *arguments) as monitor:
        scene(bus)
        found = [monitor.record()["kind"] for _ in kinds]
        assert found == kinds
        assert monitor.end() == Ended(0, "", "")


def test_names_that_were_owned_before_are_known(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=1 << 16) as owner:
        owner.acquire("org.example.Early")
        with Watching(bus, "monitor", "--name", "org.example.Early") as monitor:
            owner.send(owner.id, b"x")
            assert f"{owner.id} org.example.Early → {owner.id} org.example.Early" in monitor.line()
            assert monitor.end().code == 0


def test_monitor_ends_after_so_many_and_after_so_long(bus: BusOwner) -> None:
    with Watching(bus, "monitor", "--count", "2") as monitor:
        scene(bus)
        assert monitor.wait() == 0
        assert len(monitor.rest()[0]) == 2
    started = time.monotonic()
    ended = kdbusctl("monitor", "--bus", bus.path, "--duration", "0.3")
    assert ended.code == 0 and time.monotonic() - started >= 0.3


@pytest.mark.parametrize("command", ["monitor", "capture"])
def test_they_end_with_the_bus_and_say_so(domain_mount: DomainMount, tmp_path: Path, command: str) -> None:
    owner = make_bus(domain_mount.path, "short")
    with Watching(owner, command, *([str(tmp_path / "file")] if command == "capture" else [])) as watching:
        owner.close()
        assert watching.wait() == 0
        assert watching.rest()[1][0] == "kdbusctl: the bus has ended"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_them_too(bus: BusOwner, tmp_path: Path, number: int) -> None:
    with Watching(bus, "capture", str(tmp_path / "file")) as capture:
        capture.process.send_signal(number)
        assert capture.wait() == 0


@pytest.mark.parametrize("command", [["monitor"], ["capture", "/dev/null"]])
def test_only_the_owner_of_the_bus_may(bus: BusOwner, command: list[str]) -> None:
    ended = as_user(NOBODY, *command, "--bus", bus.path)
    check_refused(ended, EXIT_DENIED, "only the owner of the bus and root may see all of its messages")


def test_an_owner_without_privileges_may(domain_mount: DomainMount, actors: Actors) -> None:
    """PRIV-1: the owner of the bus is privileged on it"""

    def own(link: Link) -> None:
        with make_bus(domain_mount.path, "mine") as mine:
            link.say(mine.path)
            link.hear("the end")

    owner = actors(own, uid=NOBODY)
    path = owner.hear("its bus")
    for command in (["monitor"], ["capture", "/dev/null"]):
        ended = as_user(NOBODY, *command, "--bus", path, "--duration", "0.2")
        assert ended.code == 0 and "messages were lost" not in ended.err, ended


def test_a_custom_endpoint_is_refused(bus: BusOwner) -> None:
    """HELLO-4"""
    with make_endpoint(bus, "narrow") as endpoint:
        ended = kdbusctl("monitor", "--bus", endpoint.path)
        check_refused(ended, EXIT_FAILED, "take the bus' own endpoint")


def test_wrong_use_is_one_line(bus: BusOwner, tmp_path: Path) -> None:
    for said, code, arguments in (
        ("is not a size", EXIT_USAGE, ["monitor", "--pool", "much"]),
        ("too small", EXIT_USAGE, ["monitor", "--pool", "4K"]),
        ("is not one of", EXIT_USAGE, ["monitor", "--kind", "call"]),
        ("Missing argument 'FILE'", EXIT_USAGE, ["capture"]),
        ("cannot write", EXIT_FAILED, ["capture", str(tmp_path / "no/file")]),
    ):
        check_refused(kdbusctl(*arguments, "--bus", bus.path), code, said)


def test_messages_that_come_while_it_is_stopped_are_counted_as_missing(bus: BusOwner) -> None:
    """MON-3"""
    with Connection(bus.path, pool_size=1 << 16) as client, Watching(bus, "monitor", "--json", "--id", "1") as monitor:
        assert client.id == 1
        monitor.process.send_signal(signal.SIGSTOP)
        for number in range(300):
            client.send(client.id, b"%d" % number)
            client.recv(drop=True)
        monitor.process.send_signal(signal.SIGCONT)
        texts: list[str] = []
        missing = 0
        while len(texts) + missing < 300:
            each = monitor.record()
            if each["kind"] == "missing":
                missing += each["count"]
            else:
                texts.append(each["payload"]["text"])
        # 32 of one user find room (QUO-2), and the RECV that was pending when it was stopped returned another.
        assert 32 <= len(texts) < 40 and texts == [str(number) for number in range(len(texts))]
        ended = monitor.end()
        assert f"{missing} of 300 messages were lost" in ended.err, ended


def test_a_reader_that_does_not_read_loses_nothing(bus: BusOwner) -> None:
    """Output that does not fit into a pipe is kept in memory"""
    reading, writing = os.pipe()
    monitor = subprocess.Popen(
        [*COMMAND, "monitor", "--json", "--bus", bus.path, "--kind", "message", "--bytes", "64K"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    os.close(writing)
    try:
        assert monitor.stderr is not None and b"monitoring" in monitor.stderr.readline()
        with Connection(bus.path, pool_size=1 << 20) as client:
            for number in range(100):  # 800 KiB of JSON at least, a pipe takes 64
                client.send(client.id, b"%06d" % number + b"x" * 6000)
                with client.receive(timeout=PATIENCE):
                    time.sleep(0.002)
        monitor.send_signal(signal.SIGINT)
        with os.fdopen(reading, "rb") as pipe:
            found = [json.loads(line) for line in pipe]
        assert [each["payload"]["text"][:6] for each in found if each["kind"] == "message"] == [
            f"{number:06}" for number in range(100)
        ]
        assert monitor.wait(PATIENCE) == 0
        assert monitor.stderr.read() == b""
    finally:
        monitor.kill()
        monitor.wait(PATIENCE)
        assert monitor.stderr is not None
        monitor.stderr.close()


# capture


def packets(file: Path) -> list[tuple[int, int, bytes, list[tuple[int, bytes]]]]:
    """The packets of a capture file, which must be valid to its end."""
    return [packet(body) for kind, body in blocks(file.read_bytes()) if kind == 6]


def test_capture_writes_all_of_it_for_its_owner_only(bus: BusOwner, tmp_path: Path) -> None:
    file = tmp_path / "bus.pcapng"
    before = time.time_ns()
    with Watching(bus, "capture", str(file)) as capture:
        scene(bus)
        ended = capture.end()
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith(f"kdbusctl: {len(KINDS)} messages captured, 0 lost; {file.stat().st_size} bytes")
    assert file.stat().st_mode & 0o777 == 0o600
    found = packets(file)
    assert len(found) == len(KINDS)
    times = [time_ns for time_ns, _, _, _ in found]
    assert times == sorted(times) and before <= times[0] <= times[-1] <= time.time_ns()
    comments = [more[0][1].decode() for _, _, _, more in found]
    assert [each.split()[0] for each in comments] == [f"kind={kind}" for kind in KINDS]
    assert "src_names=org.example.Echo" in comments[4]
    raw = base64.b64decode(found[3][3][1][1].split()[1])
    assert struct.unpack_from("<QQ", raw)[0] == len(raw), "struct kdbus_msg, from its size on"
    *_, (last, body) = blocks(file.read_bytes())
    assert last == 5 and dict(options(body[12:]))[4] == struct.pack("<Q", len(KINDS))


def test_capture_to_a_pipe_and_its_summary_as_json(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=1 << 16) as client:
        capture = subprocess.Popen(
            [*COMMAND, "capture", "-", "--json", "--bus", bus.path, "--count", "1", "--kind", "message"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        try:
            assert capture.stderr is not None and b"standard output" in capture.stderr.readline()
            client.send(client.id, b"payload")
            out, err = capture.communicate(timeout=PATIENCE)
        finally:
            capture.kill()
            capture.wait(PATIENCE)
    assert [kind for kind, _ in blocks(out)] == [0x0A0D0D0A, 1, 6, 5]
    summary = json.loads(err)
    assert {**summary, "received": 1} == {
        "file": None,
        "captured": 1,
        "received": 1,
        "lost": 0,
        "bytes": len(out),
        "bus_ended": False,
    }


def test_memfds_are_cut_at_the_snaplen_and_descriptors_given_back(bus: BusOwner, tmp_path: Path) -> None:
    file = tmp_path / "bus.pcapng"
    reading, writing = os.pipe()
    with (
        Watching(bus, "capture", str(file), "--snaplen", "4K", "--kind", "message") as capture,
        Connection(bus.path, pool_size=1 << 20) as client,
    ):
        with sealed_memfd(b"m" * 1_000_000) as memfd:
            client.send(client.id, [b"head", Zero(16), Memfd(memfd)], fds=[writing])
        client.recv(drop=True)
        os.close(writing)
        # No process has the writing end any more, nor does the recorder.
        assert select.select([reading], [], [], PATIENCE)[0] and os.read(reading, 1) == b""
        os.close(reading)
        assert capture.end().code == 0
    ((_, size, data, more),) = packets(file)
    assert len(data) == 4096 and size > 1_000_000 + 20
    assert b"head" + bytes(16) + b"mmmm" in data
    assert "payload=1000020 fds=1 " in more[0][1].decode()


def test_capture_shows_its_progress_on_a_terminal(bus: BusOwner, tmp_path: Path) -> None:
    file = str(tmp_path / "file")
    with Connection(bus.path, pool_size=1 << 16) as client:
        sending = threading.Thread(target=_send_slowly, args=(client,))
        sending.start()
        code, shown = on_terminal([*COMMAND, "capture", file, "--bus", bus.path, "--count", "5", "--kind", "message"])
        sending.join()
    assert code == 0, shown
    first, *_, last = shown.replace("\r", "\n").strip().splitlines()
    assert f"to '{file}', Ctrl-C ends it" in first
    assert "5 messages captured, 0 lost" in last
    assert re.search(r"[1-4] messages captured, 0 lost; \d+ bytes", shown), "in between"


def _send_slowly(client: Connection) -> None:
    """Send until five were displayed, whenever that begins."""
    for _ in range(40):
        client.send(client.id, b"x")
        client.recv(drop=True)
        time.sleep(0.2)


def test_capture_refuses_a_terminal(bus: BusOwner) -> None:
    code, shown = on_terminal([*COMMAND, "capture", "-", "--bus", bus.path])
    assert (code, shown.count("\n")) == (EXIT_USAGE, 1) and "is a terminal" in shown


@pytest.mark.skipif(shutil.which("tshark") is None, reason="no tshark")
def test_wireshark_reads_it(bus: BusOwner, tmp_path: Path) -> None:
    """Sender, destination, kind and time, without an error or a warning"""
    file = tmp_path / "bus.pcapng"
    with Watching(bus, "capture", str(file)) as capture:
        client, service = scene(bus)
        assert capture.end().code == 0
    fields = ("frame.time_epoch", *(f"dbus.{field}" for field in ("sender", "destination", "message_type", "member")))
    arguments = [part for field in (*fields, "_ws.expert.severity") for part in ("-e", field)]
    shark = ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "separator=|", *arguments]
    done = subprocess.run(shark, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done
    assert not [line for line in done.stderr.splitlines() if "Running as user" not in line], done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [abs(float(line[0]) - time.time()) < 2 * PATIENCE for line in lines] == [True] * len(KINDS)
    assert [line[1:5] for line in lines[3:8]] == [
        [f":1.{client}", "org.example.Echo", "1", "Request"],
        [f":1.{service}", f":1.{client}", "2", ""],
        [f":1.{client}", f":1.{service}", "1", "Message"],
        [f":1.{client}", f":1.{service}", "4", "Signal"],
        [f":1.{client}", "", "4", "Broadcast"],
    ]
    assert [line[3] for line in lines if line[1] == ":1.0"] == ["4", "4", "4", "3", "4", "4", "4"]
    comment = str(0x00100000)
    assert {severity for line in lines for severity in line[5].split(",")} == {comment}, "only comments"


# top


def connections(domain: DomainMount) -> list[dict[str, Any]]:
    text = (domain.path / ".kdbusfs/connections").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_top_counts_what_is_sent_and_received(domain_mount: DomainMount, bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=1 << 16) as one, Connection(bus.path, pool_size=1 << 16) as other:
        other.acquire("org.example.Other")
        with Running("top", "--mount", str(domain_mount.path), "--json", "--interval", "0.5", "--count", "2") as top:
            time.sleep(0.3)  # until its first measurement
            for _ in range(10):
                one.send(other.id, b"x" * 80)
            records = [top.record(), top.record()]
            assert top.wait() == 0
        lines = {line["id"]: line for line in records[1]["connections"]}
        assert (lines[1]["sent"], lines[1]["sent_bytes"]) == (10, 800)
        assert (lines[2]["received"], lines[2]["queued"], lines[2]["queued_bytes"]) == (10, 10, 800)
        assert (lines[2]["names"], lines[1]["uid"], lines[1]["pid"]) == (["org.example.Other"], 0, os.getpid())
        assert lines[2]["pool_used"] >= 800
        text = kdbusctl("top", "--bus", bus.path, "--once", "--interval", "0.1", "--sort", "queue")
    assert (text.code, text.err) == (0, "")
    head, columns, first, second = text.lines
    assert "2 connections on 1 bus" in head and "10 queued" in head
    assert columns.split()[:7] == ["BUS", "ID", "NAME", "PID", "USER", "COMMAND", "SENT/s"]
    assert first.split()[:3] == [bus.name, "2", "org.example.Other"] and second.split()[1] == "1"


def test_top_is_for_root_and_for_mounts(domain_mount: DomainMount, bus: BusOwner, tmp_path: Path) -> None:
    arguments = ["top", "--once", "--interval", "0.1"]
    check_refused(as_user(NOBODY, *arguments, "--mount", str(domain_mount.path)), EXIT_DENIED, "only root may see")
    ended = kdbusctl(*arguments, "--mount", str(tmp_path))
    assert ended.code == 32 and ended.err.count("\n") == 1


def test_pids_are_those_of_the_reader(domain_mount: DomainMount, bus: BusOwner, actors: Actors) -> None:
    def connect(link: Link) -> None:
        Path("/proc/self/comm").write_bytes(b"\x1b[31m\xffx")
        with Connection(bus.path, pool_size=1 << 16):
            link.say(os.getpid())
            link.hear("the end")

    client = actors(connect)
    pid = client.hear("its pid")
    (found,) = connections(domain_mount)
    assert (found["pid"], found["comm"]) == (pid, "\x1b[31m\udcffx")
    shown = kdbusctl("top", "--bus", bus.path, "--once", "--interval", "0.1")
    assert "\\x1b[31m\\xffx" in shown.out and "\x1b" not in shown.out
    reader = subprocess.run(
        ["unshare", "--pid", "--fork", "cat", str(domain_mount.path / ".kdbusfs/connections")],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert json.loads(reader.stdout)["pid"] is None, "a process that is not seen from there"


def on_terminal(command: list[str], keys: bytes = b"", after: str = "", *, rows: int = 24) -> tuple[int, str]:
    """Run a command on a terminal, and press `keys` once it shows `after`; returns its exit code and output."""
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 120, 0, 0))
        os.execvpe(command[0], command, environment(TERM="xterm-256color"))
    shown = ""
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and select.select([fd], [], [], PATIENCE)[0]:
            try:
                shown += os.read(fd, 1 << 16).decode(errors="replace")
            except OSError as error:
                assert error.errno == errno.EIO
                break
            if keys and after in shown:  # once: a key that is lost fails the test
                os.write(fd, keys)
                keys = b""
        else:
            awaited = f"{after!r} on the terminal" if keys else "its end"
            raise AssertionError(f"waited {PATIENCE:g} s for {awaited}, it showed {shown[-5000:]!r} at last")
    finally:
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(fd)
    return code, shown


def test_top_on_a_terminal_takes_keys_and_leaves_it_as_it_was(bus: BusOwner, tmp_path: Path) -> None:
    with Connection(bus.path, pool_size=1 << 16) as one:
        one.acquire("org.example.Shown")
        script = 'stty -a > "$0/before"; "$@"; code=$?; stty -a > "$0/after"; exit $code'
        command = ["sh", "-c", script, str(tmp_path), *COMMAND, "top", "--bus", bus.path, "--interval", "0.2"]
        code, shown = on_terminal(command, b"ssq", "org.example.Shown")
    assert code == 0, shown
    assert "sorted by rate" in shown and "\x1b[?1049h" in shown and "\x1b[?1049l" in shown
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()


# Many connections, many messages


CONNECTIONS, SENDERS, MESSAGES = 200, 4, 500


def crowd(path: str) -> Callable[[Link], None]:
    """A process with many idle connections."""

    def play(link: Link) -> None:
        many = [Connection(path, pool_size=4096) for _ in range(CONNECTIONS)]
        link.say()
        link.hear("the end", 600)
        for each in many:
            each.close()

    return play


def pair(path: str) -> Callable[[Link], tuple[int, int]]:
    """A client that sends to another as fast as it can; returns its id, and the number of refused messages."""

    def play(link: Link) -> tuple[int, int]:
        refused = 0
        with Connection(path, pool_size=1 << 16) as sender, Connection(path, pool_size=1 << 20) as receiver:
            link.say()
            link.hear("the start", 600)
            for number in range(MESSAGES):
                try:
                    sender.send(receiver.id, b"%200d" % number)
                except OSError as error:
                    assert error.errno == errno.ENOBUFS
                    refused += 1
                receiver.recv(drop=True)
            link.say()
            link.hear("the end", 600)
            return sender.id, refused

    return play


def test_nothing_is_lost_in_silence_among_many_connections(
    domain_mount: DomainMount, bus: BusOwner, actors: Actors, tmp_path: Path
) -> None:
    """MON-3: messages shown and messages reported as missing add up to all messages"""
    everybody = actors(crowd(bus.path), name="the crowd")
    everybody.hear("its connections")
    pairs = [actors(pair(bus.path)) for _ in range(SENDERS)]
    for each in pairs:
        each.hear("its connections")
    file = tmp_path / "bus.pcapng"
    with (
        Watching(bus, "monitor", "--json", "--payload", "none") as monitor,
        Watching(bus, "capture", str(file), "--no-raw") as capture,
    ):
        for each in pairs:
            each.link.say()
        started = time.monotonic()
        listed = kdbusctl("list", "--bus", bus.path, "--json")
        table = kdbusctl("top", "--bus", bus.path, "--json", "--once", "--interval", "0.2")
        took = time.monotonic() - started
        for each in pairs:
            each.hear("all is sent")
        ended = capture.end()
        code = monitor.interrupt()
        found = [json.loads(line) for line in monitor.rest()[0]]
        figures = {line["id"]: line for line in connections(domain_mount)}
        for each in (*pairs, everybody):
            each.link.say()
        results = [each.result() for each in pairs]
    assert (code, ended.code, listed.code, table.code) == (0, 0, 0, 0)
    assert took < PATIENCE, "list and top answer beside all that"
    assert len({each["id"] for each in listed.json}) >= CONNECTIONS + 2 * SENDERS
    assert len(table.json["connections"]) >= CONNECTIONS + 2 * SENDERS

    # With messages that the receiver refused, which monitors get before, and notifications about `list`.
    everything = SENDERS * MESSAGES + 2
    missing = sum(each["count"] for each in found if each["kind"] == "missing")
    assert sum(each["kind"] != "missing" for each in found) + missing == everything
    written = packets(file)
    gaps = sum(struct.unpack("<Q", value)[0] for *_, more in written for kind, value in more if kind == 4)
    statistics = dict(options(next(body[12:] for kind, body in blocks(file.read_bytes()) if kind == 5)))
    lost = struct.unpack("<Q", statistics[5])[0]
    assert len(written) + lost == everything and gaps <= lost
    assert f"{len(written)} messages captured, {lost} lost" in ended.err
    for sender, refused in results:
        assert figures[sender]["sent"] == MESSAGES - refused

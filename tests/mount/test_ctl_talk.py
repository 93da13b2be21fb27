"""kdbusctl sends messages and holds objects: call, send, emit, own, make-bus, make-endpoint, policy."""

from __future__ import annotations

import base64
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, Memfd, ReceivedMemfd, bloom_rule, make_bus
from kdbusfs.client.descriptors import SEALS
from tests.support.actors import Actors, Link, errno_of, until
from tests.support.ctl import Running, as_user, check_refused, kdbusctl, refused

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

NOBODY = 65534
PATIENCE = 240.0  # seconds
NAME = "org.example.Echo"


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    """A bus that every user may enter."""
    with make_bus(domain_mount.path, "ctl", access=c.MAKE_ACCESS_WORLD, bloom=(64, 4)) as owner:
        yield owner


@pytest.fixture
def echo(bus: BusOwner) -> Iterator[Running]:
    """A kdbusctl that owns NAME and answers."""
    with Running("own", NAME, "--echo", KDBUS_BUS=bus.path) as running:
        assert running.line().startswith(f"acquired {NAME} as connection ")
        yield running


# call, send, emit


def test_call_prints_the_reply(bus: BusOwner, echo: Running) -> None:
    ended = kdbusctl("call", NAME, "hello", KDBUS_BUS=bus.path)
    assert (ended.code, ended.out, ended.err) == (0, "hello", "")
    assert "request from connection" in echo.line()
    found = kdbusctl("call", NAME, "hello", "--json", KDBUS_BUS=bus.path).json
    assert found["payload"] == {"size": 5, "base64": "aGVsbG8=", "text": "hello"}
    assert found["fds"] == 0
    assert found["metadata"]["pids"]["pid"] == echo.process.pid
    assert kdbusctl("call", NAME, KDBUS_BUS=bus.path).out == ""


def test_payload_comes_from_arguments_files_and_standard_input(bus: BusOwner, echo: Running, tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"\x00\xff file")
    for arguments, stdin, expected in (
        (["--file", str(file)], b"", b"\x00\xff file"),
        (["--file", "-"], b"\xfe from stdin", b"\xfe from stdin"),
        (["--from-hex", "00 ff1b"], b"", b"\x00\xff\x1b"),
        (["--from-hex", "-f", "-"], b"61\n62\n", b"ab"),
        (["--memfd", "in a memfd"], b"", b"in a memfd"),
    ):
        ended = kdbusctl("call", NAME, *arguments, stdin=stdin, KDBUS_BUS=bus.path)
        assert (ended.code, os.fsencode(ended.out)) == (0, expected)


def test_replies_can_be_had_as_text_and_in_hexadecimal(bus: BusOwner, echo: Running) -> None:
    hostile = ["--from-hex", "1b5b33316d", "call", NAME][:2]
    assert kdbusctl("call", NAME, *hostile, "--text", KDBUS_BUS=bus.path).out == "\\x1b[31m\n"
    assert kdbusctl("call", NAME, *hostile, "--hex", KDBUS_BUS=bus.path).out.startswith("00000000  1b 5b 33 31 6d  ")
    assert kdbusctl("call", NAME, *hostile, "--raw", KDBUS_BUS=bus.path).out == "\x1b[31m"


def test_large_payload_goes_in_a_memfd(bus: BusOwner, echo: Running) -> None:
    """SEND-10: more than 2 MiB are refused otherwise."""
    large = bytes(3 << 20)
    ended = kdbusctl("call", NAME, "--file", "-", stdin=large, KDBUS_BUS=bus.path)
    check_refused(ended, 1, "--memfd")
    ended = kdbusctl("call", NAME, "--file", "-", "--memfd", stdin=large, KDBUS_BUS=bus.path)
    assert (ended.code, ended.out == large.decode(), ended.err) == (0, True, "")


def test_a_service_cannot_fill_the_memory_of_its_caller(bus: BusOwner, actors: Actors) -> None:
    """A memfd may be larger than memory: only the part that is needed is read."""

    def answer(link: Link) -> None:
        import fcntl

        with Connection(bus.path) as service, open(os.memfd_create("vast", os.MFD_ALLOW_SEALING), "wb") as vast:
            os.ftruncate(vast.fileno(), 1 << 40)
            fcntl.fcntl(vast.fileno(), fcntl.F_ADD_SEALS, SEALS)
            service.acquire(NAME)
            link.say()
            with service.receive(PATIENCE) as request:
                service.reply(request, [Memfd(vast)])
            link.hear()

    actor = actors(answer)
    actor.hear("the service")
    refused(1, "1099511627776 bytes", "call", NAME, "--json", KDBUS_BUS=bus.path)
    actor.say()


def test_calls_that_nobody_answers(bus: BusOwner) -> None:
    with Connection(bus.path) as deaf, Connection(bus.path, flags=c.HELLO_ACTIVATOR, name="org.example.Lazy"):
        deaf.acquire(NAME)
        refused(5, "no reply before the timeout", "call", NAME, "--timeout", "0.2", KDBUS_BUS=bus.path)
        refused(3, "only an activator", "call", "org.example.Lazy", "--no-auto-start", KDBUS_BUS=bus.path)
        refused(3, "nobody owns", "call", "org.example.Nobody", KDBUS_BUS=bus.path)
        refused(3, "no connection with that id", "call", "4711", KDBUS_BUS=bus.path)
        with Running("call", NAME, "last", KDBUS_BUS=bus.path) as calling:
            requests = []

            def asked() -> bool:
                message = deaf.recv()
                if message is not None:
                    requests.append(message.data())
                return bool(requests and requests[-1] == b"last")

            until("the request", asked)
            deaf.close()
            assert calling.wait() == 1
            assert "without a reply" in calling.error()


def test_ctrl_c_ends_a_call(bus: BusOwner) -> None:
    with Connection(bus.path) as deaf:
        deaf.acquire(NAME)
        with Running("call", NAME, KDBUS_BUS=bus.path) as calling:
            assert deaf.wait(PATIENCE)
            assert calling.interrupt() == -signal.SIGINT
            lines, errors = calling.rest()
            assert (lines, [error for error in errors if error]) == ([], [])


def test_send_queues_a_message(bus: BusOwner) -> None:
    with Connection(bus.path) as peer:
        peer.acquire(NAME)
        ended = kdbusctl("send", NAME, "hello", "--priority", "-7", KDBUS_BUS=bus.path)
        assert (ended.code, ended.out, ended.err) == (0, "", "")
        with peer.receive(PATIENCE) as message:
            assert (message.data(), message.priority, message.expects_reply) == (b"hello", -7, False)
        found = kdbusctl("send", str(peer.id), "more", "--memfd", "--json", KDBUS_BUS=bus.path).json
        with peer.receive(PATIENCE) as message:
            assert isinstance(message.payload[0], ReceivedMemfd)
            assert found == {
                "source": message.src_id,
                "destination": peer.id,
                "cookie": message.cookie,
                "size": 4,
            }
    refused(3, "nobody owns", "send", NAME, KDBUS_BUS=bus.path)


def test_a_full_queue_says_so(bus: BusOwner) -> None:
    with Connection(bus.path) as peer, Connection(bus.path) as other:
        peer.acquire(NAME)
        while errno_of(other.send, NAME) == 0:
            pass
        refused(1, "full", "send", NAME, "x", KDBUS_BUS=bus.path)


def test_emit_reaches_those_whose_match_accepts_the_words(bus: BusOwner) -> None:
    with Connection(bus.path) as sunny, Connection(bus.path) as rainy, Connection(bus.path) as all_ears:
        sunny.add_match(1, bloom_rule(sunny.bloom("sun")))
        rainy.add_match(1, bloom_rule(rainy.bloom("rain")))
        all_ears.add_match(1, bloom_rule(bytes(64)))
        found = kdbusctl("emit", "wet", "--bloom", "rain", "--bloom", "wind", "--json", KDBUS_BUS=bus.path).json
        assert found["bloom"] == rainy.bloom("rain", "wind").hex()
        for receiver in (rainy, all_ears):
            with receiver.receive(PATIENCE) as message:
                assert (message.data(), message.dst_id) == (b"wet", c.DST_ID_BROADCAST)
                assert (message.src_id, message.cookie) == (found["source"], found["cookie"])
        assert sunny.recv() is None
        ended = kdbusctl("emit", "nothing", KDBUS_BUS=bus.path)
        assert (ended.code, ended.out, ended.err) == (0, "", "")
        with all_ears.receive(PATIENCE) as message:
            assert message.data() == b"nothing"
        assert rainy.recv() is None


# own


def test_own_tells_of_what_happens(bus: BusOwner) -> None:
    with (
        Running("own", NAME, "--allow-replacement", "--queue", "--json", KDBUS_BUS=bus.path) as owning,
        Connection(bus.path) as peer,
    ):
        first = owning.record()
        assert (first["event"], first["name"]) == ("acquired", NAME)
        peer.send(NAME, b"\x1b[31m")
        message = owning.record()
        assert (message["event"], message["source"], message["expects_reply"]) == ("message", peer.id, False)
        assert base64.b64decode(message["payload"]["base64"]) == b"\x1b[31m"
        peer.acquire(NAME, flags=c.NAME_REPLACE_EXISTING)
        assert owning.record() == {"event": "lost", "name": NAME, "id": first["id"]}
        peer.release(NAME)
        assert owning.record() == {"event": "acquired", "name": NAME, "id": first["id"]}
        assert owning.interrupt() == 0
        assert owning.rest() == ([], [])


def test_own_of_a_name_that_is_taken(bus: BusOwner) -> None:
    with Connection(bus.path) as peer:
        peer.acquire(NAME, flags=c.NAME_ALLOW_REPLACEMENT)
        refused(1, f"connection {peer.id} owns it", "own", NAME, KDBUS_BUS=bus.path)
        with Running("own", NAME, "--queue", KDBUS_BUS=bus.path) as waiting:
            assert f"queued for {NAME}: connection {peer.id} owns it" in waiting.line()
            with Running("own", NAME, "--replace", "--allow-replacement", KDBUS_BUS=bus.path) as owning:
                assert "acquired" in owning.line()
                assert owning.interrupt() == 0
            assert "acquired" in waiting.line()
            assert waiting.interrupt() == 0


def test_own_ends_when_the_name_is_lost(bus: BusOwner) -> None:
    with Connection(bus.path) as peer, Running("own", NAME, "--allow-replacement", KDBUS_BUS=bus.path) as owning:
        assert "acquired" in owning.line()
        peer.acquire(NAME, flags=c.NAME_REPLACE_EXISTING)
        assert f"lost {NAME} to connection {peer.id}" in owning.line()
        assert owning.wait() == 1


def test_own_runs_a_command_while_the_name_is_owned(bus: BusOwner) -> None:
    script = 'echo "$KDBUS_BUS"; exit 7'
    ended = kdbusctl("own", NAME, "--", "sh", "-c", script, KDBUS_BUS=bus.path)
    assert (ended.code, ended.out) == (7, bus.path + "\n")
    with Connection(bus.path) as peer:
        assert errno_of(peer.conn_info, NAME) == errno.ESRCH
        refused_code = kdbusctl("own", NAME, "--", "/nonexistent", KDBUS_BUS=bus.path)
        assert refused_code.code == 127
        assert "cannot run" in refused_code.err


def test_own_without_the_right_to_it(bus: BusOwner) -> None:
    """POL-11"""
    check_refused(as_user(NOBODY, "--bus", bus.path, "own", NAME), 4, "policy does not allow")
    check_refused(as_user(NOBODY, "--bus", bus.path, "own", NAME, "--activator"), 4, "only who made the bus")


def test_own_ends_with_the_bus(domain_mount: DomainMount) -> None:
    owner = make_bus(domain_mount.path, "short")
    with Running("own", NAME, KDBUS_BUS=owner.path) as owning:
        owning.line()
        owner.close()
        assert owning.wait() == 3
        assert "the bus has ended" in owning.error()


def test_an_activator_starts_its_service_for_a_message(bus: BusOwner, actors: Actors) -> None:
    """ACT-3, ACT-4: queued messages move to the connection that acquires the name."""
    service = f"exec {sys.executable} -m kdbusfs.ctl own {NAME} --echo"
    with Running("own", NAME, "--activator", "--json", "--", "sh", "-c", service, KDBUS_BUS=bus.path) as activating:
        assert activating.record()["event"] == "acquired"
        ended = kdbusctl("call", NAME, "wake up", KDBUS_BUS=bus.path)
        assert (ended.code, ended.out) == (0, "wake up")
        assert activating.record()["event"] == "started"
        activating.process.send_signal(signal.SIGTERM)
        assert activating.wait() == 0


def test_a_service_that_does_not_take_its_name_is_not_started_for_ever(bus: BusOwner) -> None:
    with Running("own", NAME, "--activator", "--", "sh", "-c", "exit 3", KDBUS_BUS=bus.path) as activating:
        assert "acquired" in activating.error()
        kdbusctl("send", NAME, KDBUS_BUS=bus.path)
        assert activating.wait() == 1
        assert "started" in activating.error()
        assert "ended with 3" in activating.error()
        assert "left messages" in activating.error()


def test_a_second_activator_is_refused(bus: BusOwner) -> None:
    with Connection(bus.path, flags=c.HELLO_ACTIVATOR, name=NAME):
        refused(1, "has an activator", "own", NAME, "--activator", KDBUS_BUS=bus.path)


# make-bus, make-endpoint, policy


def test_make_bus_holds_a_bus(domain_mount: DomainMount) -> None:
    mount = str(domain_mount.path)
    arguments = ("--bloom-size", "128", "--bloom-hashes", "3", "--require", "creds,pids", "--world")
    with Running("--mount", mount, "make-bus", "made", *arguments) as making:
        path = making.line()
        assert path == f"{mount}/0-made/bus"
        with Connection(path) as peer:
            assert (peer.bloom_size, peer.n_hash) == (128, 3)
            assert peer.attach_required == c.ATTACH_CREDS | c.ATTACH_PIDS
            info = peer.creator_info(c.ATTACH_PIDS | c.ATTACH_CREDS)
            assert info.flags == c.MAKE_ACCESS_WORLD
            assert info.metadata.pids is not None
            assert info.metadata.pids.pid == making.process.pid
        refused(1, "of that name already", "--mount", mount, "make-bus", "made")
        refused(1, "of that name already", "--mount", mount, "make-bus", "0-made")
        assert making.interrupt() == 0
        assert making.rest() == ([], [])
    assert not os.path.exists(path)


def test_make_bus_for_a_command(domain_mount: DomainMount) -> None:
    mount = str(domain_mount.path)
    ended = kdbusctl("--mount", mount, "make-bus", "made", "--", "sh", "-c", 'echo "$KDBUS_BUS"; exit 9')
    assert (ended.code, ended.out, ended.err) == (9, f"{mount}/0-made/bus\n", "")
    with Running("--mount", mount, "make-bus", "made", "--json") as making:
        assert making.record() == {"name": "0-made", "path": f"{mount}/0-made/bus"}
        making.process.send_signal(signal.SIGTERM)
        assert making.wait() == 0


def test_make_bus_refusals(domain_mount: DomainMount) -> None:
    mount = str(domain_mount.path)
    refused(1, "not a valid bus name", "--mount", mount, "make-bus", "a b")
    refused(1, "too long", "--mount", mount, "make-bus", "x" * 100)


def test_make_bus_notices_that_the_domain_is_gone(domain_mount: DomainMount) -> None:
    with Running("--mount", str(domain_mount.path), "make-bus", "made") as making:
        making.line()
        domain_mount.process.send_signal(signal.SIGKILL)
        domain_mount.process.wait()
        domain_mount.expect(-signal.SIGKILL)
        try:
            assert making.wait() == 32
            assert "is gone" in making.error()
        finally:
            subprocess.run(["umount", "-l", str(domain_mount.path)], check=True, timeout=120)


def test_make_endpoint_with_a_policy_file(bus: BusOwner, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(f'[[name]]\nname = "{NAME}"\nsee = ["world"]\n')
    with (
        Connection(bus.path) as peer,
        Running("make-endpoint", "narrow", "--policy", str(file), "--world", KDBUS_BUS=bus.path) as making,
    ):
        peer.acquire(NAME)
        path = making.line()
        assert path == f"{bus.directory}/0-narrow"
        with Connection(path) as guest:
            assert guest.conn_info(NAME).id == peer.id
            assert errno_of(guest.send, NAME, b"hello") == errno.EPERM
            file.write_text(f'[[name]]\nname = "{NAME}"\ntalk = ["user:root"]\n')
            making.process.send_signal(signal.SIGHUP)
            assert "again" in making.error()
            guest.send(NAME, b"hello")
            file.write_text("mistake")
            making.process.send_signal(signal.SIGHUP)
            assert "the policy stays as it was" in making.error()
            guest.send(NAME, b"hello")
        refused(1, "of that name already", "make-endpoint", "narrow", KDBUS_BUS=bus.path)
        assert making.interrupt() == 0
    refused(2, "unknown key", "make-endpoint", "x", "--policy", _wrong(tmp_path), KDBUS_BUS=bus.path)
    assert os.listdir(bus.directory) == ["bus"]
    check_refused(as_user(NOBODY, "--bus", bus.path, "make-endpoint", "x"), 4, "only who made the bus")


def _wrong(folder: Path) -> str:
    (folder / "wrong.toml").write_text("[[nam]]")
    return str(folder / "wrong.toml")


def test_make_endpoint_for_a_command(bus: BusOwner) -> None:
    ended = kdbusctl("make-endpoint", "narrow", "--", "sh", "-c", 'echo "$KDBUS_BUS"', KDBUS_BUS=bus.path)
    assert (ended.code, ended.out) == (0, f"{bus.directory}/0-narrow\n")


def test_policy_is_held_on_the_bus(bus: BusOwner, tmp_path: Path, actors: Actors) -> None:
    """POL-3, POL-19: the policy of the file exists as long as kdbusctl runs."""
    file = tmp_path / "policy.toml"
    file.write_text(
        f'[[name]]\nname = "{NAME}"\ntalk = ["user:{NOBODY}"]\n[[name]]\nname = "org.other.*"\nown = ["world"]\n'
    )

    def talk() -> int:
        with Connection(bus.path) as stranger:
            return errno_of(stranger.send, NAME, b"hello")

    with Connection(bus.path) as peer:
        peer.acquire(NAME)
        assert actors.run(talk, uid=NOBODY) == errno.EPERM
        with Running("policy", str(file), "--hold", KDBUS_BUS=bus.path) as holding:
            assert holding.line() == "holding the policy of 2 names"
            assert actors.run(talk, uid=NOBODY) == 0
            refused(1, "another policy holder", "policy", str(file), "--hold", KDBUS_BUS=bus.path)
            file.write_text(f'[[name]]\nname = "{NAME}"\nsee = ["world"]\n')
            holding.process.send_signal(signal.SIGHUP)
            assert "again" in holding.error()
            assert actors.run(talk, uid=NOBODY) == errno.EPERM
            states = [entry["flags"] for entry in kdbusctl("list", "--unique", "--json", KDBUS_BUS=bus.path).json]
            assert sum("policy-holder" in flags for flags in states) == 1
            assert holding.interrupt() == 0
    ended = kdbusctl("policy", str(file), "--hold", "--", "true", KDBUS_BUS=bus.path)
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_policy_files_are_shown_and_questioned(tmp_path: Path) -> None:
    """Without any mount."""
    file = tmp_path / "policy.toml"
    file.write_text(f'[[name]]\nname = "{NAME}"\nown = ["user:root"]\nsee = ["world"]\n[[name]]\nname = "a.b"\n')
    ended = kdbusctl("policy", str(file))
    assert [line.split() for line in ended.lines] == [
        ["NAME", "ACCESS", "WHO"],
        [NAME, "own", "user:root"],
        [NAME, "see", "world"],
        ["a.b", "-", "nobody"],
    ]
    found = kdbusctl("policy", str(file), "--json").json
    assert found[0]["rights"][0] == {"access": "own", "kind": "user", "id": 0, "who": "user:root"}
    for user, may, code in (("root", "own", 0), ("12345", "see", 0)):
        ended = kdbusctl("policy", str(file), "--may", NAME, user)
        assert (ended.code, ended.out) == (code, f"{may}\n")
    ended = kdbusctl("policy", str(file), "--may", "a.b", "root", "--json")
    assert (ended.code, ended.json) == (3, {"name": "a.b", "user": "root", "may": None})
    refused(2, "unknown key", "policy", _wrong(tmp_path))
    refused(2, "COMMAND needs --hold", "policy", str(file), "--", "true")


def test_two_calls_at_once(bus: BusOwner, echo: Running) -> None:
    """kdbusctl has no state: any number of them can run at the same time."""
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(kdbusctl("call", NAME, "x", KDBUS_BUS=bus.path).out))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == ["x"] * 4

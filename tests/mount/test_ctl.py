"""kdbusctl inspects a real domain: tree, list, status, wait, the choice of the bus, errors, completion."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, make_bus, make_endpoint, world
from tests.support.actors import Actors, Link, until
from tests.support.ctl import COMMAND, Running, as_user, check_refused, environment, kdbusctl, refused

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

NOBODY = 65534


@pytest.fixture
def bus(domain_mount: DomainMount, monkeypatch: pytest.MonkeyPatch) -> Iterator[BusOwner]:
    """A bus that every user may enter, and that kdbusctl uses by default."""
    with make_bus(domain_mount.path, "ctl", access=c.MAKE_ACCESS_WORLD, attach_send=c.ATTACH_PIDS) as owner:
        yield owner


def ctl(bus: BusOwner, *arguments: str) -> list[str]:
    """Run a command, which must succeed; returns its lines."""
    ended = kdbusctl(*arguments, KDBUS_BUS=bus.path)
    assert (ended.code, ended.err) == (0, ""), ended
    return ended.lines


# list


def test_list_shows_names_activators_waiters_and_connections_without_a_name(bus: BusOwner) -> None:
    with (
        Connection(bus.path, description="the-owner") as owner,
        Connection(bus.path) as waiter,
        Connection(bus.path, flags=c.HELLO_ACTIVATOR, name="org.example.Lazy") as activator,
        Connection(bus.path, flags=c.HELLO_MONITOR) as monitor,
        Connection(bus.path) as nameless,
    ):
        owner.acquire("org.example.A", flags=c.NAME_ALLOW_REPLACEMENT)
        waiter.acquire("org.example.A", flags=c.NAME_QUEUE)
        found = kdbusctl("list", "--json", KDBUS_BUS=bus.path)
        entries = found.json
        assert [(entry["name"], entry["state"], entry["id"]) for entry in entries] == [
            ("org.example.A", "owned", owner.id),
            ("org.example.A", "queued", waiter.id),
            ("org.example.Lazy", "activatable", activator.id),
            (None, "unique", monitor.id),
            (None, "unique", nameless.id),
        ]
        first = entries[0]
        assert first["pid"] == os.getpid()
        assert (first["uid"], first["user"]) == (0, "root")
        assert first["description"] == "the-owner"
        assert first["name_flags"] == ["allow-replacement"]
        assert first["command_source"] == "proc"
        assert first["command"].startswith(sys.executable) or "pytest" in first["command"]
        assert entries[3]["flags"] == ["accept-fd", "monitor"]
        lines = ctl(bus, "list")
        assert lines[0].split() == ["NAME", "ID", "STATE", "PID", "USER", "ABI", "DESCRIPTION", "COMMAND"]
        first = ["org.example.A", str(owner.id), "owned", str(os.getpid()), "root", "v3", "the-owner"]
        assert lines[1].split()[:7] == first
        assert len(lines) == 6
        assert "monitor" in lines[4]
        assert [line.split()[0] for line in ctl(bus, "list", "--activatable")[1:]] == ["org.example.Lazy"]
        assert [line.split()[1] for line in ctl(bus, "list", "--queued")[1:]] == [str(waiter.id)]


def test_the_same_state_gives_the_same_list(bus: BusOwner) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(bus.path)) for _ in range(20)]
        for number, connection in enumerate(reversed(connections)):
            connection.acquire(f"org.example.N{number:02}")
        lines = ctl(bus, "list")
        names = [line.split()[0] for line in lines[1:]]
        assert names == sorted(names)
        assert ctl(bus, "list") == lines


def test_a_list_holds_while_connections_come_and_go(bus: BusOwner, actors: Actors) -> None:
    def churn(link: Link) -> None:
        link.say()
        while True:
            with ExitStack() as stack:
                for _ in range(5):
                    stack.enter_context(Connection(bus.path, pool_size=4096))
            time.sleep(0.001)

    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(Connection(bus.path, pool_size=4096))
        actors(churn).hear("the restless client")
        for _ in range(10):
            found = as_user(None, "list", "--json", KDBUS_BUS=bus.path)
            assert (found.code, found.err) == (0, "")
            assert len(found.json) >= 30
            assert all(entry["visible"] for entry in found.json)
        tree = kdbusctl("tree", "--json", KDBUS_BUS=bus.path)
        assert (tree.code, tree.err) == (0, "")


def test_a_thousand_connections_are_listed_in_a_reasonable_time(bus: BusOwner) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(bus.path, pool_size=4096)) for _ in range(1000)]
        for number, connection in enumerate(connections[:500]):
            connection.acquire(f"org.example.N{number}")
        before = os.times()
        lines = ctl(bus, "list")
        after = os.times()
        assert len(lines) == 1001
        used = after.children_user + after.children_system - before.children_user - before.children_system
        assert used < 5, f"{used:.1f} s of cpu"  # 0.3 s are usual
        assert len(ctl(bus, "tree")) == 1003


def test_what_may_not_be_seen_is_shown_as_such(bus: BusOwner) -> None:
    """INFO-2, LIST-9: a custom endpoint hides connections without a visible name."""
    with (
        make_endpoint(bus, "narrow", policy={"org.example.Seen": [world(c.POLICY_SEE)]}) as narrow,
        Connection(bus.path, description="seen") as seen,
        Connection(bus.path, description="secret") as hidden,
    ):
        seen.acquire("org.example.Seen")
        hidden.acquire("org.example.Hidden")
        found = kdbusctl("--bus", narrow.path, "list", "--json")
        entries = {entry["id"]: entry for entry in found.json}
        assert (entries[seen.id]["visible"], entries[seen.id]["description"]) == (True, "seen")
        assert (entries[hidden.id]["visible"], entries[hidden.id]["name"]) == (False, None)
        text = kdbusctl("--bus", bus.path.removesuffix("/bus"), "--endpoint", "narrow", "list")
        assert (text.code, "secret" in text.out, "Hidden" in text.out) == (0, False, False)
        assert "1 connections are hidden" in text.err
        assert "hidden" in kdbusctl("--bus", narrow.path, "tree").out


def test_clients_cannot_send_escape_sequences_to_the_terminal(bus: BusOwner, actors: Actors) -> None:
    """A process chooses its name and arguments, which others display."""

    def hostile(link: Link) -> None:
        Path("/proc/self/comm").write_text("\x1b[31m[red]\x07")
        label = b"\x1b]0;title\x07[bold]x\xff\n\0"
        with Connection(bus.path, items=[(c.ITEM_SECLABEL, label)]) as faked, Connection(bus.path) as plain:
            link.say((faked.id, plain.id))
            link.hear()

    actor = actors(hostile)
    faked, plain = actor.hear("the ids")
    for arguments in (["list"], ["tree"], ["status", str(faked)], ["status", str(plain)]):
        ended = kdbusctl(*arguments, "--color", "never", KDBUS_BUS=bus.path)
        assert ended.code == 0
        assert "\x1b" not in ended.out
        assert "\x07" not in ended.out
    assert "\\x1b]0;title\\x07[bold]x\\xff\\x0a" in kdbusctl("status", str(faked), KDBUS_BUS=bus.path).out
    comms = [entry["comm"] for entry in kdbusctl("list", "--json", KDBUS_BUS=bus.path).json]
    assert "\x1b[31m[red]\x07" in comms
    actor.say()


# status


def test_status_shows_what_is_known_of_a_connection(bus: BusOwner) -> None:
    with Connection(bus.path, description="described", attach_send=c.ATTACH_ALL & ~c.ATTACH_CREDS) as peer:
        peer.acquire("org.example.A", flags=c.NAME_QUEUE)
        for who in ("org.example.A", str(peer.id), f":1.{peer.id}"):
            found = kdbusctl("status", who, "--json", KDBUS_BUS=bus.path).json
            assert (found["id"], found["flags"]) == (peer.id, ["accept-fd"])
            assert found["metadata"]["pids"]["pid"] == os.getpid()
            assert found["metadata"]["names"] == [{"name": "org.example.A", "flags": ["queue"]}]
            assert found["metadata"]["description"] == "described"
            assert "creds" in found["withheld"]
            assert "creds" not in found["metadata"]
        lines = ctl(bus, "status", "org.example.A")
        fields = dict(line.split(":", 1) for line in lines)
        assert fields["Connection"].strip() == str(peer.id)
        assert fields["PID"].strip() == str(os.getpid())
        assert fields["Name"].strip() == "org.example.A (queue)"
        assert "creds" in fields["Not shown"]


def test_status_shows_all_metadata_that_the_domain_lets_through(domain_mount: DomainMount, bus: BusOwner) -> None:
    (domain_mount.path / ".kdbusfs/parameters/attach_flags_mask").write_text(str(c.ATTACH_ALL))
    with Connection(bus.path) as peer:
        found = kdbusctl("status", str(peer.id), "--json", KDBUS_BUS=bus.path).json
        metadata = found["metadata"]
        assert metadata["pid_comm"] == Path("/proc/self/comm").read_text().rstrip("\n")
        assert metadata["exe"] == os.path.realpath("/proc/self/exe")
        assert {"creds", "pids", "auxgroups", "tid_comm", "cmdline", "cgroup", "caps", "audit"} <= metadata.keys()
        assert set(found["withheld"]) <= {"seclabel"}
        text = "\n".join(ctl(bus, "status", str(peer.id)))
        for label in ("Executable:", "Command:", "Control group:", "Capabilities, effective:", "Audit session:"):
            assert label in text
        assert kdbusctl("list", "--json", KDBUS_BUS=bus.path).json[0]["command_source"] == "bus"


def test_status_of_the_bus_and_its_creator(bus: BusOwner) -> None:
    """CRE-1, CRE-2"""
    for arguments in (["status"], ["status", "--creator"]):
        found = kdbusctl(*arguments, "--json", KDBUS_BUS=bus.path).json
        assert (found["name"], found["flags"], found["requires"]) == (bus.name, ["access-world"], [])
        assert found["bloom"] == {"size": 64, "hashes": 1}
        assert found["metadata"]["pids"]["pid"] == os.getpid()
        assert "creds" in found["withheld"]
    assert ctl(bus, "status")[0].split() == ["Bus:", bus.name]


def test_status_of_an_unknown_name(bus: BusOwner) -> None:
    refused(3, "nobody owns", "status", "org.example.Nobody", KDBUS_BUS=bus.path)
    refused(3, "no such connection", "status", "4711", KDBUS_BUS=bus.path)


# Both ABIs


@pytest.mark.parametrize("family", ["v3", "last"])
def test_the_abi_of_each_connection_is_shown_to_root(domain_mount: DomainMount, family: str) -> None:
    """On buses made by either."""
    with (
        make_bus(domain_mount.path, "either", family=family, access=c.MAKE_ACCESS_WORLD) as bus,
        Connection(bus.path, family="v3") as old,
        Connection(bus.path, family="last", description="newer") as new,
    ):
        new.acquire("org.example.New", flags=c.NAME_ALLOW_REPLACEMENT)
        old.acquire("org.example.New", flags=c.NAME_QUEUE)
        entries = kdbusctl("list", "--json", KDBUS_BUS=bus.path).json
        assert [(entry["id"], entry["state"], entry["family"]) for entry in entries] == [
            (new.id, "owned", "last"),
            (old.id, "queued", "v3"),
        ]
        assert [line.split()[5] for line in ctl(bus, "list")] == ["ABI", "last", "v3"]
        (found,) = kdbusctl("--mount", str(domain_mount.path), "tree", "--json").json
        peers = {peer["id"]: peer["family"] for peer in found["buses"][0]["connections"]}
        assert peers == {old.id: "v3", new.id: "last"}
        assert [line.split()[1:4] for line in ctl(bus, "tree") if "[last ABI]" in line] == [
            [f"#{new.id}", "org.example.New", "[last"]
        ]
        assert kdbusctl("status", "org.example.New", "--json", KDBUS_BUS=bus.path).json["family"] == "last"
        assert ["ABI:", "v3"] in [line.split() for line in ctl(bus, "status", str(old.id))]
        assert kdbusctl("status", "--json", KDBUS_BUS=bus.path).json["name"] == bus.name
        ended = as_user(NOBODY, "list", "--json", KDBUS_BUS=bus.path)
        assert [(entry["id"], entry["family"]) for entry in ended.json] == [(new.id, None), (old.id, None)]


# tree


def test_tree_shows_domains_buses_endpoints_and_connections(domain_mount: DomainMount, bus: BusOwner) -> None:
    with (
        make_bus(domain_mount.path, "second"),
        make_endpoint(bus, "narrow"),
        Connection(bus.path, description="one") as one,
        Connection(bus.path, flags=c.HELLO_ACTIVATOR, name="org.example.Lazy") as lazy,
    ):
        one.acquire("org.example.A")
        found = kdbusctl("--mount", str(domain_mount.path), "tree", "--json").json
        assert [domain["mount"] for domain in found] == [str(domain_mount.path)]
        first, second = found[0]["buses"]
        assert (first["name"], second["name"]) == (bus.name, "0-second")
        assert [(end["name"], end["mode"]) for end in first["endpoints"]] == [("bus", "0666"), ("0-narrow", "0600")]
        connections = {peer["id"]: peer for peer in first["connections"]}
        assert set(connections) == {one.id, lazy.id}
        assert connections[one.id]["names"] == ["org.example.A"]
        assert connections[lazy.id]["activates"] == ["org.example.Lazy"]
        text = kdbusctl("--mount", str(domain_mount.path), "tree").out
        for said in (str(domain_mount.path), bus.name, "0-narrow", "org.example.A", "activates org.example.Lazy"):
            assert said in text
        assert ctl(bus, "tree")[1].endswith(bus.name)
        shallow = kdbusctl("--mount", str(domain_mount.path), "tree", "--depth", "buses", "--json").json
        assert shallow[0]["buses"][0]["endpoints"] == []
        domains = kdbusctl("--mount", str(domain_mount.path), "tree", "--depth", "domains", "--json").json
        assert domains == [{"mount": str(domain_mount.path), "error": None, "buses": []}]


def test_tree_of_another_user_shows_what_is_closed(domain_mount: DomainMount, bus: BusOwner) -> None:
    with make_bus(domain_mount.path, "private") as private:
        ended = as_user(NOBODY, "--mount", str(domain_mount.path), "tree")
        assert (ended.code, ended.err) == (0, "")
        assert f"{private.name}  (no permission)" in ended.out
        assert f"{bus.name}\n" in ended.out


# wait


def test_wait_ends_at_once_or_when_the_name_comes(bus: BusOwner) -> None:
    with Connection(bus.path) as peer:
        with Running("wait", "org.example.A", KDBUS_BUS=bus.path) as waiting:
            # It must be waiting before: its own connection shows that it is.
            until("kdbusctl to connect", lambda: len(peer.list_names(c.NAME_LIST_UNIQUE)) == 2)
            peer.acquire("org.example.A")
            assert waiting.wait() == 0
            assert waiting.rest() == ([str(peer.id)], [])
        assert kdbusctl("wait", "org.example.A", "--json", KDBUS_BUS=bus.path).json == {
            "name": "org.example.A",
            "id": peer.id,
        }
        with Running("wait", "org.example.A", "--gone", KDBUS_BUS=bus.path) as waiting:
            until("kdbusctl to connect", lambda: len(peer.list_names(c.NAME_LIST_UNIQUE)) == 2)
            peer.release("org.example.A")
            assert waiting.wait() == 0
            assert waiting.rest() == ([], [])


def test_wait_gives_up(bus: BusOwner) -> None:
    begin = time.monotonic()
    refused(5, "no owner yet", "wait", "org.example.A", "--timeout", "0.2", KDBUS_BUS=bus.path)
    assert time.monotonic() - begin >= 0.2
    with Connection(bus.path) as peer:
        peer.acquire("org.example.A")
        refused(5, "still has an owner", "wait", "org.example.A", "--gone", "-t", "0", KDBUS_BUS=bus.path)


def test_wait_ends_with_the_bus(domain_mount: DomainMount) -> None:
    owner = make_bus(domain_mount.path, "short")
    with Connection(owner.path) as peer, Running("wait", "org.example.A", KDBUS_BUS=owner.path) as waiting:
        until("kdbusctl to connect", lambda: len(peer.list_names(c.NAME_LIST_UNIQUE)) == 2)
        owner.close()
        assert waiting.wait() == 3
        assert "the bus has ended" in waiting.error()


def test_wait_for_a_service_is_not_content_with_its_activator(bus: BusOwner) -> None:
    with (
        Connection(bus.path, flags=c.HELLO_ACTIVATOR, name="org.example.A") as activator,
        Connection(bus.path) as service,
    ):
        assert ctl(bus, "wait", "org.example.A") == [str(activator.id)]
        refused(5, "no owner yet", "wait", "org.example.A", "--service", "-t", "0", KDBUS_BUS=bus.path)
        service.acquire("org.example.A")
        assert ctl(bus, "wait", "org.example.A", "--service") == [str(service.id)]


# The choice of the bus, and errors.


def in_namespace(keep: Path, *steps: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands in a mount namespace that has only the kdbusfs at `keep`."""
    script = (
        "while read -r _ _ _ _ path rest; do case $rest in (*' - fuse.kdbusfs '*) "
        f'[ "$path" = "{keep}" ] || umount -l "$path";; esac; done </proc/self/mountinfo; '
        f'kdbusctl() {{ {COMMAND[0]} -m kdbusfs.ctl "$@"; }}; ' + " && ".join(steps)
    )
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
    )


def test_the_only_mount_and_its_only_bus_need_no_option(domain_mount: DomainMount, bus: BusOwner) -> None:
    result = in_namespace(domain_mount.path, "kdbusctl status --json", "kdbusctl --bus ctl list")
    assert (result.returncode, result.stderr) == (0, "")
    assert f'"name": "{bus.name}"' in result.stdout


@pytest.mark.parametrize("part", ["a bus", "an endpoint"])
def test_a_bus_that_is_mounted_by_itself_is_found(bus: BusOwner, tmp_path: Path, part: str) -> None:
    """As in a container that has only one bus or endpoint of the domain."""
    target = tmp_path / "target"
    if part == "a bus":
        source = bus.directory
        target.mkdir()
    else:
        source = bus.path
        target.touch()
    subprocess.run(["mount", "--bind", source, str(target)], check=True, timeout=120)
    try:
        result = in_namespace(target, "kdbusctl status --json", "kdbusctl --bus ctl list", "kdbusctl tree --json")
        assert (result.returncode, result.stderr) == (0, "")
        assert f'"name": "{bus.name}"' in result.stdout
        assert '[{"mount": null, "error": null, "buses": [{"name": "' + bus.name in result.stdout
    finally:
        subprocess.run(["umount", str(target)], check=True, timeout=120)


def test_several_buses_have_to_be_chosen_from(domain_mount: DomainMount, bus: BusOwner) -> None:
    with make_bus(domain_mount.path, "second"):
        refused(2, "0-second", "--mount", str(domain_mount.path), "list")
        assert kdbusctl("--mount", str(domain_mount.path), "--bus", "second", "status").code == 0
        assert kdbusctl("status", "--mount", str(domain_mount.path), "--bus", "0-second").code == 0


def test_a_path_that_is_no_kdbusfs(tmp_path: Path, domain_mount: DomainMount) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file, tmp_path / "none", Path("/dev/null")):
        refused(32, str(path), "--mount", str(path), "list")
        refused(32, str(path), "--mount", str(path), "tree")
        refused(32, str(path), "--mount", str(path), "make-bus", "x")
    refused(32, "not an endpoint of kdbusfs", "--bus", str(file), "list")
    refused(32, "not an endpoint of kdbusfs", "--bus", "/dev/null", "list")
    refused(32, "not an endpoint of kdbusfs", "--bus", str(domain_mount.path / "control"), "list")
    refused(3, "no such file", "--bus", str(tmp_path / "none"), "list")
    refused(3, "no bus", "--mount", str(domain_mount.path), "list")
    refused(3, "no bus 'x'", "--mount", str(domain_mount.path), "--bus", "x", "list")


def test_no_permission_is_said_in_a_line(domain_mount: DomainMount) -> None:
    with make_bus(domain_mount.path, "private") as private:
        mount = str(domain_mount.path)
        for arguments in (
            ["--mount", mount, "list"],
            ["--mount", mount, "--bus", "0-private", "list"],
            ["--bus", private.path, "list"],
            ["--bus", private.directory, "status"],
        ):
            check_refused(as_user(NOBODY, *arguments), 4, "permission")


def test_an_ordinary_user_sees_a_bus_that_is_open(domain_mount: DomainMount, bus: BusOwner) -> None:
    with make_bus(domain_mount.path, "private"), Connection(bus.path) as peer:
        peer.acquire("org.example.A")
        ended = as_user(NOBODY, "--mount", str(domain_mount.path), "list", "--json")
        assert (ended.code, ended.err) == (0, "")
        assert [entry["name"] for entry in ended.json] == ["org.example.A"]
        refused_call = as_user(NOBODY, "--mount", str(domain_mount.path), "call", "org.example.A")
        check_refused(refused_call, 4, "does not grant TALK")


def test_a_domain_whose_daemon_has_ended(domain_mount: DomainMount, bus: BusOwner) -> None:
    domain_mount.process.send_signal(signal.SIGKILL)
    domain_mount.process.wait()
    domain_mount.expect(-signal.SIGKILL)
    try:
        refused(32, "has ended", "--mount", str(domain_mount.path), "list")
        refused(32, "has ended", "--bus", bus.path, "list")
        found = kdbusctl("--mount", str(domain_mount.path), "tree")
        check_refused(found, 32, "umount")
    finally:
        subprocess.run(["umount", "-l", str(domain_mount.path)], check=True, timeout=120)


def test_ctrl_c_works_while_the_daemon_does_not_answer(domain_mount: DomainMount, bus: BusOwner) -> None:
    os.kill(domain_mount.pid, signal.SIGSTOP)
    try:
        with Running("list", KDBUS_BUS=bus.path) as stuck:
            until(
                "kdbusctl to wait",
                lambda: "request_wait_answer" in Path(f"/proc/{stuck.process.pid}/wchan").read_text(),
            )
            assert stuck.interrupt() == -signal.SIGINT
    finally:
        os.kill(domain_mount.pid, signal.SIGCONT)


def test_a_reader_that_goes_away_is_no_failure(bus: BusOwner) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Connection(bus.path, pool_size=4096))
        command = f"{COMMAND[0]} -m kdbusfs.ctl list; echo $? >&2"
        result = subprocess.run(
            ["bash", "-c", f"({command}) | head -n 1"],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(KDBUS_BUS=bus.path),
            check=False,
        )
        assert result.stdout.startswith("NAME")
        assert result.stderr in ("0\n", "141\n")


def test_a_full_disk_is_a_failure(bus: BusOwner) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, timeout=120, env=environment(KDBUS_BUS=bus.path)
        )
    assert result.returncode == 1
    assert result.stderr.decode().count("\n") == 1


# Completion.


def completed(bus: BusOwner, *words: str) -> set[str]:
    result = subprocess.run(
        COMMAND,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(
            KDBUS_BUS=bus.path,
            COMP_WORDS=" ".join(["kdbusctl", *words]),
            COMP_CWORD=str(len(words)),
            _KDBUSCTL_COMPLETE="bash_complete",
        ),
    )
    assert result.stderr == ""
    return {line.partition(",")[2] for line in result.stdout.splitlines() if line}


def test_names_ids_buses_and_mounts_are_completed(domain_mount: DomainMount, bus: BusOwner) -> None:
    with make_endpoint(bus, "narrow"), Connection(bus.path) as one, Connection(bus.path) as two:
        one.acquire("org.example.A")
        two.acquire("org.other.B")
        assert completed(bus, "status", "org.e") == {"org.example.A"}
        assert completed(bus, "wait", "org.") == {"org.example.A", "org.other.B"}
        assert completed(bus, "call", "") >= {"org.example.A", str(one.id), str(two.id)}
        mount = str(domain_mount.path)
        assert completed(bus, "--mount", mount, "--bus", "") == {bus.name}
        assert mount in completed(bus, "--mount", mount[:4])
        assert completed(bus, "list", "--endpoint", "") == {"bus", "0-narrow"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script(bus: BusOwner, tmp_path: Path) -> None:
    """Run the script as the shell does when a user presses the tab key."""
    (tmp_path / "kdbusctl").write_text(f'#!/bin/sh\nexec {COMMAND[0]} -m kdbusfs.ctl "$@"\n')
    (tmp_path / "kdbusctl").chmod(0o755)
    script = """
eval "$(kdbusctl completion bash)"
COMP_WORDS=(kdbusctl status org.ex); COMP_CWORD=2
_kdbusctl_completion kdbusctl org.ex status
printf '%s\\n' "${COMPREPLY[@]}"
"""
    with Connection(bus.path) as peer:
        peer.acquire("org.example.A")
        result = subprocess.run(
            ["bash", "--norc", "-c", script],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment(KDBUS_BUS=bus.path, PATH=f"{tmp_path}:{os.environ['PATH']}"),
        )
        assert (result.stdout, result.stderr) == ("org.example.A\n", "")

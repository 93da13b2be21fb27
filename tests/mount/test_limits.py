"""A daemon at the limits of its surroundings: threads, memory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs import surroundings
from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, encode, make_bus, make_endpoint
from kdbusfs.native._native import lib
from tests.conftest import DomainMount
from tests.mount.test_hostile_memory import STALL, Program, Scene, everything_comes_back, outcome, scene, until
from tests.support.cgroups import Group, group

__all__ = ["scene"]
pytestmark = pytest.mark.mount


def threads(domain: DomainMount) -> int:
    return len(list(Path(f"/proc/{domain.pid}/task").iterdir()))


@contextlib.contextmanager
def few_threads(domain: DomainMount) -> Iterator[Group]:
    """Limit the threads of the daemon to the number that it has while idle."""
    counts = [0]

    def is_settled() -> bool:
        time.sleep(1.5)  # longer than an idle worker thread waits for work
        counts.append(threads(domain))
        return counts[-1] == counts[-2]

    until(is_settled)
    assert int(domain.stats()["spares"]) == lib.KFS_SPARES
    with group("pids") as found:
        found.add(domain.pid)
        found.write("pids.max", counts[-1])
        try:
            yield found
        finally:
            found.dismiss(domain.pid)


def test_without_further_threads_nobody_is_held_up(scene: Scene) -> None:
    """GEN-5: spare readers exist in advance, more than one user can occupy."""
    bound = lib.KFS_STUCK_PER_UID
    first = scene.prepare("payload", str(bound))
    second = scene.prepare("payload", str(bound), "4712")
    with few_threads(scene.domain) as limit:
        hold_up(scene, limit, first, second)
    everything_comes_back(scene)


def test_a_client_says_hello_without_further_threads(domain_mount: DomainMount) -> None:
    """HELLO, POOL-2: if no thread can swap the client's descriptor, the client reads copies."""
    with make_bus(domain_mount.path, "x") as bus, few_threads(domain_mount), Connection(bus.path) as one:
        one.send(one.id, b"works")
        assert one.receive(5).data() == b"works"


def hold_up(scene: Scene, limit: Group, first: Program, second: Program) -> None:
    bound = lib.KFS_STUCK_PER_UID
    first.tell("go")
    until(lambda: scene.stuck() == bound)
    assert scene.exchange(100) < STALL
    # The last reader cannot be replaced, so it does not access client memory.
    second.tell("go")
    until(lambda: int(scene.domain.stats()["spares"]) == 0)
    until(lambda: int(scene.domain.stats()["blocked"]) > 0)
    stuck = scene.stuck()
    assert stuck == lib.KFS_SPARES
    with pytest.raises(OSError) as caught:
        scene.sender.send(scene.receiver.id, b"x" * 8)
    assert caught.value.errno == errno.EFAULT
    assert scene.receiver.recv() is None  # commands that need no client memory work
    assert "no spare reader can be started" in scene.domain.log()

    limit.write("pids.max", "max")
    until(lambda: int(scene.domain.stats()["spares"]) == lib.KFS_SPARES)
    assert scene.exchange(100) < STALL
    scene.answer()
    for client, count in ((first, bound), (second, stuck - bound)):
        results = outcome(client)["results"]
        assert results == [0] * count + [errno.EFAULT] * (bound - count)
    scene.domain.expect(0)


MIB = 1 << 20


@pytest.fixture
def small_domain(private_mounts: None) -> Iterator[DomainMount]:
    """A domain whose daemon is in a control group with 120 MiB."""
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    with group("memory") as found:
        found.write("memory.max" if found.is_v2 else "memory.limit_in_bytes", 120 * MIB)
        with found.inside():
            domain = DomainMount(path)
        try:
            domain.wait_until_ready()
            yield domain
            assert domain.stop() == 0
            assert domain.log() == ""
        finally:
            domain.clean_up()
            path.rmdir()


def test_users_together_do_not_fill_the_memory_of_the_daemon(small_domain: DomainMount) -> None:
    """QUO, POOL: each user takes all memory that he gets; the daemon survives, and another user gets some."""
    limit = int(small_domain.stats()["memory_limit"])
    assert 20 * MIB < limit < 120 * MIB * 3 // 4
    bus = make_bus(small_domain.path, "greedy", access=c.MAKE_ACCESS_WORLD)
    programs = []
    taken = []
    try:
        for uid in range(4000, 4006):
            programs.append(Program("greedy", str(bus.path), str(uid)))
            taken.append(json.loads(programs[-1].hear()))
        assert {each["errno"] for each in taken} == {errno.ENOBUFS}
        assert limit * 0.4 < taken[0]["bytes"] <= limit // 2
        assert sum(each["bytes"] for each in taken) <= limit
        # A user who needs little gets it.
        sender, receiver = Connection(bus), Connection(bus)
        for _ in range(10):
            sender.send(receiver.id, b"x" * 4096)
            with receiver.receive(STALL) as message:
                assert len(message.data()) == 4096
        for connection in (sender, receiver):
            connection.close()
    finally:
        for program in programs:
            program.end()
    bus.close()
    until(lambda: int(small_domain.stats()["memory"]) == 0)


def test_the_daemon_is_not_the_first_to_be_ended_for_lack_of_memory(domain_mount: DomainMount) -> None:
    lower = f"echo {surroundings.OOM_SCORE} > /proc/self/oom_score_adj"
    if subprocess.run(["sh", "-c", lower], stderr=subprocess.DEVNULL, timeout=120).returncode:
        pytest.skip("nobody here may lower an OOM score: no CAP_SYS_RESOURCE")
    assert int(Path(f"/proc/{domain_mount.pid}/oom_score_adj").read_text()) <= surroundings.OOM_SCORE
    for task in Path(f"/proc/{domain_mount.pid}/task").iterdir():
        assert int((task / "oom_score_adj").read_text()) <= surroundings.OOM_SCORE


def resident(domain: DomainMount) -> int:
    return int(Path(f"/proc/{domain.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_that_clients_have_given_back_is_given_back_to_the_system(domain_mount: DomainMount) -> None:
    """Policies of many objects end, while others stay.

    Remaining objects keep a part of the heap: 14 to 31 % of the memory of the policies, from run to run.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before = resident(domain_mount)
    with make_bus(domain_mount.path, "policies") as bus:
        endpoints = []
        for number in range(1400):
            accesses = [encode.user(number * 1000 + each, c.POLICY_TALK) for each in range(700)]
            endpoints.append(make_endpoint(bus, f"0-e{number}", policy={f"a.n{number}": accesses}))
        full = resident(domain_mount)
        assert int(domain_mount.stats()["memory"]) > 96 * MIB
        for endpoint in endpoints:
            endpoint.close()
        until(lambda: int(domain_mount.stats()["memory"]) < MIB)
        until(lambda: resident(domain_mount) - before < (full - before) / 2)
